//! What the machine brings along: a graphics card that can be computed on, and a clock that can be trusted.

use std::{path::Path, process::Stdio, time::Duration};

use atelier_domain::Timestamp;
use tokio::process::Command;

use super::Check;
use crate::{config::Config, store::newest_moment};

/// A driver that wakes up takes seconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// The driver that libtorch's CUDA needs.
const DRIVER_NEEDED: u32 = 580;

/// How far a clock may be behind what was written before.
const TOLERANCE_MS: i64 = 60_000;

/// The NVIDIA driver, and the cards that it knows.
pub(super) async fn card(config: &Config) -> Check {
    let name = "graphics card";
    let asked = config.worker.device.as_str();
    let driver = std::fs::read_to_string("/proc/driver/nvidia/version").ok();
    match (driver, cards().await) {
        (_, Ok(cards)) if !cards.is_empty() => judge_cards(name, &cards, asked),
        (Some(_), Ok(_)) => Check::warn(
            name,
            "an NVIDIA driver is loaded, and knows no card",
            "under a service: the drop-in for CUDA, and nvidia-persistenced before it",
        ),
        (Some(driver), Err(why)) => {
            let first = driver.lines().next().unwrap_or_default().to_owned();
            Check::warn(name, first, format!("nvidia-smi would tell more: {why}"))
        }
        (None, _) if asked.starts_with("cuda") => {
            let hint = "install the driver, or set worker.device = \"cpu\"";
            Check::fail(name, format!("worker.device is {asked:?}, and no NVIDIA driver is loaded"), hint)
        }
        (None, _) => Check::ok(name, "no NVIDIA driver is loaded: computing on the CPU"),
    }
}

/// Name, driver, compute capability and memory of each card.
async fn cards() -> Result<Vec<String>, String> {
    let child = Command::new("nvidia-smi")
        .args(["--query-gpu=name,driver_version,compute_cap,memory.total,memory.free", "--format=csv,noheader"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    match tokio::time::timeout(PATIENCE, child).await {
        Err(_) => Err(format!("it said nothing within {} s", PATIENCE.as_secs())),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(output)) if !output.status.success() => Err(format!("it ended with {}", output.status)),
        Ok(Ok(output)) => {
            let text = String::from_utf8_lossy(&output.stdout);
            Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
        }
    }
}

fn judge_cards(name: &'static str, cards: &[String], asked: &str) -> Check {
    let described: Vec<String> = cards.iter().enumerate().map(|(n, card)| describe_card(n, card)).collect();
    let message = described.join("\n");
    let major = cards.first().and_then(|card| card.split(',').nth(1)?.trim().split('.').next()?.parse::<u32>().ok());
    if major.is_some_and(|major| major < DRIVER_NEEDED) && asked != "cpu" {
        return Check::warn(name, message, format!("CUDA needs a driver of version {DRIVER_NEEDED} or newer"));
    }
    Check::ok(name, message)
}

fn describe_card(number: usize, card: &str) -> String {
    match card.split(',').map(str::trim).collect::<Vec<_>>().as_slice() {
        [model, driver, capability, total, free] => {
            format!("cuda:{number} {model}, driver {driver}, capability {capability}, {free} of {total} free")
        }
        _ => format!("cuda:{number} {card}"),
    }
}

/// Whether time runs forward here: retention, ids and back-offs go by it.
pub(super) async fn clock(config: &Config) -> Check {
    let name = "clock";
    let now = Timestamp::now();
    let built = std::env::current_exe().ok().and_then(|exe| {
        let modified = jiff::Timestamp::try_from(exe.metadata().ok()?.modified().ok()?).ok()?;
        Some(Timestamp(modified.as_millisecond()))
    });
    let newest = newest_moment(&config.paths.data.join("atelier.db")).await.ok().flatten();
    let synchronised = Path::new("/run/systemd/timesync/synchronized").exists();
    judge_clock(name, now, built, newest, synchronised)
}

fn judge_clock(
    name: &'static str,
    now: Timestamp,
    built: Option<Timestamp>,
    newest: Option<Timestamp>,
    synchronised: bool,
) -> Check {
    let hint = "set it, and keep it set: systemd-timesyncd or chrony";
    if built.is_some_and(|built| now.0 < built.0 - TOLERANCE_MS) {
        return Check::fail(name, format!("{now} lies before this program was installed"), hint);
    }
    if let Some(newest) = newest.filter(|newest| now.0 < newest.0 - TOLERANCE_MS) {
        return Check::warn(name, format!("{now} lies before what was written at {newest}"), hint);
    }
    let how = if synchronised { ", synchronised" } else { "" };
    Check::ok(name, format!("{now}{how}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Verdict;

    #[test]
    fn a_card_is_told_with_its_driver_and_an_old_driver_is_a_warning() {
        let card = |driver: &str| vec![format!("NVIDIA H100, {driver}, 9.0, 81559 MiB, 80000 MiB")];
        let check = judge_cards("graphics card", &card("580.65.06"), "auto");
        assert_eq!(check.verdict, Verdict::Ok);
        assert_eq!(check.message, "cuda:0 NVIDIA H100, driver 580.65.06, capability 9.0, 80000 MiB of 81559 MiB free");
        assert_eq!(judge_cards("graphics card", &card("535.1"), "auto").verdict, Verdict::Warn);
        assert_eq!(judge_cards("graphics card", &card("535.1"), "cpu").verdict, Verdict::Ok);
    }

    #[test]
    fn a_clock_that_runs_behind_what_was_written_is_told_of() {
        const HOUR: i64 = 3_600_000;
        let judge = |now: i64, built: i64, newest: Option<i64>| {
            judge_clock("clock", Timestamp(now), Some(Timestamp(built)), newest.map(Timestamp), true).verdict
        };
        assert_eq!(judge(10 * HOUR, HOUR, Some(9 * HOUR)), Verdict::Ok);
        assert_eq!(judge(10 * HOUR, 11 * HOUR, None), Verdict::Fail);
        assert_eq!(judge(10 * HOUR, HOUR, Some(11 * HOUR)), Verdict::Warn);
        assert_eq!(judge(10 * HOUR, HOUR, Some(10 * HOUR + 1000)), Verdict::Ok, "a second is nothing");
    }
}

//! What the inbox costs: a look at a hundred thousand waiting files, and the way of one file from its rename into the
//! inbox until the intake is asked to make a job of it.
//!
//! `cargo bench --bench inbox`, or with the folder to work in (a disk of its own kind) as its argument.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use atelier::inbox::{
    Admitted, Inbox, InboxClaim, Intake, IntakeError, Judge, NewFile, Settings, recent::Recent, scout::Scout,
};
use atelier_domain::{ErrorInfo, Input, JobId, JobSpec};
use rustix::time::{ClockId, clock_gettime};
use tokio_util::sync::CancellationToken;

/// Takes everything, and says when.
#[derive(Default)]
struct Anything {
    ids: AtomicU64,
    full: bool,
    admitted: Mutex<HashMap<PathBuf, Instant>>,
}

impl Judge for Anything {
    fn probe(&self, path: &Path, _: &str) -> Result<(), ErrorInfo> {
        let _ = fs::metadata(path);
        Ok(())
    }

    fn inspect(&self, path: &Path, name: &str) -> Result<Input, ErrorInfo> {
        let bytes = fs::read(path).map(|bytes| bytes.len() as u64).unwrap_or_default();
        let (media_type, sha256) = (String::new(), String::new());
        Ok(Input { name: name.to_owned(), media_type, bytes, width: 1, height: 1, sha256 })
    }

    fn check(&self, _: &JobSpec, _: usize) -> Result<(), ErrorInfo> {
        Ok(())
    }

    fn is_preset(&self, _: &str) -> bool {
        false
    }
}

impl Intake for Anything {
    fn new_id(&self) -> JobId {
        JobId::from_ulid(ulid::Ulid::from_parts(self.ids.fetch_add(1, Ordering::Relaxed), 0))
    }

    fn free_places(&self) -> u64 {
        if self.full { 0 } else { u64::MAX }
    }

    async fn claim_begin(&self, _: Vec<InboxClaim>) -> Result<(), IntakeError> {
        Ok(())
    }

    async fn claims(&self) -> Result<Vec<InboxClaim>, IntakeError> {
        Ok(Vec::new())
    }

    async fn claim_end(&self, _: Vec<JobId>) -> Result<(), IntakeError> {
        Ok(())
    }

    async fn admit(&self, file: NewFile) -> Result<Admitted, IntakeError> {
        if let Ok(mut admitted) = self.admitted.lock() {
            admitted.insert(file.rel_path, Instant::now());
        }
        Ok(Admitted::New)
    }

    async fn known(&self, _: Vec<JobId>) -> Result<HashSet<JobId>, IntakeError> {
        Ok(HashSet::new())
    }

    async fn cancel(&self, _: JobId) -> Result<(), IntakeError> {
        Ok(())
    }
}

fn main() -> anyhow::Result<()> {
    let folder =
        std::env::args().skip(1).find(|arg| !arg.starts_with('-')).map_or_else(std::env::temp_dir, PathBuf::from);
    scan(&folder)?;
    tokio::runtime::Runtime::new()?.block_on(rename_in(&folder))
}

fn scan(folder: &Path) -> anyhow::Result<()> {
    const FILES: usize = 100_000;
    let temp = tempfile::tempdir_in(folder)?;
    for n in 0..FILES {
        fs::write(temp.path().join(format!("IMG_{n:06}.jpg")), "x")?;
    }
    let judge = Arc::new(Anything { full: true, ..Anything::default() });
    let settings = Settings::new(temp.path().to_owned());
    let mut scout = Scout::new(judge, settings, Arc::new(Recent::default()), Arc::default());
    let before = resident();
    for round in 1..=5 {
        let (wall, cpu) = (Instant::now(), cpu());
        scout.look(Instant::now(), true, 0);
        let (wall, cpu) = (wall.elapsed(), self::cpu().saturating_sub(cpu));
        let status = scout.status();
        report(&format!(
            "scan {round}: {} files waiting, {:.1} ms of CPU, {:.1} ms of wall time, {} KiB more resident",
            status.waiting,
            cpu.as_secs_f64() * 1e3,
            wall.as_secs_f64() * 1e3,
            resident().saturating_sub(before),
        ));
    }
    Ok(())
}

async fn rename_in(folder: &Path) -> anyhow::Result<()> {
    const FILES: usize = 500;
    let temp = tempfile::tempdir_in(folder)?;
    let inbox = temp.path().join("inbox");
    fs::create_dir(&inbox)?;
    let intake = Arc::new(Anything::default());
    let (_settings, receiver) = tokio::sync::watch::channel(Settings::new(inbox.clone()));
    let shutdown = CancellationToken::new();
    let handle = Inbox::new(receiver).start(Arc::clone(&intake), shutdown.clone());
    while handle.status().scans == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let bytes = vec![7; 1 << 20];
    let mut taken = Vec::new();
    for n in 0..FILES {
        let name = PathBuf::from(format!("{n}.jpg"));
        fs::write(temp.path().join("outside"), &bytes)?;
        let began = Instant::now();
        fs::rename(temp.path().join("outside"), inbox.join(&name))?;
        let admitted = loop {
            if let Some(admitted) = intake.admitted.lock().ok().and_then(|admitted| admitted.get(&name).copied()) {
                break admitted;
            }
            tokio::time::sleep(Duration::from_micros(200)).await;
        };
        taken.push(admitted - began);
    }
    taken.sort_unstable();
    let at = |percent: usize| taken[(FILES * percent / 100).min(FILES - 1)].as_secs_f64() * 1e3;
    report(&format!(
        "rename of 1 MiB into the inbox until a job is asked for: p50 {:.1} ms, p90 {:.1} ms, p99 {:.1} ms, worst {:.1} ms",
        at(50),
        at(90),
        at(99),
        at(100)
    ));
    shutdown.cancel();
    handle.stopped().await;
    Ok(())
}

fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// KiB.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    line.and_then(|line| line.split_whitespace().nth(1)).and_then(|kib| kib.parse().ok()).unwrap_or(0)
}

#[expect(clippy::print_stdout, reason = "a benchmark reports to whoever runs it")]
fn report(line: &str) {
    println!("{line}");
}

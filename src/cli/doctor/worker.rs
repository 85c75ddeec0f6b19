//! Whether the worker starts, and where it would compute.

use std::{ffi::OsString, process::Stdio, time::Duration};

use atelier_domain::protocol::PROTOCOL_VERSION;
use serde_json::Value;
use tokio::process::Command;

use super::Check;
use crate::{app, config::Config};

/// A driver that wakes up may take many seconds.
const PATIENCE: Duration = Duration::from_mins(2);

const NAME: &str = "worker";

pub(super) async fn check(config: &Config) -> Check {
    let command = if config.worker.command.is_empty() {
        vec![app::default_worker().into_os_string()]
    } else {
        config.worker.command.clone()
    };
    let [program, arguments @ ..] = command.as_slice() else {
        return Check::fail(NAME, "worker.command is empty", "name the worker's program");
    };
    let shown = program.to_string_lossy();
    let child = Command::new(program)
        .args(arguments)
        .arg("--probe")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let child = match child {
        Ok(child) => child,
        Err(error) => return Check::fail(NAME, format!("{shown} cannot be started: {error}"), install_hint(program)),
    };
    let output = match tokio::time::timeout(PATIENCE, child.wait_with_output()).await {
        Err(_) => {
            let message = format!("{shown} --probe said nothing within {} s", PATIENCE.as_secs());
            return Check::fail(NAME, message, "the graphics driver may hang; worker.device = \"cpu\" does without it");
        }
        Ok(Err(error)) => return Check::fail(NAME, format!("{shown} --probe: {error}"), install_hint(program)),
        Ok(Ok(output)) => output,
    };
    let said = String::from_utf8_lossy(&output.stdout);
    let facts = said.lines().rev().find_map(|line| serde_json::from_str::<Value>(line).ok());
    match facts {
        Some(facts) if output.status.success() => judge(&shown, &facts),
        _ => {
            let complaint = String::from_utf8_lossy(&output.stderr);
            let complaint = complaint.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
            let message = format!("{shown} --probe ended with {}: {complaint}", output.status);
            Check::fail(NAME, message, "libtorch may be missing or of another version: see LIBTORCH in the README")
        }
    }
}

/// A worker of another version would refuse, or be refused, at the first job.
fn judge(program: &str, facts: &Value) -> Check {
    let message = describe(program, facts);
    match facts.get("protocol").and_then(Value::as_u64) {
        Some(protocol) if protocol != u64::from(PROTOCOL_VERSION) => Check::fail(
            NAME,
            format!("{message}\nit speaks protocol {protocol}, this daemon {PROTOCOL_VERSION}"),
            "install atelier and atelier-worker of the same version",
        ),
        _ => Check::ok(NAME, message),
    }
}

fn install_hint(program: &OsString) -> String {
    if std::path::Path::new(program).is_absolute() {
        "build it with `make`, or name it in worker.command".to_owned()
    } else {
        "is it in PATH? worker.command takes a whole path too".to_owned()
    }
}

/// Whatever of version, libtorch and device the worker tells.
fn describe(program: &str, facts: &Value) -> String {
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let device = facts.get("device").unwrap_or(&Value::Null);
    let mut parts = vec![program.to_owned()];
    parts.extend(text(facts, "worker_version").or_else(|| text(facts, "version")).map(|v| format!("version {v}")));
    parts.push(text(facts, "libtorch").map_or_else(|| "without libtorch".to_owned(), |v| format!("libtorch {v}")));
    let name = device.as_str().map(str::to_owned).or_else(|| text(device, "name"));
    let model = text(device, "model").filter(|model| !model.is_empty());
    let memory = device.get("memory_bytes").and_then(Value::as_u64);
    let threads = device.get("threads").and_then(Value::as_u64).filter(|_| name.as_deref() == Some("cpu"));
    parts.extend(name.map(|name| match model {
        Some(model) => format!("on {name} ({model})"),
        None => format!("on {name}"),
    }));
    parts.extend(threads.map(|n| format!("{n} threads")));
    parts.extend(memory.map(|bytes| format!("{} of memory", super::super::output::size(bytes))));
    let reason = text(device, "reason").or_else(|| text(facts, "reason")).filter(|reason| !reason.is_empty());
    let facts = parts.join(", ");
    reason.map_or(facts.clone(), |reason| format!("{facts}\n{reason}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::doctor::Verdict;

    #[test]
    fn the_worker_tells_where_it_computes_and_why() {
        let facts = json!({"protocol": 1, "worker_version": "0.1.0", "libtorch": "2.13.0",
            "device": {"name": "cpu", "model": "Some CPU", "threads": 2, "memory_bytes": 8_000_000_000_u64,
                "reason": "No driver was found."}});
        assert_eq!(
            describe("/w", &facts),
            "/w, version 0.1.0, libtorch 2.13.0, on cpu (Some CPU), 2 threads, 8.00 GB of memory\nNo driver was found."
        );
        assert_eq!(judge("/w", &facts).verdict, Verdict::Ok);
        let other = judge("/w", &json!({"protocol": 99, "device": "cpu"}));
        assert_eq!(other.verdict, Verdict::Fail, "{other:?}");
        assert_eq!(describe("/w", &json!({"device": "cpu"})), "/w, without libtorch, on cpu");
    }
}

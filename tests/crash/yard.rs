//! A daemon that is killed and started again on the same folders, with what was asked of it since the beginning.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use atelier_testkit::daemon::{Daemon, Http, PATIENCE, Setup, files_below};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{
    client::{Address, Posted, post},
    wishes::{PRESET, WORKER_ARGS, Wish},
};

/// How an input comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Whole at once.
    Moved,
    /// Under its own name from the first byte on.
    Copied,
    /// With an `Idempotency-Key`.
    Keyed,
    /// Without.
    Once,
}

/// Something that was asked for.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    /// The source's path below the inbox, or the request's name: the job's `source.name`.
    pub(crate) name: String,
    pub(crate) wish: usize,
    /// Inputs of one group have the same content; one of them is done, the others are duplicates.
    pub(crate) group: Option<u32>,
    /// `None` for dropped files, and for requests that still wait for an answer.
    pub(crate) posted: Option<Posted>,
}

/// How long a start took, by the daemon's own log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start {
    pub(crate) ready: Duration,
    /// Until a job ran again, where one had been running before.
    pub(crate) running: Option<Duration>,
}

#[derive(Debug)]
pub(crate) struct Yard {
    pub(crate) daemon: Daemon,
    pub(crate) outbox: PathBuf,
    pub(crate) address: Address,
    pub(crate) wishes: Vec<Wish>,
    pub(crate) inputs: Vec<Input>,
    posts: Vec<(usize, JoinHandle<Result<Posted, String>>)>,
    spawned_at: Option<jiff::Timestamp>,
    pub(crate) starts: Vec<Start>,
}

pub(crate) fn setup() -> Setup {
    Setup::new(env!("CARGO_BIN_EXE_atelier"))
        .worker_args(&WORKER_ARGS)
        .set("checkpoint.interval", "50ms")
        .set("progress.write_interval", "200ms")
        .set("log.format", "json")
        // Kills from outside are nobody's fault: no job may fail of them.
        .set("queue.max_crashes", 100)
        .set("queue.backoff", "100ms")
        .set(&format!("presets.{PRESET}.kind"), "edit")
        .set(&format!("presets.{PRESET}.seed"), 3)
}

impl Yard {
    pub(crate) fn new(setup: Setup, wishes: &[Wish]) -> Self {
        let daemon = setup.prepare();
        let outbox = daemon.outbox();
        Self::with_outbox(daemon, outbox, wishes)
    }

    pub(crate) fn with_outbox(daemon: Daemon, outbox: PathBuf, wishes: &[Wish]) -> Self {
        Self {
            daemon,
            outbox,
            address: Address::default(),
            wishes: wishes.to_vec(),
            inputs: Vec::new(),
            posts: Vec::new(),
            spawned_at: None,
            starts: Vec::new(),
        }
    }
}

/// What is asked of it.
impl Yard {
    /// Asks for a wish, under a name that no other input has.
    pub(crate) fn ask(&mut self, name: &str, wish: usize, way: Way, group: Option<u32>) {
        let asked = self.wishes[wish].clone();
        let name = match &asked {
            Wish::Json(_) | Wish::Form { .. } => {
                let handle = post(&self.address, name, &asked, way == Way::Keyed);
                self.posts.push((self.inputs.len(), handle));
                name.to_owned()
            }
            Wish::Picture { bytes, prompt } => {
                let name = format!("{name}.png");
                if let Some(prompt) = prompt {
                    self.daemon.drop_file(format!("{name}.txt"), prompt.as_bytes());
                }
                self.bring(&name, bytes, way);
                name
            }
            Wish::Preset { bytes, prompt } => {
                let name = format!("{PRESET}/{name}.png");
                self.daemon.drop_file(format!("{name}.txt"), prompt.as_bytes());
                self.bring(&name, bytes, way);
                name
            }
            Wish::Folder { bytes, toml } => {
                let staged = tempfile::tempdir_in(self.daemon.root()).expect("a folder beside the inbox");
                fs::write(staged.path().join("photo.png"), bytes).expect("written");
                fs::write(staged.path().join("photo.png.toml"), toml).expect("written");
                fs::rename(staged.keep(), self.daemon.inbox().join(name)).expect("moved in");
                format!("{name}/photo.png")
            }
            Wish::Spec(job) => {
                let name = format!("{name}.json");
                self.bring(&name, job.to_string().as_bytes(), way);
                name
            }
        };
        self.inputs.push(Input { name, wish, group, posted: None });
    }

    fn bring(&self, name: &str, bytes: &[u8], way: Way) {
        if way == Way::Moved {
            self.daemon.drop_file(name, bytes);
            return;
        }
        let path = self.daemon.inbox().join(name);
        fs::create_dir_all(path.parent().expect("it lies in the inbox")).expect("a sub-folder");
        let mut file = File::create(path).expect("a file in the inbox");
        for part in bytes.chunks(bytes.len() / 3 + 1) {
            file.write_all(part).expect("written");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The files that an input consists of, below the inbox; none for a request.
    pub(crate) fn sources(&self, input: &Input) -> Vec<String> {
        let name = &input.name;
        match &self.wishes[input.wish] {
            Wish::Json(_) | Wish::Form { .. } => vec![],
            Wish::Picture { prompt: None, .. } | Wish::Spec(_) => vec![name.clone()],
            Wish::Picture { prompt: Some(_), .. } | Wish::Preset { .. } => vec![name.clone(), format!("{name}.txt")],
            Wish::Folder { .. } => vec![name.clone(), format!("{name}.toml")],
        }
    }

    /// Files that still wait in the inbox or are being worked on.
    pub(crate) fn in_the_inbox(&self) -> Vec<PathBuf> {
        let inbox = self.daemon.inbox();
        let settled = [inbox.join("done"), inbox.join("failed")];
        let mut files = files_below(&inbox);
        files.retain(|path| !settled.iter().any(|folder| path.starts_with(folder)));
        files
    }

    /// Takes in the answers that have come; how many are still to come.
    pub(crate) fn collect(&mut self) -> usize {
        let (ended, open) = std::mem::take(&mut self.posts).into_iter().partition(|(_, handle)| handle.is_finished());
        self.posts = open;
        for (index, handle) in ended {
            let posted = handle.join().unwrap_or_else(|_| Err("the client panicked".into()));
            self.inputs[index].posted = Some(posted.unwrap_or_else(Posted::Wrong));
        }
        self.posts.len()
    }
}

/// Its life and death.
impl Yard {
    /// Starts the daemon with these failpoints; `false` where it died before it was ready.
    pub(crate) fn launch(&mut self, failpoints: &str) -> bool {
        self.spawn(failpoints);
        self.wait_ready()
    }

    pub(crate) fn spawn(&mut self, failpoints: &str) {
        self.daemon.set_env("ATELIER_FAILPOINTS", failpoints);
        self.spawned_at = Some(jiff::Timestamp::now());
        self.daemon.spawn();
    }

    pub(crate) fn wait_ready(&mut self) -> bool {
        let (pid, note) = (self.daemon.pid(), self.daemon.data().join("daemon.json"));
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = fs::read(&note).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
            if let Some(found) = found.filter(|found| found["pid"] == pid) {
                self.address.set(found["address"].as_str().map(str::to_owned));
                return true;
            }
            if self.is_dead() {
                return false;
            }
            assert!(Instant::now() < deadline, "the daemon is not ready after {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Whether it has ended, though nobody may have waited for it yet.
    pub(crate) fn is_dead(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.daemon.pid())).unwrap_or_default();
        stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()).is_none_or(|state| state == "Z")
    }

    pub(crate) fn wait_dead(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while !self.is_dead() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    /// SIGKILL, unless it is dead already.
    pub(crate) fn kill(&mut self) {
        send(self.daemon.pid(), Signal::KILL);
        self.bury();
    }

    /// Takes note of a dead daemon. It must have been killed: any other end is its own fault.
    pub(crate) fn bury(&mut self) {
        self.address.set(None);
        let status = self.daemon.wait_exit(PATIENCE);
        assert_eq!(status.signal(), Some(9), "the daemon ended by itself: {status}");
        self.note_start();
    }

    /// A soft end.
    pub(crate) fn stop(&mut self) {
        self.address.set(None);
        let status = self.daemon.sigterm();
        assert!(status.success(), "the daemon ended with {status}");
        self.note_start();
    }

    /// Kills the worker, where there is one. By its number: it may be gone by then, which is as well.
    pub(crate) fn kill_worker(&self) -> bool {
        self.daemon.worker_pid().is_some_and(|pid| send(pid, Signal::KILL))
    }

    /// Reads from the log of the life that has ended how it began.
    fn note_start(&mut self) {
        let Some(spawned_at) = self.spawned_at.take() else { return };
        let log = self.daemon.log();
        let lines: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let after = |line: &Value| {
            let at: jiff::Timestamp = line["timestamp"].as_str()?.parse().ok()?;
            Duration::try_from(at.duration_since(spawned_at)).ok()
        };
        let find = |message: &str| lines.iter().find(|line| line["message"] == message);
        let Some(ready) = find("ready").and_then(after) else { return };
        let interrupted = find("repaired the queue").and_then(|line| line["interrupted"].as_u64()).unwrap_or(0);
        let running = find("running").and_then(after).filter(|_| interrupted > 0);
        self.starts.push(Start { ready, running });
    }
}

/// Its rest.
impl Yard {
    /// Waits until everything that was asked for has ended.
    ///
    /// # Panics
    /// When nothing has moved for a while.
    pub(crate) fn wait_quiet(&mut self) {
        let mut before = String::new();
        let mut deadline = Instant::now() + PATIENCE;
        while let Some(unrest) = self.unrest() {
            if unrest != before {
                deadline = Instant::now() + PATIENCE;
            }
            assert!(Instant::now() < deadline, "nothing has moved for {PATIENCE:?}: {unrest}");
            assert!(!self.is_dead(), "the daemon died with {unrest}");
            before = unrest;
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn unrest(&mut self) -> Option<String> {
        let posts = self.collect();
        if posts > 0 {
            return Some(format!("{posts} requests wait for an answer"));
        }
        let files = self.in_the_inbox();
        if let Some(first) = files.first() {
            return Some(format!("{} files in the inbox, such as {}", files.len(), first.display()));
        }
        let live = self.live_jobs();
        if live != Some(0) {
            return Some(format!("{live:?} jobs live"));
        }
        let folders = subfolders(&self.daemon.data().join("checkpoints"));
        folders.first().map(|first| format!("{} folders of jobs, such as {}", folders.len(), first.display()))
    }

    /// Jobs that have not ended; `None` where nobody says.
    pub(crate) fn live_jobs(&self) -> Option<u64> {
        let http = Http::new(&self.address.get()?);
        let queue = http.try_send("GET", "/api/v1/queue", &[], &[]).ok().filter(|answer| answer.status == 200)?;
        let queue: Value = serde_json::from_slice(&queue.body).ok()?;
        Some(["queued", "running", "retrying"].iter().filter_map(|status| queue["counts"][status].as_u64()).sum())
    }
}

pub(crate) fn subfolders(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    entries.filter(|entry| entry.file_name() != ".uploads").map(|entry| entry.path()).collect()
}

/// Whether there was somebody to get it.
fn send(pid: u32, signal: Signal) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id");
    kill_process(pid, signal).is_ok()
}

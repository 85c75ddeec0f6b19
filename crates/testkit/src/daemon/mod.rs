//! Starts the real `atelier serve` on folders of its own, with the stand-in worker, and looks at it from outside.
//!
//! For the black-box tests of the daemon: files, HTTP, signals and exit codes, as a user meets them. It knows the
//! names that the contract promises, and nothing of the daemon's insides.

use std::{
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

pub mod http;

pub use http::{Answer, Http, Part};

pub use crate::wait::{PATIENCE, wait_until};

/// The program of the stand-in, beside the daemon's own.
const FAKE_WORKER: &str = "atelier-fake-worker";

/// A daemon that is about to be started: its folders and its configuration.
#[derive(Debug)]
pub struct Setup {
    program: PathBuf,
    root: TempDir,
    config: toml::Table,
    env: Vec<(String, String)>,
    worker_program: Option<PathBuf>,
    worker_args: Vec<String>,
}

impl Setup {
    /// For the daemon at `program`: in a test, `env!("CARGO_BIN_EXE_atelier")`. Waits are short, so that tests are.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        let root = tempfile::tempdir().expect("a temporary folder");
        let below = |name: &str| root.path().join(name).to_str().expect("a temporary folder is UTF-8").to_owned();
        for folder in ["watch-inbox", "models"] {
            fs::create_dir(below(folder)).expect("a new folder");
        }
        let folders = [("inbox.dir", below("watch-inbox")), ("paths.data", below("data"))];
        let models = below("models");
        let setup = Self {
            program: program.into(),
            root,
            config: toml::Table::new(),
            env: Vec::new(),
            worker_program: None,
            worker_args: Vec::new(),
        };
        folders
            .into_iter()
            .fold(setup, |setup, (key, folder)| setup.set(key, folder))
            .set("paths.models", vec![models])
            .set("server.listen", "127.0.0.1:0")
            .set("inbox.settle", "50ms")
            .set("inbox.sidecar_wait", "50ms")
            .set("inbox.rescan", "1s")
            .set("models.hf_cache", "off")
            .set("checkpoint.interval", "100ms")
            .model("fake", "AtelierFake")
    }

    /// Sets a key of the configuration, such as `queue.max_crashes`.
    #[must_use]
    pub fn set(mut self, key: &str, value: impl Into<toml::Value>) -> Self {
        set(&mut self.config, key, value.into());
        self
    }

    /// Sets an environment variable of the daemon, such as `ATELIER_FAILPOINTS`.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Arguments of the stand-in, such as `--step-ms 50`.
    #[must_use]
    pub fn worker_args(mut self, args: &[&str]) -> Self {
        self.worker_args = args.iter().map(ToString::to_string).collect();
        self
    }

    /// Another worker than the stand-in beside the daemon.
    #[must_use]
    pub fn worker(mut self, program: impl Into<PathBuf>) -> Self {
        self.worker_program = Some(program.into());
        self
    }

    /// Installs a model: a folder with a configuration of this class and weights that hold nothing.
    #[must_use]
    pub fn model(self, id: &str, class_name: &str) -> Self {
        let folder = self.root.path().join("models").join(id);
        fs::create_dir_all(&folder).expect("a folder for the model");
        let config = serde_json::json!({ "_class_name": class_name });
        fs::write(folder.join("config.json"), config.to_string()).expect("written");
        // An empty safetensors file: the length of its header, and the header.
        fs::write(folder.join("model.safetensors"), b"\x02\0\0\0\0\0\0\0{}").expect("written");
        self
    }

    pub fn root(&self) -> &Path {
        self.root.path()
    }

    pub fn inbox(&self) -> PathBuf {
        self.root.path().join("watch-inbox")
    }

    /// Starts the daemon and waits until it is ready.
    #[track_caller]
    pub fn start(self) -> Daemon {
        let mut daemon = self.prepare();
        daemon.start();
        daemon
    }

    /// Writes the configuration without starting anything.
    #[track_caller]
    pub fn prepare(mut self) -> Daemon {
        let worker = self.worker_program.take().unwrap_or_else(|| self.program.with_file_name(FAKE_WORKER));
        assert!(worker.exists(), "{} is missing: run `cargo build` first", worker.display());
        if !has(&self.config, "worker.command") {
            let program = worker.to_str().expect("a path of UTF-8").to_owned();
            let command: Vec<String> = std::iter::once(program).chain(self.worker_args.clone()).collect();
            set(&mut self.config, "worker.command", command.into());
        }
        let worker_name = worker.file_name().expect("a program has a name").to_string_lossy().into_owned();
        let daemon = Daemon {
            program: self.program,
            root: self.root,
            config: self.config,
            env: self.env,
            worker_name,
            process: None,
            http: None,
            starts: AtomicU32::new(0),
        };
        daemon.write_config();
        daemon
    }
}

/// A daemon under test. Killed when dropped; its log is printed when the test panics.
#[derive(Debug)]
pub struct Daemon {
    program: PathBuf,
    root: TempDir,
    config: toml::Table,
    env: Vec<(String, String)>,
    worker_name: String,
    process: Option<Child>,
    http: Option<Http>,
    starts: AtomicU32,
}

/// Its folders.
impl Daemon {
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    pub fn inbox(&self) -> PathBuf {
        self.root.path().join("watch-inbox")
    }

    pub fn data(&self) -> PathBuf {
        self.root.path().join("data")
    }

    pub fn outbox(&self) -> PathBuf {
        self.data().join("outbox")
    }

    pub fn config_file(&self) -> PathBuf {
        self.root.path().join("config.toml")
    }

    /// Puts a whole file into the inbox at once, by renaming it in. `name` may lie in a sub-folder.
    #[track_caller]
    pub fn drop_file(&self, name: impl AsRef<Path>, bytes: &[u8]) -> PathBuf {
        let staged = tempfile::NamedTempFile::new_in(self.root.path()).expect("a file beside the inbox");
        fs::write(staged.path(), bytes).expect("written");
        let target = self.inbox().join(name);
        fs::create_dir_all(target.parent().expect("it lies in the inbox")).expect("a sub-folder");
        staged.persist(&target).expect("renamed");
        target
    }

    /// All files below the outbox, sorted.
    pub fn published(&self) -> Vec<PathBuf> {
        files_below(&self.outbox())
    }

    /// Changes the configuration file; a running daemon learns of it by SIGHUP or the next start.
    pub fn set(&mut self, key: &str, value: impl Into<toml::Value>) {
        set(&mut self.config, key, value.into());
        self.write_config();
    }

    /// Sets an environment variable for the next start; an empty value removes it.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.env.retain(|(known, _)| known != name);
        if !value.is_empty() {
            self.env.push((name.into(), value.into()));
        }
    }

    fn write_config(&self) {
        let text = toml::to_string(&self.config).expect("a table is TOML");
        fs::write(self.config_file(), text).expect("written");
    }
}

/// Its process.
impl Daemon {
    /// The program with `args`, in the test's folder and environment: the command line under test.
    pub fn command<I: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = I>) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args).current_dir(self.root.path()).stdin(Stdio::null());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ATELIER") {
                command.env_remove(name);
            }
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts it and waits until it is ready.
    #[track_caller]
    pub fn start(&mut self) {
        self.spawn();
        let ready = self.data().join("daemon.json");
        let pid = self.pid();
        let address = wait_until("the daemon to be ready", PATIENCE, || {
            // A file of another process is what the daemon before has left.
            let found = fs::read(&ready).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
            let found =
                found.filter(|found| found["pid"] == pid).and_then(|found| Some(found["address"].as_str()?.to_owned()));
            if found.is_none()
                && let Some(status) = self.exited()
            {
                panic!("the daemon ended before it was ready: {status}");
            }
            found
        });
        self.http = Some(Http::new(&address));
    }

    /// Starts it without waiting: for a start that is to fail, or to be killed.
    #[track_caller]
    pub fn spawn(&mut self) {
        assert!(self.process.is_none(), "the daemon runs already");
        let log = File::create(self.log_file(self.starts.fetch_add(1, Ordering::Relaxed) + 1)).expect("a log file");
        let mut command = self.command([OsStr::new("serve"), OsStr::new("--config"), self.config_file().as_os_str()]);
        command.stdout(log.try_clone().expect("a second handle")).stderr(log);
        let child = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", self.program.display()));
        self.process = Some(child);
    }

    #[track_caller]
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("the daemon runs").id()
    }

    /// The worker that the daemon has started, if one is alive.
    pub fn worker_pid(&self) -> Option<u32> {
        children(self.process.as_ref()?.id()).into_iter().find(|pid| {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let program = command.split(|byte| *byte == 0).next().unwrap_or_default();
            String::from_utf8_lossy(program).ends_with(&self.worker_name)
        })
    }

    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        send_signal(self.pid(), signal);
    }

    /// SIGKILL: nothing is said good-bye to.
    #[track_caller]
    pub fn sigkill(&mut self) {
        self.signal(Signal::KILL);
        self.wait_exit(PATIENCE);
    }

    /// SIGTERM, and waits for the soft end.
    #[track_caller]
    pub fn sigterm(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait_exit(PATIENCE)
    }

    /// Waits until it has ended.
    #[track_caller]
    pub fn wait_exit(&mut self, patience: Duration) -> ExitStatus {
        let status = wait_until("the daemon to end", patience, || self.exited());
        (self.process, self.http) = (None, None);
        status
    }

    /// A soft end and a new start, on the same folders.
    #[track_caller]
    pub fn restart(&mut self) {
        self.sigterm();
        self.start();
    }

    fn exited(&mut self) -> Option<ExitStatus> {
        self.process.as_mut().expect("the daemon runs").try_wait().expect("it is our child")
    }

    /// What the latest start has written to its standard output and error.
    pub fn log(&self) -> String {
        let bytes = fs::read(self.log_file(self.starts.load(Ordering::Relaxed))).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn log_file(&self, start: u32) -> PathBuf {
        self.root.path().join(format!("daemon-{start}.log"))
    }
}

/// Its HTTP side.
impl Daemon {
    #[track_caller]
    pub fn http(&self) -> &Http {
        self.http.as_ref().expect("the daemon runs")
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Answer {
        self.http().get(path)
    }

    #[track_caller]
    pub fn post(&self, path: &str, json: &Value) -> Answer {
        self.http().post(path, json)
    }

    /// Enqueues a job that must be accepted, and gives its id.
    #[track_caller]
    pub fn submit(&self, job: &Value) -> String {
        id_of(&self.post("/api/v1/jobs", job).expect(202).json())
    }

    /// Enqueues a job with pictures by multipart, and gives its id.
    #[track_caller]
    pub fn submit_with_images(&self, job: &Value, images: &[(&str, &[u8])]) -> String {
        let job = job.to_string();
        let mut parts = vec![Part { content_type: Some("application/json"), ..Part::field("job", &job) }];
        parts.extend(images.iter().map(|(name, bytes)| Part::file("image", name, bytes)));
        id_of(&self.http().post_multipart("/api/v1/jobs", &parts).expect(202).json())
    }

    #[track_caller]
    pub fn job(&self, id: &str) -> Value {
        self.get(&format!("/api/v1/jobs/{id}")).expect(200).json()
    }

    /// The newest jobs, at most 200.
    #[track_caller]
    pub fn jobs(&self) -> Vec<Value> {
        let answer = self.get("/api/v1/jobs?limit=200").expect(200).json();
        answer["jobs"].as_array().expect("a list of jobs").clone()
    }

    /// Waits until the job has this status, and gives the job. A job that has ended otherwise is not waited for.
    #[track_caller]
    pub fn wait_for_status(&self, id: &str, status: &str, patience: Duration) -> Value {
        wait_until(&format!("job {id} to be {status}"), patience, || {
            let job = self.job(id);
            let now = job["status"].as_str().expect("a job has a status");
            let ended = ["succeeded", "failed", "cancelled"].contains(&now);
            assert!(now == status || !ended, "waited for {status}, but the job is {job:#}");
            (now == status).then_some(job)
        })
    }

    /// Waits until a job of this source name exists, and gives its id. For files in the inbox.
    #[track_caller]
    pub fn wait_for_source(&self, name: &str, patience: Duration) -> String {
        wait_until(&format!("a job of {name}"), patience, || {
            self.jobs().iter().find(|job| job["source"]["name"] == name).map(id_of)
        })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // Both fail only where it has ended already.
            let _ = process.kill();
            let _ = process.wait();
        }
        if std::thread::panicking() {
            for start in 1..=self.starts.load(Ordering::Relaxed) {
                let log = fs::read(self.log_file(start)).unwrap_or_default();
                eprintln!("--- the daemon's log, start {start} ---\n{}", String::from_utf8_lossy(&log));
            }
        }
    }
}

/// Sends a signal to a process.
///
/// # Panics
/// Where there is no such process.
#[track_caller]
pub fn send_signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id");
    kill_process(pid, signal).expect("the process is alive");
}

/// All files below a folder, sorted; none where the folder is missing.
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.expect("readable").path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files.sort();
    files
}

#[track_caller]
fn id_of(job: &Value) -> String {
    job["id"].as_str().unwrap_or_else(|| panic!("no id in {job:#}")).to_owned()
}

/// Living processes whose parent is `parent`.
fn children(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // The program's name before it may hold anything, parentheses too.
            let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
            let (state, its_parent) = (fields.next(), fields.next());
            state.is_some_and(|state| state != "Z") && its_parent == Some(parent.to_string().as_str())
        })
        .collect()
}

fn set(table: &mut toml::Table, key: &str, value: toml::Value) {
    match key.split_once('.') {
        Some((section, rest)) => {
            let section = table.entry(section).or_insert_with(|| toml::Table::new().into());
            set(section.as_table_mut().expect("a section"), rest, value);
        }
        None => drop(table.insert(key.into(), value)),
    }
}

fn has(table: &toml::Table, key: &str) -> bool {
    match key.split_once('.') {
        Some((section, rest)) => table.get(section).and_then(toml::Value::as_table).is_some_and(|t| has(t, rest)),
        None => table.contains_key(key),
    }
}

//! What the configuration says, as types. Values here are checked and complete; paths are absolute.
//!
//! Serialised, every value reads as it would stand in a file (`"2s"`, `"100MiB"`): `config show` and the comparison
//! of two configurations rest on that.

use std::{collections::BTreeMap, ffi::OsString, net::SocketAddr, path::PathBuf, time::Duration};

use atelier_domain::{
    JobSpec, OutputFormat,
    protocol::{GpsPolicy, Offload, WirePath},
    signing::{Credentials, SignatureAlgorithm},
};
use serde::Serialize;

use super::text;

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Config {
    pub server: Server,
    pub paths: Paths,
    pub inbox: Inbox,
    pub outbox: Outbox,
    pub provenance: Provenance,
    pub queue: QueueConfig,
    pub worker: Worker,
    pub progress: ProgressConfig,
    pub checkpoint: Checkpoint,
    pub models: Models,
    pub limits: Limits,
    pub cleanup: Cleanup,
    pub webhooks: Webhooks,
    pub log: Log,
    #[serde(serialize_with = "text::presets")]
    pub presets: BTreeMap<String, JobSpec>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Server {
    pub listen: SocketAddr,
    /// One bearer token a line. Without it `listen` is a loopback address.
    #[serde(serialize_with = "text::optional_path")]
    pub tokens_file: Option<PathBuf>,
    /// Origins as browsers send them: scheme, host and, where it is not the scheme's own, the port.
    pub allowed_origins: Vec<String>,
    /// Names that a request's `Host` may give; empty: with tokens any, without only this machine's own.
    pub allowed_hosts: Vec<String>,
    /// Requests a minute of one token, or without tokens of one address; 0: no bound.
    pub rate_limit: u32,
    pub max_connections: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Paths {
    #[serde(serialize_with = "text::path")]
    pub data: PathBuf,
    #[serde(serialize_with = "text::paths")]
    pub models: Vec<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inbox {
    pub enabled: bool,
    #[serde(serialize_with = "text::path")]
    pub dir: PathBuf,
    /// How long size and time of a file stand still before it counts as whole.
    #[serde(serialize_with = "text::duration")]
    pub settle: Duration,
    #[serde(serialize_with = "text::duration")]
    pub rescan: Duration,
    #[serde(serialize_with = "text::duration")]
    pub sidecar_wait: Duration,
    /// How long a truncated picture may stay so before it fails.
    #[serde(serialize_with = "text::duration")]
    pub give_up: Duration,
    pub default_preset: String,
    pub duplicates: Duplicates,
    pub watch: Watch,
    /// Names (with `*` and `?`) that are left alone, beside those of editors and browsers.
    pub ignore: Vec<String>,
}

/// What becomes of a dropped file whose content and parameters equal a live or succeeded job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Duplicates {
    /// It goes to done/, linked to that job.
    Skip,
    /// It is a job like any other.
    Run,
}

/// How the inbox hears of new files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Watch {
    /// The kernel's events, except on network mounts, which are only scanned.
    Auto,
    /// The kernel's events wherever the folder lies.
    Always,
    /// Scans only.
    Never,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outbox {
    #[serde(serialize_with = "text::path")]
    pub dir: PathBuf,
    pub format: OutputFormat,
    /// 1 to 100, for JPEG and WebP.
    pub quality: u8,
    pub gps: GpsPolicy,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Provenance {
    /// The signer's own certificate and those that lead to the root; without it nothing is signed.
    #[serde(serialize_with = "text::optional_path")]
    pub certificate_file: Option<PathBuf>,
    #[serde(serialize_with = "text::optional_path")]
    pub key_file: Option<PathBuf>,
    pub algorithm: SignatureAlgorithm,
    /// Program and arguments; empty: `atelier-signer` beside the daemon's own file.
    #[serde(serialize_with = "text::words")]
    pub command: Vec<OsString>,
}

impl Provenance {
    /// What outputs are signed with, if they are.
    pub fn credentials(&self) -> Option<Credentials> {
        let (certificate, key) = (self.certificate_file.as_ref()?, self.key_file.as_ref()?);
        Some(Credentials {
            certificate_file: WirePath(certificate.clone()),
            key_file: WirePath(key.clone()),
            algorithm: self.algorithm,
        })
    }
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QueueConfig {
    pub max_attempts: u32,
    pub max_crashes: u32,
    pub max_queued: u64,
    /// The longest first pause before another attempt; doubled for each further one.
    #[serde(serialize_with = "text::duration")]
    pub backoff: Duration,
    #[serde(serialize_with = "text::duration")]
    pub backoff_max: Duration,
    /// A waiting job gains one step of priority per this much time; zero: never.
    #[serde(serialize_with = "text::duration")]
    pub aging: Duration,
    /// How many deliveries a job may be overtaken by whose model is loaded; 0: none.
    pub affinity: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Worker {
    /// Program and arguments; empty: `atelier-worker` beside the daemon's own file.
    #[serde(serialize_with = "text::words")]
    pub command: Vec<OsString>,
    /// `auto`, `cpu` or `cuda:N`.
    pub device: String,
    /// 0: all cores.
    pub threads: u32,
    /// How long an idle worker lives on.
    #[serde(serialize_with = "text::duration")]
    pub keep_alive: Duration,
    pub memory_budget: MemoryBudget,
    pub offload: Offload,
    /// Without any event for so long, a busy worker is taken for hung.
    #[serde(serialize_with = "text::duration")]
    pub stall_timeout: Duration,
    /// How long a daemon that ends waits for the running job's checkpoint.
    #[serde(serialize_with = "text::duration")]
    pub stop_timeout: Duration,
    /// How long a cancelled job may go on before the worker is killed.
    #[serde(serialize_with = "text::duration")]
    pub cancel_grace: Duration,
}

/// How much memory loaded models may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryBudget {
    /// The worker decides by the device.
    Auto,
    Bytes(u64),
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProgressConfig {
    /// The database hears of a job's progress at most once per this much time.
    #[serde(serialize_with = "text::duration")]
    pub write_interval: Duration,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Checkpoint {
    #[serde(serialize_with = "text::duration")]
    pub interval: Duration,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Models {
    /// Beside `paths.models`; see [`Config::all_model_dirs`].
    #[serde(serialize_with = "text::paths")]
    pub dirs: Vec<PathBuf>,
    /// Of the hub; empty: `HF_ENDPOINT`, or the public one. See [`super::hub_access`].
    pub endpoint: String,
    #[serde(serialize_with = "text::optional_path")]
    pub token_file: Option<PathBuf>,
    /// Whether a job that names a model which is not installed has it pulled.
    pub auto_pull: bool,
    pub hf_cache: HfCache,
    /// Requests to the hub at the same time.
    pub pull_parallel: usize,
    pub pull_retries: u32,
    /// Before the first further try; doubled for each one after that.
    #[serde(serialize_with = "text::duration")]
    pub pull_pause: Duration,
    /// Silence after which a transfer is begun anew.
    #[serde(serialize_with = "text::duration")]
    pub pull_stall: Duration,
}

/// Whose models are used without being copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HfCache {
    /// Those of the hub's own programs, in the folder where they keep them for this user, if there is one.
    Auto(Option<PathBuf>),
    Off,
    Dir(PathBuf),
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Limits {
    /// Bytes of one file.
    #[serde(serialize_with = "text::bytes")]
    pub upload: u64,
    /// Pixels of one picture.
    pub pixels: u64,
    pub prompt_chars: usize,
    pub negative_prompt_chars: usize,
    /// Pictures of one job.
    pub images: usize,
    /// Whether a job may name pictures by address, which the daemon then fetches.
    pub remote_images: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cleanup {
    #[serde(serialize_with = "text::duration")]
    pub every: Duration,
    #[serde(serialize_with = "text::retention")]
    pub keep_succeeded: Duration,
    #[serde(serialize_with = "text::retention")]
    pub keep_failed: Duration,
    #[serde(serialize_with = "text::retention")]
    pub keep_cancelled: Duration,
    /// So many of the newest ended jobs stay, however old.
    pub keep_last: u64,
    /// Bytes that the outbox may hold.
    #[serde(serialize_with = "text::optional_bytes")]
    pub max_bytes: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Webhooks {
    /// Whether addresses of the local machine and network may be called.
    pub allow_private: bool,
    /// Secrets to sign with, one a line; `None`: one of the daemon's own, in the data folder.
    #[serde(serialize_with = "text::optional_path")]
    pub secret_file: Option<PathBuf>,
    /// For one try.
    #[serde(serialize_with = "text::duration")]
    pub timeout: Duration,
    /// The first pause before another try; doubled for each further one.
    #[serde(serialize_with = "text::duration")]
    pub backoff: Duration,
    #[serde(serialize_with = "text::duration")]
    pub backoff_max: Duration,
    /// A message that nobody has taken for so long is dropped.
    #[serde(serialize_with = "text::duration")]
    pub give_up: Duration,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Log {
    /// A level, or directives such as `info,atelier::queue=debug`.
    pub level: String,
    pub format: LogFormat,
    /// Whether rolling files are written.
    pub files: bool,
    /// Where to.
    #[serde(serialize_with = "text::path")]
    pub dir: PathBuf,
    /// Days of rolling files.
    pub keep_files: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Pretty,
    Json,
}

impl Config {
    /// Every folder that models live in, `paths.models` first, each once.
    pub fn all_model_dirs(&self) -> Vec<PathBuf> {
        let cache = match &self.models.hf_cache {
            HfCache::Auto(dir) => dir.as_ref(),
            HfCache::Dir(dir) => Some(dir),
            HfCache::Off => None,
        };
        let mut dirs: Vec<PathBuf> = Vec::new();
        for dir in self.paths.models.iter().chain(&self.models.dirs).chain(cache) {
            if !dirs.contains(dir) {
                dirs.push(dir.clone());
            }
        }
        dirs
    }
}

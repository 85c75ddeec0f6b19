//! The inbox as a whole, on real folders, with an intake in memory.

mod claims;
mod crashes;
mod outcomes;
mod readiness;
mod sidecars;
mod trouble;
mod watching;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use atelier_domain::{ErrorCode, ErrorInfo, Input, JobId, JobKind, JobSpec, Timestamp};
use tokio::sync::watch as channel;
use tokio_util::sync::CancellationToken;

use super::{
    Admitted, Ended, EndedSource, Failure, Inbox, InboxClaim, InboxHandle, Intake, IntakeError, Judge, NewFile,
    Settings, WatchMode,
    recent::Recent,
    scout::{Findings, Scout},
};

/// A picture of the tests' own format: `IMG`, the payload's length in eight digits, the payload.
fn picture(payload: &str) -> Vec<u8> {
    format!("IMG{:08}{payload}", payload.len()).into_bytes()
}

fn judge_picture(bytes: &[u8]) -> Result<(), ErrorCode> {
    let head = &bytes[..bytes.len().min(3)];
    if bytes.is_empty() {
        return Err(ErrorCode::ImageEmpty);
    }
    if !b"IMG".starts_with(head) {
        return Err(ErrorCode::ImageUnsupported);
    }
    let Some(length) = bytes.get(3..11) else { return Err(ErrorCode::ImageTruncated) };
    let length: usize =
        std::str::from_utf8(length).ok().and_then(|digits| digits.parse().ok()).ok_or(ErrorCode::ImageCorrupt)?;
    match bytes.len().cmp(&(11 + length)) {
        std::cmp::Ordering::Less => Err(ErrorCode::ImageTruncated),
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => Err(ErrorCode::ImageCorrupt),
    }
}

#[derive(Clone, Debug)]
struct FakeJob {
    file: NewFile,
    content: Vec<u8>,
    ended: Option<EndedSource>,
}

#[derive(Debug, Default)]
struct Rows {
    claims: BTreeMap<JobId, InboxClaim>,
    jobs: BTreeMap<JobId, FakeJob>,
    /// Answers of the next calls of `claim_begin` and `admit`.
    begin_errors: VecDeque<IntakeError>,
    admit_errors: VecDeque<IntakeError>,
    contents: HashMap<String, Vec<u8>>,
    by_content: HashMap<String, Vec<JobId>>,
    live: u64,
    /// How many claims were written down at once.
    batches: Vec<usize>,
}

/// Store, queue and admission in memory. Folders named `portrait` and `edit` are presets.
#[derive(Debug)]
struct FakeIntake {
    rows: Mutex<Rows>,
    next_id: AtomicU64,
    free: AtomicU64,
    ended: OnceLock<Arc<Ended>>,
}

impl FakeIntake {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            rows: Mutex::default(),
            next_id: AtomicU64::new(1),
            free: AtomicU64::new(1_000_000),
            ended: OnceLock::new(),
        })
    }

    fn rows(&self) -> MutexGuard<'_, Rows> {
        self.rows.lock().expect("no test panics with it")
    }

    fn jobs(&self) -> Vec<FakeJob> {
        self.rows().jobs.values().cloned().collect()
    }

    fn job_of(&self, rel: impl AsRef<Path>) -> Option<FakeJob> {
        self.jobs().into_iter().rev().find(|job| job.file.rel_path == rel.as_ref())
    }

    /// Ends a job as the queue does: first the row, then the hook.
    fn end(&self, id: JobId, failure: Option<Failure>) {
        let source = {
            let mut rows = self.rows();
            let job = rows.jobs.get_mut(&id).expect("a job");
            let source =
                EndedSource { id, rel_path: job.file.rel_path.clone(), sidecars: job.file.sidecars.clone(), failure };
            job.ended = Some(source.clone());
            rows.live -= 1;
            source
        };
        self.ended.get().expect("set by the bench").end(&source).expect("put away");
    }

    fn fail(&self, id: JobId, message: &str) {
        let error = ErrorInfo::new(ErrorCode::WorkerStalled, message);
        self.end(id, Some(Failure::of_job(id, Some(error), 3, Timestamp::now())));
    }
}

fn effective_kind(spec: &JobSpec) -> JobKind {
    spec.kind.unwrap_or(match spec.preset.as_deref() {
        Some("edit") => JobKind::Edit,
        _ => JobKind::Upscale,
    })
}

impl Judge for FakeIntake {
    fn probe(&self, path: &Path, name: &str) -> Result<(), ErrorInfo> {
        let bytes = fs::read(path).map_err(|error| ErrorInfo::new(ErrorCode::IoError, error.to_string()))?;
        judge_picture(&bytes).map_err(|code| ErrorInfo::new(code, format!("{name}: {code}")))
    }

    fn inspect(&self, path: &Path, name: &str) -> Result<Input, ErrorInfo> {
        self.probe(path, name)?;
        let bytes = fs::read(path).map_err(|error| ErrorInfo::new(ErrorCode::IoError, error.to_string()))?;
        let sha256 = format!("{:016x}", super::names::fnv(&bytes));
        let input = Input {
            name: name.to_owned(),
            media_type: "image/x-test".into(),
            bytes: bytes.len() as u64,
            width: 1,
            height: 1,
            sha256: sha256.clone(),
        };
        self.rows().contents.insert(sha256, bytes);
        Ok(input)
    }

    fn check(&self, spec: &JobSpec, images: usize) -> Result<(), ErrorInfo> {
        let kind = effective_kind(spec);
        if let Err(error) = spec.params.validate(kind, atelier_domain::params::ParamLimits::default()) {
            return Err(ErrorInfo::new(ErrorCode::InvalidParams, error.to_string()));
        }
        if kind.needs_image() && images == 0 {
            return Err(ErrorInfo::new(ErrorCode::InvalidRequest, format!("a job of kind {kind} needs a picture")));
        }
        Ok(())
    }

    fn is_preset(&self, name: &str) -> bool {
        ["portrait", "edit"].contains(&name)
    }
}

impl Intake for FakeIntake {
    fn new_id(&self) -> JobId {
        JobId::from_ulid(ulid::Ulid::from_parts(self.next_id.fetch_add(1, Ordering::Relaxed), 7))
    }

    fn free_places(&self) -> u64 {
        self.free.load(Ordering::Relaxed).saturating_sub(self.rows().live)
    }

    async fn claim_begin(&self, claims: Vec<InboxClaim>) -> Result<(), IntakeError> {
        let mut rows = self.rows();
        if let Some(error) = rows.begin_errors.pop_front() {
            return Err(error);
        }
        rows.batches.push(claims.len());
        rows.claims.extend(claims.into_iter().map(|claim| (claim.id, claim)));
        Ok(())
    }

    async fn claims(&self) -> Result<Vec<InboxClaim>, IntakeError> {
        Ok(self.rows().claims.values().cloned().collect())
    }

    async fn claim_end(&self, ids: Vec<JobId>) -> Result<(), IntakeError> {
        self.rows().claims.retain(|id, _| !ids.contains(id));
        Ok(())
    }

    async fn admit(&self, file: NewFile) -> Result<Admitted, IntakeError> {
        if let Err(error) = self.check(&file.spec, usize::from(file.input.is_some())) {
            return Err(IntakeError::Refused(error));
        }
        let mut rows = self.rows();
        if let Some(error) = rows.admit_errors.pop_front() {
            return Err(error);
        }
        let sha256 = file.input.as_ref().map(|(input, _)| input.sha256.clone());
        let same = |id: &&JobId| {
            let job = &rows.jobs[id];
            let alive = job.ended.as_ref().is_none_or(|ended| ended.failure.is_none());
            job.file.spec == file.spec && alive
        };
        let others = sha256.as_ref().and_then(|sha256| rows.by_content.get(sha256));
        if let Some(id) = others.and_then(|others| others.iter().find(same)) {
            return Ok(Admitted::DuplicateOf(*id));
        }
        if let Some(sha256) = &sha256 {
            rows.by_content.entry(sha256.clone()).or_default().push(file.id);
        }
        rows.live += 1;
        assert!(!rows.jobs.contains_key(&file.id), "the same claim twice");
        rows.claims.remove(&file.id);
        let content = sha256.map(|sha256| rows.contents[&sha256].clone()).unwrap_or_default();
        rows.jobs.insert(file.id, FakeJob { file, content, ended: None });
        Ok(Admitted::New)
    }

    async fn known(&self, ids: Vec<JobId>) -> Result<HashSet<JobId>, IntakeError> {
        let rows = self.rows();
        Ok(ids.into_iter().filter(|id| rows.jobs.contains_key(id)).collect())
    }

    async fn cancel(&self, id: JobId) -> Result<(), IntakeError> {
        let is_live = self.rows().jobs.get(&id).is_some_and(|job| job.ended.is_none());
        if is_live {
            self.end(id, Some(Failure::cancelled(id, 0, Timestamp::now())));
        }
        Ok(())
    }
}

/// An inbox on disk.
struct Bench {
    temp: tempfile::TempDir,
    intake: Arc<FakeIntake>,
    settings: Settings,
}

impl Bench {
    fn new() -> Self {
        Self::below(&std::env::temp_dir())
    }

    /// In memory where there is such a place: for tests of many files, which no disk's fsync shall slow down.
    fn in_memory() -> Self {
        let shm = Path::new("/dev/shm");
        let temp = std::env::temp_dir();
        Self::below(if shm.is_dir() { shm } else { &temp })
    }

    fn below(parent: &Path) -> Self {
        let temp = tempfile::tempdir_in(parent).expect("a folder");
        let dir = temp.path().join("inbox");
        fs::create_dir(&dir).expect("made");
        let settings = Settings {
            settle: SETTLE,
            rescan: Duration::from_secs(30),
            sidecar_wait: SETTLE,
            give_up: GIVE_UP,
            ..Settings::new(dir)
        };
        Self { temp, intake: FakeIntake::new(), settings }
    }

    fn path(&self, rel: impl AsRef<Path>) -> PathBuf {
        self.settings.dir.join(rel)
    }

    /// Writes a file in place.
    fn put(&self, rel: impl AsRef<Path>, bytes: impl AsRef<[u8]>) {
        let path = self.path(rel);
        fs::create_dir_all(path.parent().expect("has one")).expect("made");
        fs::write(path, bytes).expect("written");
    }

    /// Renames a complete file in.
    fn drop_in(&self, rel: impl AsRef<Path>, bytes: impl AsRef<[u8]>) {
        let outside = self.temp.path().join("outside");
        fs::write(&outside, bytes).expect("written");
        let path = self.path(rel);
        fs::create_dir_all(path.parent().expect("has one")).expect("made");
        fs::rename(outside, path).expect("moved");
    }

    fn has(&self, rel: impl AsRef<Path>) -> bool {
        self.path(rel).symlink_metadata().is_ok()
    }

    fn text(&self, rel: &str) -> String {
        let path = self.path(rel);
        fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("{}: {error}; there is {:?}", path.display(), self.tree()))
    }

    fn report(&self, rel: &str) -> super::ErrorFile {
        serde_json::from_str(&self.text(rel)).expect("a report")
    }

    /// Every file below the inbox.
    fn tree(&self) -> BTreeSet<PathBuf> {
        fn walk(dir: &Path, root: &Path, found: &mut BTreeSet<PathBuf>) {
            for entry in fs::read_dir(dir).expect("lists").flatten() {
                if entry.file_type().expect("known").is_dir() {
                    walk(&entry.path(), root, found);
                } else {
                    found.insert(entry.path().strip_prefix(root).expect("below").to_owned());
                }
            }
        }
        let mut found = BTreeSet::new();
        walk(&self.settings.dir, &self.settings.dir, &mut found);
        found
    }

    fn start(&self) -> Running {
        let (settings, receiver) = channel::channel(self.settings.clone());
        let inbox = Inbox::new(receiver);
        self.intake.ended.set(inbox.ended()).ok();
        let shutdown = CancellationToken::new();
        let handle = inbox.start(Arc::clone(&self.intake), shutdown.clone());
        Running { handle, shutdown, settings }
    }

    fn looker(&self) -> Looker {
        let recent = Arc::new(Recent::default());
        let judge = Arc::clone(&self.intake);
        let scout = Scout::new(judge, self.settings.clone(), Arc::clone(&recent), Arc::default());
        let mut looker = Looker { scout, now: Instant::now(), recent };
        // The first look starts the watch, so that what a test does afterwards is seen by it.
        looker.look(true);
        looker
    }
}

/// A running inbox.
struct Running {
    handle: InboxHandle,
    shutdown: CancellationToken,
    settings: channel::Sender<Settings>,
}

impl Running {
    async fn stop(self) {
        self.shutdown.cancel();
        self.handle.stopped().await;
    }

    /// Waits until the first look was made.
    async fn ready(&self) {
        until("the first look", || self.handle.status().scans > 0).await;
    }
}

/// Waits for something that happens on other threads.
async fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_mins(1);
    while !happened() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A scout with a clock of its own.
struct Looker {
    scout: Scout<FakeIntake>,
    now: Instant,
    recent: Arc<Recent>,
}

impl Looker {
    fn look(&mut self, all: bool) -> Findings {
        self.scout.look(self.now, all, 64)
    }

    /// The names that a look at everything finds ready.
    fn ready(&mut self) -> Vec<OsString> {
        self.look(true).ready.into_iter().map(|ready| ready.rel).collect()
    }

    fn after(&mut self, time: Duration) -> &mut Self {
        self.now += time;
        self
    }

    /// Follows the events, without letting time pass, until they satisfy `enough`.
    fn events_until(&mut self, mut enough: impl FnMut(&Findings, &mut Scout<FakeIntake>) -> bool) -> Findings {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let findings = self.scout.look(self.now, false, 64);
            if enough(&findings, &mut self.scout) {
                return findings;
            }
            assert!(Instant::now() < deadline, "no event has said so");
            std::thread::yield_now();
        }
    }

    fn problem(&self, rel: &str) -> Option<String> {
        let problems = self.scout.status().problems;
        problems.into_iter().find(|problem| problem.path == rel).map(|problem| problem.problem)
    }
}

fn names(ready: &[OsString]) -> Vec<&str> {
    ready.iter().map(|rel| rel.to_str().expect("text")).collect()
}

const SETTLE: Duration = Duration::from_millis(200);
const GIVE_UP: Duration = Duration::from_mins(1);

/// A millisecond less than `time`.
fn just_before(time: Duration) -> Duration {
    time.saturating_sub(Duration::from_millis(1))
}

fn rel(text: &str) -> &OsStr {
    OsStr::new(text)
}

fn by_looking(bench: &mut Bench) {
    bench.settings.watch = WatchMode::Never;
}

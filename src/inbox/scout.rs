//! Looks at the inbox and says which files are ready to be claimed.
//!
//! One way for start-up, events and the periodic rescan: take note of what is there ([`Scout::look`]), then judge the
//! files whose time has come ([`super::ladder`]). Sync; the time is handed in; nothing here makes a job.

use std::{
    ffi::{OsStr, OsString},
    os::{fd::AsFd as _, unix::ffi::OsStrExt as _},
    sync::Arc,
    time::{Duration, Instant},
};

use atelier_domain::{JobId, Timestamp};
use rustix::{fs::FileType, io::Errno};
use tokio::sync::Notify;

use super::{
    dirs::{Fingerprint, FsKind, Root, is_regular},
    ignore::Ignore,
    intake::Judge,
    names::{self, NameKind},
    recent::Recent,
    scan::{self, Trouble, Visitor},
    settings::{Settings, WatchMode},
    settle::{CAPACITY, Ring, Table},
    status::{InboxStatus, Problems},
    watch::{Hints, Watch},
};
use crate::{failpoint, liveness::Beat};

/// A file that is complete and wanted, with its sidecars.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    pub rel: OsString,
    pub kind: NameKind,
    pub print: Fingerprint,
    pub sidecars: Vec<OsString>,
    /// When it was first seen as it is now.
    pub since: Instant,
    /// Until when a sidecar may still come for it.
    pub sidecars_until: Instant,
}

/// What a look has brought.
#[derive(Debug, Default)]
pub struct Findings {
    /// Oldest first, no more than were asked for.
    pub ready: Vec<Ready>,
    /// Jobs whose sidecar has come late.
    pub recall: Vec<JobId>,
    /// There is more to judge than was asked for.
    pub more: bool,
}

pub struct Scout<J> {
    pub(super) judge: Arc<J>,
    pub(super) settings: Settings,
    pub(super) table: Table,
    pub(super) problems: Problems,
    pub(super) recent: Arc<Recent>,
    ignore: Ignore,
    root: Option<Arc<Root>>,
    fs_kind: FsKind,
    watch: Option<Watch>,
    wake: Arc<Notify>,
    max_folders: usize,
    /// The system allows no more watches.
    watch_is_full: bool,
    /// Files that the last scan had no room for.
    left_over: u64,
    scans: u64,
    overflows: u64,
    last_scan: Option<Timestamp>,
    last_scan_took: Duration,
    /// Who wants to hear that a long scan goes on.
    beat: Option<Beat>,
}

impl<J: Judge> Scout<J> {
    pub fn new(judge: Arc<J>, settings: Settings, recent: Arc<Recent>, wake: Arc<Notify>) -> Self {
        Self {
            judge,
            ignore: Ignore::new(&settings.ignore),
            settings,
            table: Table::new(CAPACITY),
            problems: Problems::default(),
            recent,
            root: None,
            fs_kind: FsKind::Local,
            watch: None,
            wake,
            max_folders: scan::MAX_FOLDERS,
            watch_is_full: false,
            left_over: 0,
            scans: 0,
            overflows: 0,
            last_scan: None,
            last_scan_took: Duration::ZERO,
            beat: None,
        }
    }

    /// Tells `beat` of every file and folder that a scan comes by: a slow share is not a dead one.
    #[must_use]
    pub fn heard_by(self, beat: Beat) -> Self {
        Self { beat: Some(beat), ..self }
    }

    fn is_alive(&self) {
        if let Some(beat) = &self.beat {
            beat.alive(failpoint::patience("liveness.scanner", super::actor::PATIENCE));
        }
    }

    /// Takes new settings; the folder stays the one it was.
    pub fn configure(&mut self, settings: Settings) {
        let settings = Settings { dir: self.settings.dir.clone(), ..settings };
        self.ignore = Ignore::new(&settings.ignore);
        let rewatch = settings.watch != self.settings.watch;
        self.settings = settings;
        if rewatch {
            self.drop_watch();
            self.start_watch();
        }
    }

    /// The inbox as it is open now.
    pub fn root(&self) -> Option<Arc<Root>> {
        self.root.clone()
    }

    /// Takes note of what is there, of everything when `all`, and judges what is due, up to `budget` ready files.
    pub fn look(&mut self, now: Instant, all: bool, budget: usize) -> Findings {
        let mut hints = self.watch.as_ref().map(Watch::take).unwrap_or_default();
        if !self.ensure_root(&mut hints) {
            return Findings::default();
        }
        if hints.moved {
            self.drop_watch();
            self.start_watch();
            hints.all = true;
        }
        for (rel, moved_in) in std::mem::take(&mut hints.names) {
            self.look_at(&rel, moved_in, now);
        }
        if all || hints.all {
            self.scan(now);
        }
        let mut findings = Findings::default();
        self.judge_due(now, budget, &mut findings);
        findings
    }

    /// When the next look at known files is due.
    pub fn next_look(&self) -> Option<Instant> {
        self.table.next_look()
    }

    /// Whether a scan would find room for files that the last one had to leave.
    pub fn wants_scan(&self) -> bool {
        self.left_over > 0 && self.table.room() >= CAPACITY / 2
    }

    /// How long until the next look at everything, without jitter.
    pub fn rescan_every(&self) -> Duration {
        if self.is_watching() && self.fs_kind == FsKind::Local {
            return self.settings.rescan;
        }
        // Nothing tells us, so we look more often; never for more than a twentieth of the time.
        let often = self.settings.settle.max(Duration::from_secs(1));
        often.max(self.last_scan_took * 20).min(self.settings.rescan)
    }

    pub fn status(&self) -> InboxStatus {
        InboxStatus {
            watching: if self.is_watching() { "inotify" } else { "poll" },
            waiting: self.left_over + self.table.len() as u64,
            last_scan: self.last_scan,
            scans: self.scans,
            overflows: self.overflows + self.watch.as_ref().map_or(0, Watch::overflows),
            problems: self.problems.list(),
        }
    }

    /// The file was claimed, or is gone.
    pub fn forget(&mut self, rel: &OsStr) {
        self.table.forget(rel);
        self.problems.solved(rel);
    }

    /// The file could not be claimed. Reported once, tried again later.
    pub fn trouble(&mut self, rel: &OsStr, problem: String, now: Instant) {
        self.problems.report(rel, problem);
        let longest = self.settings.rescan;
        self.table.update(rel, |entry| entry.trouble(now, longest));
    }

    fn is_watching(&self) -> bool {
        self.watch.is_some() && !self.watch_is_full
    }

    /// Opens the inbox, again where another directory has taken its place.
    fn ensure_root(&mut self, hints: &mut Hints) -> bool {
        if self.root.as_ref().is_some_and(|root| root.is_current()) {
            return true;
        }
        match Root::open(&self.settings.dir) {
            Ok(root) => {
                if self.root.is_some() {
                    tracing::warn!(dir = %self.settings.dir.display(), "inbox: the folder was replaced; opened anew");
                }
                self.problems.solved(OsStr::new(""));
                self.fs_kind = FsKind::of(root.fd.as_fd());
                self.root = Some(Arc::new(root));
                self.drop_watch();
                self.start_watch();
                hints.all = true;
                true
            }
            Err(error) => {
                self.root = None;
                let dir = self.settings.dir.display();
                self.problems.report(OsStr::new(""), format!("the inbox {dir} cannot be opened: {error}"));
                false
            }
        }
    }

    fn drop_watch(&mut self) {
        if let Some(watch) = self.watch.take() {
            self.overflows += watch.overflows();
        }
        self.watch_is_full = false;
    }

    /// Starts a watch where one is wanted. The folders are added by the scan that must follow.
    fn start_watch(&mut self) {
        let wanted = match self.settings.watch {
            WatchMode::Always => true,
            WatchMode::Never => false,
            WatchMode::Auto => self.fs_kind != FsKind::Remote,
        };
        if !wanted {
            return;
        }
        match Watch::start(self.settings.dir.clone(), Arc::clone(&self.wake), self.max_folders) {
            Ok(watch) => self.watch = Some(watch),
            Err(error) => tracing::warn!("inbox: no watch to be had ({error}); looking from time to time instead"),
        }
    }

    /// Looks at one name that an event has named.
    fn look_at(&mut self, rel: &OsStr, moved_in: bool, now: Instant) {
        let Some(root) = self.root.clone() else { return };
        let (folder, name) = names::split(rel);
        if self.ignore.skips(name.as_bytes()) {
            return;
        }
        match root.stat(rel) {
            Ok(stat) if is_regular(&stat) => {
                if self.table.observe(rel, Fingerprint::of(&stat), now, moved_in, false) {
                    self.table.hurry(rel, now);
                } else {
                    self.left_over = self.left_over.max(1);
                }
                if names::kind_of(name.as_bytes()) != NameKind::Picture {
                    self.hurry_picture(folder.as_os_str(), names::base_of_sidecar(name.as_bytes()), now);
                }
            }
            Ok(stat) => self.special(rel, FileType::from_raw_mode(stat.st_mode)),
            Err(Errno::NOENT | Errno::NOTDIR) => self.forget(rel),
            Err(error) => self.trouble(rel, format!("cannot be looked at: {error}"), now),
        }
    }

    /// A sidecar has come: its picture may be ready now.
    fn hurry_picture(&mut self, folder: &OsStr, base: &[u8], now: Instant) {
        let exact = names::join(std::path::Path::new(folder), OsStr::from_bytes(base));
        if self.table.get(&exact).is_some() {
            return self.table.hurry(&exact, now);
        }
        let is_picture = |rel: &&OsString| {
            let (its_folder, name) = names::split(rel);
            its_folder.as_os_str() == folder
                && names::belongs(base, name.as_bytes())
                && names::kind_of(name.as_bytes()) == NameKind::Picture
        };
        let pictures: Vec<_> = self.table.known().filter(is_picture).cloned().collect();
        for picture in pictures {
            self.table.hurry(&picture, now);
        }
    }

    fn special(&mut self, rel: &OsStr, kind: FileType) {
        if let Some(what) = special_kind(kind) {
            self.problems.report(rel, what);
        }
    }

    /// Looks at everything.
    fn scan(&mut self, now: Instant) {
        let Some(root) = self.root.clone() else { return };
        let began = Instant::now();
        self.problems.begin_scan();
        let ring = self.table.begin_scan();
        let mut census = Census { scout: self, ring, seen: Vec::new(), watch_error: None };
        let walked = scan::walk(&root, &census.scout.ignore.clone(), &mut census);
        let Census { ring, seen, watch_error, .. } = census;
        self.note_watch_error(watch_error);
        if let Err(error) = walked {
            self.problems.report(OsStr::new(""), format!("the inbox cannot be read: {error}"));
            return;
        }
        let (chosen, left_over, ring_end) = ring.finish();
        self.left_over = left_over;
        for rel in seen.iter().chain(&chosen) {
            self.note(&root, rel, now);
        }
        for rel in self.table.end_scan(ring_end) {
            self.problems.solved(&rel);
        }
        let table = &self.table;
        self.problems.end_scan(|rel| table.get(rel).is_some());
        self.scans += 1;
        self.last_scan = Some(Timestamp::now());
        self.last_scan_took = began.elapsed();
        metrics::counter!("atelier_inbox_scans_total").increment(1);
        metrics::histogram!("atelier_inbox_scan_seconds").record(self.last_scan_took.as_secs_f64());
    }

    fn note(&mut self, root: &Root, rel: &OsStr, now: Instant) {
        self.is_alive();
        match root.stat(rel) {
            Ok(stat) if is_regular(&stat) => {
                self.table.observe(rel, Fingerprint::of(&stat), now, false, false);
            }
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => self.forget(rel),
            Err(error) => self.trouble(rel, format!("cannot be looked at: {error}"), now),
        }
    }

    fn note_watch_error(&mut self, error: Option<Errno>) {
        match error {
            Some(Errno::NOSPC | Errno::NOMEM) if !self.watch_is_full => {
                self.watch_is_full = true;
                tracing::warn!(
                    "inbox: more folders than the system lets us watch (fs.inotify.max_user_watches); looking from \
                     time to time instead"
                );
            }
            _ => {}
        }
    }
}

fn special_kind(kind: FileType) -> Option<&'static str> {
    match kind {
        FileType::Symlink => Some("is a symbolic link and not followed; put the file itself here"),
        FileType::Fifo => Some("is a named pipe, not a file"),
        FileType::Socket => Some("is a socket, not a file"),
        FileType::CharacterDevice | FileType::BlockDevice => Some("is a device, not a file"),
        FileType::RegularFile | FileType::Directory | FileType::Unknown => None,
    }
}

/// Notes what a scan comes by.
struct Census<'a, J> {
    scout: &'a mut Scout<J>,
    ring: Ring,
    /// Files of the table that are still there.
    seen: Vec<OsString>,
    watch_error: Option<Errno>,
}

impl<J: Judge> Visitor for Census<'_, J> {
    fn folder(&mut self, rel: &OsStr) {
        self.scout.is_alive();
        let Some(watch) = &self.scout.watch else { return };
        if let Err(error) = watch.add(rel) {
            self.watch_error = Some(error);
        }
    }

    fn file(&mut self, rel: &OsStr) {
        self.scout.is_alive();
        if self.scout.table.is_known(rel) {
            self.seen.push(rel.to_owned());
        } else {
            self.ring.offer(rel);
        }
    }

    fn special(&mut self, rel: &OsStr, kind: FileType) {
        self.scout.special(rel, kind);
    }

    fn trouble(&mut self, rel: &OsStr, trouble: Trouble) {
        let problem = match trouble {
            Trouble::Unreadable(error) => format!("the folder cannot be read: {error}"),
            Trouble::TooDeep => "the folder lies too deep and is left alone".to_owned(),
            Trouble::TooMany => "more folders than are looked into; the rest is left alone".to_owned(),
            Trouble::OtherFileSystem => {
                "another file system is mounted here, so its files cannot be claimed; make it an inbox of its own"
                    .into()
            }
        };
        self.scout.problems.report(rel, problem);
    }
}

#[cfg(test)]
impl<J: Judge> Scout<J> {
    pub(super) fn limit_folders(&mut self, max: usize) {
        self.max_folders = max;
    }

    pub(super) fn limit_table(&mut self, capacity: usize) {
        self.table = Table::new(capacity);
    }

    pub(super) fn watch(&self) -> Option<&Watch> {
        self.watch.as_ref()
    }
}

//! Hints from the kernel: something happened in this folder, look at that name.
//!
//! A thread that does nothing but drain the queue. What it says is never taken as the truth; when the queue overflows,
//! or anything at all is unclear, the hint is "look at everything". Decides nothing about files.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags},
    fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags},
    io::Errno,
};
use tokio::sync::Notify;

use super::names;

/// More names than this become "look at everything".
const MAX_NAMES: usize = 4096;
const BUFFER_BYTES: usize = 64 << 10;

const MASK: WatchFlags = WatchFlags::CLOSE_WRITE
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR)
    .union(WatchFlags::DONT_FOLLOW)
    .union(WatchFlags::EXCL_UNLINK);

/// What has been hinted at since the last look.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// Look at everything.
    pub all: bool,
    /// Folders are not where they were: the watch has to be built anew.
    pub moved: bool,
    /// Paths below the inbox, and whether the file was renamed to it.
    pub names: HashMap<OsString, bool>,
}

impl Hints {
    fn name(&mut self, rel: OsString, moved_in: bool) {
        if self.names.len() < MAX_NAMES || self.names.contains_key(&rel) {
            *self.names.entry(rel).or_default() |= moved_in;
        } else {
            self.all = true;
        }
    }
}

#[derive(Debug, Default)]
struct Watched {
    by_wd: HashMap<i32, OsString>,
    by_rel: HashMap<OsString, i32>,
}

#[derive(Debug)]
struct Shared {
    inotify: OwnedFd,
    watched: Mutex<Watched>,
    hints: Mutex<Hints>,
    overflows: AtomicU64,
    wake: Arc<Notify>,
    /// Held by tests that want a watch which nobody drains.
    #[cfg(test)]
    gate: Mutex<()>,
}

/// A running watch on the inbox's folders. Ends with its last handle.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
    root: PathBuf,
    max_folders: usize,
}

impl Watch {
    /// Starts a watch on nothing yet; `wake` is told about every hint.
    ///
    /// # Errors
    /// No inotify instance to be had, or no thread.
    pub fn start(root: PathBuf, wake: Arc<Notify>, max_folders: usize) -> Result<Self, Errno> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let stop = Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?);
        let shared = Arc::new(Shared {
            inotify,
            watched: Mutex::default(),
            hints: Mutex::default(),
            overflows: AtomicU64::new(0),
            wake,
            #[cfg(test)]
            gate: Mutex::new(()),
        });
        let thread = std::thread::Builder::new()
            .name("inbox-watch".into())
            .spawn({
                let (shared, stop) = (Arc::clone(&shared), Arc::clone(&stop));
                move || run(&shared, &stop)
            })
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::AGAIN))?;
        Ok(Self { shared, stop, thread: Some(thread), root, max_folders })
    }

    /// Watches a folder below the inbox, before it is read.
    ///
    /// # Errors
    /// `NOSPC` where the system allows no more watches.
    pub fn add(&self, rel: &OsStr) -> Result<(), Errno> {
        let mut watched = lock(&self.shared.watched);
        if watched.by_rel.contains_key(rel) {
            return Ok(());
        }
        if watched.by_rel.len() >= self.max_folders {
            return Err(Errno::NOSPC);
        }
        // The lock is held, so that an event on the new watch finds its folder.
        let wd = inotify::add_watch(&self.shared.inotify, self.root.join(rel), MASK)?;
        if let Some(old) = watched.by_wd.insert(wd, rel.to_owned()) {
            watched.by_rel.remove(&old);
        }
        watched.by_rel.insert(rel.to_owned(), wd);
        Ok(())
    }

    pub fn take(&self) -> Hints {
        std::mem::take(&mut lock(&self.shared.hints))
    }

    /// How often the kernel's queue ran over.
    pub fn overflows(&self) -> u64 {
        self.shared.overflows.load(Ordering::Relaxed)
    }

    /// Keeps the thread from draining the queue for as long as the guard lives.
    #[cfg(test)]
    pub fn hold(&self) -> MutexGuard<'_, ()> {
        lock(&self.shared.gate)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Fails only when the counter is full, and then the thread is awake already.
        let _ = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // A panic in the thread was printed when it happened.
            let _ = thread.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run(shared: &Shared, stop: &OwnedFd) {
    let mut buffer = vec![MaybeUninit::uninit(); BUFFER_BYTES];
    loop {
        let mut fds = [PollFd::new(&shared.inotify, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        match rustix::event::poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return give_up(shared),
        }
        if !fds[1].revents().is_empty() {
            return;
        }
        #[cfg(test)]
        drop(lock(&shared.gate));
        match drain(shared, &mut buffer) {
            Ok(()) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => return give_up(shared),
        }
    }
}

/// The watch is broken: has a new one built.
fn give_up(shared: &Shared) {
    let mut hints = lock(&shared.hints);
    hints.all = true;
    hints.moved = true;
    drop(hints);
    shared.wake.notify_one();
}

fn drain(shared: &Shared, buffer: &mut [MaybeUninit<u8>]) -> Result<(), Errno> {
    let mut reader = inotify::Reader::new(&shared.inotify, buffer);
    loop {
        let result = one(shared, &mut reader);
        if reader.is_buffer_empty() || result.is_err() {
            shared.wake.notify_one();
        }
        result?;
    }
}

fn one(shared: &Shared, reader: &mut inotify::Reader<'_, &OwnedFd>) -> Result<(), Errno> {
    let event = reader.next()?;
    let flags = event.events();
    let mut hints = lock(&shared.hints);
    if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
        shared.overflows.fetch_add(1, Ordering::Relaxed);
        hints.all = true;
        return Ok(());
    }
    let mut watched = lock(&shared.watched);
    if flags.contains(ReadFlags::IGNORED) {
        if let Some(rel) = watched.by_wd.remove(&event.wd()) {
            watched.by_rel.remove(&rel);
        }
        return Ok(());
    }
    if event.file_name().is_some_and(|name| name.to_bytes().first() == Some(&b'.')) {
        return Ok(());
    }
    let folder = watched.by_wd.get(&event.wd());
    if flags.intersects(ReadFlags::MOVE_SELF | ReadFlags::UNMOUNT) {
        hints.moved = true;
        hints.all = true;
    } else if let (Some(folder), Some(name)) = (folder, event.file_name()) {
        if flags.contains(ReadFlags::ISDIR) {
            // What came with a new folder, or before its watch, is told by no event.
            hints.all = true;
        } else {
            let rel = names::join(std::path::Path::new(folder), OsStr::from_bytes(name.to_bytes()));
            hints.name(rel, flags.contains(ReadFlags::MOVED_TO));
        }
    } else {
        hints.all = true;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        time::{Duration, Instant},
    };

    use super::*;

    fn watch(path: &std::path::Path) -> Watch {
        let watch = Watch::start(path.to_owned(), Arc::default(), 100).expect("starts");
        watch.add(OsStr::new("")).expect("watched");
        watch
    }

    /// Gathers hints until they satisfy `enough`.
    fn hints(watch: &Watch, enough: impl Fn(&Hints) -> bool) -> Hints {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut all = Hints::default();
        while !enough(&all) {
            assert!(Instant::now() < deadline, "{all:?}");
            let new = watch.take();
            all.all |= new.all;
            all.moved |= new.moved;
            for (name, moved_in) in new.names {
                all.name(name, moved_in);
            }
            std::thread::yield_now();
        }
        all
    }

    #[test]
    fn a_rename_in_is_told_from_a_write_and_both_from_a_new_folder() {
        let temp = tempfile::tempdir().expect("a folder");
        let watch = watch(temp.path());
        fs::write(temp.path().join("written.jpg"), "x").expect("written");
        fs::write(temp.path().join(".a.part"), "x").expect("written");
        fs::rename(temp.path().join(".a.part"), temp.path().join("moved.jpg")).expect("moved");
        let seen = hints(&watch, |hints| hints.names.contains_key(OsStr::new("moved.jpg")));
        assert!(seen.names[OsStr::new("moved.jpg")]);
        assert!(!seen.names[OsStr::new("written.jpg")]);
        assert!(!seen.all && !seen.moved);
        fs::create_dir(temp.path().join("sub")).expect("made");
        hints(&watch, |hints| hints.all);
        watch.add(OsStr::new("sub")).expect("watched");
        fs::write(temp.path().join("sub/b.jpg"), "x").expect("written");
        hints(&watch, |hints| hints.names.contains_key(OsStr::new("sub/b.jpg")));
    }

    #[test]
    fn a_moved_folder_has_the_watch_built_anew_and_a_removed_one_can_be_watched_again() {
        let temp = tempfile::tempdir().expect("a folder");
        let watch = watch(temp.path());
        fs::create_dir(temp.path().join("sub")).expect("made");
        watch.add(OsStr::new("sub")).expect("watched");
        fs::remove_dir(temp.path().join("sub")).expect("removed");
        let deadline = Instant::now() + Duration::from_secs(20);
        while lock(&watch.shared.watched).by_rel.len() > 1 {
            assert!(Instant::now() < deadline);
        }
        fs::create_dir(temp.path().join("sub")).expect("made");
        watch.add(OsStr::new("sub")).expect("watched again");
        watch.take();
        fs::rename(temp.path().join("sub"), temp.path().join("other")).expect("moved");
        assert!(hints(&watch, |hints| hints.moved).all);
    }

    #[test]
    fn one_folder_too_many_is_said_like_the_kernel_says_it() {
        let temp = tempfile::tempdir().expect("a folder");
        fs::create_dir(temp.path().join("sub")).expect("made");
        let watch = Watch::start(temp.path().to_owned(), Arc::default(), 1).expect("starts");
        watch.add(OsStr::new("")).expect("watched");
        watch.add(OsStr::new("")).expect("again is fine");
        assert_eq!(watch.add(OsStr::new("sub")), Err(Errno::NOSPC));
    }

    #[test]
    fn more_names_than_are_kept_become_a_look_at_everything() {
        let mut hints = Hints::default();
        for n in 0..MAX_NAMES {
            hints.name(n.to_string().into(), false);
        }
        assert!(!hints.all);
        hints.name("0".into(), true);
        assert!(!hints.all && hints.names[OsStr::new("0")]);
        hints.name("one more".into(), true);
        assert!(hints.all && hints.names.len() == MAX_NAMES);
    }
}

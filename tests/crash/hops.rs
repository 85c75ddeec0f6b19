//! A kill at every named place, for the first and for the second time that it is reached.

use std::{
    collections::{BTreeSet, VecDeque},
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use atelier_testkit::{
    daemon::{PATIENCE, Setup, files_below, wait_until},
    pictures::{photo_like, png},
};

use crate::{
    verdict::{Reference, judge},
    watcher::Watcher,
    wishes::Wish,
    yard::{Way, Yard, setup},
};

/// All places, and at which of the times that they are reached the daemon is killed.
pub(crate) const HOPS: &[(&str, &[u32])] = &[
    ("http.upload.write", &[1, 2]),
    ("http.received", &[1, 2]),
    ("http.spool.keep", &[1, 2]),
    ("http.spooled", &[1, 2]),
    ("http.enqueued", &[1, 2]),
    ("inbox.claim.begun", &[1, 2]),
    ("inbox.claim.before_rename", &[1, 2]),
    ("inbox.claim.after_rename", &[1, 2]),
    ("inbox.claim.sidecar", &[1, 2]),
    ("inbox.claim.durable", &[1, 2]),
    ("inbox.take.examined", &[1, 2]),
    ("inbox.take.admitted", &[1, 2]),
    ("inbox.take.placed", &[1, 2]),
    ("inbox.place.reported", &[1, 2]),
    ("inbox.place.moved", &[1, 2]),
    ("queue.after_start", &[1, 2]),
    ("queue.after_checkpoint", &[1, 2]),
    ("queue.after_run", &[1, 2]),
    ("publish.after_note", &[1, 2]),
    ("publish.rename", &[1, 2]),
    ("publish.after_rename", &[1, 2]),
    ("queue.before_succeed", &[1, 2]),
    ("queue.after_succeed", &[1, 2]),
    ("queue.before_hooks_done", &[1, 2]),
    // Every change of every job passes here, those of the start too.
    ("store.commit", &[1, 2, 3, 5, 8, 13, 21]),
];

/// Those that are reached where the outbox lies on another disk than the data.
pub(crate) const ACROSS: &[(&str, &[u32])] = &[
    ("publish.after_note", &[1, 2]),
    ("publish.rename", &[1, 2]),
    ("publish.after_copy", &[1, 2]),
    ("publish.before_remove", &[1, 2]),
    ("publish.after_rename", &[1, 2]),
];

/// Those at which other tests kill, where what they need is: a hub, or somebody to call.
pub(crate) const ELSEWHERE: &[&str] = &[
    // tests/hub/on_demand.rs
    "hub.before_publish",
    "hub.after_publish",
    // crates/signer/tests/daemon.rs
    "signing.signed",
    // tests/webhooks.rs
    "webhook.after_send",
];

/// Every place that the sources name.
pub(crate) fn in_the_sources() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    search(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut names);
    names
}

fn search(folder: &Path, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).expect("a folder of sources").map(|entry| entry.expect("readable").path()) {
        if entry.is_dir() {
            search(&entry, names);
        } else if entry.extension().is_some_and(|extension| extension == "rs") && !entry.ends_with("src/failpoint.rs") {
            let text = fs::read_to_string(&entry).expect("a source");
            for call in ["failpoint::hit(\"", "failpoint::fails(\""] {
                let rest = text.match_indices(call).map(|(at, _)| &text[at + call.len()..]);
                names.extend(rest.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())));
            }
        }
    }
}

/// Kills at each of `hops`; a few at the same time, for most of it is waiting.
pub(crate) fn survive(reference: &Reference, hops: &[(&'static str, &[u32])], place: impl Fn() -> Place + Sync) {
    let jobs: VecDeque<_> = hops.iter().flat_map(|(name, times)| times.iter().map(move |k| (*name, *k))).collect();
    let (jobs, place) = (Mutex::new(jobs), &place);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                loop {
                    let next = jobs.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some((name, nth)) = next else { break };
                    survive_one(reference, name, nth, place());
                }
            });
        }
    });
}

/// Where a daemon lives.
pub(crate) struct Place {
    setup: Setup,
    /// Where it is not the usual one.
    outbox: Option<tempfile::TempDir>,
}

impl Place {
    pub(crate) fn usual() -> Self {
        Self { setup: setup(), outbox: None }
    }

    /// With the outbox in memory and the rest on a disk.
    pub(crate) fn outbox_elsewhere() -> Self {
        let outbox = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
        let setup = setup().set("outbox.dir", outbox.path().to_str().expect("UTF-8"));
        let device = |path: &Path| fs::metadata(path).expect("it is there").dev();
        assert_ne!(device(outbox.path()), device(setup.root()), "two file systems are needed");
        Self { setup, outbox: Some(outbox) }
    }
}

fn survive_one(reference: &Reference, name: &str, nth: u32, place: Place) {
    let Place { setup, outbox } = place;
    let daemon = setup.prepare();
    let path = outbox.as_ref().map_or_else(|| daemon.outbox(), |dir| dir.path().to_owned());
    let mut yard = Yard::with_outbox(daemon, path, &reference.wishes);
    let watcher = Watcher::start(yard.outbox.clone(), reference.known());

    let begun = Instant::now();
    if yard.launch(&format!("{name}=kill@{nth}")) {
        ask_for_everything(&mut yard);
        assert!(yard.wait_dead(PATIENCE), "{name} was not reached {nth} times");
        yard.bury();
    } else {
        yard.bury();
        ask_for_everything(&mut yard);
    }
    let died = begun.elapsed();
    assert!(yard.launch(""), "{name}@{nth}: the daemon does not start again");
    yard.wait_quiet();

    let verdict = judge(&yard, reference);
    eprintln!(
        "{name}@{nth}: dead after {:.2} s; {} inputs, {} outputs, {} failed, {} duplicates, {} unknown",
        died.as_secs_f64(),
        verdict.inputs,
        verdict.outputs,
        verdict.failed,
        verdict.duplicates,
        verdict.unknown
    );
    assert!(verdict.is_clean(), "{name}@{nth}: {verdict:#?}");
    assert_eq!(watcher.complaints(), [""; 0], "{name}@{nth}");
    assert_eq!(watcher.end(), verdict.outputs as u64, "{name}@{nth}: files that were seen in the outbox");
    yard.stop();
}

/// In two waves, so that what is done for many at once is done twice.
fn ask_for_everything(yard: &mut Yard) {
    let (requests, dropped): (Vec<usize>, Vec<usize>) =
        (0..yard.wishes.len()).partition(|wish| yard.wishes[*wish].is_request());
    let (first, second) = dropped.split_at(dropped.len() / 2);
    for wish in first {
        yard.ask(&format!("first-{wish}"), *wish, Way::Moved, (*wish == 0).then_some(0));
    }
    let (now, later) = requests.split_at(requests.len() / 2);
    for wish in now {
        yard.ask(&format!("request-{wish}"), *wish, if wish % 3 == 0 { Way::Once } else { Way::Keyed }, None);
    }
    wait_for_claims(yard);
    for wish in later {
        yard.ask(&format!("request-{wish}"), *wish, if wish % 3 == 0 { Way::Once } else { Way::Keyed }, None);
    }
    for wish in second {
        let way =
            if matches!(yard.wishes[*wish], Wish::Picture { prompt: None, .. }) { Way::Copied } else { Way::Moved };
        yard.ask(&format!("second-{wish}"), *wish, way, None);
    }
    for copy in ["again", "once-more"] {
        yard.ask(&format!("first-0-{copy}"), 0, Way::Moved, Some(0));
    }
}

/// Until the first wave has left the inbox, or there is nobody to take it.
fn wait_for_claims(yard: &Yard) {
    let processing = yard.daemon.inbox().join(".processing");
    let waiting = |path: &PathBuf| !path.starts_with(&processing);
    let deadline = Instant::now() + Duration::from_secs(20);
    while yard.in_the_inbox().iter().any(waiting) && Instant::now() < deadline {
        if yard.address.get().is_none() || yard.is_dead() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A job fails for want of an outbox, is to be tried again, and the daemon dies over that.
pub(crate) fn survive_a_retry() {
    let picture = png(&photo_like(30, 30, 1));
    let refused = "publish.rename=eacces@1+";
    let mut daemon = setup().set("queue.max_attempts", 1).env("ATELIER_FAILPOINTS", refused).start();
    daemon.drop_file("photo.png", &picture);
    let id = daemon.wait_for_source("photo.png", PATIENCE);
    daemon.wait_for_status(&id, "failed", PATIENCE);
    let (failed, done) = (daemon.inbox().join("failed/photo.png"), daemon.inbox().join("done/photo.png"));
    wait_until("the source in failed/", PATIENCE, || failed.exists().then_some(()));
    daemon.sigterm();

    // Before the retry is written, and at each hop of the second run.
    for place in ["store.commit=kill@2", "queue.after_start=kill@1", "publish.after_rename=kill@1"] {
        daemon.set_env("ATELIER_FAILPOINTS", place);
        daemon.start();
        if daemon.job(&id)["status"] == "failed" {
            let answer = daemon.http().try_send("POST", &format!("/api/v1/jobs/{id}/retry"), &[], &[]);
            assert!(answer.is_err() || !place.starts_with("store"), "{place}: {answer:?}");
        }
        daemon.wait_exit(PATIENCE);
        assert_eq!(fs::read(&failed).unwrap(), picture, "{place}: it stays there until the job has succeeded");
    }

    daemon.set_env("ATELIER_FAILPOINTS", "");
    daemon.start();
    daemon.wait_for_status(&id, "succeeded", PATIENCE);
    wait_until("the source in done/", PATIENCE, || done.exists().then_some(()));
    assert_eq!(fs::read(&done).unwrap(), picture);
    assert!(files_below(&daemon.inbox().join("failed")).is_empty());
    assert_eq!(daemon.published().len(), 1);
}

//! What is everyday and must neither stop the inbox nor be said twice.

use std::os::unix::{
    ffi::OsStringExt as _,
    fs::{PermissionsExt as _, symlink},
    net::UnixListener,
};

use rustix::process::Uid;

use super::*;

#[test]
fn links_pipes_and_sockets_are_reported_and_left_where_they_are() {
    let bench = Bench::new();
    let mut looker = bench.looker();
    let secret = bench.temp.path().join("secret.jpg");
    fs::write(&secret, picture("secret")).expect("written");
    symlink(&secret, bench.path("link.jpg")).expect("linked");
    symlink(bench.temp.path(), bench.path("folder")).expect("linked");
    let _socket = UnixListener::bind(bench.path("socket.jpg")).expect("bound");
    let pipe = bench.path("pipe.jpg");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).expect("made");
    fs::hard_link(&secret, bench.path("hard.jpg")).expect("linked");
    looker.look(true);
    assert_eq!(names(&looker.after(SETTLE * 10).ready()), ["hard.jpg"], "a hard link is a file like any other");
    for (name, word) in
        [("link.jpg", "symbolic"), ("folder", "symbolic"), ("socket.jpg", "socket"), ("pipe.jpg", "pipe")]
    {
        assert!(looker.problem(name).expect(name).contains(word));
        assert!(bench.has(name));
    }
    fs::remove_file(bench.path("link.jpg")).expect("removed");
    looker.look(true);
    assert_eq!(looker.problem("link.jpg"), None);
}

#[test]
fn a_link_that_an_event_names_is_reported_too() {
    let bench = Bench::new();
    let mut looker = bench.looker();
    symlink("/etc/passwd", bench.path("link.jpg")).expect("linked");
    looker.events_until(|_, scout| !scout.status().problems.is_empty());
}

/// Runs `test` as a user whom permissions bind; root is bound by none.
fn as_somebody(bench: &Bench, test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            if rustix::process::geteuid().is_root() {
                for dir in [bench.temp.path(), &bench.settings.dir] {
                    fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).expect("set");
                }
                let nobody = Uid::from_raw(65534);
                rustix::thread::set_thread_res_uid(nobody, nobody, nobody).expect("root may, for this thread alone");
            }
            test();
        });
    });
}

#[test]
fn a_file_that_may_not_be_read_is_reported_once_and_tried_again() {
    let bench = Bench::new();
    bench.put("a.jpg", picture("a"));
    fs::set_permissions(bench.path("a.jpg"), fs::Permissions::from_mode(0o000)).expect("set");
    as_somebody(&bench, || {
        let mut looker = bench.looker();
        assert!(looker.after(SETTLE).ready().is_empty());
        let since = looker.scout.status().problems[0].since;
        for _ in 0..5 {
            assert!(looker.after(Duration::from_secs(30)).ready().is_empty());
        }
        assert!(looker.problem("a.jpg").expect("reported").contains("right to read"));
        assert_eq!(looker.scout.status().problems[0].since, since);
    });
    fs::set_permissions(bench.path("a.jpg"), fs::Permissions::from_mode(0o644)).expect("set");
    as_somebody(&bench, || {
        let mut looker = bench.looker();
        assert_eq!(names(&looker.after(SETTLE).ready()), ["a.jpg"]);
    });
}

#[test]
fn a_folder_that_may_not_be_read_is_reported_and_the_others_go_on() {
    let bench = Bench::new();
    bench.put("locked/a.jpg", picture("a"));
    bench.put("open/b.jpg", picture("b"));
    fs::set_permissions(bench.path("locked"), fs::Permissions::from_mode(0o000)).expect("set");
    as_somebody(&bench, || {
        let mut looker = bench.looker();
        assert_eq!(names(&looker.after(SETTLE).ready()), ["open/b.jpg"]);
        assert!(looker.problem("locked").expect("reported").contains("cannot be read"));
    });
    fs::set_permissions(bench.path("locked"), fs::Permissions::from_mode(0o755)).expect("set for the removal");
}

#[test]
fn another_users_file_has_no_lease_and_is_judged_by_standing_still() {
    if !rustix::process::geteuid().is_root() {
        // Only root can make another user's file.
        return;
    }
    let bench = Bench::new();
    bench.put("a.jpg", picture("a"));
    let half = picture("abcdefgh");
    bench.put("half.jpg", &half[..12]);
    let _writer = fs::File::options().append(true).open(bench.path("a.jpg")).expect("opens");
    as_somebody(&bench, || {
        let mut looker = bench.looker();
        assert!(looker.ready().is_empty());
        // The writer cannot be seen; what is half there is still not taken.
        assert_eq!(names(&looker.after(SETTLE).ready()), ["a.jpg"]);
        assert!(bench.has("half.jpg"));
    });
}

#[test]
fn files_that_vanish_are_dropped_without_a_word() {
    let bench = Bench::new();
    let mut looker = bench.looker();
    bench.put("a.jpg", picture("a"));
    bench.put("b.jpg", picture("b"));
    looker.look(true);
    fs::remove_file(bench.path("a.jpg")).expect("removed");
    assert_eq!(names(&looker.after(SETTLE).ready()), ["b.jpg"]);
    fs::remove_file(bench.path("b.jpg")).expect("removed");
    assert!(looker.after(SETTLE).ready().is_empty());
    assert_eq!(looker.scout.status().waiting, 0);
    assert!(looker.scout.status().problems.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_no_text_go_all_the_way() {
    let bench = Bench::new();
    let running = bench.start();
    running.ready().await;
    let name = OsString::from_vec(b"h\xf6h/caf\xe9.jpg".to_vec());
    let sidecar = OsString::from_vec(b"h\xf6h/caf\xe9.jpg.toml".to_vec());
    bench.put(&sidecar, "scale = 4");
    bench.drop_in(&name, picture("a"));
    until("the job", || bench.intake.job_of(&name).is_some()).await;
    let job = bench.intake.job_of(&name).expect("a job");
    assert_eq!(job.file.output_stem, OsString::from_vec(b"caf\xe9".to_vec()));
    assert_eq!(job.file.output_dir, Some(OsString::from_vec(b"h\xf6h".to_vec()).into()));
    assert_eq!(job.file.spec.params.scale, Some(4));
    bench.intake.end(job.file.id, None);
    assert!(bench.has(Path::new("done").join(&name)) && bench.has(Path::new("done").join(&sidecar)));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_a_full_queue_and_a_silent_database_lose_nothing() {
    let bench = Bench::new();
    {
        let mut rows = bench.intake.rows();
        rows.begin_errors.push_back(IntakeError::Unavailable("database is locked".into()));
        rows.admit_errors.extend([
            IntakeError::DiskFull,
            IntakeError::QueueFull { retry_after: Duration::from_millis(10) },
            IntakeError::Unavailable("database is locked".into()),
        ]);
    }
    for n in 0..5 {
        bench.put(format!("{n}.jpg"), picture(&n.to_string()));
    }
    let running = bench.start();
    until("all jobs", || bench.intake.jobs().len() == 5).await;
    assert!(bench.intake.rows().claims.is_empty());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_claimed_while_the_queue_is_full() {
    let bench = Bench::new();
    bench.intake.free.store(2, Ordering::Relaxed);
    for n in 0..5 {
        bench.put(format!("{n}.jpg"), picture(&n.to_string()));
    }
    let running = bench.start();
    until("two jobs", || bench.intake.jobs().len() == 2).await;
    let settled = running.handle.status().scans;
    for scan in 1..4 {
        running.handle.scan_now();
        until("a scan", || running.handle.status().scans >= settled + scan).await;
    }
    assert_eq!(bench.intake.jobs().len(), 2);
    assert!(bench.has("4.jpg"), "the others stay where they are");
    for job in bench.intake.jobs() {
        bench.intake.end(job.file.id, None);
    }
    until("the next two", || bench.intake.jobs().len() == 4).await;
    running.stop().await;
}

#[test]
fn a_replaced_inbox_is_opened_anew() {
    let bench = Bench::new();
    let mut looker = bench.looker();
    fs::rename(&bench.settings.dir, bench.temp.path().join("old")).expect("moved");
    looker.look(true);
    assert!(looker.problem("").expect("reported").contains("cannot be opened"));
    assert!(!bench.settings.dir.exists(), "what may have been unmounted is not made up");
    fs::create_dir(&bench.settings.dir).expect("made");
    looker.look(false);
    assert_eq!(looker.problem(""), None);
    assert_eq!(looker.scout.status().watching, "inotify");
    bench.drop_in("a.jpg", picture("a"));
    looker.events_until(|findings, _| !findings.ready.is_empty());
}

#[test]
fn new_settings_are_taken_at_the_next_look() {
    let bench = Bench::new();
    let mut looker = bench.looker();
    bench.put("raw.jpg", picture("raw"));
    looker.look(true);
    let mut settings = bench.settings.clone();
    settings.ignore = vec!["raw*".into()];
    settings.watch = WatchMode::Never;
    settings.dir = "/somewhere/else".into();
    looker.scout.configure(settings);
    assert!(looker.after(SETTLE).ready().is_empty());
    assert_eq!(looker.scout.status().watching, "poll");
    looker.scout.configure(bench.settings.clone());
    looker.look(true);
    assert_eq!(names(&looker.after(SETTLE).ready()), ["raw.jpg"]);
    assert_eq!(looker.scout.status().watching, "inotify");
}

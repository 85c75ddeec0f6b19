//! Events are hints: none of them missing loses a file.

use super::*;

#[test]
fn an_overflowed_watch_leads_to_a_look_at_everything() {
    let bench = Bench::in_memory();
    let mut looker = bench.looker();
    let held = looker.scout.watch().expect("watches").hold();
    // Twice the kernel's queue, at two events a file.
    let many = 20_000;
    for n in 0..many {
        fs::write(bench.path(format!("{n}.jpg")), "x").expect("written");
    }
    drop(held);
    let scans = looker.scout.status().scans;
    looker.events_until(|_, scout| scout.status().overflows > 0);
    looker.events_until(|_, scout| scout.status().scans > scans);
    assert_eq!(looker.scout.status().waiting, many);
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_thousand_files_all_become_jobs_although_the_watch_overflows() {
    let bench = Bench::in_memory();
    let running = bench.start();
    running.ready().await;
    let many = 20_000;
    for n in 0..many {
        // By turns written in place and renamed in.
        let name = format!("{n}.jpg");
        if n % 2 == 0 { bench.put(name, picture(&n.to_string())) } else { bench.drop_in(name, picture(&n.to_string())) }
    }
    let deadline = Instant::now() + Duration::from_mins(5);
    while bench.intake.rows().jobs.len() < many {
        assert!(Instant::now() < deadline, "{} of {many}", bench.intake.rows().jobs.len());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(bench.intake.rows().claims.is_empty());
    let jobs = bench.intake.jobs();
    let sources: BTreeSet<_> = jobs.iter().map(|job| &job.file.rel_path).collect();
    assert_eq!((jobs.len(), sources.len()), (many, many), "each once");
    assert!(jobs.iter().all(|job| judge_picture(&job.content).is_ok()));
    assert_eq!(fs::read_dir(bench.path(".processing")).expect("lists").count(), many);
    running.stop().await;
}

#[test]
fn a_new_folder_is_looked_into_and_watched() {
    let bench = Bench::new();
    let mut looker = bench.looker();
    bench.put("new/deep/a.jpg", picture("a"));
    looker.events_until(|_, scout| scout.table.get(rel("new/deep/a.jpg")).is_some());
    bench.drop_in("new/deep/b.jpg", picture("b"));
    let findings = looker.events_until(|findings, _| !findings.ready.is_empty());
    assert_eq!(findings.ready[0].rel, "new/deep/b.jpg");
    // A folder that is renamed takes its watch along, under its new name.
    fs::rename(bench.path("new"), bench.path("renamed")).expect("moved");
    looker.events_until(|_, scout| scout.table.get(rel("renamed/deep/a.jpg")).is_some());
    // The kernel tells of the move twice; the second has the watch built anew, and what falls into that moment is found
    // by the look that goes with it. Once that is over, events tell.
    let is_ready = |findings: &Findings, rel: &str| findings.ready.iter().any(|ready| ready.rel == rel);
    bench.drop_in("renamed/deep/c.jpg", picture("c"));
    looker.events_until(|findings, scout| {
        is_ready(findings, "renamed/deep/c.jpg") || scout.table.get(rel("renamed/deep/c.jpg")).is_some()
    });
    bench.drop_in("renamed/deep/d.jpg", picture("d"));
    looker.events_until(|findings, _| is_ready(findings, "renamed/deep/d.jpg"));
}

#[test]
fn too_many_folders_to_watch_means_looking() {
    let bench = Bench::new();
    for n in 0..3 {
        fs::create_dir(bench.path(n.to_string())).expect("made");
    }
    let recent = Arc::new(Recent::default());
    let judge = Arc::clone(&bench.intake);
    let mut scout = Scout::new(judge, bench.settings.clone(), Arc::clone(&recent), Arc::default());
    scout.limit_folders(2);
    let mut looker = Looker { scout, now: Instant::now(), recent };
    looker.look(true);
    assert_eq!(looker.scout.status().watching, "poll");
    assert!(looker.scout.rescan_every() < bench.settings.rescan);
    for n in 0..3 {
        bench.put(format!("{n}/a.jpg"), picture("a"));
    }
    looker.look(true);
    assert_eq!(looker.after(SETTLE).ready().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_watch_the_inbox_looks_often_enough_by_itself() {
    let mut bench = Bench::new();
    by_looking(&mut bench);
    bench.settings.rescan = Duration::from_hours(1);
    let running = bench.start();
    running.ready().await;
    assert_eq!(running.handle.status().watching, "poll");
    bench.put("a.jpg", picture("a"));
    bench.drop_in("b.jpg", picture("b"));
    until("both jobs", || bench.intake.jobs().len() == 2).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lies_there_at_the_start_is_treated_like_everything_else() {
    let bench = Bench::new();
    let half = picture("abcdefgh");
    bench.put("a.jpg", picture("a"));
    bench.put("half.jpg", &half[..12]);
    let running = bench.start();
    until("the job", || bench.intake.job_of("a.jpg").is_some()).await;
    assert!(bench.has("half.jpg"));
    bench.put("half.jpg", &half);
    until("the other", || bench.intake.job_of("half.jpg").is_some()).await;
    assert_eq!(bench.intake.job_of("half.jpg").expect("a job").content, half);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_settings_reach_a_running_inbox() {
    let bench = Bench::new();
    let running = bench.start();
    running.ready().await;
    let settings = Settings { ignore: vec!["a*".into()], ..bench.settings.clone() };
    running.settings.send(settings).expect("it listens");
    running.handle.scan_now();
    let scans = running.handle.status().scans;
    until("a scan", || running.handle.status().scans > scans).await;
    bench.drop_in("a.jpg", picture("a"));
    bench.drop_in("b.jpg", picture("b"));
    until("the job", || bench.intake.job_of("b.jpg").is_some()).await;
    assert!(bench.intake.job_of("a.jpg").is_none());
    running.settings.send(bench.settings.clone()).expect("it listens");
    running.handle.scan_now();
    until("the other", || bench.intake.job_of("a.jpg").is_some()).await;
    running.stop().await;
}

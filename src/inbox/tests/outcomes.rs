//! What becomes of sources: done, failed, duplicate, called back.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn moving_a_failed_file_back_is_a_retry_and_success_clears_its_report() {
    let bench = Bench::new();
    let running = bench.start();
    running.ready().await;
    bench.drop_in("x/a.jpg", picture("a"));
    for round in 1..=2 {
        until("the job", || bench.intake.jobs().len() == round).await;
        let job = bench.intake.jobs().pop().expect("a job");
        bench.intake.fail(job.file.id, "no answer");
        let report = bench.report("failed/x/a.jpg.error.json");
        assert_eq!((report.job, report.code.as_str()), (Some(job.file.id), "worker_stalled"));
        assert_eq!(report.attempts, 3 * u32::try_from(round).expect("small"));
        fs::rename(bench.path("failed/x/a.jpg"), bench.path("x/a.jpg")).expect("moved back");
    }
    // With its report this time.
    until("the third job", || bench.intake.jobs().len() == 3).await;
    let job = bench.intake.jobs().pop().expect("a job");
    bench.intake.end(job.file.id, None);
    assert!(bench.has("done/x/a.jpg"));
    assert!(!bench.has("failed/x/a.jpg.error.json"));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_that_is_moved_back_with_its_file_is_no_sidecar_and_does_not_stay() {
    let bench = Bench::new();
    let running = bench.start();
    running.ready().await;
    bench.drop_in("a.jpg", picture("a"));
    until("the job", || bench.intake.jobs().len() == 1).await;
    bench.intake.fail(bench.intake.jobs()[0].file.id, "no answer");
    for name in ["a.jpg.error.json", "a.jpg"] {
        fs::rename(bench.path("failed").join(name), bench.path(name)).expect("moved back");
    }
    until("the second job", || bench.intake.jobs().len() == 2).await;
    assert!(bench.intake.jobs()[1].file.sidecars.is_empty());
    until("the report back in failed/", || bench.has("failed/a.jpg.error.json")).await;
    assert!(!bench.has("a.jpg.error.json"));
    bench.intake.end(bench.intake.jobs()[1].file.id, None);
    assert!(!bench.has("failed/a.jpg.error.json"));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_duplicate_goes_to_done_and_says_which_job_it_repeats() {
    let bench = Bench::new();
    let running = bench.start();
    running.ready().await;
    bench.drop_in("a.jpg", picture("same"));
    until("the job", || bench.intake.jobs().len() == 1).await;
    let first = bench.intake.jobs()[0].file.id;
    bench.drop_in("b.jpg", picture("same"));
    until("the duplicate", || bench.has("done/b.jpg")).await;
    let link: super::super::DuplicateFile =
        serde_json::from_str(&bench.text("done/b.jpg.duplicate.json")).expect("a link");
    assert_eq!(link.job, first);
    bench.intake.end(first, None);
    bench.drop_in("a.jpg", picture("same"));
    until("the second duplicate", || bench.has("done/a (2).jpg.duplicate.json")).await;
    until("no claim", || bench.intake.rows().claims.is_empty()).await;
    // With other parameters it is another job.
    bench.put("c.toml", "scale = 4");
    bench.put("c.jpg", picture("same"));
    until("another job", || bench.intake.jobs().len() == 2).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_sidecar_takes_its_picture_to_failed() {
    let bench = Bench::new();
    let running = bench.start();
    running.ready().await;
    bench.put("x/a.jpg", picture("a"));
    bench.put("x/a.jpg.toml", "scale = 2\nsead = 4\n");
    bench.put("b.jpg", picture("b"));
    bench.put("b.toml", "\nscale = 3\n");
    until("both", || bench.has("failed/x/a.jpg") && bench.has("failed/b.jpg")).await;
    let report = bench.report("failed/x/a.jpg.error.json");
    assert_eq!((report.code.as_str(), report.job), ("sidecar_invalid", None));
    assert!(report.message.contains("a.jpg.toml: line 2") && report.hint.contains("seed"), "{report:?}");
    let report = bench.report("failed/b.jpg.error.json");
    assert_eq!(report.code, "sidecar_invalid");
    assert!(report.message.contains("b.toml: line 2") && report.message.contains("scale"), "{report:?}");
    assert!(bench.has("failed/x/a.jpg.toml") && bench.has("failed/b.toml"));
    until("no claim", || bench.intake.rows().claims.is_empty()).await;
    assert!(bench.intake.jobs().is_empty());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_picture_lacks_is_its_own_error_and_not_a_sidecars() {
    let bench = Bench::new();
    let running = bench.start();
    running.ready().await;
    bench.drop_in("edit/a.jpg", picture("a"));
    until("the report", || bench.has("failed/edit/a.jpg.error.json")).await;
    let report = bench.report("failed/edit/a.jpg.error.json");
    assert_eq!(report.code, "invalid_params");
    assert!(report.message.contains("prompt"), "{report:?}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_sidecar_starts_its_picture_again_whatever_its_job_is_at() {
    for ends_first in [false, true] {
        let mut bench = Bench::new();
        bench.settings.sidecar_wait = Duration::from_secs(20);
        let running = bench.start();
        running.ready().await;
        bench.drop_in("a.jpg", picture("a"));
        until("the job", || bench.intake.jobs().len() == 1).await;
        let first = bench.intake.jobs()[0].file.id;
        if ends_first {
            bench.intake.end(first, None);
            assert!(bench.has("done/a.jpg"));
        }
        bench.drop_in("a.jpg.toml", "scale = 4");
        until("the second job", || bench.intake.jobs().len() == 2).await;
        let jobs = bench.intake.jobs();
        assert_eq!(jobs[1].file.spec.params.scale, Some(4));
        assert_eq!(jobs[1].file.rel_path, Path::new("a.jpg"));
        let end = jobs[0].ended.as_ref().expect("the first has ended");
        assert_eq!(end.failure.is_none(), ends_first);
        assert!(!bench.has("failed/a.jpg") && !bench.has("failed/a.jpg.error.json") && !bench.has("done/a.jpg"));
        bench.intake.end(jobs[1].file.id, None);
        assert!(bench.has("done/a.jpg") && bench.has("done/a.jpg.toml"));
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_job_leaves_its_source_in_failed() {
    let bench = Bench::new();
    let running = bench.start();
    running.ready().await;
    bench.drop_in("a.jpg", picture("a"));
    until("the job", || bench.intake.jobs().len() == 1).await;
    bench.intake.cancel(bench.intake.jobs()[0].file.id).await.expect("fine");
    assert_eq!(bench.report("failed/a.jpg.error.json").code, "cancelled");
    running.stop().await;
}

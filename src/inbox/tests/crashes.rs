//! The start after a crash at each point of a file's way: the state is made by hand, then the inbox is started.

use super::*;
use crate::inbox::names::processing;

fn claim(bench: &Bench, rel: &str, sidecars: &[&str]) -> JobId {
    let id = bench.intake.new_id();
    let sidecars = sidecars.iter().map(PathBuf::from).collect();
    let claim = InboxClaim { id, rel_path: rel.into(), sidecars, claimed_at: Timestamp(0) };
    bench.intake.rows().claims.insert(id, claim);
    id
}

fn in_processing(bench: &Bench, id: JobId, name: &str, bytes: impl AsRef<[u8]>) {
    bench.put(Path::new(".processing").join(processing(id, rel(name))), bytes);
}

fn job(bench: &Bench, id: JobId, rel: &str) {
    let file = NewFile {
        id,
        spec: JobSpec::default(),
        rel_path: rel.into(),
        sidecars: Vec::new(),
        input: None,
        output_dir: None,
        output_stem: "a".into(),
    };
    bench.intake.rows().jobs.insert(id, FakeJob { file, content: Vec::new(), ended: None });
}

/// Starts the inbox, waits until `settled`, and stops it.
async fn started(bench: &Bench, what: &str, settled: impl FnMut() -> bool) {
    let running = bench.start();
    running.ready().await;
    until(what, settled).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_without_a_rename_leaves_the_file_to_be_claimed_anew() {
    let bench = Bench::new();
    let id = claim(&bench, "a.jpg", &[]);
    bench.put("a.jpg", picture("a"));
    started(&bench, "the job", || bench.intake.jobs().len() == 1).await;
    assert_ne!(bench.intake.jobs()[0].file.id, id);
    assert!(bench.intake.rows().claims.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_file_goes_on_under_its_id_with_the_sidecars_that_were_left_behind() {
    let bench = Bench::new();
    let id = claim(&bench, "x/a.jpg", &["x/a.jpg.toml", "x/a.txt"]);
    in_processing(&bench, id, "a.jpg", picture("a"));
    in_processing(&bench, id, "a.jpg.toml", "scale = 4");
    bench.put("x/a.txt", "warm");
    started(&bench, "the job", || bench.intake.jobs().len() == 1).await;
    let file = bench.intake.jobs().remove(0).file;
    assert_eq!((file.id, file.rel_path.as_path()), (id, Path::new("x/a.jpg")));
    assert_eq!((file.spec.params.scale, file.spec.params.prompt.as_deref()), (Some(4), Some("warm")));
    assert_eq!(file.output_dir, Some("x".into()));
    assert!(!bench.has("x/a.txt"));
    bench.intake.end(id, None);
    assert!(bench.has("done/x/a.jpg") && bench.has("done/x/a.jpg.toml") && bench.has("done/x/a.txt"));
    assert_eq!(bench.tree().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_whose_file_has_gone_is_dropped() {
    let bench = Bench::new();
    claim(&bench, "a.jpg", &[]);
    started(&bench, "no claim", || bench.intake.rows().claims.is_empty()).await;
    assert!(bench.intake.jobs().is_empty() && bench.tree().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jobs_file_is_left_alone_and_a_claim_beside_it_dropped() {
    let bench = Bench::new();
    let id = claim(&bench, "a.jpg", &[]);
    in_processing(&bench, id, "a.jpg", picture("a"));
    job(&bench, id, "a.jpg");
    started(&bench, "no claim", || bench.intake.rows().claims.is_empty()).await;
    assert!(bench.has(Path::new(".processing").join(processing(id, rel("a.jpg")))));
    assert_eq!(bench.intake.jobs().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_no_row_knows_goes_back_into_the_inbox_and_on_from_there() {
    let bench = Bench::new();
    let id = bench.intake.new_id();
    in_processing(&bench, id, "a.jpg", picture("a"));
    in_processing(&bench, id, "a.jpg.toml", "scale = 4");
    bench.put(".processing/README", "not ours");
    bench.put("a.jpg", picture("another of that name"));
    started(&bench, "both jobs", || bench.intake.jobs().len() == 2).await;
    let contents: BTreeSet<_> = bench.intake.jobs().into_iter().map(|job| job.content).collect();
    assert_eq!(contents, [picture("a"), picture("another of that name")].into());
    assert!(bench.has(".processing/README"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_was_cut_off_while_failing_fails_again() {
    // Examined, found wrong, and the crash came before the move; then once more after it, before the row went.
    let bench = Bench::new();
    let id = claim(&bench, "a.jpg", &[]);
    in_processing(&bench, id, "a.jpg", "no picture");
    started(&bench, "the report", || bench.has("failed/a.jpg")).await;
    claim(&bench, "a.jpg", &[]);
    started(&bench, "no claim", || bench.intake.rows().claims.is_empty()).await;
    assert!(bench.has("failed/a.jpg") && bench.has("failed/a.jpg.error.json"));
    assert_eq!(bench.tree().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_at_any_time_and_starting_again_loses_and_doubles_nothing() {
    let bench = Bench::in_memory();
    let many = 400;
    for n in 0..many {
        bench.put(format!("{n}.jpg"), picture(&n.to_string()));
    }
    let mut stops = 0;
    while bench.intake.jobs().len() < many {
        let running = bench.start();
        let enough = bench.intake.jobs().len() + 37;
        until("some more jobs", || bench.intake.jobs().len() >= enough.min(many)).await;
        running.stop().await;
        stops += 1;
    }
    assert!(stops > 3);
    let sources: BTreeSet<_> = bench.intake.jobs().into_iter().map(|job| job.file.rel_path).collect();
    assert_eq!((sources.len(), bench.intake.jobs().len()), (many, many));
}

//! From a file to a job: nothing half-written, nothing twice.

use std::io::Write as _;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn slow_writers_are_never_caught_half_way() {
    let bench = Bench::new();
    let running = bench.start();
    running.ready().await;
    let mut expected = BTreeMap::new();
    std::thread::scope(|scope| {
        for n in 0_u64..32 {
            let payload = format!("{n}:").repeat(2000);
            let rel = format!("{n}.jpg");
            let whole = picture(&payload);
            expected.insert(PathBuf::from(&rel), whole.clone());
            let bench = &bench;
            scope.spawn(move || write_slowly(bench, n, &rel, &whole));
        }
    });
    until("all jobs", || bench.intake.jobs().len() == 32).await;
    for job in bench.intake.jobs() {
        assert!(job.content == expected[&job.file.rel_path], "{} half-written", job.file.rel_path.display());
    }
    running.stop().await;
}

/// In one of the ways that programs have, with pauses up to three times the settling time.
fn write_slowly(bench: &Bench, n: u64, rel: &str, whole: &[u8]) {
    let way = n % 4;
    let target = bench.path(match way {
        0 => format!(".{rel}.Ab12Cd"),
        1 => format!("{rel}.part"),
        _ => rel.to_owned(),
    });
    let mut file = fs::File::create(&target).expect("made");
    let pieces = 3 + usize::try_from(n % 3).expect("small");
    for (index, piece) in whole.chunks(whole.len().div_ceil(pieces)).enumerate() {
        if way == 3 && index > 0 {
            // Closes and opens again for each piece.
            file = fs::File::options().append(true).open(&target).expect("opens");
        }
        file.write_all(piece).expect("written");
        if way == 3 {
            file = fs::File::open("/dev/null").expect("opens");
        }
        // The pause is what is tested: writers stop for longer than a file has to stand still.
        std::thread::sleep(SETTLE / 4 * u32::try_from((n + index as u64) % 13).expect("small"));
    }
    drop(file);
    if way < 2 {
        fs::rename(&target, bench.path(rel)).expect("moved");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_and_its_folder_decide_what_the_job_is() {
    let bench = Bench::new();
    for (rel, bytes) in [("a.jpg", "a"), ("trip/day 1/b.jpg", "b"), ("portrait/c.jpg", "c"), ("portrait/x/d.jpg", "d")]
    {
        bench.put(rel, picture(bytes));
    }
    bench.put("portrait/x/d.toml", "scale = 4");
    let running = bench.start();
    until("all jobs", || bench.intake.jobs().len() == 4).await;
    let facts = |rel: &str| {
        let file = bench.intake.job_of(rel).expect(rel).file;
        (file.spec.preset, file.output_dir, file.output_stem.into_string().expect("text"), file.spec.params.scale)
    };
    assert_eq!(facts("a.jpg"), (None, None, "a".into(), None));
    assert_eq!(facts("trip/day 1/b.jpg"), (None, Some("trip/day 1".into()), "b".into(), None));
    assert_eq!(facts("portrait/c.jpg"), (Some("portrait".into()), None, "c".into(), None));
    assert_eq!(facts("portrait/x/d.jpg"), (Some("portrait".into()), Some("x".into()), "d".into(), Some(4)));
    for job in bench.intake.jobs() {
        let (input, path) = job.file.input.expect("a picture");
        assert_eq!(fs::read(&path).expect("claimed"), job.content);
        assert_eq!(input.bytes, job.content.len() as u64);
        assert!(!bench.has(&job.file.rel_path));
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sidecars_are_layered_over_each_other_and_over_the_folder() {
    let bench = Bench::new();
    bench.put("edit/a.jpg", picture("a"));
    bench.put("edit/a.jpg.toml", "seed = 7\n");
    bench.put("edit/a.json", r#"{"seed": 8, "steps": 9}"#);
    bench.put("edit/a.txt", "warmer\n");
    let running = bench.start();
    until("the job", || bench.intake.jobs().len() == 1).await;
    let spec = bench.intake.jobs().remove(0).file.spec;
    assert_eq!((spec.params.seed, spec.params.steps), (Some(7), Some(9)));
    assert_eq!((spec.params.prompt.as_deref(), spec.preset.as_deref()), (Some("warmer"), Some("edit")));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spec_alone_becomes_a_job_without_a_picture() {
    let bench = Bench::new();
    bench.put("x/moon.toml", "kind = \"generate\"\nprompt = \"the moon\"\n");
    let running = bench.start();
    until("the job", || bench.intake.jobs().len() == 1).await;
    let file = bench.intake.jobs().remove(0).file;
    assert_eq!(file.rel_path, Path::new("x/moon.toml"));
    assert!(file.input.is_none() && file.sidecars.is_empty());
    assert_eq!((file.spec.kind, file.output_stem), (Some(JobKind::Generate), "moon".into()));
    assert_eq!(file.output_dir, Some("x".into()));
    bench.intake.end(file.id, None);
    assert!(bench.has("done/x/moon.toml"));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_files_are_claimed_in_batches_and_in_their_order() {
    let bench = Bench::in_memory();
    for n in 0..300 {
        let name = format!("{n:03}.jpg");
        bench.put(&name, picture(&name));
        let file = fs::File::options().write(true).open(bench.path(&name)).expect("opens");
        file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(1000 + n)).expect("set");
    }
    let running = bench.start();
    until("all jobs", || bench.intake.rows().jobs.len() == 300).await;
    let sources: Vec<_> = bench.intake.jobs().into_iter().map(|job| job.file.rel_path).collect();
    assert!(sources.is_sorted(), "ids follow the order of claims, and claims the age of the files");
    let batches = bench.intake.rows().batches.clone();
    assert!(batches.len() <= 300 / 16, "{batches:?}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_opens_the_file_as_it_is_claimed_is_waited_for() {
    let bench = Bench::new();
    // The file is claimed, and a writer that had its name in time goes on.
    let id = bench.intake.new_id();
    let whole = picture("abcdefgh");
    let processing = super::super::names::processing(id, rel("a.jpg"));
    bench.put(Path::new(".processing").join(&processing), &whole[..12]);
    let mut writer = fs::File::options().append(true).open(bench.path(".processing").join(&processing)).expect("opens");
    bench.intake.rows().claims.insert(id, claim_of(id, "a.jpg"));
    let running = bench.start();
    running.ready().await;
    running.handle.scan_now();
    writer.write_all(&whole[12..14]).expect("written");
    until("another look", || running.handle.status().scans > 1).await;
    assert!(bench.intake.jobs().is_empty());
    writer.write_all(&whole[14..]).expect("written");
    drop(writer);
    until("the job", || bench.intake.jobs().len() == 1).await;
    assert_eq!(bench.intake.jobs()[0].content, whole);
    running.stop().await;
}

fn claim_of(id: JobId, rel: &str) -> InboxClaim {
    InboxClaim { id, rel_path: rel.into(), sidecars: Vec::new(), claimed_at: Timestamp(0) }
}

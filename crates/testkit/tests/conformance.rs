//! The stand-in does what every worker must.

use std::{fs, path::PathBuf, sync::LazyLock, time::Duration};

use atelier_domain::{JobKind, Params, model::Family, protocol::ModelRef};
use atelier_testkit::{
    conformance::{Task, WorkerUnderTest},
    worker_conformance,
};

static FAKE: LazyLock<WorkerUnderTest> = LazyLock::new(|| {
    let params = Params { scale: Some(2), seed: Some(1), ..Params::default() };
    let long = Params { steps: Some(60), ..params.clone() };
    WorkerUnderTest {
        program: env!("CARGO_BIN_EXE_atelier-fake-worker").into(),
        args: ["--step-ms", "20"].map(Into::into).into(),
        device: "cpu".into(),
        threads: 1,
        kind: JobKind::Upscale,
        model: ModelRef { id: "fake".into(), family: Family::Fake, path: model_folder().into() },
        short: Task { params, width: 24, height: 16 },
        other_params: Params { seed: Some(2), ..long.clone() },
        long: Task { params: long, width: 40, height: 30 },
        scale: 2,
        patience: Duration::from_mins(1),
    }
});

fn model_folder() -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("fake");
    fs::create_dir_all(&folder).expect("a folder below target");
    fs::write(folder.join("config.json"), r#"{"_class_name":"AtelierFake"}"#).expect("written");
    folder
}

worker_conformance!(FAKE);

#[test]
fn every_behaviour_of_the_suite_is_a_test() {
    let sources = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/conformance");
    let mut written = Vec::new();
    for (group, names) in BEHAVIOURS {
        let source = fs::read_to_string(sources.join(format!("{group}.rs"))).expect("a file for each group");
        let functions = source.lines().filter_map(|line| line.strip_prefix("pub fn ")?.split('(').next());
        assert_eq!(functions.collect::<Vec<_>>(), *names, "{group}");
        written.push(format!("{group}.rs"));
    }
    // A list of its own; see conformance_captions.rs.
    written.extend(["captions.rs".into(), "mod.rs".into()]);
    let names = fs::read_dir(sources).expect("there").map(|entry| entry.expect("readable").file_name());
    let mut files: Vec<_> = names.map(|name| name.into_string().expect("UTF-8")).collect();
    written.sort();
    files.sort();
    assert_eq!(files, written);
}

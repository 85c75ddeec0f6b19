//! The stand-in writes texts as every worker must.

use std::{fs, path::PathBuf, sync::LazyLock, time::Duration};

use atelier_domain::{JobKind, Params, model::Family, protocol::ModelRef};
use atelier_testkit::{
    caption_conformance,
    conformance::{Task, WorkerUnderTest},
};

static FAKE: LazyLock<WorkerUnderTest> = LazyLock::new(|| {
    let params = |steps| Params { steps: Some(steps), ..Params::default() };
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("fake-captioner");
    fs::create_dir_all(&folder).expect("a folder below target");
    fs::write(folder.join("config.json"), r#"{"_class_name":"AtelierFake"}"#).expect("written");
    WorkerUnderTest {
        program: env!("CARGO_BIN_EXE_atelier-fake-worker").into(),
        args: ["--step-ms", "20"].map(Into::into).into(),
        device: "cpu".into(),
        threads: 1,
        kind: JobKind::Caption,
        model: ModelRef { id: "fake".into(), family: Family::Fake, path: folder.into() },
        short: Task { params: params(3), width: 24, height: 16 },
        long: Task { params: params(60), width: 24, height: 16 },
        other_params: params(2),
        scale: 1,
        patience: Duration::from_mins(1),
    }
});

caption_conformance!(FAKE);

#[test]
fn every_behaviour_of_the_suite_is_a_test() {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/conformance/captions.rs");
    let source = fs::read_to_string(file).expect("there");
    let functions = source.lines().filter_map(|line| line.strip_prefix("pub fn ")?.split('(').next());
    assert_eq!(BEHAVIOURS, [("captions", &functions.collect::<Vec<_>>()[..])]);
}

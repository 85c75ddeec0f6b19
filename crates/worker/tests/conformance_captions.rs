//! What every worker must do that writes texts, with a tiny LLaVA, and what the real one refuses.

use std::{path::Path, sync::LazyLock, time::Duration};

use atelier_domain::{JobKind, Params, model::Family, protocol::ModelRef};
use atelier_testkit::{
    caption_conformance,
    conformance::{Task, WorkerUnderTest},
};

static WORKER: LazyLock<WorkerUnderTest> = LazyLock::new(|| {
    let params = |prompt: &str, max_tokens| Params {
        prompt: Some(prompt.into()),
        max_tokens: Some(max_tokens),
        seed: Some(5),
        // So that each token is another, and the seed counts.
        temperature: Some(1.0),
        ..Params::default()
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/captions/llava-mistral/model");
    WorkerUnderTest {
        program: env!("CARGO_BIN_EXE_atelier-worker").into(),
        args: Vec::new(),
        device: "cpu".into(),
        threads: 1,
        kind: JobKind::Caption,
        model: ModelRef { id: "tiny-llava".into(), family: Family::LlavaNext, path: folder.into() },
        short: Task { params: params("What is in the picture?", 8), width: 24, height: 16 },
        long: Task { params: params("Describe this image.", 380), width: 24, height: 16 },
        other_params: params("How many boats?", 5),
        scale: 1,
        patience: Duration::from_mins(2),
    }
});

caption_conformance!(WORKER);

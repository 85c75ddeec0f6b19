//! What every worker must do that writes texts, with a tiny LLaVA, and what the real one refuses.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::LazyLock,
    time::Duration,
};

use atelier_domain::{JobKind, Params, model::Family, protocol::ModelRef};
use atelier_testkit::{
    caption_conformance,
    conformance::{Task, WorkerUnderTest},
};
use serde_json::{Value, json};

static WORKER: LazyLock<WorkerUnderTest> = LazyLock::new(|| {
    let params = |prompt: &str, max_tokens| Params {
        prompt: Some(prompt.into()),
        max_tokens: Some(max_tokens),
        seed: Some(5),
        // So that each token is another, and the seed counts.
        temperature: Some(1.0),
        ..Params::default()
    };
    let folder = talkative();
    WorkerUnderTest {
        program: env!("CARGO_BIN_EXE_atelier-worker").into(),
        args: Vec::new(),
        device: "cpu".into(),
        threads: 1,
        kind: JobKind::Caption,
        model: ModelRef { id: "tiny-llava".into(), family: Family::LlavaNext, path: folder.into() },
        short: Task { params: params("What is in the picture?", 8), width: 24, height: 16 },
        long: Task { params: params("Describe this image.", 4000), width: 24, height: 16 },
        other_params: params("How many boats?", 5),
        scale: 1,
        patience: Duration::from_mins(2),
    }
});

/// A tiny LLaVA that can write thousands of tokens and never ends by itself, so that any machine is caught in the middle.
fn talkative() -> PathBuf {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/captions/llava-mistral/model");
    let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("talkative-{}", std::process::id()));
    fs::create_dir_all(&to).unwrap();
    for entry in fs::read_dir(&from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
    let change = |file: &str, change: &dyn Fn(&mut Value)| {
        let path = to.join(file);
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut config);
        fs::write(&path, config.to_string()).unwrap();
    };
    change("config.json", &|config| config["text_config"]["max_position_embeddings"] = json!(8192));
    // No token of its vocabulary.
    change("generation_config.json", &|config| config["eos_token_id"] = json!(100_000));
    to
}

caption_conformance!(WORKER);

//! What every worker must do, with the embedded edit model.

use std::{path::Path, sync::LazyLock, time::Duration};

use atelier_domain::{JobKind, Params, model::Family, protocol::ModelRef};
use atelier_testkit::{
    conformance::{Task, WorkerUnderTest},
    worker_conformance,
};

static WORKER: LazyLock<WorkerUnderTest> = LazyLock::new(|| {
    let params = |prompt: &str, steps| Params {
        prompt: Some(prompt.into()),
        seed: Some(0),
        steps: Some(steps),
        ..Params::default()
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny-edit");
    WorkerUnderTest {
        program: env!("CARGO_BIN_EXE_atelier-worker").into(),
        args: Vec::new(),
        device: "cpu".into(),
        threads: 1,
        kind: JobKind::Edit,
        model: ModelRef { id: "tiny-edit".into(), family: Family::InstructPix2Pix, path: folder.into() },
        short: Task { params: params("make it black and white", 2), width: 24, height: 16 },
        // Enough steps to be stopped in the middle of.
        long: Task { params: params("make it black and white", 60), width: 64, height: 48 },
        other_params: params("invert the colors", 3),
        scale: 1,
        patience: Duration::from_mins(2),
    }
});

worker_conformance!(WORKER);

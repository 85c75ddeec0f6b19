//! The real worker does what every worker must.

use std::{path::Path, sync::LazyLock, time::Duration};

use atelier_domain::{JobKind, Params, model::Family, protocol::ModelRef};
use atelier_testkit::{
    conformance::{Task, WorkerUnderTest},
    worker_conformance,
};

static WORKER: LazyLock<WorkerUnderTest> = LazyLock::new(|| {
    let params = Params { scale: Some(2), ..Params::default() };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/span-x2");
    WorkerUnderTest {
        program: env!("CARGO_BIN_EXE_atelier-worker").into(),
        args: Vec::new(),
        device: "cpu".into(),
        threads: 1,
        kind: JobKind::Upscale,
        model: ModelRef { id: "span-x2".into(), family: Family::Span, path: folder.into() },
        short: Task { params: params.clone(), width: 24, height: 16 },
        // Twelve tiles, each of which takes as little as it can.
        long: Task { params: params.clone(), width: 3000, height: 16 },
        other_params: Params { scale: Some(4), ..params },
        scale: 2,
        patience: Duration::from_mins(2),
    }
});

worker_conformance!(WORKER);

//! A workbench: models, pictures, jobs, and running them with a hand on the brake.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use atelier_domain::{
    ErrorInfo, JobId, JobKind, OutputFormat, Params,
    model::Family,
    protocol::{Device, Finished, GpsPolicy, ModelRef, Offload, OutputSpec, Run, Stop},
};
use atelier_testkit::pictures;
use atelier_worker::{
    context::{Context, Stepped},
    control::Control,
    diffusion,
    error::JobError,
    events::{Outbox, Reporter},
    models::Cache,
    torch::{self, InferenceMode},
};
use serde_json::{Value, json};
use tempfile::TempDir;

pub(crate) struct Bench {
    pub(crate) root: TempDir,
}

/// How a run ended.
#[allow(clippy::large_enum_variant, reason = "there is one at a time; how large depends on features of serde_json")]
pub(crate) enum Ended {
    Finished(Finished),
    Stopped { step: u32 },
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self { root: tempfile::tempdir().unwrap() }
    }

    /// The embedded edit model.
    pub(crate) fn tiny_edit() -> ModelRef {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny-edit");
        ModelRef { id: "tiny-edit".into(), family: Family::InstructPix2Pix, path: path.into() }
    }

    /// A model of random weights, recorded for the parity tests.
    pub(crate) fn random(name: &str) -> ModelRef {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity/models").join(name);
        let index = fs::read(path.join("model_index.json")).or_else(|_| fs::read(path.join("config.json"))).unwrap();
        let index: Value = serde_json::from_slice(&index).unwrap();
        let family = Family::from_class_name(index["_class_name"].as_str().unwrap()).unwrap();
        ModelRef { id: name.into(), family, path: path.into() }
    }

    /// A copy of a model's folder, to be damaged.
    pub(crate) fn copy_of(&self, model: &ModelRef) -> ModelRef {
        let to = self.root.path().join(format!("copy-of-{}", model.id));
        copy(model.path.as_path(), &to);
        ModelRef { path: to.into(), ..model.clone() }
    }

    pub(crate) fn job(&self, kind: JobKind, model: ModelRef, params: &Value) -> Run {
        let params: Params = serde_json::from_value(params.clone()).unwrap();
        Run {
            job: JobId::from_ulid(1_u128.into()),
            attempt: 1,
            crashes: 0,
            kind,
            models: vec![model],
            model_given: true,
            parts: Vec::new(),
            params,
            inputs: Vec::new(),
            mask: None,
            work_dir: self.folder("job").into(),
            checkpoint_interval_ms: 3_600_000,
            output: OutputSpec { format: OutputFormat::Png, quality: 90, gps: GpsPolicy::Keep },
            max_pixels: 20_000_000,
        }
    }

    /// A text to a picture with a model of random weights.
    pub(crate) fn generate(&self, params: &Value) -> Run {
        let mut all = json!({ "prompt": "a lighthouse above the sea", "seed": 3, "width": 32, "height": 32 });
        merge(&mut all, params);
        self.job(JobKind::Generate, Self::random("sd15"), &all)
    }

    /// An edit of a picture of this size with the embedded model.
    pub(crate) fn edit(&self, prompt: &str, width: u32, height: u32) -> Run {
        let mut run = self.job(JobKind::Edit, Self::tiny_edit(), &json!({ "prompt": prompt, "seed": 0, "steps": 2 }));
        run.inputs = vec![self.picture("photo.png", width, height).into()];
        run
    }

    pub(crate) fn picture(&self, name: &str, width: u32, height: u32) -> PathBuf {
        let path = self.root.path().join(name);
        fs::write(&path, pictures::png(&pictures::photo_like(width, height, 1))).unwrap();
        path
    }

    /// A folder of its own.
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        let mut path = self.root.path().join(name);
        for n in 0.. {
            if !path.exists() {
                break;
            }
            path = self.root.path().join(format!("{name}-{n}"));
        }
        fs::create_dir(&path).unwrap();
        path
    }
}

/// The job's parameters with others in their place or beside them.
pub(crate) fn merge(into: &mut Value, from: &Value) {
    for (key, value) in from.as_object().unwrap() {
        into[key] = value.clone();
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

/// Runs the job in a fresh worker, as it were. `stop_after`: asks for a checkpoint once so many steps were done.
pub(crate) fn execute(run: &Run, stop_after: Option<usize>) -> Result<Ended, ErrorInfo> {
    with_budget(run, stop_after, u64::MAX, Offload::Auto)
}

pub(crate) fn with_budget(
    run: &Run,
    stop_after: Option<usize>,
    budget: u64,
    offload: Offload,
) -> Result<Ended, ErrorInfo> {
    with_cache(run, stop_after, &mut Cache::new(tch::Device::Cpu, budget), offload)
}

/// With what an earlier job has left loaded.
pub(crate) fn with_cache(
    run: &Run,
    stop_after: Option<usize>,
    cache: &mut Cache,
    offload: Offload,
) -> Result<Ended, ErrorInfo> {
    let _inference = InferenceMode::enter();
    let device = Device { name: "cpu".into(), threads: 1, ..Device::default() };
    let control = Arc::new(Control::default());
    assert!(control.begin(run.job));
    let (job, brake) = (run.job, control.clone());
    let done = std::cell::Cell::new(0);
    let mut context = Context {
        control,
        cache,
        reporter: Reporter::new(Arc::new(Outbox::new(std::io::sink())), run.job),
        device: &device,
        offload,
        on_step: Some(Box::new(move |_: &Stepped<'_>| {
            done.set(done.get() + 1);
            if Some(done.get()) == stop_after {
                brake.stop(job, Stop::Checkpoint);
            }
        })),
    };
    match torch::caught(|| diffusion::run(run, &mut context)) {
        Ok(finished) => Ok(Ended::Finished(finished)),
        Err(JobError::Stopped { step, .. }) => Ok(Ended::Stopped { step }),
        Err(error) => Err(error.info("cpu")),
    }
}

/// Runs it to its end.
#[track_caller]
pub(crate) fn finish(run: &Run) -> Finished {
    match execute(run, None) {
        Ok(Ended::Finished(finished)) => finished,
        Ok(Ended::Stopped { step }) => panic!("stopped at step {step}"),
        Err(error) => panic!("{}: {} ({})", error.code, error.message, error.hint),
    }
}

/// All of the job's files, in their order.
pub(crate) fn outputs(run: &Run, finished: &Finished) -> Vec<Vec<u8>> {
    finished.outputs.iter().map(|output| fs::read(run.work_dir.as_path().join(&output.file)).unwrap()).collect()
}

/// What the job fails with.
#[track_caller]
pub(crate) fn refused(run: &Run) -> ErrorInfo {
    match execute(run, None) {
        Ok(_) => panic!("it should have been refused"),
        Err(error) => error,
    }
}

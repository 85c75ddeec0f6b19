//! A model that is three times as large as the memory that there is for it.
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, clippy::cast_possible_truncation, reason = "tests")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use atelier_domain::{
    ErrorCode, JobId, JobKind, OutputFormat, Params,
    model::Family,
    protocol::{Event, GpsPolicy, Hello, ModelRef, Offload, OutputSpec, PROTOCOL_VERSION, Run},
};
use atelier_testkit::driver::Worker;
use atelier_worker::{
    unet::{UNet2DCondition, UNetConfig},
    weights::Weights,
};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_mins(10);

/// The tiny SDXL of the parity tests, with a UNet of a few hundred million parameters, nearly all of them in the blocks
/// of its attentions. In bfloat16, so that a CPU holds twice the file. Gives what its weights hold then, in bytes.
fn mid_size(folder: &Path) -> u64 {
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity/models/sdxl"), folder);
    let path = folder.join("unet/config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["block_out_channels"] = json!([8, 16, 448]);
    config["attention_head_dim"] = json!([2, 4, 8]);
    config["transformer_layers_per_block"] = json!([1, 1, 14]);
    fs::write(&path, config.to_string()).unwrap();
    let weights = Weights::recording();
    UNet2DCondition::load(&weights, &UNetConfig::open(&path).unwrap()).unwrap();
    let shapes = weights.recorded();
    write_random(&folder.join("unet/diffusion_pytorch_model.safetensors"), &shapes);
    shapes.values().map(|shape| 4 * elements(shape) as u64).sum()
}

fn elements(shape: &[i64]) -> usize {
    usize::try_from(shape.iter().product::<i64>()).unwrap()
}

/// Random tensors, about as large as training would begin with; all of them are views of the same few numbers.
fn write_random(path: &Path, shapes: &BTreeMap<String, Vec<i64>>) {
    let largest = shapes.values().map(|shape| elements(shape)).max().unwrap();
    let mut state = 1_u32;
    let mut noise = |scale: f32, middle: f32| -> Vec<u8> {
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let value = (f64::from(state) / f64::from(u32::MAX) * 2.0 - 1.0) as f32;
            let [_, _, low, high] = value.mul_add(scale, middle).to_le_bytes();
            [low, high]
        };
        // A prime, so that rows are not alike.
        let some: Vec<u8> = (0..65_521).flat_map(|_| next()).collect();
        some.iter().copied().cycle().take(2 * largest).collect()
    };
    let (wide, narrow, norms) = (noise(0.1, 0.0), noise(0.03, 0.0), noise(0.1, 1.0));
    let views = shapes.iter().map(|(name, shape)| {
        let is_norm = shape.len() == 1 && name.ends_with("weight");
        let is_wide = shape.iter().skip(1).product::<i64>() < 256;
        let data = if is_norm {
            &norms
        } else if is_wide {
            &wide
        } else {
            &narrow
        };
        let sides = shape.iter().map(|&side| usize::try_from(side).unwrap()).collect();
        (name.as_str(), TensorView::new(Dtype::BF16, sides, &data[..2 * elements(shape)]).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
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

/// A worker's memory, in bytes: one line of its status.
fn status(worker: &Worker, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", worker.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

struct Ran {
    /// The picture's bytes, or why there is none.
    result: Result<Vec<u8>, ErrorCode>,
    /// The most that the process ever held, its program and mapped files included.
    peak_bytes: u64,
}

/// Runs the model in a worker of its own, which may have `limit` bytes of its own.
fn run(model: &Path, offload: Offload, budget: Option<u64>, limit: Option<u64>) -> Ran {
    let work_dir = tempfile::tempdir().unwrap();
    let mut worker = Worker::spawn(Command::new(env!("CARGO_BIN_EXE_atelier-worker"))).unwrap();
    let hello = Hello { protocol: PROTOCOL_VERSION, device: "cpu".into(), threads: 1, memory_budget: budget, offload };
    worker.greet(hello, PATIENCE).unwrap();
    let pid = Pid::from_raw(i32::try_from(worker.pid()).unwrap()).unwrap();
    if limit.is_some() {
        prlimit(Some(pid), Resource::Data, Rlimit { current: limit, maximum: None }).unwrap();
    }
    let run = job(model.to_owned(), work_dir.path().to_owned());
    let events = worker.run(&run, PATIENCE).unwrap();
    let result = match events.last() {
        Some(Event::Finished(done)) => Ok(fs::read(work_dir.path().join(&done.outputs[0].file)).unwrap()),
        Some(Event::Failed { error, .. }) => Err(error.code),
        other => panic!("{other:?}"),
    };
    Ran { result, peak_bytes: status(&worker, "VmHWM") }
}

fn job(model: PathBuf, work_dir: PathBuf) -> Run {
    let params =
        json!({ "prompt": "a lighthouse", "seed": 3, "width": 64, "height": 64, "steps": 2, "guidance_scale": 1 });
    let params: Params = serde_json::from_value(params).unwrap();
    Run {
        job: JobId::from_ulid(1_u128.into()),
        attempt: 1,
        crashes: 0,
        kind: JobKind::Generate,
        models: vec![ModelRef { id: "mid-size".into(), family: Family::StableDiffusionXl, path: model.into() }],
        model_given: true,
        parts: Vec::new(),
        params,
        inputs: Vec::new(),
        mask: None,
        work_dir: work_dir.into(),
        checkpoint_interval_ms: 3_600_000,
        output: OutputSpec { format: OutputFormat::Png, quality: 90, gps: GpsPolicy::Keep },
        max_pixels: 1_000_000,
    }
}

#[test]
fn a_model_runs_block_by_block_in_a_third_of_its_size_and_gives_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = mid_size(folder.path());
    let third = bytes / 3;
    let whole = run(folder.path(), Offload::None, Some(u64::MAX), None);
    let picture = whole.result.unwrap();
    assert!(whole.peak_bytes > bytes, "{} of {bytes}: it was not held as a whole", whole.peak_bytes);

    let starved = run(folder.path(), Offload::None, Some(u64::MAX), Some(third));
    assert_eq!(starved.result, Err(ErrorCode::OutOfMemory), "the limit holds");

    let by_block = run(folder.path(), Offload::Block, None, Some(third));
    eprintln!("{bytes} bytes of weights; peak {} whole, {} by block", whole.peak_bytes, by_block.peak_bytes);
    assert!(by_block.result == Ok(picture.clone()), "{:?}", by_block.result.err());
    assert!(by_block.peak_bytes <= third, "{} of {third}", by_block.peak_bytes);

    // By itself, where the budget is too small for the UNet; what fits stays.
    let by_itself = run(folder.path(), Offload::Auto, Some(third - (200 << 20)), Some(third));
    eprintln!("peak {} by itself", by_itself.peak_bytes);
    assert!(by_itself.result == Ok(picture), "{:?}", by_itself.result.err());
    assert!(by_itself.peak_bytes <= third, "{} of {third}", by_itself.peak_bytes);
}

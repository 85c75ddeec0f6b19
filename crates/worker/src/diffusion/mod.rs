//! The job kinds that a diffusion model serves: `edit`, `generate`, `inpaint` and `control`.
//!
//! A straight walk, top to bottom of [`run`]: read the pictures and the model's folder, settle every number, load, run
//! step by step, write. What can be wrong is found before anything is loaded. The same request on the same device gives
//! the same bytes, in however many runs.

pub mod card;
pub mod checkpoint;
pub mod classic;
pub mod colors;
pub mod denoise;
pub mod hashes;
pub mod manifest;
pub mod output;
pub mod pixels;
pub mod preview;
pub mod request;
pub mod stepper;

use std::path::Path;

use atelier_domain::{
    Detail, Fit, JobKind,
    protocol::{Finished, OutputFile, Run, Stop},
};
use atelier_imaging::{Color, ColorMaps, Generation, Picture, Pixels};
use serde_json::json;

use self::{
    checkpoint::Checkpoint,
    denoise::Denoising,
    hashes::{Fingerprint, Hashes},
    output::Made,
    pixels::Rgb,
    request::{Brought, Order},
};
use crate::{
    context::Context,
    error::JobError,
    events::Phase,
    models::Stamp,
    pipeline::{Mode, Stage},
    upscale::checkpoint::{Done, sweep},
};

/// Changes with every change that may alter a byte of an output: checkpoints of another revision are of no use.
const REVISION: u32 = 4;

/// Runs the job to its end.
///
/// # Errors
/// Why there is no output; a stop counts as such.
///
/// # Cancellation
/// Asked for between two phases, two tensors that are loaded, and two steps.
pub fn run(run: &Run, context: &mut Context<'_>) -> Result<Finished, JobError> {
    let folder = run.work_dir.as_path();
    let result = attempt(run, context);
    if let Err(JobError::Stopped { how: Stop::Cancel, .. }) = &result {
        clear(folder)?;
    }
    result
}

fn attempt(run: &Run, context: &mut Context<'_>) -> Result<Finished, JobError> {
    let folder = run.work_dir.as_path();
    let hashes = request::hash_inputs(run)?;
    let fingerprint = request::fingerprint(run, &hashes, context.device);
    if let Some(done) = done_before(run, &fingerprint, context)? {
        return Ok(done);
    }
    sweep(folder).map_err(JobError::io(folder))?;

    context.reporter.progress(Phase::Decode, 0, 0);
    let brought = Brought::read(run)?;
    let order = Order::take(run, brought, context.cache.device())?;
    context.reporter.progress(Phase::Decode, 1, 1);
    let finished = match order {
        Order::Classic(order) => classic::run(run, &order, &hashes, context)?,
        Order::Diffusion(order) => diffuse(run, &order, &fingerprint, &hashes, context)?,
    };
    let steps = finished.steps;
    Done { fingerprint, steps, weights: finished.stamps, finished: finished.finished.clone() }
        .save(folder)
        .map_err(JobError::io(folder))?;
    clear(folder)?;
    context.reporter.progress(Phase::Encode, 1, 1);
    Ok(finished.finished)
}

/// What a job has come to, and what tells whether it still holds.
struct Ended {
    finished: Finished,
    steps: u32,
    /// Files that went into it, and their stamps.
    stamps: Vec<(String, String)>,
}

/// The result, if an earlier run of this very request got as far.
fn done_before(run: &Run, fingerprint: &str, context: &mut Context<'_>) -> Result<Option<Finished>, JobError> {
    let folder = run.work_dir.as_path();
    let Some(done) = Done::load(folder, fingerprint) else { return Ok(None) };
    let is_same =
        |(path, stamp): &(String, String)| Stamp::of(Path::new(path)).is_ok_and(|found| found.to_string() == *stamp);
    if !done.weights.iter().all(is_same) {
        return Ok(None);
    }
    clear(folder)?;
    tracing::info!(job = %run.job, "the output is there already");
    context.reporter.started(&done.finished.model, Some(done.steps));
    Ok(Some(done.finished))
}

/// Removes what only a running job needs.
fn clear(folder: &Path) -> Result<(), JobError> {
    checkpoint::clear(folder).and_then(|()| preview::clear(folder)).map_err(JobError::io(folder))
}

fn diffuse(
    run: &Run,
    order: &request::Diffusion,
    request: &str,
    inputs: &[String],
    context: &mut Context<'_>,
) -> Result<Ended, JobError> {
    let folder = run.work_dir.as_path();
    let files: Vec<_> = order.files();
    let stamps = stamps(&files)?;
    let mut fingerprint = Fingerprint { request, weights: Hashes::begin(files.clone()) };
    let per_image = u32::try_from(order.sampler.steps().len()).unwrap_or(u32::MAX);
    let mut resumed = None;
    if checkpoint::exists(folder) {
        resumed = checkpoint::load(folder, &fingerprint.get()?).filter(|found| found.image < order.images);
    }
    let step_of = |found: &Checkpoint| {
        let within = found.denoise.as_ref().map_or(0, |denoise| denoise.sampler.position());
        found.image * per_image + u32::try_from(within).unwrap_or(0)
    };
    let resumed_step = resumed.as_ref().map(step_of);
    context.reporter.started(&order.blueprint.model.id, resumed_step);
    if let Some(how) = context.control.stop_requested() {
        return Err(JobError::Stopped { how, step: resumed_step.unwrap_or(0) });
    }

    let mut stage = Stage::new(context, &order.blueprint, &order.task, order.loras.clone());
    stage.load_all(order.pipeline.as_ref()).map_err(at_step(resumed_step))?;
    let text = order.pipeline.encode_text(&mut stage).map_err(at_step(resumed_step))?;
    stage.done_with_text();
    let Checkpoint { image, mut outputs, mut denoise } =
        resumed.unwrap_or(Checkpoint { image: 0, outputs: Vec::new(), denoise: None });
    let mut notes = order.notes.clone();
    for image in image..order.images {
        let denoising = Denoising { run, order, text: &text, image, outputs: &outputs };
        let picture = denoising.run(&mut stage, denoise.take(), &mut fingerprint)?;
        let (output, more) = write(run, order, image, &picture, stage.context)?;
        outputs.push(output);
        notes.extend(more);
        if image + 1 < order.images {
            let between = Checkpoint { image: image + 1, outputs: outputs.clone(), denoise: None };
            denoise::save(folder, &fingerprint.get()?, &between)?;
            stage.context.reporter.checkpointed((image + 1) * per_image);
        }
    }
    notes.append(&mut stage.notes);
    let weights = fingerprint.weights.get().map_err(JobError::io(folder))?;
    let manifest = manifest::of(run, order, inputs, &files, weights, &notes, context);
    let result = order.instruction.as_ref().map(|name| json!({ "engine": "diffusion", "instruction": name }));
    let model = order.blueprint.model.id.clone();
    let finished = Finished { job: run.job, model, outputs, result, manifest };
    Ok(Ended { finished, steps: per_image * order.images, stamps })
}

/// A stop while loading is one at the step where the job stands.
fn at_step(step: Option<u32>) -> impl FnOnce(JobError) -> JobError {
    move |error| error.stopped_at(step.unwrap_or(0))
}

fn stamps(files: &[std::path::PathBuf]) -> Result<Vec<(String, String)>, JobError> {
    let stamp = |path: &std::path::PathBuf| {
        let stamp = Stamp::of(path).map_err(JobError::io(path))?;
        Ok((path.to_string_lossy().into_owned(), stamp.to_string()))
    };
    files.iter().map(stamp).collect()
}

/// Writes one picture (1, 3, H, W): as it is, in the source's size, or as a change of the source's own pixels.
fn write(
    run: &Run,
    order: &request::Diffusion,
    index: u32,
    picture: &tch::Tensor,
    context: &Context<'_>,
) -> Result<(OutputFile, Vec<String>), JobError> {
    let threads = usize::try_from(context.device.threads).unwrap_or(1);
    let carried = matches!(order.task.mode, Mode::Instruct | Mode::Inpaint | Mode::Image);
    let source = order.source.as_ref();
    let (pixels, width, height, alpha) = match (source, &order.task.picture) {
        (Some(source), Some(small)) if order.detail == Detail::Guided => {
            let edited = pixels::interleaved(picture)?;
            let maps = ColorMaps::fit(&small.unit(), &edited, small.width, small.height);
            (maps.apply(source, threads), source.width, source.height, source.alpha)
        }
        (Some(source), _) if order.fit == Fit::Source => {
            let rgb = Rgb::from_tensor(picture)?.resized(source.width as usize, source.height as usize);
            (Pixels::U8(with_alpha(rgb.samples, source)), source.width, source.height, source.alpha)
        }
        (_, _) => {
            let rgb = Rgb::from_tensor(picture)?;
            let side = |side: usize| u32::try_from(side).unwrap_or(u32::MAX);
            let (width, height) = (side(rgb.width), side(rgb.height));
            (Pixels::U8(rgb.samples), width, height, false)
        }
    };
    let source = source.filter(|_| carried);
    let marked_as = match order.task.mode {
        Mode::Text => JobKind::Generate,
        Mode::Image | Mode::Inpaint | Mode::Instruct | Mode::Control => JobKind::Edit,
    };
    let parameters = Some(parameters(run, order, width, height));
    let made = Made { width, height, color: Color::Rgb, alpha, pixels: &pixels, source, marked_as, parameters };
    output::write(run, context, index, &made)
}

/// How a picture was generated, in A1111's words.
fn parameters(run: &Run, order: &request::Diffusion, width: u32, height: u32) -> String {
    let task = &order.task;
    let changes_a_picture = matches!(task.mode, Mode::Image | Mode::Inpaint);
    Generation {
        prompt: &task.prompt,
        negative_prompt: task.negative_prompt.as_deref().unwrap_or_default(),
        steps: u32::try_from(task.steps).ok(),
        sampler: run.params.sampler.as_deref(),
        scheduler: None,
        guidance_scale: Some(task.guidance_scale),
        seed: Some(order.seed),
        width,
        height,
        model: &order.blueprint.model.id,
        model_sha256: None,
        strength: changes_a_picture.then_some(task.strength),
    }
    .parameters()
}

/// RGB with the source's own alpha, where it has one.
fn with_alpha(rgb: Vec<u8>, source: &Picture) -> Vec<u8> {
    if !source.alpha {
        return rgb;
    }
    let channels = source.channels();
    let alpha: Vec<u8> = match &source.pixels {
        Pixels::U8(samples) => samples.iter().skip(channels - 1).step_by(channels).copied().collect(),
        Pixels::U16(samples) => {
            let narrow = |&sample: &u16| u8::try_from((u32::from(sample) + 128) / 257).unwrap_or(u8::MAX);
            samples.iter().skip(channels - 1).step_by(channels).map(narrow).collect()
        }
    };
    rgb.chunks_exact(3).zip(alpha).flat_map(|(rgb, alpha)| [rgb[0], rgb[1], rgb[2], alpha]).collect()
}

//! The job kind `caption`: says what is on a picture, or answers a question about it.
//!
//! A straight walk, top to bottom of [`run`]: read the picture and the model's folder, put both into tokens, load, write
//! token by token. What can be wrong is found before anything is loaded. A text is written in seconds: a job that was
//! stopped begins again, and the same seed gives the same text.

pub mod blip2;
pub mod captioner;
pub mod decoding;
pub mod generate;
pub mod llava_next;
pub mod manifest;
pub mod preprocessor;
pub mod qwen2_vl;
pub mod request;
pub mod stream;

use std::{cell::RefCell, ops::ControlFlow, path::Path, rc::Rc};

use atelier_domain::protocol::{Event, Finished, Run, Stop};
use serde_json::json;

use self::{
    captioner::Speaker,
    generate::End,
    request::{Hashed, Order},
    stream::TextSoFar,
};
use crate::{
    context::Context,
    diffusion::hashes::Hashes,
    error::JobError,
    events::Phase,
    models::{ModelError, Part, Stamp},
    pipeline::stage::settle_blocks,
    upscale::checkpoint::{Done, sweep},
    weights::{LoadProgress, OnProgress, Weights, WeightsError},
};

/// Changes with every change that may alter a word of a text.
const REVISION: u32 = 1;

/// Runs the job to its end.
///
/// # Errors
/// Why there is no text; a stop counts as such.
///
/// # Cancellation
/// Asked for between two phases, two tensors that are loaded, and two tokens.
pub fn run(run: &Run, context: &mut Context<'_>) -> Result<Finished, JobError> {
    let folder = run.work_dir.as_path();
    let inputs = request::hash_inputs(run)?;
    let fingerprint = request::fingerprint(run, &inputs, context);
    if let Some(done) = done_before(folder, &fingerprint, context) {
        return Ok(done);
    }
    sweep(folder).map_err(JobError::io(folder))?;

    context.reporter.progress(Phase::Decode, 0, 0);
    let picture = request::picture(run)?;
    let order = Order::take(run, &picture, context)?;
    context.reporter.progress(Phase::Decode, 1, 1);
    let mut weights = Hashes::begin(order.files.clone());
    context.reporter.started(&order.model.id, None);
    stop_requested(context)?;

    let speaker = load(&order, context)?;
    let written = write(&order, &**speaker, context)?;

    context.reporter.progress_with(Phase::Encode, 0, 1, &written.text);
    let weights = weights.get().map_err(JobError::io(folder))?;
    let hashed = Hashed { inputs: &inputs, weights };
    let manifest = manifest::of(run, &order, &hashed, &written, context);
    let result = json!({ "text": written.text, "engine": "language", "model": order.model.id });
    let finished =
        Finished { job: run.job, model: order.model.id.clone(), outputs: Vec::new(), result: Some(result), manifest };
    let stamps = order.files.iter().map(|path| Ok((path.to_string_lossy().into_owned(), stamp(path)?)));
    let stamps = stamps.collect::<Result<Vec<_>, JobError>>()?;
    let steps = u32::try_from(order.choice.max_tokens).unwrap_or(u32::MAX);
    Done { fingerprint, steps, weights: stamps, finished: finished.clone() }
        .save(folder)
        .map_err(JobError::io(folder))?;
    context.reporter.progress_with(Phase::Encode, 1, 1, &written.text);
    Ok(finished)
}

/// The result, if an earlier run of this very request got as far.
fn done_before(folder: &Path, fingerprint: &str, context: &Context<'_>) -> Option<Finished> {
    let done = Done::load(folder, fingerprint)?;
    let is_same = |(path, known): &(String, String)| stamp(Path::new(path)).is_ok_and(|found| found == *known);
    if !done.weights.iter().all(is_same) {
        return None;
    }
    tracing::info!(job = %done.finished.job, "the text is there already");
    context.reporter.started(&done.finished.model, Some(done.steps));
    Some(done.finished)
}

fn stamp(path: &Path) -> Result<String, JobError> {
    Ok(Stamp::of(path).map_err(JobError::io(path))?.to_string())
}

fn stop_requested(context: &Context<'_>) -> Result<(), JobError> {
    context.control.stop_requested().map_or(Ok(()), |how| Err(JobError::Stopped { how, step: 0 }))
}

/// The networks, from what is loaded or from the files; where the device is full, once more after all else has gone.
fn load(order: &Order, context: &mut Context<'_>) -> Result<Rc<Box<dyn Speaker>>, JobError> {
    context.reporter.progress(Phase::Load, 0, 0);
    match try_load(order, context) {
        Err(error) if error.is_out_of_memory() && context.cache.evict_unused() => {
            tracing::warn!(%error, "out of memory; other models were unloaded for another try");
            try_load(order, context)
        }
        other => other,
    }
}

fn try_load(order: &Order, context: &mut Context<'_>) -> Result<Rc<Box<dyn Speaker>>, JobError> {
    let progress: OnProgress = {
        let (reporter, control) = (context.reporter.clone(), context.control.clone());
        Rc::new(move |LoadProgress { done_bytes, total_bytes }| {
            let kibibytes = |bytes: u64| u32::try_from(bytes >> 10).unwrap_or(u32::MAX);
            reporter.progress(Phase::Load, kibibytes(done_bytes), kibibytes(total_bytes).max(1));
            if control.stop_requested().is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
    };
    let mut weights = captioner::open(&*order.captioner, context.cache.device(), Some(progress))?;
    let load = |weights: &Weights| order.captioner.load(weights);
    let bytes =
        settle_blocks(&mut weights, context.offload, context.cache.budget(), &load).map_err(ModelError::from)?;
    let variant = if weights.streams() { "caption by block" } else { "caption" };
    let part = Part { id: &order.model.id, name: "", variant, files: order.files.clone(), bytes };
    let loaded = context.cache.get(part, || {
        let speaker = load(&weights)?;
        weights.finish()?;
        Ok(speaker)
    });
    match loaded {
        Ok((speaker, is_new)) => {
            if is_new {
                context.reporter.send(&Event::Models { loaded: context.cache.loaded() });
            }
            Ok(speaker)
        }
        Err(ModelError::Weights(WeightsError::Interrupted { .. })) => {
            let how = context.control.stop_requested().unwrap_or(Stop::Checkpoint);
            Err(JobError::Stopped { how, step: 0 })
        }
        Err(error) => Err(error.into()),
    }
}

/// A text, how many tokens it is, and why it ended.
pub struct Written {
    pub text: String,
    pub tokens: usize,
    pub end: End,
}

/// Writes the text.
fn write(order: &Order, speaker: &dyn Speaker, context: &Context<'_>) -> Result<Written, JobError> {
    stop_requested(context)?;
    let steps = u32::try_from(order.choice.max_tokens).unwrap_or(u32::MAX);
    context.reporter.progress_with(Phase::Run, 0, steps, "");
    let tokenizer = order.captioner.tokenizer();
    let so_far = RefCell::new(TextSoFar::new(tokenizer));
    let mut wrong = None;
    let mut watch = |tokens: &[i64]| {
        let mut so_far = so_far.borrow_mut();
        if let Err(error) = so_far.take(tokens) {
            wrong = Some(error);
            return false;
        }
        let step = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
        if step < steps {
            context.reporter.progress_with(Phase::Run, step, steps, so_far.text());
        }
        context.control.stop_requested().is_none()
    };
    let mut model = speaker.begin(&order.inputs, order.choice.max_tokens)?;
    let (tokens, end) = generate::generate(&mut *model, &order.choice, &order.inputs.said, &mut watch)?;
    if let Some(error) = wrong {
        return Err(ModelError::from(error).into());
    }
    if end == End::Stopped {
        let step = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
        let how = context.control.stop_requested().unwrap_or(Stop::Checkpoint);
        return Err(JobError::Stopped { how, step });
    }
    let text = tokenizer.decode(&tokens).map_err(ModelError::from)?.trim().to_owned();
    // However short it became, this part is done.
    context.reporter.progress_with(Phase::Run, steps, steps, &text);
    Ok(Written { text, tokens: tokens.len(), end })
}

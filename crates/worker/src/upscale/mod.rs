//! The job kind `upscale`: decode, choose, run tile by tile, encode.
//!
//! A straight walk, top to bottom of [`run`]. The output grows in `rows.raw`, tile by tile; a checkpoint says how many
//! tiles are there. The same request on the same device gives the same bytes, in however many runs.

pub mod checkpoint;
pub mod pixels;
pub mod rows;
pub mod select;
pub mod tiles;

use std::{
    path::Path,
    rc::Rc,
    time::{Duration, Instant},
};

use atelier_domain::{
    ErrorCode, OutputFormat,
    protocol::{self, Event, Finished, OutputFile, PROTOCOL_VERSION, Run, Stop},
};
use atelier_imaging::{
    Advice, Degradation, EncodeSpec, Limits, Picture, Pixels, Samples, advise, decode, encode, measure_degradation,
};
use serde_json::{Value, json};
use tch::Tensor;

use self::{
    checkpoint::{Checkpoint, Done},
    pixels::Layout,
    rows::Rows,
    select::{Candidate, Choice},
    tiles::{Grid, Size, Stage},
};
use crate::{
    context::Context,
    durable,
    error::JobError,
    events::Phase,
    models::{Cache, Model, ModelError, read_config, upscaler},
    torch::{self, TorchError},
};

/// Changes with every change that may alter a byte of an output: checkpoints of another revision are of no use.
const REVISION: u32 = 2;

/// The sides of a tile in pixels of the input, largest first: where memory does not suffice, the next one is tried.
const TILES: [u32; 2] = [256, 96];

/// Runs the job to its end.
///
/// # Errors
/// Why there is no output; a stop counts as such.
///
/// # Cancellation
/// Asked for between two phases and between two tiles.
pub fn run(run: &Run, context: &mut Context<'_>) -> Result<Finished, JobError> {
    let folder = run.work_dir.as_path();
    let [input] = &run.inputs[..] else {
        return Err(JobError::refused(
            ErrorCode::InvalidParams,
            format!("upscale takes one picture, and {} were given", run.inputs.len()),
            "Send one job for each picture.",
        ));
    };
    let input = input.as_path();
    if run.params.scale.is_some_and(|scale| ![2, 4].contains(&scale)) {
        return Err(JobError::refused(ErrorCode::InvalidParams, "scale is not 2 or 4", "Ask for scale = 2 or 4."));
    }
    let input_sha256 = checkpoint::sha256(input).map_err(input_error(input))?;

    let request = request_fingerprint(run, &input_sha256, context.device);
    if let Some(done) = done_before(run, &request, context)? {
        return Ok(done);
    }
    checkpoint::sweep(folder).map_err(JobError::io(folder))?;

    context.reporter.progress(Phase::Decode, 0, 0);
    let limits = Limits { max_pixels: run.max_pixels, max_bytes: u64::MAX };
    let picture = decode(input, &limits).map_err(|error| JobError::Image { name: name_of(input), error })?;
    let candidates = candidates(run)?;
    let degradation = select::needs_advice(&run.params, run.model_given).then(|| measure_degradation(&picture));
    let advice = degradation.as_ref().map_or(Advice::Clean, advise);
    let choice = select::choose(&candidates, &run.params, run.model_given, advice)?;
    let longest = u64::from(picture.width.max(picture.height)) * u64::from(choice.scale);
    fits_format(longest, run.output.format, "a smaller scale")?;
    context.reporter.progress(Phase::Decode, 1, 1);

    let work = Work::prepare(run, &picture, &choice, &input_sha256, context)?;
    stop_before_run(context, &work, folder)?;
    let grid = work.run(folder, context)?;
    let (output, encode_notes) = work.encode(run, context, grid)?;

    let model = choice.stages[0].model.id.clone();
    let notes = [&picture.notes[..], &choice.notes, &encode_notes].concat();
    let manifest =
        work.manifest(run, grid, degradation.map(|measured| (measured, advice)), &input_sha256, &notes, context);
    let finished = Finished { job: run.job, model, outputs: vec![output], result: None, manifest };
    let weights = work.models.iter().map(|model| (model.id.clone(), model.sha256.clone())).collect();
    Done { fingerprint: request, steps: grid.count(), weights, finished: finished.clone() }
        .save(folder)
        .and_then(|()| checkpoint::clear(folder))
        .map_err(JobError::io(folder))?;
    context.reporter.progress(Phase::Encode, 1, 1);
    Ok(finished)
}

/// The result, if an earlier run of this very request got as far.
fn done_before(run: &Run, request: &str, context: &mut Context<'_>) -> Result<Option<Finished>, JobError> {
    let folder = run.work_dir.as_path();
    let Some(done) = Done::load(folder, request) else { return Ok(None) };
    for (id, sha256) in &done.weights {
        let file =
            run.models.iter().find(|model| model.id == *id).map(|model| model.path.as_path().join("model.safetensors"));
        if file.and_then(|file| checkpoint::sha256(&file).ok()).as_ref() != Some(sha256) {
            return Ok(None);
        }
    }
    checkpoint::clear(folder).map_err(JobError::io(folder))?;
    tracing::info!(job = %run.job, "the output is there already");
    context.reporter.started(&done.finished.model, Some(done.steps));
    Ok(Some(done.finished))
}

/// All that a request says about its result.
fn request_fingerprint(run: &Run, input_sha256: &str, device: &protocol::Device) -> String {
    checkpoint::fingerprint(&json!({
        "protocol": PROTOCOL_VERSION,
        "worker": env!("CARGO_PKG_VERSION"),
        "revision": REVISION,
        "device": device.name,
        "kind": run.kind,
        "params": run.params,
        "models": run.models,
        "model_given": run.model_given,
        "input": input_sha256,
        "output": run.output,
        "max_pixels": run.max_pixels,
    }))
}

/// The models that this worker can read. One that was asked for must be.
fn candidates(run: &Run) -> Result<Vec<Candidate>, JobError> {
    let mut candidates = Vec::new();
    let mut last: Option<ModelError> = None;
    for model in &run.models {
        match read_config(model.path.as_path()) {
            Ok(config) => candidates.push(Candidate { model: model.clone(), config }),
            Err(error) if run.model_given => return Err(error.into()),
            Err(error) => {
                tracing::warn!(job = %run.job, model = model.id, %error, "the model is left out");
                last = Some(error);
            }
        }
    }
    match last {
        Some(error) if candidates.is_empty() => Err(error.into()),
        _ if candidates.is_empty() => Err(JobError::refused(
            ErrorCode::UnknownModel,
            "no model that upscales is installed",
            "Look at models.dirs in the configuration, and at `atelier models list`.",
        )),
        _ => Ok(candidates),
    }
}

/// A side that the format cannot express shows now, not after the work.
pub fn fits_format(longest: u64, format: OutputFormat, smaller: &str) -> Result<(), JobError> {
    let (max_side, instead) = match format {
        OutputFormat::Png => (u64::from(i32::MAX.unsigned_abs()), smaller),
        OutputFormat::Jpeg => (65_535, "format = \"png\""),
        OutputFormat::Webp => (16_383, "format = \"png\""),
    };
    if longest <= max_side {
        return Ok(());
    }
    Err(JobError::refused(
        ErrorCode::InvalidParams,
        format!("the output would be {longest} pixels long, and {} files end at {max_side}", format.extension()),
        format!("Ask for {instead}."),
    ))
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

fn input_error(path: &Path) -> impl FnOnce(std::io::Error) -> JobError {
    let name = name_of(path);
    move |error| JobError::Image { name, error: error.into() }
}

/// A decoded picture and the loaded networks that it goes through.
struct Work<'a> {
    picture: &'a Picture,
    choice: &'a Choice,
    models: Vec<Rc<Model>>,
    stages: Vec<Stage>,
    size: Size,
    layout: Layout,
    transparent: bool,
    fingerprint: String,
    /// Where an earlier run got to.
    resumed: Option<Checkpoint>,
    every: Duration,
}

impl<'a> Work<'a> {
    /// Loads the networks, and tells the daemon which and where the work goes on.
    fn prepare(
        run: &Run,
        picture: &'a Picture,
        choice: &'a Choice,
        input_sha256: &str,
        context: &mut Context<'_>,
    ) -> Result<Self, JobError> {
        let folder = run.work_dir.as_path();
        let models = load(choice, context.cache, |loaded| context.reporter.send(&Event::Models { loaded }))?;
        let size = Size { width: picture.width, height: picture.height };
        let layout = Layout {
            color: picture.color,
            alpha: picture.alpha,
            sixteen_bit: matches!(picture.pixels, Pixels::U16(_)) && run.output.format == OutputFormat::Png,
        };
        let fingerprint = checkpoint::fingerprint(&json!({
            "protocol": PROTOCOL_VERSION,
            "worker": env!("CARGO_PKG_VERSION"),
            "revision": REVISION,
            "device": context.device.name,
            "kind": run.kind,
            "stages": models.iter().map(|model| (&model.id, &model.sha256)).collect::<Vec<_>>(),
            "input": input_sha256,
            "size": size,
            "scale": choice.scale,
            "bytes_per_pixel": layout.bytes_per_pixel(),
        }));
        let out = size.scaled(choice.scale);
        let resumed = Checkpoint::load(folder, &fingerprint)
            .filter(|found| found.grid.size == size && Rows::exist(folder, out, layout.bytes_per_pixel()));
        context.reporter.started(&models[0].id, resumed.as_ref().map(|found| found.step));
        context.reporter.progress(Phase::Load, 1, 1);
        Ok(Self {
            picture,
            choice,
            stages: models
                .iter()
                .map(|model| Stage { scale: model.config.scale(), halo: model.config.halo() })
                .collect(),
            models,
            size,
            layout,
            transparent: pixels::has_transparency(picture),
            fingerprint,
            resumed,
            every: Duration::from_millis(run.checkpoint_interval_ms),
        })
    }

    /// Computes all tiles. Where memory does not suffice, once more with smaller ones.
    fn run(&self, folder: &Path, context: &mut Context<'_>) -> Result<Grid, JobError> {
        let [tile, smaller] = TILES;
        let start = self.resumed.clone().unwrap_or_else(|| self.beginning(tile));
        match torch::caught(|| self.run_tiles(start, folder, context)) {
            Err(error) if error.is_out_of_memory() => {
                tracing::warn!(%error, "out of memory; other models are unloaded and smaller tiles are tried");
                if context.cache.evict_unused() {
                    context.reporter.send(&Event::Models { loaded: context.cache.loaded() });
                }
                self.run_tiles(self.beginning(smaller), folder, context)
            }
            other => other,
        }
    }

    fn beginning(&self, tile: u32) -> Checkpoint {
        Checkpoint { fingerprint: self.fingerprint.clone(), grid: Grid::new(self.size, tile), step: 0 }
    }

    fn run_tiles(&self, mut at: Checkpoint, folder: &Path, context: &mut Context<'_>) -> Result<Grid, JobError> {
        let grid = at.grid;
        let steps = grid.count();
        let out = self.size.scaled(self.choice.scale);
        let rows = Rows::open(folder, out, self.layout.bytes_per_pixel())?;
        let mut saved = Instant::now();
        context.reporter.progress(Phase::Run, at.step, steps);
        while at.step < steps {
            if let Some(how) = context.control.stop_requested() {
                return Err(stop(how, &at, &rows, folder, context));
            }
            let rect = grid.tile(at.step);
            let samples = self.tile(rect, context.cache)?;
            rows.write(rect.scaled(self.choice.scale), &samples)?;
            at.step += 1;
            context.reporter.progress(Phase::Run, at.step, steps);
            if saved.elapsed() >= self.every && at.step < steps {
                save(&at, &rows, folder, context)?;
                saved = Instant::now();
            }
        }
        Ok(grid)
    }

    /// The samples of one tile of the output.
    fn tile(&self, rect: tiles::Rect, cache: &Cache) -> Result<Vec<u8>, TorchError> {
        let steps = tiles::steps(rect, self.size, &self.stages);
        let mut hidden = Tensor::new();
        let mut covers = None;
        for (step, model) in steps.iter().zip(&self.models) {
            let input = match covers {
                None => pixels::tensor(self.picture, step.input)?.f_to_device(cache.device())?,
                Some(covers) => {
                    let covers: tiles::Rect = covers;
                    let cut = covers.margins_around(step.input).crop(&hidden, crate::nn::Margins::default())?;
                    torch::channels_last(&cut.f_clamp(0.0, 1.0)?)?
                }
            };
            hidden = model.network.forward(&input, step.margins())?;
            covers = Some(step.piece.scaled(model.config.scale()));
        }
        let alpha = self.transparent.then(|| pixels::alpha(self.picture, rect, self.choice.scale));
        pixels::samples(&hidden.f_to_device(tch::Device::Cpu)?, alpha.as_deref(), self.layout)
    }

    /// Writes the output file. It is durable once this returns.
    fn encode(&self, run: &Run, context: &mut Context<'_>, grid: Grid) -> Result<(OutputFile, Vec<String>), JobError> {
        let folder = run.work_dir.as_path();
        let out = self.size.scaled(self.choice.scale);
        let rows = Rows::open(folder, out, self.layout.bytes_per_pixel())?;
        context.reporter.progress(Phase::Encode, 0, 1);
        if let Some(how) = context.control.stop_requested() {
            let at = Checkpoint { fingerprint: self.fingerprint.clone(), grid, step: grid.count() };
            return Err(stop(how, &at, &rows, folder, context));
        }
        let map = rows.map()?;
        let samples =
            if self.layout.sixteen_bit { Samples::U16(bytemuck::cast_slice(&map)) } else { Samples::U8(&map) };
        let (mut metadata, mut notes) =
            self.picture.metadata.for_output(out.width, out.height, run.output.gps, self.picture.color);
        notes.extend(metadata.mark(run.kind, None));
        let spec = EncodeSpec {
            format: run.output.format,
            quality: run.output.quality,
            width: out.width,
            height: out.height,
            color: self.layout.color,
            alpha: self.layout.alpha,
            metadata: &metadata,
        };
        let extension = run.output.format.extension();
        let file = format!("output-0.{extension}");
        let part = format!("{file}.part");
        let path = folder.join(&part);
        let encoded = context
            .reporter
            .while_growing(&path, map.len() as u64, || encode(samples, &spec, &path))
            .map_err(|error| JobError::Image { name: file.clone(), error })?;
        durable::publish(folder, &part, &file).map_err(JobError::io(folder))?;
        notes.extend(encoded.notes);
        let output = OutputFile {
            file,
            media_type: run.output.format.media_type().into(),
            extension: extension.into(),
            bytes: encoded.bytes,
            width: out.width,
            height: out.height,
            sha256: encoded.sha256,
        };
        Ok((output, notes))
    }

    /// What is needed to make the output again.
    fn manifest(
        &self,
        run: &Run,
        grid: Grid,
        measured: Option<(Degradation, Advice)>,
        input_sha256: &str,
        notes: &[String],
        context: &Context<'_>,
    ) -> Value {
        json!({
            "worker_version": env!("CARGO_PKG_VERSION"),
            "revision": REVISION,
            "libtorch": torch::version(),
            "device": { "name": context.device.name, "model": context.device.model, "threads": context.device.threads },
            "kind": run.kind,
            "model": self.models[0].id,
            "weights_sha256": self.models[0].sha256,
            "stages": self.models.iter().map(|model| json!({
                "model": model.id,
                "scale": model.config.scale(),
                "weights_sha256": model.sha256,
            })).collect::<Vec<_>>(),
            "params": {
                "scale": self.choice.scale,
                "denoise": self.choice.denoise,
                "seed": run.params.seed,
                "format": run.output.format,
                "quality": (run.output.format != OutputFormat::Png).then_some(run.output.quality),
            },
            "measurement": measured.map(|(measured, advice)| json!({
                "noise_sigma": measured.noise_sigma,
                "blockiness": measured.blockiness,
                "jpeg_quality": measured.jpeg_quality,
                "advice": advice_name(advice),
            })),
            "tiles": { "columns": grid.columns, "rows": grid.rows },
            "inputs": [{ "sha256": input_sha256, "width": self.size.width, "height": self.size.height }],
            "notes": notes,
        })
    }
}

const fn advice_name(advice: Advice) -> &'static str {
    match advice {
        Advice::Clean => "clean",
        Advice::Compressed => "compressed",
        Advice::Noisy => "noisy",
    }
}

/// Loads all stages. Where the device is full, once more after everything else has gone.
fn load(
    choice: &Choice,
    cache: &mut Cache,
    mut changed: impl FnMut(Vec<protocol::LoadedModel>),
) -> Result<Vec<Rc<Model>>, JobError> {
    let mut models = Vec::new();
    for stage in &choice.stages {
        let (model, is_new) = match upscaler(cache, &stage.model, &stage.config) {
            Err(error) if error.is_out_of_memory() && cache.evict_unused() => {
                upscaler(cache, &stage.model, &stage.config)?
            }
            other => other?,
        };
        models.push(model);
        if is_new {
            changed(cache.loaded());
        }
    }
    Ok(models)
}

/// Ends the run as the daemon asks.
fn stop(how: Stop, at: &Checkpoint, rows: &Rows, folder: &Path, context: &mut Context<'_>) -> JobError {
    let kept = match how {
        Stop::Cancel => checkpoint::clear(folder).map_err(JobError::io(folder)),
        Stop::Checkpoint if at.step == 0 => Ok(()),
        Stop::Checkpoint => save(at, rows, folder, context),
    };
    match kept {
        Ok(()) => JobError::Stopped { how, step: at.step },
        Err(error) => error,
    }
}

fn stop_before_run(context: &mut Context<'_>, work: &Work<'_>, folder: &Path) -> Result<(), JobError> {
    let step = work.resumed.as_ref().map_or(0, |found| found.step);
    match context.control.stop_requested() {
        None => Ok(()),
        Some(how @ Stop::Checkpoint) => Err(JobError::Stopped { how, step }),
        Some(how @ Stop::Cancel) => {
            checkpoint::clear(folder).map_err(JobError::io(folder))?;
            Err(JobError::Stopped { how, step })
        }
    }
}

fn save(at: &Checkpoint, rows: &Rows, folder: &Path, context: &mut Context<'_>) -> Result<(), JobError> {
    rows.sync()?;
    at.save(folder).map_err(JobError::io(folder))?;
    context.reporter.checkpointed(at.step);
    Ok(())
}

//! One picture, step by step, from noise to pixels: progress, previews, checkpoints, stops, and too little memory.

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use atelier_domain::protocol::{Event, OutputFile, Run, Stop};
use atelier_sampling::Sampler;
use tch::{Device, Tensor};

use super::{
    checkpoint::{self, Checkpoint, CheckpointError, Denoise},
    colors::Colors,
    hashes::Fingerprint,
    preview,
    request::Diffusion,
    stepper,
};
use crate::{
    context::Stepped,
    error::JobError,
    events::Phase,
    nn::StepCaches,
    noise::Noise,
    pipeline::{Beginning, Stage, Text},
    torch::{self, TorchError},
};

/// A checkpoint may take this share of the time that passes: one part in so many.
const CHECKPOINT_SHARE: u32 = 20;

/// What one picture of a job needs.
pub struct Denoising<'a> {
    pub run: &'a Run,
    pub order: &'a Diffusion,
    pub text: &'a Text,
    pub image: u32,
    /// Of the pictures before it.
    pub outputs: &'a [OutputFile],
}

/// Where it stands.
struct State {
    sampler: Sampler,
    noise: Noise,
    /// On the device.
    latents: Tensor,
    history: Vec<Tensor>,
    batched: bool,
    /// By the denoiser, by name.
    remembered: BTreeMap<String, Tensor>,
}

/// When what is kept was kept last, and what that took.
struct Kept {
    at: Instant,
    took: Duration,
}

impl Denoising<'_> {
    /// The picture, (1, 3, H, W) from 0 to 1 on the CPU. `resumed`: where an earlier run left it.
    pub fn run(
        &self,
        stage: &mut Stage<'_, '_>,
        resumed: Option<Denoise>,
        fingerprint: &mut Fingerprint<'_>,
    ) -> Result<Tensor, JobError> {
        let mut noise = Noise::new(self.order.seed, self.order.images, self.image)?;
        let sampler = self.order.sampler.clone();
        let Beginning { latents, conditions } =
            self.order.pipeline.begin(stage, self.text, &sampler, &mut noise).map_err(|error| self.stopped(error))?;
        let colors = self.colors(stage)?;
        stage.done_with_vae();
        let mut state = match resumed {
            None => State { sampler, noise, latents, history: Vec::new(), batched: true, remembered: BTreeMap::new() },
            Some(resumed) => {
                noise.restore(&resumed.generator)?;
                let device = stage.device();
                let onto = |tensor: &Tensor| tensor.f_to_device(device).map_err(TorchError::from);
                State {
                    latents: onto(&resumed.latents)?,
                    history: resumed.history.iter().map(onto).collect::<Result<_, _>>()?,
                    sampler: resumed.sampler,
                    batched: resumed.batched,
                    remembered: resumed.remembered,
                    noise,
                }
            }
        };
        check_shape(self.order, &state)?;
        let mut denoiser = conditions.denoiser(stage)?;
        if let Some(caches) = denoiser.step_caches() {
            caches.restore(&state.remembered, stage.device(), stage.kind())?;
        }
        let space = self.order.pipeline.vae().space();
        let mut kept = Kept { at: Instant::now(), took: Duration::ZERO };
        let every = Duration::from_millis(self.run.checkpoint_interval_ms);
        self.tell(stage, &state);
        while let Some(step) = state.sampler.current().cloned() {
            if let Some(how) = stage.context.control.stop_requested() {
                return Err(self.stop(how, &state, stage, fingerprint));
            }
            let output = match torch::caught(|| denoiser.predict(&state.latents, &step, state.batched)) {
                Err(TorchError::OutOfMemory(detail)) if state.batched => {
                    tracing::warn!(detail, "out of memory; other models go, and guidance is computed row by row");
                    stage.context.cache.evict_unused();
                    state.batched = false;
                    denoiser.predict(&state.latents, &step, state.batched)?
                }
                other => other?,
            };
            let drawn = if step.noise { Some(space.normal(stage, &mut state.noise)?) } else { None };
            let shown = self.preview_due(&state, colors.as_ref());
            if let Some(colors) = shown {
                self.preview(stage, colors, &stepper::denoised(step.denoised, &state.latents, &output)?, &state);
            }
            let (latents, history) = stepper::advance(&step, &state.latents, &output, drawn.as_ref(), &state.history)?;
            if let Some(watch) = &stage.context.on_step {
                let index = state.sampler.position();
                watch(&Stepped {
                    image: self.image,
                    index,
                    step: &step,
                    sample: &state.latents,
                    output: &output,
                    next: &latents,
                });
            }
            state.sampler.advance();
            state.latents = conditions.keep(latents, state.sampler.current().map(|step| step.level))?;
            state.history = history;
            state.remembered = denoiser.step_caches().map(StepCaches::tensors).unwrap_or_default();
            self.tell(stage, &state);
            let due = kept.at.elapsed() >= every && kept.at.elapsed() >= kept.took * CHECKPOINT_SHARE;
            // Large files are still being read then: the steps do not wait for that, unless each is to be kept.
            let is_ready = every.is_zero() || fingerprint.weights.are_there();
            if due && is_ready && state.sampler.current().is_some() {
                let begun = Instant::now();
                self.save(&state, stage, fingerprint)?;
                kept = Kept { at: Instant::now(), took: begun.elapsed() };
            }
        }
        drop(denoiser);
        stage.done_with_denoiser();
        if let Some(how) = stage.context.control.stop_requested() {
            return Err(self.stop(how, &state, stage, fingerprint));
        }
        let picture = self.decode(stage, &state)?;
        stage.done_with_vae();
        Ok(picture)
    }

    fn decode(&self, stage: &mut Stage<'_, '_>, state: &State) -> Result<Tensor, JobError> {
        let vae = self.order.pipeline.vae();
        match torch::caught(|| vae.decode(stage, &state.latents, self.order.task.tiling)) {
            Err(JobError::Torch(TorchError::OutOfMemory(detail))) => {
                tracing::warn!(detail, "out of memory; other models go, and the picture is decoded in bands");
                stage.context.cache.evict_unused();
                vae.decode(stage, &state.latents, Some(true))
            }
            other => other,
        }
    }

    /// Over all pictures of the job.
    fn step(&self, state: &State) -> u32 {
        let steps = state.sampler.steps().len();
        u32::try_from(self.image as usize * steps + state.sampler.position()).unwrap_or(u32::MAX)
    }

    fn tell(&self, stage: &Stage<'_, '_>, state: &State) {
        let steps = state.sampler.steps().len() * self.order.images as usize;
        stage.context.reporter.progress(Phase::Run, self.step(state), u32::try_from(steps).unwrap_or(u32::MAX));
    }

    fn stopped(&self, error: JobError) -> JobError {
        let steps = u32::try_from(self.order.sampler.steps().len()).unwrap_or(u32::MAX);
        error.stopped_at(self.image * steps)
    }

    /// Ends the run as the daemon asks.
    fn stop(&self, how: Stop, state: &State, stage: &mut Stage<'_, '_>, fingerprint: &mut Fingerprint<'_>) -> JobError {
        let step = self.step(state);
        let kept = match how {
            Stop::Checkpoint if step > 0 => self.save(state, stage, fingerprint),
            Stop::Checkpoint | Stop::Cancel => Ok(()),
        };
        match kept {
            Ok(()) => JobError::Stopped { how, step },
            Err(error) => error,
        }
    }

    fn save(&self, state: &State, stage: &Stage<'_, '_>, fingerprint: &mut Fingerprint<'_>) -> Result<(), JobError> {
        let onto_cpu = |tensor: &Tensor| tensor.f_to_device(Device::Cpu).map_err(TorchError::from);
        let remembered = state.remembered.iter().map(|(name, tensor)| Ok((name.clone(), onto_cpu(tensor)?)));
        let denoise = Denoise {
            sampler: state.sampler.clone(),
            batched: state.batched,
            generator: state.noise.state()?,
            latents: onto_cpu(&state.latents)?,
            history: state.history.iter().map(onto_cpu).collect::<Result<_, _>>()?,
            remembered: remembered.collect::<Result<_, TorchError>>()?,
        };
        let checkpoint = Checkpoint { image: self.image, outputs: self.outputs.to_vec(), denoise: Some(denoise) };
        save(self.run.work_dir.as_path(), &fingerprint.get()?, &checkpoint)?;
        stage.context.reporter.checkpointed(self.step(state));
        Ok(())
    }

    /// How latents become colours: fitted to the source where there is one.
    fn colors(&self, stage: &mut Stage<'_, '_>) -> Result<Option<Colors>, JobError> {
        if self.order.preview_every == 0 {
            return Ok(None);
        }
        if let Some(known) = self.order.pipeline.vae().colors() {
            return Ok(Some(known));
        }
        let Some(picture) = self.order.task.picture.as_ref() else { return Ok(None) };
        // A short run is over before an encoding of its own is worth it.
        if self.order.sampler.steps().len() <= 2 * self.order.preview_every as usize {
            return Ok(None);
        }
        let latents = self.order.pipeline.vae().latents_of(stage, picture)?;
        Ok(Some(Colors::fitted(&latents, picture)?))
    }

    fn preview_due<'c>(&self, state: &State, colors: Option<&'c Colors>) -> Option<&'c Colors> {
        let every = self.order.preview_every as usize;
        let done = state.sampler.position() + 1;
        let is_last = done == state.sampler.steps().len();
        colors.filter(|_| every > 0 && done.is_multiple_of(every) && !is_last)
    }

    /// A preview that fails is no reason for the job to fail.
    fn preview(&self, stage: &Stage<'_, '_>, colors: &Colors, latents: &Tensor, state: &State) {
        let written = colors.picture(latents).map_err(|error| error.to_string()).and_then(|picture| {
            preview::write(self.run.work_dir.as_path(), &picture).map_err(|error| error.to_string())
        });
        match written {
            Ok(()) => {
                let (job, step) = (self.run.job, self.step(state) + 1);
                stage.context.reporter.send(&Event::Preview { job, step, file: preview::FILE.into() });
            }
            Err(error) => tracing::warn!(job = %self.run.job, error, "there is no preview"),
        }
    }
}

/// The latents' shape must be the one that the folder's VAE makes; a checkpoint of another shape is a bug.
fn check_shape(order: &Diffusion, state: &State) -> Result<(), TorchError> {
    let (wanted, found) = (order.pipeline.vae().space().shape(order.task.size), state.latents.size());
    if found != wanted {
        return Err(TorchError::Other(format!("latents of {found:?} where {wanted:?} belong")));
    }
    Ok(())
}

/// Keeps a checkpoint, with the job's folder in what may go wrong.
pub fn save(folder: &Path, fingerprint: &str, checkpoint: &Checkpoint) -> Result<(), JobError> {
    checkpoint::save(folder, fingerprint, checkpoint).map_err(|error| match error {
        CheckpointError::Io(error) => JobError::Io { path: folder.into(), error },
        CheckpointError::Torch(error) => error.into(),
    })
}

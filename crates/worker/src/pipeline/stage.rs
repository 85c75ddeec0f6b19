//! The parts of a pipeline as they are needed: loaded, or taken from what is loaded.

use std::{cell::Cell, ops::ControlFlow, path::PathBuf, rc::Rc};

use atelier_domain::protocol::{Event, Offload};
use tch::{Device, Kind};

use super::{
    Blueprint, Pipeline, Task,
    blueprint::{Files, OWN},
};
use crate::{
    context::Context,
    error::JobError,
    events::Phase,
    lora::{self, Component, LoraUse},
    models::{ModelError, Part},
    text_encoder::t5,
    torch,
    weights::{Alias, LoadOptions, LoadProgress, Weights, WeightsError},
};

/// What one job works with.
pub struct Stage<'s, 'c> {
    pub context: &'s mut Context<'c>,
    pub blueprint: &'s Blueprint,
    pub task: &'s Task,
    pub loras: Loras,
    /// Bytes of files that were loaded or found loaded.
    done_bytes: Rc<Cell<u64>>,
    total_bytes: u64,
    /// What a person should know of it.
    pub notes: Vec<String>,
}

/// LoRAs, and a text that changes with them and their weights.
#[derive(Clone, Default)]
pub struct Loras {
    pub uses: Vec<LoraUse>,
    pub variant: String,
    pub paths: Vec<PathBuf>,
}

impl<'s, 'c> Stage<'s, 'c> {
    pub fn new(context: &'s mut Context<'c>, blueprint: &'s Blueprint, task: &'s Task, loras: Loras) -> Self {
        let total_bytes = blueprint.files().iter().map(|(_, files)| files.bytes).sum();
        Self { context, blueprint, task, loras, done_bytes: Rc::default(), total_bytes, notes: Vec::new() }
    }

    pub fn device(&self) -> Device {
        self.context.cache.device()
    }

    /// What the networks compute in.
    pub const fn kind(&self) -> Kind {
        self.blueprint.kind
    }

    /// Bytes of the device's memory that the loaded parts leave to the work. The same for the process's whole life, so that
    /// a job goes on as it began.
    pub fn working_room(&self) -> u64 {
        working_room(self.context.device.memory_bytes, self.context.cache.budget())
    }

    /// Whether parts are let go of as soon as their work is done.
    pub fn goes_by_phase(&self) -> bool {
        matches!(self.context.offload, Offload::Phase | Offload::Block)
    }

    /// Loads everything at once where that is wanted and fits, so that the first step comes without a pause.
    pub fn load_all(&mut self, pipeline: &dyn Pipeline) -> Result<(), JobError> {
        self.context.reporter.progress(Phase::Load, 0, 0);
        let held: u64 = self.blueprint.files().iter().map(|(_, files)| files.held_bytes).sum();
        let fits = held <= self.context.cache.budget();
        if self.goes_by_phase() || !fits && self.context.offload != Offload::None {
            return Ok(());
        }
        let _parts = pipeline.load_all(self)?;
        if self.context.offload == Offload::None && self.context.cache.bytes() > self.context.cache.budget() {
            let (bytes, budget) = (self.context.cache.bytes(), self.context.cache.budget());
            return Err(ModelError::OverBudget { id: self.blueprint.model.id.clone(), bytes, budget }.into());
        }
        Ok(())
    }

    /// The text encoders' work is done for this job.
    pub fn done_with_text(&mut self) {
        self.done_with(|name| name.starts_with("text_encoder"));
    }

    /// The denoiser's work is done for this picture.
    pub fn done_with_denoiser(&mut self) {
        self.done_with(|name| !name.starts_with("text_encoder") && name != "vae");
    }

    /// The VAE's work is done for now.
    pub fn done_with_vae(&mut self) {
        self.done_with(|name| name == "vae");
    }

    /// Where parts come and go by phase, those go whose work is done.
    fn done_with(&mut self, is_done: impl Fn(&str) -> bool) {
        if !self.goes_by_phase() {
            return;
        }
        let mut changed = false;
        for (name, _) in self.blueprint.files().iter().filter(|(name, _)| is_done(name)) {
            changed |= self.context.cache.drop_part(self.owner(name), name);
        }
        if changed {
            self.tell_models();
        }
    }

    /// Something that a person should know; once.
    pub fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    fn owner(&self, name: &str) -> &'s str {
        let is_own = name == OWN && self.blueprint.base.is_some();
        if is_own { &self.blueprint.model.id } else { &self.blueprint.main().id }
    }

    fn tell_models(&self) {
        self.context.reporter.send(&Event::Models { loaded: self.context.cache.loaded() });
    }

    /// Takes the part `name` from the cache or loads it; where the device is full, once more after all else has gone.
    /// `component`: what of a LoRA is for it.
    pub fn part<T: 'static>(
        &mut self,
        name: &str,
        aliases: &'static [Alias],
        component: Option<Component>,
        load: impl Fn(&Weights) -> Result<T, WeightsError>,
    ) -> Result<Rc<T>, JobError> {
        let blueprint = self.blueprint;
        let Some(files) = blueprint.files_of(name) else {
            let path = blueprint.main().path.as_path().join(name);
            return Err(ModelError::Config { path, detail: "no such part".into() }.into());
        };
        let first = torch::caught(|| self.try_part(name, files, aliases, component, &load));
        let (part, is_new) = match first {
            Err(error) if error.is_out_of_memory() && self.context.cache.evict_unused() => {
                tracing::warn!(%error, part = name, "out of memory; other models were unloaded for another try");
                self.try_part(name, files, aliases, component, &load)?
            }
            other => other?,
        };
        self.done_bytes.set(self.done_bytes.get() + files.bytes);
        if is_new {
            self.tell_models();
        }
        Ok(part)
    }

    fn try_part<T: 'static>(
        &mut self,
        name: &str,
        files: &Files,
        aliases: &'static [Alias],
        component: Option<Component>,
        load: &impl Fn(&Weights) -> Result<T, WeightsError>,
    ) -> Result<(Rc<T>, bool), JobError> {
        let kind = self.kind();
        // What only some files of T5 hold.
        let options = LoadOptions::new(self.device(), kind).with_aliases(aliases).with_ignored(t5::IGNORED);
        let options = options.with_progress(self.progress());
        let mut weights = Weights::open_folder(&files.folder, files.stem, &options).map_err(ModelError::from)?;
        let mut paths: Vec<PathBuf> = weights.files().map(Into::into).collect();
        let mut variant = format!("{kind:?}");
        if let Some(component) = component.filter(|_| !self.loras.uses.is_empty()) {
            let resolved = lora::resolve(&self.loras.uses, component, &weights).map_err(ModelError::from)?;
            resolved.warnings.into_iter().for_each(|warning| self.note(warning));
            if resolved.count > 0 {
                weights.set_deltas(resolved.deltas);
                variant.push_str(&self.loras.variant);
                paths.extend(self.loras.paths.iter().cloned());
            }
        }
        let (offload, budget) = (self.context.offload, self.context.cache.budget());
        let bytes = settle_blocks(&mut weights, offload, budget, load).map_err(ModelError::from)?;
        if weights.streams() {
            variant.push_str(" by block");
        }
        let part = Part { id: self.owner(name), name, variant: &variant, files: paths, bytes };
        let control = self.context.control.clone();
        let result = self.context.cache.get(part, || {
            let network = load(&weights)?;
            weights.finish()?;
            Ok(network)
        });
        match result {
            Err(ModelError::Weights(WeightsError::Interrupted { .. })) => {
                let how = control.stop_requested().unwrap_or(atelier_domain::protocol::Stop::Checkpoint);
                Err(JobError::Stopped { how, step: 0 })
            }
            other => Ok(other?),
        }
    }

    /// Tells how far loading has come, in KiB of all files, and ends it when the job is to end.
    fn progress(&self) -> Rc<dyn Fn(LoadProgress) -> ControlFlow<()>> {
        let (reporter, control) = (self.context.reporter.clone(), self.context.control.clone());
        let (before, total) = (self.done_bytes.clone(), self.total_bytes);
        Rc::new(move |progress| {
            let kibibytes = |bytes: u64| u32::try_from(bytes >> 10).unwrap_or(u32::MAX);
            let done = (before.get() + progress.done_bytes).min(total);
            reporter.progress(Phase::Load, kibibytes(done), kibibytes(total).max(1));
            if control.stop_requested().is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
    }
}

/// What models that may hold `budget` bytes leave of a device's memory; a quarter at the least, since work there must be.
fn working_room(memory: u64, budget: u64) -> u64 {
    memory - budget.min(memory / 4 * 3)
}

/// Bytes that the part will hold: all of them, unless it is to go block by block, or does not fit otherwise.
pub fn settle_blocks<T>(
    weights: &mut Weights,
    offload: Offload,
    budget: u64,
    load: &impl Fn(&Weights) -> Result<T, WeightsError>,
) -> Result<u64, WeightsError> {
    let whole = weights.bytes();
    let (is_wanted, room) = match offload {
        Offload::None | Offload::Phase => (false, 0),
        Offload::Auto => (whole > budget, budget),
        Offload::Block => (true, 0),
    };
    if !is_wanted {
        return Ok(whole);
    }
    let needs = weights.rehearse(load)?;
    let least = needs.least_bytes();
    if least >= whole {
        return Ok(whole);
    }
    let keep = room.saturating_sub(least).min(needs.kept_bytes);
    weights.set_streaming(keep);
    Ok(least + keep)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_leave_a_quarter_of_the_memory_at_the_least() {
        assert_eq!(working_room(24, 12), 12);
        assert_eq!(working_room(24, 23), 6);
        assert_eq!(working_room(24, u64::MAX), 6);
        assert_eq!(working_room(0, 12), 0);
    }
}

//! The parts of a pipeline as they are needed: loaded, or taken from what is loaded.

use std::{cell::Cell, ops::ControlFlow, path::PathBuf, rc::Rc};

use atelier_domain::protocol::{Event, Offload};
use tch::{Device, Kind};

use super::{Blueprint, ControlBlueprint, Task, blueprint::Files};
use crate::{
    context::Context,
    controlnet::{ControlNet, ControlNetUnion},
    error::JobError,
    events::Phase,
    lora::{self, Component, LoraUse},
    models::{ModelError, Part},
    text_encoder::{CLIP_ALIASES, ClipText},
    unet::UNet2DCondition,
    vae::AutoencoderKl,
    weights::{Alias, LoadOptions, LoadProgress, Weights, WeightsError, compute_kind},
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

pub enum LoadedControl {
    Single(Rc<ControlNet>),
    Union(Rc<ControlNetUnion>),
}

impl<'s, 'c> Stage<'s, 'c> {
    pub fn new(context: &'s mut Context<'c>, blueprint: &'s Blueprint, task: &'s Task, loras: Loras) -> Self {
        let total_bytes = blueprint.files().iter().map(|(_, files)| files.bytes).sum();
        Self { context, blueprint, task, loras, done_bytes: Rc::default(), total_bytes, notes: Vec::new() }
    }

    pub fn device(&self) -> Device {
        self.context.cache.device()
    }

    /// What the denoiser and the text encoders compute in.
    pub fn kind(&self) -> Kind {
        compute_kind(self.device(), Kind::Half)
    }

    /// Whether parts are let go of as soon as their work is done.
    pub fn goes_by_phase(&self) -> bool {
        matches!(self.context.offload, Offload::Phase | Offload::Block)
    }

    /// Loads everything at once where that is wanted and fits, so that the first step comes without a pause.
    pub fn load_all(&mut self) -> Result<(), JobError> {
        self.context.reporter.progress(Phase::Load, 0, 0);
        let held: u64 = self.blueprint.files().iter().map(|(_, files)| files.held_bytes).sum();
        let fits = held <= self.context.cache.budget();
        if self.goes_by_phase() || !fits && self.context.offload != Offload::None {
            return Ok(());
        }
        let mut parts: Vec<Rc<dyn std::any::Any>> = Vec::new();
        for index in 0..self.blueprint.text.len() {
            parts.push(self.text_encoder(index)?);
        }
        parts.push(self.unet()?);
        match self.control()? {
            Some(LoadedControl::Single(network)) => parts.push(network),
            Some(LoadedControl::Union(network)) => parts.push(network),
            None => {}
        }
        parts.push(self.vae()?);
        if self.context.offload == Offload::None && self.context.cache.bytes() > self.context.cache.budget() {
            let (bytes, budget) = (self.context.cache.bytes(), self.context.cache.budget());
            return Err(ModelError::OverBudget { id: self.blueprint.model.id.clone(), bytes, budget }.into());
        }
        Ok(())
    }

    pub fn text_encoder(&mut self, index: usize) -> Result<Rc<ClipText>, JobError> {
        let text = &self.blueprint.text[index];
        let component = if index == 0 { Component::TextEncoder } else { Component::TextEncoder2 };
        let load = |weights: &Weights| ClipText::load(weights, &text.config, text.projects);
        self.part(text.name, CLIP_ALIASES, Some(component), load)
    }

    pub fn unet(&mut self) -> Result<Rc<UNet2DCondition>, JobError> {
        let config = &self.blueprint.unet;
        self.part("unet", &[], Some(Component::Denoiser), |weights| UNet2DCondition::load(weights, config))
    }

    pub fn vae(&mut self) -> Result<Rc<AutoencoderKl>, JobError> {
        let config = &self.blueprint.vae;
        self.part("vae", &[], None, |weights| AutoencoderKl::load(weights, config))
    }

    pub fn control(&mut self) -> Result<Option<LoadedControl>, JobError> {
        Ok(match &self.blueprint.control {
            None => None,
            Some(ControlBlueprint::Single(config)) => {
                Some(LoadedControl::Single(
                    self.part("controlnet", &[], None, |weights| ControlNet::load(weights, config))?,
                ))
            }
            Some(ControlBlueprint::Union(config)) => {
                Some(LoadedControl::Union(
                    self.part("controlnet", &[], None, |weights| ControlNetUnion::load(weights, config))?,
                ))
            }
        })
    }

    /// A part's work is done for this job; where parts come and go by phase, it goes.
    pub fn done_with(&mut self, names: &[&str]) {
        if self.goes_by_phase() {
            let mut changed = false;
            for name in names {
                changed |= self.context.cache.drop_part(self.owner(name), name);
            }
            if changed {
                self.tell_models();
            }
        }
    }

    /// Something that a person should know; once.
    pub fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    fn owner(&self, name: &str) -> &'s str {
        let is_own = name == "controlnet" && self.blueprint.base.is_some();
        if is_own { &self.blueprint.model.id } else { &self.blueprint.main().id }
    }

    fn tell_models(&self) {
        self.context.reporter.send(&Event::Models { loaded: self.context.cache.loaded() });
    }

    /// Takes a part from the cache or loads it; where the device is full, once more after all else has gone.
    fn part<T: 'static>(
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
        let first = self.try_part(name, files, aliases, component, &load);
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
        let options = LoadOptions::new(self.device(), kind).with_aliases(aliases).with_progress(self.progress());
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
        let bytes = self.settle_blocks(&mut weights, load).map_err(ModelError::from)?;
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

    /// Bytes that the part will hold: all of them, unless it is to go block by block, or does not fit otherwise.
    fn settle_blocks<T>(
        &self,
        weights: &mut Weights,
        load: &impl Fn(&Weights) -> Result<T, WeightsError>,
    ) -> Result<u64, WeightsError> {
        let (whole, budget) = (weights.bytes(), self.context.cache.budget());
        let (is_wanted, room) = match self.context.offload {
            Offload::None | Offload::Phase => (false, 0),
            Offload::Auto => (whole > budget, budget),
            Offload::Block => (true, 0),
        };
        if !is_wanted {
            return Ok(whole);
        }
        let least = weights.rehearse(load)?.least_bytes();
        if least >= whole {
            return Ok(whole);
        }
        let keep = room.saturating_sub(least);
        weights.set_streaming(keep);
        Ok(least + keep)
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

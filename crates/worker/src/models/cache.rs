//! Loaded parts of models: kept least recently used under a budget of bytes.
//!
//! A part is what is loaded and let go of as one: an upscaler, or one component of a pipeline. Knows no network.

use std::{
    any::Any,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    rc::Rc,
};

use atelier_domain::protocol::LoadedModel;
use tch::Device;

use super::ModelError;
use crate::{torch, weights::WeightsError};

/// Tells a file from the one that replaced it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Stamp {
    pub fn of(path: &Path) -> io::Result<Self> {
        let meta = fs::metadata(path)?;
        Ok(Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
        })
    }
}

impl std::fmt::Display for Stamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { device, inode, size, modified: (seconds, nanoseconds) } = self;
        write!(f, "{device}:{inode}:{size}:{seconds}.{nanoseconds}")
    }
}

/// A part that is wanted.
#[derive(Debug)]
pub struct Part<'a> {
    /// The model's.
    pub id: &'a str,
    /// Within the model.
    pub name: &'a str,
    /// All that its tensors depend on beside the files: a configuration, LoRAs.
    pub variant: &'a str,
    pub files: Vec<PathBuf>,
    /// What it will hold.
    pub bytes: u64,
}

struct Entry {
    id: String,
    name: String,
    variant: String,
    stamps: Vec<(PathBuf, Stamp)>,
    bytes: u64,
    value: Rc<dyn Any>,
}

impl Entry {
    fn is_used(&self) -> bool {
        Rc::strong_count(&self.value) > 1
    }
}

/// The loaded parts of this process.
pub struct Cache {
    device: Device,
    budget: u64,
    /// Least recently used first.
    entries: Vec<Entry>,
}

impl Cache {
    pub const fn new(device: Device, budget: u64) -> Self {
        Self { device, budget, entries: Vec::new() }
    }

    pub const fn device(&self) -> Device {
        self.device
    }

    pub const fn budget(&self) -> u64 {
        self.budget
    }

    /// The part, loaded now or before. The second value says whether what is loaded has changed.
    ///
    /// # Errors
    /// A file that is not there, a part over the budget, or what `load` fails with.
    pub fn get<T: Any>(
        &mut self,
        part: Part<'_>,
        load: impl FnOnce() -> Result<T, ModelError>,
    ) -> Result<(Rc<T>, bool), ModelError> {
        let stamp = |path: PathBuf| match Stamp::of(&path) {
            Ok(stamp) => Ok((path, stamp)),
            Err(error) => Err(ModelError::Weights(WeightsError::Io { path, error })),
        };
        let stamps = part.files.into_iter().map(stamp).collect::<Result<Vec<_>, _>>()?;
        if let Some(at) = self.entries.iter().position(|entry| entry.id == part.id && entry.name == part.name) {
            let entry = self.entries.remove(at);
            let same = entry.stamps == stamps && entry.variant == part.variant;
            if let (true, Ok(value)) = (same, entry.value.clone().downcast()) {
                self.entries.push(entry);
                return Ok((value, false));
            }
            tracing::info!(model = part.id, part = part.name, "files or parameters have changed; it is loaded again");
        }
        let bytes = part.bytes;
        if bytes > self.budget {
            return Err(ModelError::OverBudget { id: part.id.into(), bytes, budget: self.budget });
        }
        self.evict_until(self.budget - bytes);
        let value = Rc::new(load()?);
        self.entries.push(Entry {
            id: part.id.into(),
            name: part.name.into(),
            variant: part.variant.into(),
            stamps,
            bytes,
            value: value.clone(),
        });
        tracing::info!(model = part.id, part = part.name, bytes, "loaded");
        Ok((value, true))
    }

    /// Drops parts that no job uses, the least recently used first, until at most `bytes` are held.
    fn evict_until(&mut self, bytes: u64) {
        while self.bytes() > bytes {
            let Some(at) = self.entries.iter().position(|entry| !entry.is_used()) else { return };
            let entry = self.entries.remove(at);
            tracing::info!(model = entry.id, part = entry.name, "unloaded to make room");
        }
    }

    /// Drops all parts that no job uses. Says whether there were any.
    pub fn evict_unused(&mut self) -> bool {
        let before = self.entries.len();
        self.evict_until(0);
        trim();
        self.entries.len() < before
    }

    /// Drops one part of a model, if no job uses it. Says whether it was there.
    pub fn drop_part(&mut self, id: &str, name: &str) -> bool {
        let before = self.entries.len();
        self.entries.retain(|entry| entry.is_used() || entry.id != id || entry.name != name);
        let dropped = self.entries.len() < before;
        if dropped {
            trim();
        }
        dropped
    }

    /// Drops one model, or all. Between jobs.
    pub fn unload(&mut self, id: Option<&str>) {
        self.entries.retain(|entry| id.is_some_and(|id| id != entry.id));
        trim();
    }

    pub fn bytes(&self) -> u64 {
        self.entries.iter().map(|entry| entry.bytes).sum()
    }

    /// Every model of which something is loaded, the least recently used first.
    pub fn loaded(&self) -> Vec<LoadedModel> {
        let mut loaded: Vec<LoadedModel> = Vec::new();
        for entry in &self.entries {
            let bytes = match loaded.iter().position(|model| model.id == entry.id) {
                Some(at) => loaded.remove(at).bytes,
                None => 0,
            };
            loaded.push(LoadedModel { id: entry.id.clone(), bytes: bytes + entry.bytes });
        }
        loaded
    }
}

fn trim() {
    if let Err(error) = torch::trim() {
        tracing::warn!(%error, "the device's memory could not be given back");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part<'a>(id: &'a str, name: &'a str, bytes: u64) -> Part<'a> {
        Part { id, name, variant: "", files: Vec::new(), bytes }
    }

    fn get(cache: &mut Cache, id: &str, name: &str, bytes: u64) -> (Rc<u64>, bool) {
        cache.get(part(id, name, bytes), || Ok(bytes)).expect("fits")
    }

    #[test]
    fn a_models_parts_count_together_and_go_one_by_one() {
        let mut cache = Cache::new(Device::Cpu, 100);
        assert!(get(&mut cache, "sd", "text_encoder", 30).1);
        assert!(get(&mut cache, "sd", "unet", 50).1);
        assert!(!get(&mut cache, "sd", "text_encoder", 30).1);
        assert_eq!(cache.loaded(), [LoadedModel { id: "sd".into(), bytes: 80 }]);
        // The UNet was used longest ago.
        get(&mut cache, "sd", "vae", 40);
        assert_eq!(cache.loaded(), [LoadedModel { id: "sd".into(), bytes: 70 }]);
        assert!(cache.drop_part("sd", "vae") && !cache.drop_part("sd", "vae"));
        assert_eq!(cache.bytes(), 30);
    }

    #[test]
    fn another_variant_is_another_part_and_a_part_in_use_stays() {
        let mut cache = Cache::new(Device::Cpu, 100);
        let (held, _) = get(&mut cache, "sd", "unet", 60);
        assert!(!cache.drop_part("sd", "unet"));
        let fused = Part { variant: "lora", ..part("sd", "unet", 60) };
        assert!(cache.get(fused, || Ok(61_u64)).expect("fits").1);
        assert_eq!((*held, cache.loaded().len()), (60, 1));
        assert!(matches!(
            cache.get(part("sd", "vae", 101), || Ok(0_u8)),
            Err(ModelError::OverBudget { bytes: 101, budget: 100, .. })
        ));
    }
}

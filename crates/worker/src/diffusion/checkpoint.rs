//! A running denoise on the disk: latents, history, the sampler's place and the generator's state.
//!
//! The tensors lie in a file of their own, named after where they belong; `checkpoint.json` names that file and its
//! hash, and replaces the one before in one step. What does not fit together is left aside.

use std::{collections::BTreeMap, fs, io, path::Path};

use atelier_domain::protocol::OutputFile;
use atelier_sampling::Sampler;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tch::{Device, Kind, Tensor};

use crate::{
    durable,
    torch::{self, TorchError},
};

const NAME: &str = "checkpoint.json";
/// Beginning and end of the names of tensor files.
const TENSORS: (&str, &str) = ("latents-", ".safetensors");

/// Where a job stands, as it is kept.
#[derive(Serialize, Deserialize)]
struct Saved {
    fingerprint: String,
    /// Of the job's pictures, the one in work.
    image: u32,
    /// Pictures that are finished, and their files.
    outputs: Vec<OutputFile>,
    /// `None` between two pictures.
    denoise: Option<SavedDenoise>,
}

#[derive(Serialize, Deserialize)]
struct SavedDenoise {
    sampler: Sampler,
    batched: bool,
    /// Of the generator, in hexadecimal digits.
    generator: String,
    tensors: String,
    tensors_sha256: String,
    /// Names of those beside the latents and the history.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    remembered: Vec<String>,
}

/// Where a job stands.
pub struct Checkpoint {
    pub image: u32,
    pub outputs: Vec<OutputFile>,
    pub denoise: Option<Denoise>,
}

/// Between two steps of one picture.
pub struct Denoise {
    pub sampler: Sampler,
    /// Whether the rows of a guidance are computed together; the bits depend on it.
    pub batched: bool,
    pub generator: Vec<u8>,
    /// (1, C, h, w) in f32 on the CPU.
    pub latents: Tensor,
    pub history: Vec<Tensor>,
    /// What the denoiser remembers, by name.
    pub remembered: BTreeMap<String, Tensor>,
}

#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Torch(#[from] TorchError),
}

/// Keeps where the job stands, in its folder. Durable once this returns.
pub fn save(folder: &Path, fingerprint: &str, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
    let denoise = match &checkpoint.denoise {
        None => None,
        Some(denoise) => {
            let step = denoise.sampler.position();
            let tensors = format!("{}{}-{step}{}", TENSORS.0, checkpoint.image, TENSORS.1);
            let bytes = pack(denoise)?;
            durable::replace(folder, &tensors, &bytes)?;
            Some(SavedDenoise {
                sampler: denoise.sampler.clone(),
                batched: denoise.batched,
                generator: hex(&denoise.generator),
                tensors,
                tensors_sha256: format!("{:x}", Sha256::digest(&bytes)),
                remembered: denoise.remembered.keys().cloned().collect(),
            })
        }
    };
    let kept = denoise.as_ref().map(|denoise| denoise.tensors.clone());
    let saved = Saved {
        fingerprint: fingerprint.into(),
        image: checkpoint.image,
        outputs: checkpoint.outputs.clone(),
        denoise,
    };
    durable::replace(folder, NAME, &serde_json::to_vec(&saved).map_err(io::Error::from)?)?;
    Ok(remove_tensors(folder, kept.as_deref())?)
}

/// The checkpoint in `folder`, if it is about this very work and whole.
pub fn load(folder: &Path, fingerprint: &str) -> Option<Checkpoint> {
    let bytes = fs::read(folder.join(NAME)).ok()?;
    let found = serde_json::from_slice::<Saved>(&bytes).map_err(|error| error.to_string()).and_then(|saved| {
        if saved.fingerprint != fingerprint {
            return Err("it is of other work".into());
        }
        unpack(folder, saved)
    });
    found.inspect_err(|why| tracing::info!(folder = %folder.display(), why, "a checkpoint was discarded")).ok()
}

/// Whether there is one, of whatever work.
pub fn exists(folder: &Path) -> bool {
    folder.join(NAME).is_file()
}

/// Removes it.
pub fn clear(folder: &Path) -> io::Result<()> {
    durable::remove(&folder.join(NAME))?;
    remove_tensors(folder, None)
}

fn remove_tensors(folder: &Path, but: Option<&str>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let Some(name) = name.to_str() else { continue };
        if name.starts_with(TENSORS.0) && name.ends_with(TENSORS.1) && Some(name) != but {
            durable::remove(&folder.join(name))?;
        }
    }
    Ok(())
}

fn unpack(folder: &Path, saved: Saved) -> Result<Checkpoint, String> {
    for output in &saved.outputs {
        let sha256 = crate::upscale::checkpoint::sha256(&folder.join(&output.file)).map_err(|e| e.to_string())?;
        if sha256 != output.sha256 {
            return Err(format!("{} has changed", output.file));
        }
    }
    let denoise = match saved.denoise {
        None => None,
        Some(denoise) => {
            let bytes = fs::read(folder.join(&denoise.tensors)).map_err(|e| format!("{}: {e}", denoise.tensors))?;
            if format!("{:x}", Sha256::digest(&bytes)) != denoise.tensors_sha256 {
                return Err(format!("{} has changed", denoise.tensors));
            }
            let file = SafeTensors::deserialize(&bytes).map_err(|error| error.to_string())?;
            let tensor = |name: &str| tensor(&file, name);
            let history = (0..denoise.sampler.history_len()).map(|at| tensor(&history_name(at)));
            let remembered = denoise.remembered.into_iter().map(|name| Ok((name.clone(), tensor(&name)?)));
            Some(Denoise {
                remembered: remembered.collect::<Result<_, String>>()?,
                latents: tensor("latents")?,
                history: history.collect::<Result<_, _>>()?,
                generator: unhex(&denoise.generator).ok_or("the generator's state is no hexadecimal number")?,
                sampler: denoise.sampler,
                batched: denoise.batched,
            })
        }
    };
    Ok(Checkpoint { image: saved.image, outputs: saved.outputs, denoise })
}

fn history_name(at: usize) -> String {
    format!("history.{at}")
}

fn pack(denoise: &Denoise) -> Result<Vec<u8>, CheckpointError> {
    let mut tensors = vec![("latents".to_owned(), bytes(&denoise.latents)?)];
    for (at, tensor) in denoise.history.iter().enumerate() {
        tensors.push((history_name(at), bytes(tensor)?));
    }
    for (name, tensor) in &denoise.remembered {
        tensors.push((name.clone(), bytes(tensor)?));
    }
    let views = tensors.iter().map(|(name, (shape, bytes))| {
        TensorView::new(Dtype::F32, shape.clone(), bytes).map(|view| (name.as_str(), view))
    });
    let views = views.collect::<Result<Vec<_>, _>>().map_err(io::Error::other)?;
    Ok(safetensors::serialize(views, None).map_err(io::Error::other)?)
}

fn bytes(tensor: &Tensor) -> Result<(Vec<usize>, Vec<u8>), TorchError> {
    let tensor = tensor.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?;
    let mut values = vec![0.0_f32; tensor.numel()];
    let count = values.len();
    tensor.f_copy_data(&mut values, count)?;
    let shape = tensor.size().into_iter().map(|side| usize::try_from(side).unwrap_or(0)).collect();
    Ok((shape, values.iter().flat_map(|value| value.to_le_bytes()).collect()))
}

fn tensor(file: &SafeTensors<'_>, name: &str) -> Result<Tensor, String> {
    let view = file.tensor(name).map_err(|error| error.to_string())?;
    if view.dtype() != Dtype::F32 {
        return Err(format!("{name} is {:?}", view.dtype()));
    }
    let values = view.data().as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    let shape: Vec<i64> = view.shape().iter().map(|&side| i64::try_from(side).unwrap_or(-1)).collect();
    torch::from_vec(values, &shape).map_err(|error| error.to_string())
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().as_chunks::<2>();
    if !pairs.1.is_empty() {
        return None;
    }
    pairs.0.iter().map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use atelier_sampling::{Options, SchedulerConfig};

    use super::*;

    fn checkpoint() -> Checkpoint {
        let json = br#"{"_class_name":"DPMSolverMultistepScheduler","beta_schedule":"scaled_linear"}"#;
        let config = SchedulerConfig::parse(json).expect("a configuration");
        let mut sampler = Sampler::new(&config, &Options::new(4)).expect("a sampler");
        sampler.advance();
        let latents = Tensor::from_slice(&[1.5_f32, -0.0, f32::MIN_POSITIVE, 3.0]).reshape([1, 1, 2, 2]);
        let history = (0..sampler.history_len()).map(|_| latents.shallow_clone() * 2.0).collect();
        let remembered = BTreeMap::from([("step_cache.0.first".into(), latents.shallow_clone() * 4.0)]);
        let denoise = Denoise { sampler, batched: true, generator: vec![0, 255, 16], latents, history, remembered };
        Checkpoint { image: 1, outputs: Vec::new(), denoise: Some(denoise) }
    }

    fn values(tensor: &Tensor) -> Vec<u32> {
        Vec::<f32>::try_from(tensor.flatten(0, -1)).expect("numbers").into_iter().map(f32::to_bits).collect()
    }

    #[test]
    fn a_checkpoint_comes_back_bit_for_bit_and_leaves_one_file_of_tensors() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut kept = checkpoint();
        save(folder.path(), "work", &kept).expect("saved");
        let denoise = kept.denoise.as_mut().expect("in work");
        denoise.sampler.advance();
        denoise.history = (0..denoise.sampler.history_len()).map(|_| denoise.latents.shallow_clone() * 3.0).collect();
        save(folder.path(), "work", &kept).expect("saved");
        assert_eq!(fs::read_dir(folder.path()).expect("readable").count(), 2);
        let found = load(folder.path(), "work").expect("the same work").denoise.expect("in work");
        let kept = kept.denoise.expect("in work");
        assert_eq!((found.sampler, found.batched, found.generator), (kept.sampler, true, kept.generator));
        assert_eq!(values(&found.latents), values(&kept.latents));
        assert_eq!(found.history.len(), kept.history.len());
        assert_eq!(values(&found.remembered["step_cache.0.first"]), values(&kept.remembered["step_cache.0.first"]));
        clear(folder.path()).expect("cleared");
        assert_eq!(fs::read_dir(folder.path()).expect("readable").count(), 0);
    }

    #[test]
    fn what_does_not_fit_together_is_left_aside() {
        let folder = tempfile::tempdir().expect("a folder");
        save(folder.path(), "work", &checkpoint()).expect("saved");
        assert!(load(folder.path(), "other work").is_none());
        let tensors = folder.path().join("latents-1-1.safetensors");
        let mut bytes = fs::read(&tensors).expect("there");
        *bytes.last_mut().expect("bytes") ^= 1;
        fs::write(&tensors, &bytes).expect("written");
        assert!(load(folder.path(), "work").is_none(), "a flipped bit");
        fs::remove_file(&tensors).expect("removed");
        assert!(load(folder.path(), "work").is_none(), "no tensors");
        fs::write(folder.path().join(NAME), "{").expect("written");
        assert!(load(folder.path(), "work").is_none(), "rubbish");
        assert!(exists(folder.path()));
    }
}

//! What of a model is held at a time makes no difference to what it makes.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
};

use atelier_domain::{
    ErrorCode, JobKind,
    model::{DIFFUSERS_STEM, Family},
    protocol::{Offload, Run},
};
use atelier_worker::weights::{LoadOptions, Weights};
use serde_json::json;

use crate::support::{Bench, Ended, outputs, with_budget};

/// A short job for a model of the parity tests, where it makes pictures.
fn job(bench: &Bench, name: &str) -> Option<Run> {
    let model = Bench::random(name);
    let makes_pictures = [JobKind::Generate, JobKind::Edit, JobKind::Inpaint];
    let kind = makes_pictures.into_iter().find(|kind| model.family.kinds().contains(kind))?;
    if model.family.needs_base().is_some() {
        return None;
    }
    let mut params = json!({ "prompt": "a lighthouse above the sea", "seed": 3, "steps": 1 });
    if kind == JobKind::Generate {
        (params["width"], params["height"]) = (json!(32), json!(32));
    }
    let mut run = bench.job(kind, model, &params);
    if kind == JobKind::Inpaint {
        run.mask = Some(bench.picture("mask.png", 32, 32).into());
    }
    if run.kind != JobKind::Generate {
        run.inputs = vec![bench.picture("photo.png", 32, 32).into()];
    }
    Some(run)
}

/// What the largest part of the model takes, in f32.
fn largest_part(folder: &Path) -> u64 {
    let parts = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    let size_of = |folder: PathBuf| -> u64 {
        let files = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        let bytes = files.map(|file| match file.extension().and_then(OsStr::to_str) {
            // The files are f16.
            Some("safetensors") => 2 * fs::metadata(file).unwrap().len(),
            Some("gguf") => Weights::open_folder(&folder, DIFFUSERS_STEM, &LoadOptions::cpu()).unwrap().bytes(),
            Some(_) | None => 0,
        });
        bytes.sum()
    };
    parts.map(size_of).max().unwrap()
}

#[test]
fn every_family_gives_the_same_bytes_block_by_block() {
    let bench = Bench::new();
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity/models");
    let (mut families, mut parted) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(models).unwrap() {
        let folder = entry.unwrap().path();
        let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
        if !folder.join("model_index.json").exists() {
            continue;
        }
        let Some(run) = job(&bench, &name) else { continue };
        // As a whole; block by block; and where the largest part does not fit, so that some of its blocks stay.
        let ways =
            [(u64::MAX, Offload::None), (u64::MAX, Offload::Block), (largest_part(&folder) * 3 / 4, Offload::Auto)];
        let made = ways.map(|(budget, offload)| {
            let again = Run { work_dir: bench.folder("job").into(), ..run.clone() };
            match with_budget(&again, None, budget, offload) {
                Ok(Ended::Finished(finished)) => Some(outputs(&again, &finished)),
                Ok(Ended::Stopped { .. }) => panic!("{name} {offload:?}: stopped"),
                // Of so small a network two blocks may be all there is.
                Err(error) if offload == Offload::Auto && error.code == ErrorCode::OutOfMemory => None,
                Err(error) => panic!("{name} {offload:?} in {budget} bytes: {error}"),
            }
        });
        assert!(made[1] == made[0], "{name}: other bytes block by block");
        if made[2].is_some() {
            assert!(made[2] == made[0], "{name}: other bytes where it does not fit");
            parted.push(name);
        }
        families.push(run.models[0].family);
    }
    for family in [Family::StableDiffusion, Family::StableDiffusionXl, Family::Flux, Family::FluxKontext] {
        assert!(families.contains(&family), "{family:?} is not among {families:?}");
    }
    assert!(parted.len() > 2, "only {parted:?} fitted in a part");
}

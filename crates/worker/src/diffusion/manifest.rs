//! What is needed to make a job's pictures again.

use std::path::PathBuf;

use atelier_domain::{Detail, OutputFormat, protocol::Run};
use serde_json::{Value, json};

use super::{REVISION, request::Diffusion};
use crate::{context::Context, torch};

pub fn of(
    run: &Run,
    order: &Diffusion,
    inputs: &[String],
    files: &[PathBuf],
    sha256: &[String],
    notes: &[String],
    context: &Context<'_>,
) -> Value {
    let (task, blueprint) = (&order.task, &order.blueprint);
    let root = |path: &PathBuf| {
        let parts = [&blueprint.model, blueprint.main()];
        let inside = parts.iter().find_map(|part| path.strip_prefix(part.path.as_path()).ok());
        inside.unwrap_or(path).to_string_lossy().into_owned()
    };
    json!({
        "worker_version": env!("CARGO_PKG_VERSION"),
        "revision": REVISION,
        "libtorch": torch::version(),
        "device": { "name": context.device.name, "model": context.device.model, "threads": context.device.threads },
        "engine": "diffusion",
        "kind": run.kind,
        "model": blueprint.model.id,
        "base_model": blueprint.base.as_ref().map(|base| &base.id),
        "family": blueprint.model.family,
        "weights": files.iter().zip(sha256).map(|(path, sha256)| json!({ "file": root(path), "sha256": sha256 })).collect::<Vec<_>>(),
        "loras": run.params.loras,
        "params": {
            "prompt": task.prompt,
            "negative_prompt": task.negative_prompt,
            "seed": order.seed,
            "num_images": order.images,
            "steps": task.steps,
            "guidance_scale": task.guidance_scale,
            "image_guidance_scale": task.image_guidance_scale,
            "true_cfg_scale": task.true_cfg_scale,
            "strength": task.strength,
            "width": task.size.width,
            "height": task.size.height,
            "clip_skip": task.clip_skip,
            "step_cache": task.step_cache,
            "skip_layer_guidance": task.skip_layer_guidance,
            "prompt_weighting": task.weighting,
            "detail": order.detail,
            "fit": order.fit,
            "control_mode": run.params.control_mode,
            "control_scale": task.control_scale,
            "preprocessor": run.params.preprocessor,
            "format": run.output.format,
            "quality": (run.output.format != OutputFormat::Png).then_some(run.output.quality),
        },
        "sampler": {
            "asked": run.params.sampler,
            "steps": order.sampler.steps().len(),
            "timesteps": order.sampler.timesteps(),
        },
        "instruction": order.instruction.as_ref().map(|name| json!({
            "given": run.params.prompt,
            "understood": name,
            "used": task.prompt,
        })),
        "guided": order.detail == Detail::Guided,
        "inputs": inputs.iter().map(|sha256| json!({ "sha256": sha256 })).collect::<Vec<_>>(),
        "source": order.source.as_ref().map(|source| json!({ "width": source.width, "height": source.height })),
        "notes": notes,
    })
}

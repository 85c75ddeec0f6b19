//! An instruction that is done on the pixels themselves.

use atelier_domain::{
    JobKind,
    protocol::{Finished, Run},
};
use atelier_imaging::Pixels;
use serde_json::json;

use super::{
    Ended, REVISION,
    output::{self, Made},
    request::Classic,
};
use crate::{context::Context, error::JobError, events::Phase};

/// Runs it, as one step.
pub(super) fn run(run: &Run, order: &Classic, inputs: &[String], context: &Context<'_>) -> Result<Ended, JobError> {
    context.reporter.started(&order.model.id, None);
    context.reporter.progress(Phase::Run, 0, 1);
    if let Some(how) = context.control.stop_requested() {
        return Err(JobError::Stopped { how, step: 0 });
    }
    let threads = usize::try_from(context.device.threads).unwrap_or(1);
    let made = order.operation.apply(&order.source, run.max_pixels, threads).map_err(|error| {
        JobError::refused(atelier_domain::ErrorCode::InvalidParams, error.to_string(), "Ask for another size.")
    })?;
    context.reporter.progress(Phase::Run, 1, 1);
    let (output, notes) = output::write(
        run,
        context,
        0,
        &Made {
            width: made.width,
            height: made.height,
            color: made.color,
            alpha: made.alpha,
            pixels: &made.pixels,
            source: Some(&order.source),
            // A correction by plain arithmetic is to be called what an enlargement is, and nothing more.
            marked_as: JobKind::Upscale,
            parameters: None,
        },
    )?;
    let notes = [&order.source.notes[..], &notes].concat();
    let manifest = json!({
        "worker_version": env!("CARGO_PKG_VERSION"),
        "revision": REVISION,
        "engine": "classic",
        "kind": run.kind,
        "model": order.model.id,
        "operation": format!("{:?}", order.operation),
        "instruction": { "given": run.params.prompt, "understood": order.instruction },
        "params": {
            "format": run.output.format,
            "quality": run.output.quality,
        },
        "inputs": [{
            "sha256": inputs.first(),
            "width": order.source.width,
            "height": order.source.height,
            "bits": if matches!(order.source.pixels, Pixels::U8(_)) { 8 } else { 16 },
        }],
        "notes": notes,
    });
    let result = Some(json!({ "engine": "classic", "instruction": order.instruction }));
    let finished = Finished { job: run.job, model: order.model.id.clone(), outputs: vec![output], result, manifest };
    Ok(Ended { finished, steps: 1, stamps: Vec::new() })
}

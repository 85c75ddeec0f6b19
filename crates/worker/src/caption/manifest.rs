//! What is needed to make a caption again.

use atelier_domain::protocol::Run;
use serde_json::{Value, json};

use super::{
    REVISION, Written,
    generate::End,
    request::{Hashed, Order},
};
use crate::{context::Context, torch};

pub fn of(run: &Run, order: &Order, hashed: &Hashed<'_>, written: &Written, context: &Context<'_>) -> Value {
    let root = order.model.path.as_path();
    let weights = order.files.iter().zip(hashed.weights).map(
        |(path, sha256)| json!({ "file": path.strip_prefix(root).unwrap_or(path).to_string_lossy(), "sha256": sha256 }),
    );
    json!({
        "worker_version": env!("CARGO_PKG_VERSION"),
        "revision": REVISION,
        "libtorch": torch::version(),
        "device": { "name": context.device.name, "model": context.device.model, "threads": context.device.threads },
        "engine": "language",
        "kind": run.kind,
        "model": order.model.id,
        "family": order.model.family,
        "weights": weights.collect::<Vec<_>>(),
        "params": {
            "prompt": order.question,
            "seed": (order.choice.temperature > 0.0).then_some(order.choice.seed),
            "max_tokens": order.choice.max_tokens,
            "temperature": order.choice.temperature,
            "top_p": order.choice.top_p,
            "repetition_penalty": order.choice.repetition_penalty,
        },
        "prompt_tokens": order.inputs.ids.len(),
        "text": written.text,
        "tokens": written.tokens,
        "is_complete": written.end == End::Token,
        "inputs": hashed.inputs.iter().map(|sha256| json!({ "sha256": sha256 })).collect::<Vec<_>>(),
    })
}

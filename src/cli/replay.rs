//! `atelier replay`: makes a job again from its manifest, and compares what comes of it with what came before.

use std::path::{Path, PathBuf};

use atelier_domain::{JobId, JobStatus, Params};
use clap::Args;
use serde_json::{Map, Value, json};

use super::{
    args::Global,
    client::Client,
    download,
    error::{CliError, Exit, Result},
    output::{self, json as print_json},
    submit,
};
use crate::signing;

#[derive(Args, Debug)]
pub(super) struct Replay {
    /// File with a job's manifest, or the id of a job that the daemon still has
    #[arg(value_name = "MANIFEST|JOB")]
    manifest: String,

    /// The job's pictures, in its order; they are known by their hashes
    #[arg(long = "image", value_name = "FILE", num_args = 1..)]
    images: Vec<PathBuf>,

    /// The job's mask
    #[arg(long, value_name = "FILE")]
    mask: Option<PathBuf>,

    /// Compare the outputs with the manifest's, byte for byte, or the text; exit code 1 where they differ
    #[arg(long)]
    verify: bool,

    /// Bring the new outputs into this folder
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

pub(super) async fn run(global: &Global, replay: Replay) -> Result {
    let client = Client::new(global)?;
    let manifest = read(&client, &replay.manifest).await?;
    let wanted = outputs(&manifest);
    if replay.verify && wanted.is_empty() {
        return Err(CliError::usage(format!("{} names no outputs to compare with", replay.manifest))
            .hint("manifests of this version do; make the job again without --verify"));
    }
    check_inputs(&manifest, &replay.images)?;
    let body = wish(&manifest)?;
    if let Some(folder) = &replay.output {
        download::prepare(folder)?;
    }
    let job = submit::hand_in(&client, body, &replay.images, replay.mask.as_deref(), None).await?;
    let (ended, paths) = submit::until_end(&client, job.id, replay.output.as_deref()).await?;
    if ended.status != JobStatus::Succeeded || !replay.verify {
        if global.json {
            print_json(&ended)?;
        }
        return submit::ended(global, &client, &ended, &paths);
    }
    let again = client.get::<Value>(&format!("/jobs/{}/manifest", ended.id)).await?;
    report(global, ended.id, &wanted, &manifest, &again)
}

/// A file, or the manifest of a job that is still there.
async fn read(client: &Client, name: &str) -> Result<Value> {
    if let Ok(id) = name.parse::<JobId>()
        && !Path::new(name).exists()
    {
        return client.get(&format!("/jobs/{id}/manifest")).await;
    }
    let text = std::fs::read_to_string(name).map_err(|error| CliError::usage(format!("{name}: {error}")))?;
    serde_json::from_str(&text).map_err(|error| CliError::usage(format!("{name} is no manifest: {error}")))
}

/// Hashes of the outputs, in their order; of signed ones as they were before, for no two signatures are the same. A job
/// that wrote a text has it, which is no file where it was not dropped into a folder.
fn outputs(manifest: &Value) -> Vec<String> {
    if let Some(text) = manifest["text"].as_str() {
        return vec![text.to_owned()];
    }
    signing::unsigned_hashes(manifest).unwrap_or_else(|| hashes(&manifest["outputs"]))
}

fn hashes(list: &Value) -> Vec<String> {
    let items = list.as_array().into_iter().flatten();
    items.filter_map(|item| item["sha256"].as_str().map(str::to_owned)).collect()
}

/// The pictures are those that the job had, or the result could not be the same.
fn check_inputs(manifest: &Value, images: &[PathBuf]) -> Result {
    let wanted = hashes(&manifest["inputs"]);
    if wanted.len() != images.len() {
        return Err(CliError::usage(format!("the job had {} pictures, and {} are given", wanted.len(), images.len()))
            .hint("name them with --image, in the order of the manifest's inputs"));
    }
    for (image, wanted) in images.iter().zip(&wanted) {
        let found = sha256(image).map_err(|error| CliError::usage(format!("{}: {error}", image.display())))?;
        if found != *wanted {
            return Err(CliError::usage(format!("{} is not the picture that the job had", image.display()))
                .hint(format!("its sha256 is {found}, the manifest's {wanted}")));
        }
    }
    Ok(())
}

fn sha256(path: &Path) -> std::io::Result<String> {
    use sha2::{Digest as _, Sha256};
    let mut digest = Sha256::new();
    std::io::copy(&mut std::fs::File::open(path)?, &mut digest)?;
    Ok(crate::admission::hex(&digest.finalize()))
}

/// The job as it was decided: what was left to chance or to the picture then is named now.
fn wish(manifest: &Value) -> Result<Value> {
    let Some(kind) = manifest["kind"].as_str() else {
        return Err(CliError::usage("the manifest names no kind of job"));
    };
    let params: Map<String, Value> = manifest["params"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, value)| Params::NAMES.contains(&name.as_str()) && !value.is_null())
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let mut wish = json!({"kind": kind, "params": params});
    // Several stages are several models; the parameters lead to the same ones.
    let is_one = manifest["stages"].as_array().is_none_or(|stages| stages.len() <= 1);
    if let Some(model) = manifest["model"].as_str().filter(|_| is_one) {
        wish["model"] = model.into();
    }
    Ok(wish)
}

fn report(global: &Global, job: JobId, wanted: &[String], before: &Value, after: &Value) -> Result {
    let made = outputs(after);
    let same = made == wanted;
    // What may well be the reason, where it is not the same.
    let changed: Vec<_> = [
        "worker_version",
        "revision",
        "libtorch",
        "device",
        "weights",
        "weights_sha256",
        "model_sha256",
        "atelier_version",
    ]
    .into_iter()
    .filter(|name| before[*name] != after[*name])
    .collect();
    if global.json {
        print_json(&json!({"job": job, "same": same, "expected": wanted, "made": made, "changed": changed}))?;
    } else if same {
        output::text(&format!("the same: {}", made.join(" ")))?;
    }
    if same {
        return Ok(());
    }
    let error = CliError::new(Exit::Failed, format!("job {job} made something else: {}", made.join(" ")));
    Err(error.hint(if changed.is_empty() {
        "nothing that the manifests name has changed; the configuration may have ([outbox] gps, quality)".to_owned()
    } else {
        format!("what differs beside: {}", changed.join(", "))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_becomes_the_job_as_it_was_decided() {
        let manifest = json!({"kind": "upscale", "model": "span-x2", "stages": [{}],
            "params": {"scale": 2, "denoise": "off", "seed": null, "unknown": 1}});
        assert_eq!(
            wish(&manifest).expect("a wish"),
            json!({"kind": "upscale", "model": "span-x2", "params": {"scale": 2, "denoise": "off"}})
        );
        let two = json!({"kind": "upscale", "model": "a", "stages": [{}, {}], "params": {}});
        assert_eq!(wish(&two).expect("a wish"), json!({"kind": "upscale", "params": {}}));
        assert_eq!(wish(&json!({})).expect_err("no kind").exit, Exit::Usage);
    }

    #[test]
    fn a_text_is_compared_as_such_wherever_it_was_published() {
        let dropped = json!({"text": "a boat", "outputs": [{"sha256": "00"}]});
        assert_eq!(outputs(&dropped), outputs(&json!({"text": "a boat", "outputs": []})));
        assert_ne!(outputs(&dropped), outputs(&json!({"text": "a ship"})));
        assert_eq!(outputs(&json!({"outputs": [{"sha256": "00"}]})), ["00"]);
    }

    #[test]
    fn pictures_are_those_of_the_job() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("a.png");
        std::fs::write(&path, "abc").expect("written");
        let of = |hash: &str| json!({"inputs": [{"sha256": hash}]});
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        check_inputs(&of(abc), std::slice::from_ref(&path)).expect("the same");
        assert!(check_inputs(&of("00"), std::slice::from_ref(&path)).is_err());
        assert!(check_inputs(&of(abc), &[]).is_err());
        check_inputs(&json!({}), &[]).expect("none");
    }
}

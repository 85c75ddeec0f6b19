//! `atelier submit`: hands a job to the daemon, and waits for it where that is asked.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use atelier_domain::{Job, JobId, JobKind, JobStatus, Params};
use clap::{Args, builder::PossibleValuesParser};
use futures::TryStreamExt as _;
use indicatif::ProgressBar;
use reqwest::{
    Method,
    multipart::{Form, Part},
};
use serde_json::{Map, Value};
use tokio_util::io::ReaderStream;

use super::{
    args::Global,
    bar::{self, JobBar},
    client::{Client, LocalFile},
    download,
    error::{CliError, Exit, Result},
    follow::{self, Patience},
    output::{self, json, line, note},
};

#[derive(Args, Debug)]
pub(super) struct Submit {
    /// What to do
    #[arg(long, value_parser = PossibleValuesParser::new(JobKind::ALL.map(JobKind::as_str)))]
    kind: Option<String>,

    /// Model to use; the daemon chooses where none is named
    #[arg(long)]
    model: Option<String>,

    /// Kind and parameters under a name, from the configuration
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,

    /// Picture to work on; several where the kind takes several
    #[arg(long = "image", value_name = "FILE", num_args = 1..)]
    images: Vec<PathBuf>,

    /// Picture that marks where to work
    #[arg(long, value_name = "FILE")]
    mask: Option<PathBuf>,

    /// What shall be seen, or done
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,

    /// What shall not be seen
    #[arg(long, value_name = "TEXT")]
    negative_prompt: Option<String>,

    /// Start of all randomness; the same seed makes the same picture
    #[arg(long, allow_negative_numbers = true)]
    seed: Option<u64>,

    /// Steps of the sampler
    #[arg(long, allow_negative_numbers = true)]
    steps: Option<u32>,

    /// How closely the prompt is followed
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    guidance_scale: Option<f64>,

    /// How far a picture may be left: above 0, at most 1
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    strength: Option<f64>,

    /// Pixels
    #[arg(long, value_name = "PIXELS")]
    width: Option<u32>,

    /// Pixels
    #[arg(long, value_name = "PIXELS")]
    height: Option<u32>,

    /// Sampler, such as euler_a or dpmpp_2m_karras
    #[arg(long, value_name = "NAME")]
    sampler: Option<String>,

    /// How many pictures to make
    #[arg(long, value_name = "N")]
    num_images: Option<u32>,

    /// A LoRA, and how strongly it counts; repeatable
    #[arg(long = "lora", value_name = "NAME[:WEIGHT]")]
    loras: Vec<String>,

    /// Factor of an enlargement: 2 or 4
    #[arg(long, allow_negative_numbers = true)]
    scale: Option<u32>,

    /// Noise removal of an enlargement: auto, off, or 0 to 3
    #[arg(long, value_name = "LEVEL")]
    denoise: Option<String>,

    /// File type of the output: png, jpeg or webp
    #[arg(long)]
    format: Option<String>,

    /// -100 to 100; higher runs first
    #[arg(long, allow_negative_numbers = true)]
    priority: Option<i32>,

    /// What the job shall be called
    #[arg(long)]
    name: Option<String>,

    /// Any other parameter, such as strength=0.6
    #[arg(long = "param", value_name = "NAME=VALUE", value_parser = parameter)]
    params: Vec<(String, String)>,

    /// Wait until the job has ended
    #[arg(long)]
    wait: bool,

    /// Wait, and bring the outputs into this folder
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,

    /// Makes it safe to submit the same job again: the first answer counts
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
}

fn parameter(text: &str) -> std::result::Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("NAME=VALUE, such as strength=0.6".to_owned()),
    }
}

pub(super) async fn run(global: &Global, submit: Submit) -> Result {
    let body = submit.body()?;
    if let Some(folder) = &submit.output {
        download::prepare(folder)?;
    }
    let client = Client::new(global)?;
    let key = submit.idempotency_key.as_deref();
    let job = hand_in(&client, body, &submit.images, submit.mask.as_deref(), key).await?;
    if submit.wait || submit.output.is_some() {
        return wait(global, &client, job.id, submit.output.as_deref()).await;
    }
    if global.json {
        return json(&job);
    }
    if output::stdout_is_terminal() {
        note(&format!("{}; `atelier jobs watch {}` follows it", job.status, job.id));
    }
    line(&job.id.to_string())
}

impl Submit {
    /// The job's JSON, without the pictures.
    fn body(&self) -> Result<Value> {
        let mut params = Map::new();
        let mut put = |name: &str, value: Option<Value>| {
            if let Some(value) = value
                && params.insert(name.to_owned(), value).is_some()
            {
                return Err(CliError::usage(format!("the parameter {name} is given twice")));
            }
            Ok(())
        };
        put("prompt", self.prompt.clone().map(Into::into))?;
        put("negative_prompt", self.negative_prompt.clone().map(Into::into))?;
        put("seed", self.seed.map(Into::into))?;
        put("steps", self.steps.map(Into::into))?;
        put("guidance_scale", self.guidance_scale.map(Into::into))?;
        put("strength", self.strength.map(Into::into))?;
        put("width", self.width.map(Into::into))?;
        put("height", self.height.map(Into::into))?;
        put("sampler", self.sampler.clone().map(Into::into))?;
        put("num_images", self.num_images.map(Into::into))?;
        put("loras", (!self.loras.is_empty()).then(|| self.loras.join(",").into()))?;
        put("scale", self.scale.map(Into::into))?;
        put("denoise", self.denoise.as_deref().map(|text| value_of("denoise", text)))?;
        put("format", self.format.clone().map(Into::into))?;
        for (name, text) in &self.params {
            if !Params::NAMES.contains(&name.as_str()) {
                let error = CliError::usage(format!("there is no parameter {name:?}"));
                return Err(match atelier_domain::request::nearest(name, Params::NAMES.into_iter()) {
                    Some(near) => error.hint(format!("did you mean {near:?}?")),
                    None => error.hint(format!("there are {}", Params::NAMES.join(", "))),
                });
            }
            put(name, Some(value_of(name, text)))?;
        }
        let mut body = Map::new();
        for (name, value) in [
            ("kind", self.kind.clone().map(Value::from)),
            ("model", self.model.clone().map(Value::from)),
            ("preset", self.preset.clone().map(Value::from)),
            ("priority", self.priority.map(Value::from)),
            ("name", self.name.clone().map(Value::from)),
        ] {
            if let Some(value) = value {
                body.insert(name.to_owned(), value);
            }
        }
        body.insert("params".to_owned(), Value::Object(params));
        Ok(Value::Object(body))
    }
}

/// Numbers become numbers, texts stay texts whatever they look like.
fn value_of(name: &str, text: &str) -> Value {
    const TEXTS: [&str; 6] = ["prompt", "negative_prompt", "format", "sampler", "loras", "base_model"];
    match serde_json::from_str(text) {
        Ok(value @ (Value::Number(_) | Value::Bool(_))) if !TEXTS.contains(&name) => value,
        Ok(_) | Err(_) => Value::String(text.to_owned()),
    }
}

/// Sends a job with its pictures; the answer is the job that the daemon has accepted.
pub(super) async fn hand_in(
    client: &Client,
    body: Value,
    images: &[PathBuf],
    mask: Option<&Path>,
    key: Option<&str>,
) -> Result<Job> {
    tokio::select! {
        sent = send(client, body, images, mask, key) => sent,
        _ = tokio::signal::ctrl_c() => {
            Err(CliError::new(Exit::Interrupted, "interrupted before the daemon had accepted the job"))
        }
    }
}

async fn send(client: &Client, body: Value, images: &[PathBuf], mask: Option<&Path>, key: Option<&str>) -> Result<Job> {
    let mut request = client.api(Method::POST, "/jobs");
    if let Some(key) = key {
        if !key.bytes().all(|byte| byte.is_ascii_graphic()) || key.is_empty() {
            return Err(CliError::usage("--idempotency-key is made of visible ASCII characters, without spaces"));
        }
        request = request.header("idempotency-key", key);
    }
    if images.is_empty() && mask.is_none() {
        return client.answer(request.json(&body)).await;
    }
    let job = Part::text(body.to_string()).mime_str("application/json").expect("a media type");
    let mut form = Form::new().part("job", job);
    let bar = Arc::new(bar::bytes(0, "uploading"));
    let files = images.iter().map(|path| ("image", path.as_path())).chain(mask.map(|path| ("mask", path)));
    for (name, path) in files {
        form = form.part(name, file(path, &bar).await?);
    }
    let sent = client.answer(request.multipart(form)).await;
    bar.finish_and_clear();
    sent
}

/// A part that is read while it is sent.
async fn file(path: &Path, bar: &Arc<ProgressBar>) -> Result<Part> {
    let shown = path.display().to_string();
    let refuse = |error: std::io::Error| CliError::usage(format!("{shown}: {error}"));
    let file = tokio::fs::File::open(path).await.map_err(refuse)?;
    let about = file.metadata().await.map_err(refuse)?;
    if about.is_dir() {
        return Err(CliError::usage(format!("{shown} is a folder")).hint("--image takes files"));
    }
    let name = path.file_name().map_or_else(|| "image".into(), |name| name.to_string_lossy().into_owned());
    let counter = bar.clone();
    let stream =
        ReaderStream::with_capacity(file, 64 << 10).inspect_ok(move |bytes| counter.inc(bytes.len() as u64)).map_err({
            let path = shown.clone();
            move |error| LocalFile { path: path.clone(), error }
        });
    let body = reqwest::Body::wrap_stream(stream);
    // What is no plain file has no length to be known before.
    let part = if about.is_file() {
        bar.inc_length(about.len());
        Part::stream_with_length(body, about.len())
    } else {
        Part::stream(body)
    };
    Ok(part.file_name(name))
}

/// Follows a job to its end and tells what came of it.
pub(super) async fn wait(global: &Global, client: &Client, id: JobId, folder: Option<&Path>) -> Result {
    let (job, paths) = until_end(client, id, folder).await?;
    if global.json {
        json(&job)?;
    }
    ended(global, client, &job, &paths)
}

/// Follows a job to its end, and brings its outputs into `folder`.
pub(super) async fn until_end(client: &Client, id: JobId, folder: Option<&Path>) -> Result<(Job, Vec<PathBuf>)> {
    let mut bar = JobBar::new();
    let followed = {
        let mut tell = |job: &Job| bar.show(job);
        tokio::select! {
            job = follow::job(client, id, Patience::default(), &mut tell) => Some(job),
            _ = tokio::signal::ctrl_c() => None,
        }
    };
    bar.finish();
    let Some(job) = followed else {
        return Err(CliError::new(Exit::Interrupted, format!("job {id} goes on without being watched"))
            .hint(format!("`atelier jobs watch {id}` follows it again, `atelier jobs cancel {id}` ends it")));
    };
    let job = job?;
    let paths = match folder {
        Some(folder) if job.status == JobStatus::Succeeded => tokio::select! {
            paths = download::all(client, &job, folder) => paths?,
            _ = tokio::signal::ctrl_c() => {
                return Err(CliError::new(Exit::Interrupted, format!("job {id} has succeeded; its outputs did not all arrive"))
                    .hint(format!("`atelier jobs watch {id} --output DIR` fetches them")));
            }
        },
        _ => Vec::new(),
    };
    Ok((job, paths))
}

/// Says how a job has ended; the exit code is the job's.
pub(super) fn ended(global: &Global, client: &Client, job: &Job, paths: &[PathBuf]) -> Result {
    match job.status {
        JobStatus::Succeeded => {
            if let (Some(from), Some(to)) = (job.started_at, job.finished_at) {
                note(&format!("job {} succeeded in {}", job.id, output::seconds(from, to)));
            }
            if global.json {
                return Ok(());
            }
            for path in paths {
                line(&path.display().to_string())?;
            }
            if paths.is_empty() {
                for made in &job.outputs {
                    line(&format!("{}{}", client.base(), made.url))?;
                }
            }
            match &job.result {
                None => Ok(()),
                Some(Value::String(text)) => output::text(text),
                // What is no text is for programs, which ask with --json.
                Some(other) => other.get("text").and_then(Value::as_str).map_or(Ok(()), output::text),
            }
        }
        JobStatus::Cancelled => Err(CliError::failed(format!("job {} was cancelled", job.id))),
        JobStatus::Failed | JobStatus::Queued | JobStatus::Running | JobStatus::Retrying => {
            let error = job.error.as_ref();
            let why = error.map_or("no reason is known", |error| error.message.as_str());
            let failed = CliError::failed(format!("job {} {}: {why}", job.id, job.status));
            Err(failed.hint(error.map(|error| error.hint.clone()).unwrap_or_default()))
        }
    }
}

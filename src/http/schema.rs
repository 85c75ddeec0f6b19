//! The domain's types as the API's description tells them.
//!
//! The domain knows nothing of OpenAPI, so its JSON is described here once more; a test compares every name with
//! what the domain's types really write.
#![allow(dead_code, reason = "these types are only described, never made")]

use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        RefOr, Schema,
        schema::{ObjectBuilder, Type},
    },
};

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(crate) enum JobKind {
    Upscale,
    Edit,
    Generate,
    Inpaint,
    Control,
    Caption,
    Video,
    TalkingHead,
    Speech,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(crate) enum JobStatus {
    Queued,
    Running,
    Retrying,
    Succeeded,
    Failed,
    Cancelled,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(crate) enum SourceType {
    Http,
    Inbox,
}

#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
pub(crate) enum OutputFormat {
    Png,
    Jpeg,
    Webp,
}

/// One job.
#[derive(ToSchema)]
pub(crate) struct Job {
    /// A ULID: ids sort by creation.
    #[schema(example = "01JD3V9Q7GZ6W2H4T8K0XNYB5C", min_length = 26, max_length = 26)]
    id: String,
    kind: JobKind,
    /// Null until it is decided, where the choice depends on the picture.
    #[schema(required)]
    model: Option<String>,
    status: JobStatus,
    #[schema(minimum = -100, maximum = 100)]
    priority: i32,
    progress: Progress,
    /// How often it was started, without soft stops.
    attempt: u32,
    max_attempts: u32,
    /// How often it took the worker down.
    crashes: u32,
    #[schema(required)]
    resumed_from_step: Option<u32>,
    source: Source,
    params: Params,
    inputs: Vec<Input>,
    outputs: Vec<Output>,
    /// What is no file, such as a caption's text.
    #[schema(required, value_type = Value)]
    result: Option<serde_json::Value>,
    #[schema(required)]
    error: Option<JobError>,
    #[schema(format = DateTime)]
    created_at: String,
    #[schema(required, format = DateTime)]
    started_at: Option<String>,
    #[schema(required, format = DateTime)]
    finished_at: Option<String>,
}

/// How far a job has come.
#[derive(ToSchema)]
pub(crate) struct Progress {
    /// `queued`, then what the worker does: `load`, `decode`, `run`, `encode`; at last `done`.
    phase: String,
    step: u32,
    steps: u32,
    /// 0 to 1 over the whole job.
    #[schema(minimum = 0, maximum = 1)]
    fraction: f64,
    /// The text so far, of a running job that writes one, such as a caption.
    text: Option<String>,
    #[schema(format = DateTime)]
    updated_at: String,
}

/// Where a job came from.
#[derive(ToSchema)]
pub(crate) struct Source {
    r#type: SourceType,
    /// The path below the inbox, or the name given over HTTP.
    #[schema(required)]
    name: Option<String>,
}

/// A file that a job reads.
#[derive(ToSchema)]
pub(crate) struct Input {
    name: String,
    media_type: String,
    bytes: u64,
    width: u32,
    height: u32,
    sha256: String,
}

/// A file that a job has made.
#[derive(ToSchema)]
pub(crate) struct Output {
    index: u32,
    name: String,
    media_type: String,
    bytes: u64,
    width: u32,
    height: u32,
    sha256: String,
    url: String,
}

/// Why a job has failed.
#[derive(ToSchema)]
pub(crate) struct JobError {
    /// Stable snake_case.
    code: String,
    message: String,
    /// What to do about it; may be empty.
    hint: String,
}

/// What a job is asked to do. Which of these a kind takes, its model decides.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Params {
    #[schema(max_length = 2000)]
    prompt: Option<String>,
    #[schema(max_length = 1000)]
    negative_prompt: Option<String>,
    /// 0 is a seed like any other. Drawn and recorded where it is missing.
    seed: Option<u64>,
    #[schema(minimum = 1, maximum = 1000)]
    steps: Option<u32>,
    #[schema(minimum = 0, maximum = 100)]
    guidance_scale: Option<f64>,
    #[schema(minimum = 16, maximum = 16384)]
    width: Option<u32>,
    #[schema(minimum = 16, maximum = 16384)]
    height: Option<u32>,
    /// How far an image-to-image job may leave its source.
    #[schema(exclusive_minimum = 0, maximum = 1)]
    strength: Option<f64>,
    scale: Option<Scale>,
    denoise: Option<Denoise>,
    #[schema(minimum = 1, maximum = 10)]
    num_images: Option<u32>,
    format: Option<OutputFormat>,
    /// For JPEG and WebP.
    #[schema(minimum = 1, maximum = 100)]
    quality: Option<u8>,
    /// `edit`: how closely the result keeps to the source; below 1 turns guidance off.
    #[schema(minimum = 0, maximum = 100)]
    image_guidance_scale: Option<f64>,
    /// Models whose guidance is distilled, as FLUX.1's: guidance by the negative prompt besides, above 1; twice the work.
    #[schema(minimum = 0, maximum = 100)]
    true_cfg_scale: Option<f64>,
    /// Instead of the one that the model's folder asks for, such as `euler_a` or `DPM++ 2M Karras`.
    #[schema(max_length = 64)]
    sampler: Option<String>,
    /// Layers of the text encoder that are left out at its end.
    #[schema(minimum = 0, maximum = 12)]
    clip_skip: Option<u32>,
    /// Whether `(word:1.2)` in a prompt weighs the word.
    prompt_weighting: Option<bool>,
    /// A list, or a text such as `film:0.8, grain`.
    loras: Option<Loras>,
    detail: Option<Detail>,
    fit: Option<Fit>,
    control_mode: Option<ControlMode>,
    /// `control`: how strongly the picture guides.
    #[schema(minimum = 0, maximum = 2)]
    control_scale: Option<f64>,
    preprocessor: Option<Preprocessor>,
    /// `control`: the model that a bare ControlNet works with.
    base_model: Option<String>,
    /// A small picture of how far it is after so many steps; 0 for none.
    #[schema(minimum = 0, maximum = 1000)]
    preview_every: Option<u32>,
    /// Whether the VAE takes large pictures in bands of rows, which needs less memory.
    tiling: Option<bool>,
    /// `caption`: how long the text may become.
    #[schema(minimum = 1, maximum = 4096)]
    max_tokens: Option<u32>,
    /// `caption`: 0 takes the likeliest word each time, more lets chance play.
    #[schema(minimum = 0, maximum = 2)]
    temperature: Option<f64>,
    /// `caption`, with a temperature: chance chooses among the likeliest words whose shares reach this sum.
    #[schema(exclusive_minimum = 0, maximum = 1)]
    top_p: Option<f64>,
    /// Transformers: the largest relative change of the first block's answer for which the other blocks' answers of the
    /// step before are taken. 0: never.
    #[schema(minimum = 0, maximum = 1)]
    step_cache: Option<f64>,
    /// Stable Diffusion 3.5: how far to guide away from what is made with three of the blocks left out, in the early
    /// steps; about 2.8 for better anatomy. 0: not at all.
    #[schema(minimum = 0, maximum = 20)]
    skip_layer_guidance: Option<f64>,
}

#[derive(ToSchema)]
#[serde(untagged)]
pub(crate) enum Loras {
    Text(String),
    List(Vec<LoraUse>),
}

#[derive(ToSchema)]
pub(crate) struct LoraUse {
    name: String,
    #[schema(minimum = -4, maximum = 4, default = 1.0)]
    weight: Option<f64>,
}

/// `edit`: whether the change of colour is carried to the photo's full resolution.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
pub(crate) enum Detail {
    Auto,
    Guided,
    None,
}

/// The size of a picture that is made from another one.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
pub(crate) enum Fit {
    Source,
    Model,
}

/// `control`, Union models: what the picture shows.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(crate) enum ControlMode {
    Openpose,
    Depth,
    SoftEdge,
    Canny,
    Normal,
    Segmentation,
    Tile,
    Repaint,
}

/// `control`: what is done to the picture before the model sees it.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(crate) enum Preprocessor {
    None,
    Canny,
    Anyline,
    Lineart,
}

/// `upscale`: `auto`, `off`, or a level from 0 to 3.
#[derive(ToSchema)]
#[serde(untagged)]
pub(crate) enum Denoise {
    Word(DenoiseWord),
    Level(DenoiseLevel),
}

/// `upscale`: 2 or 4.
pub(crate) struct Scale(u32);

/// 0 to 3.
pub(crate) struct DenoiseLevel(u8);

/// Whole numbers of which only a few are meant; there is no attribute that says so.
macro_rules! numbers {
    ($($type:ident = $description:literal, $values:expr;)+) => {$(
        impl PartialSchema for $type {
            fn schema() -> RefOr<Schema> {
                let number = ObjectBuilder::new().schema_type(Type::Integer).enum_values(Some($values));
                number.description(Some($description)).build().into()
            }
        }

        impl ToSchema for $type {}
    )+};
}

numbers! {
    Scale = "`upscale`: 2 or 4.", [2, 4];
    DenoiseLevel = "How much noise is taken for granted.", [0, 1, 2, 3];
}

#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
pub(crate) enum DenoiseWord {
    Auto,
    Off,
}

/// A job to be. `kind` or `preset` is needed.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewJob {
    kind: Option<JobKind>,
    /// One of `GET /models`; left out, one is chosen.
    model: Option<String>,
    /// A preset of the configuration, which the rest overrides.
    preset: Option<String>,
    params: Option<Params>,
    /// Data URIs or bare base64, in the standard or the URL-safe alphabet.
    images: Option<Vec<String>>,
    /// Addresses of pictures, where the server allows that; they come behind `images`.
    image_urls: Option<Vec<String>>,
    /// As an image.
    mask: Option<String>,
    /// Higher runs first.
    #[schema(minimum = -100, maximum = 100)]
    priority: Option<i32>,
    name: Option<String>,
    /// Who is told what becomes of the job: an address, or an address and which events.
    webhook: Option<Webhook>,
}

/// Whom to tell, and what. The messages follow Standard Webhooks.
#[derive(ToSchema)]
#[serde(untagged)]
pub(crate) enum Webhook {
    /// Told of the job's end.
    Url(String),
    Chosen(ChosenWebhook),
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChosenWebhook {
    #[schema(example = "https://example.org/hook")]
    url: String,
    /// Some of `job.queued`, `job.running`, `job.retrying`, `job.succeeded`, `job.failed`, `job.cancelled`.
    events: Option<Vec<String>>,
}

/// The same as a form. The job's names may also be parts of their own, in the place of `job`.
#[derive(ToSchema)]
pub(crate) struct NewJobForm {
    /// The job as JSON.
    job: Option<NewJob>,
    /// Repeatable.
    #[schema(value_type = Option<Vec<String>>, format = Binary)]
    image: Option<Vec<Vec<u8>>>,
    #[schema(value_type = Option<String>, format = Binary)]
    mask: Option<Vec<u8>>,
}

/// Where the worker computes, and why there.
#[derive(ToSchema)]
pub(crate) struct Device {
    /// `cpu` or `cuda:N`.
    name: String,
    model: String,
    threads: u32,
    memory_bytes: u64,
    reason: String,
}

#[derive(ToSchema)]
pub(crate) struct LoadedModel {
    id: String,
    bytes: u64,
}

/// How the drop folder is doing.
#[derive(ToSchema)]
pub(crate) struct Inbox {
    /// `inotify`, `poll` or `off`.
    watching: String,
    /// Files that are there and not claimed yet.
    waiting: u64,
    #[schema(required, format = DateTime)]
    last_scan: Option<String>,
    /// Looks at everything since the start.
    scans: u64,
    /// How often the kernel's queue of events ran over.
    overflows: u64,
    problems: Vec<InboxProblem>,
}

/// A file or folder that is not taken, and why.
#[derive(ToSchema)]
pub(crate) struct InboxProblem {
    /// Below the inbox.
    path: String,
    problem: String,
    #[schema(format = DateTime)]
    since: String,
}

/// The data of `job.progress`.
#[derive(ToSchema)]
pub(crate) struct JobProgress {
    id: String,
    progress: Progress,
}

/// The data of `job.removed`.
#[derive(ToSchema)]
pub(crate) struct JobRemoved {
    id: String,
}

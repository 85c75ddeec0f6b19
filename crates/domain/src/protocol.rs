//! What the daemon and its worker say to each other.
//!
//! A worker is a child process whose standard input is one end of a socket pair. Both sides write frames: four
//! bytes of length (little-endian), then that many bytes of JSON. Only paths and JSON cross; pictures and weights
//! are read and written by the worker itself. The worker's standard output and error are logs, never protocol.
//!
//! The conversation: `Hello` → `Ready`; then one `Run` at a time, answered by any number of `Started`, `Progress`,
//! `Preview`, `Checkpointed` and `Models`, and by exactly one of `Finished`, `Failed` and `Stopped`. The end of the stream, or
//! the death of the daemon, ends the worker.

use std::{
    ffi::OsString,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{ErrorInfo, JobId, JobKind, OutputFormat, Params, model::Family};

/// Raised with every change that an older peer would misread.
pub const PROTOCOL_VERSION: u32 = 1;

/// No frame is larger; a longer one means that the stream is not a worker's.
pub const MAX_FRAME_BYTES: usize = 4 << 20;

/// From the daemon to the worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Request {
    /// The first frame. Answered by `Ready`, or by the worker's end where the versions differ.
    Hello(Hello),
    Run(Box<Run>),
    /// Ends the running job at the next step; answered by `Stopped` (or `Finished`, where that came first).
    Stop {
        job: JobId,
        how: Stop,
    },
    /// Drops one loaded model, or all; answered by `Models`. Ignored while a job runs.
    Unload {
        model: Option<String>,
    },
    /// Ends the worker once it is idle.
    Shutdown,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    pub protocol: u32,
    /// `auto`, `cpu` or `cuda:N`.
    pub device: String,
    /// 0: all cores.
    pub threads: u32,
    /// Bytes that loaded models may hold; `None`: the worker decides.
    pub memory_budget: Option<u64>,
    #[serde(default)]
    pub offload: Offload,
}

/// What of a pipeline stays on the device while another of its parts works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Offload {
    /// All that fits the budget; what is not needed now goes first.
    #[default]
    Auto,
    /// All of it, from the beginning to the end of a job.
    None,
    /// Only what works now: text encoders, then the denoiser, then the VAE.
    Phase,
    /// Of what works now, only the block at work.
    Block,
}

impl Offload {
    pub const ALL: [Self; 4] = [Self::Auto, Self::None, Self::Phase, Self::Block];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::None => "none",
            Self::Phase => "phase",
            Self::Block => "block",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stop {
    /// Called off: nothing needs to be kept.
    Cancel,
    /// The daemon ends: write a checkpoint first.
    Checkpoint,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    pub job: JobId,
    /// 1 for the first.
    pub attempt: u32,
    /// How often this job took a worker down before.
    pub crashes: u32,
    pub kind: JobKind,
    /// The models to choose from: the one that was asked for, or all that serve `kind`.
    pub models: Vec<ModelRef>,
    /// Whether the model was asked for by name.
    pub model_given: bool,
    /// What a model may need beside it: base models for a bare ControlNet, and LoRAs.
    #[serde(default)]
    pub parts: Vec<ModelRef>,
    pub params: Params,
    pub inputs: Vec<WirePath>,
    pub mask: Option<WirePath>,
    /// The job's own folder: checkpoints and finished files are written here. It exists.
    pub work_dir: WirePath,
    pub checkpoint_interval_ms: u64,
    pub output: OutputSpec,
    /// Inputs with more pixels are refused.
    pub max_pixels: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelRef {
    pub id: String,
    pub family: Family,
    pub path: WirePath,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct OutputSpec {
    pub format: OutputFormat,
    /// 1 to 100, for JPEG and WebP.
    pub quality: u8,
    pub gps: GpsPolicy,
}

/// What becomes of the place where a photo was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GpsPolicy {
    Keep,
    Strip,
}

/// From the worker to the daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    Ready(Ready),
    /// The work is about to begin, with the model that was chosen.
    Started {
        job: JobId,
        model: String,
        /// The step of the checkpoint that it goes on from.
        resumed_from_step: Option<u32>,
    },
    Progress {
        job: JobId,
        /// `load`, `decode`, `run`, `encode`.
        phase: String,
        step: u32,
        steps: u32,
        /// 0 to 1 over the whole job.
        fraction: f64,
        /// The text so far, of a job that writes one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        text: Option<String>,
    },
    /// A small picture of how far it is lies in the job's folder. Each replaces the one before.
    Preview {
        job: JobId,
        step: u32,
        /// Relative to the job's folder.
        file: String,
    },
    /// A restart would go on from this step.
    Checkpointed {
        job: JobId,
        step: u32,
    },
    Finished(Box<Finished>),
    Failed {
        job: JobId,
        error: ErrorInfo,
    },
    Stopped {
        job: JobId,
        how: Stop,
        step: u32,
    },
    /// All loaded models, after every change.
    Models {
        loaded: Vec<LoadedModel>,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ready {
    pub protocol: u32,
    pub worker_version: String,
    /// `None` for the tests' stand-in.
    pub libtorch: Option<String>,
    pub device: Device,
}

/// Where the worker computes, and why there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// `cpu` or `cuda:N`.
    pub name: String,
    /// The processor's or card's own name.
    pub model: String,
    pub threads: u32,
    /// Total bytes of the device's memory.
    pub memory_bytes: u64,
    /// Why this device was taken, as a sentence.
    pub reason: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finished {
    pub job: JobId,
    pub model: String,
    pub outputs: Vec<OutputFile>,
    /// What is no file.
    pub result: Option<Value>,
    /// What is needed to make it again: weights' sha256, device, versions, effective parameters.
    pub manifest: Value,
}

/// A complete file in the job's folder, not yet published.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OutputFile {
    /// Relative to the job's folder.
    pub file: String,
    pub media_type: String,
    /// Without the dot.
    pub extension: String,
    pub bytes: u64,
    pub width: u32,
    pub height: u32,
    pub sha256: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoadedModel {
    pub id: String,
    pub bytes: u64,
}

/// A path of any bytes: JSON text where it is UTF-8, else an array of bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WirePath(pub PathBuf);

impl WirePath {
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl<P: Into<PathBuf>> From<P> for WirePath {
    fn from(path: P) -> Self {
        Self(path.into())
    }
}

impl Serialize for WirePath {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.to_str() {
            Some(text) => serializer.serialize_str(text),
            None => serializer.collect_seq(self.0.as_os_str().as_bytes()),
        }
    }
}

impl<'de> Deserialize<'de> for WirePath {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Text(String),
            Bytes(Vec<u8>),
        }
        Ok(Self(match Raw::deserialize(deserializer)? {
            Raw::Text(text) => text.into(),
            Raw::Bytes(bytes) => OsString::from_vec(bytes).into(),
        }))
    }
}

/// The stream is not what this protocol says.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of {0} bytes, at most {MAX_FRAME_BYTES} are allowed")]
    TooLong(usize),
    #[error("a frame that does not parse: {0}")]
    Json(#[from] serde_json::Error),
}

/// One frame, ready to be written.
///
/// # Errors
/// A message larger than [`MAX_FRAME_BYTES`].
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message)?;
    let length = frame.len() - 4;
    let prefix = u32::try_from(length).ok().filter(|_| length <= MAX_FRAME_BYTES).ok_or(FrameError::TooLong(length))?;
    frame[..4].copy_from_slice(&prefix.to_le_bytes());
    Ok(frame)
}

/// Cuts a stream of bytes into messages.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
}

impl Decoder {
    /// Adds bytes as they arrive.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, or `None` until more bytes arrive.
    ///
    /// # Errors
    /// A length or content that no peer of ours would send; the stream is of no use any more.
    #[expect(clippy::should_implement_trait, reason = "each message may be of another type, and may fail")]
    pub fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        let Some((prefix, rest)) = self.buffer.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*prefix) as usize;
        if length > MAX_FRAME_BYTES {
            return Err(FrameError::TooLong(length));
        }
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let message = serde_json::from_slice(body)?;
        self.buffer.drain(..4 + length);
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn progress(step: u32) -> Event {
        Event::Progress {
            job: "01JD0000000000000000000000".parse().expect("a ULID"),
            phase: "run".into(),
            step,
            steps: 20,
            fraction: 0.5,
            text: None,
        }
    }

    #[test]
    fn frames_survive_any_cutting_of_the_stream() {
        let stream: Vec<u8> = (0..10).flat_map(|step| encode(&progress(step)).expect("encodes")).collect();
        for chunk in [1, 2, 3, 5, 7, 64, 4096] {
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for bytes in stream.chunks(chunk) {
                decoder.push(bytes);
                while let Some(event) = decoder.next::<Event>().expect("valid") {
                    seen.push(event);
                }
            }
            assert_eq!(seen, (0..10).map(progress).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_text_so_far_is_told_only_where_there_is_one() {
        let frame = |event: &Event| String::from_utf8(encode(event).expect("encodes")[4..].to_vec()).expect("UTF-8");
        assert!(!frame(&progress(1)).contains("text"));
        let Event::Progress { job, phase, step, steps, fraction, .. } = progress(1) else { panic!("progress") };
        let event = Event::Progress { job, phase, step, steps, fraction, text: Some("a bo".into()) };
        assert!(frame(&event).ends_with(r#","text":"a bo"}"#), "{}", frame(&event));
        assert_eq!(serde_json::from_str::<Event>(&frame(&event)).expect("parses"), event);
    }

    #[test]
    fn rubbish_is_an_error_and_not_a_wait_for_gigabytes() {
        let mut decoder = Decoder::default();
        decoder.push(b"Segmentation fault (core dumped)\n");
        assert!(matches!(decoder.next::<Event>(), Err(FrameError::TooLong(_))));
        let mut decoder = Decoder::default();
        decoder.push(&[3, 0, 0, 0, b'x', b'y', b'z']);
        assert!(matches!(decoder.next::<Event>(), Err(FrameError::Json(_))));
    }

    proptest! {
        #[test]
        fn a_path_of_any_bytes_survives(bytes in proptest::collection::vec(1u8..=255, 0..40)) {
            let path = WirePath(OsString::from_vec(bytes).into());
            let json = serde_json::to_string(&path).expect("serialises");
            prop_assert_eq!(serde_json::from_str::<WirePath>(&json).expect("parses"), path);
        }
    }
}

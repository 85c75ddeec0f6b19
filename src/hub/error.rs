//! What can go wrong between here and a hub, and whether trying again may help.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

/// Why a model was not fetched.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error("{name:?} is not {wanted}")]
    Name { name: String, wanted: &'static str },
    #[error("{endpoint:?} is not the address of a hub: {why}")]
    Endpoint { endpoint: String, why: &'static str },
    #[error("the hub is not asked: HF_HUB_OFFLINE is set")]
    Offline,
    #[error("{what} is not on the hub")]
    NotFound { what: String },
    #[error("the hub does not give {what} away ({status}): {why}")]
    Refused { status: u16, what: String, why: String },
    #[error("the hub wants to be left alone for a while ({status})")]
    Busy { status: u16, retry_after: Option<Duration> },
    #[error("the hub failed ({status})")]
    Server { status: u16 },
    #[error("{0}")]
    Transport(String),
    #[error("nothing came for {} s", .after.as_secs_f32())]
    Stalled { after: Duration },
    /// What is sent is not what the list says. Another try would get the same.
    #[error("{file}: {what}")]
    Mismatch { file: String, what: String },
    /// A server that sends whole files only; handled by asking for nothing else.
    #[error("the hub sends whole files only")]
    NoRanges,
    #[error("{file}: what arrived has the {kind} {found}, and the hub's list says {expected}")]
    Corrupt { file: String, kind: &'static str, expected: String, found: String },
    #[error("the hub's answer about {what} is not understood: {why}")]
    Answer { what: String, why: String },
    #[error("{what}")]
    Unsupported { what: String, hint: String },
    #[error("{id} would not be whole: {problem}")]
    Incomplete { id: String, problem: String },
    #[error("{needed} more bytes are needed in {}, and {free} are free", .dir.display())]
    Space { needed: u64, free: u64, dir: PathBuf },
    #[error("{id} is being pulled already (pid {pid})")]
    Taken { id: String, pid: String },
    #[error("{} is there already and was not pulled from a hub", .path.display())]
    Occupied { path: PathBuf },
    #[error("{}: {error}", .path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error("{what}: {last}; tried {tries} times")]
    GaveUp { what: String, tries: u32, last: Box<HubError> },
}

impl HubError {
    pub(super) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |error| Self::Io { path, error }
    }

    /// Of a request. Addresses are left out: those of a content network are secrets for a while.
    pub(super) fn transport(error: reqwest::Error) -> Self {
        let error = error.without_url();
        let mut cause: &dyn std::error::Error = &error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        let what = if error.is_connect() { "the hub cannot be reached" } else { "the connection to the hub broke" };
        Self::Transport(format!("{what}: {cause}"))
    }

    /// Whether the same request may succeed a moment later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Busy { .. } | Self::Server { .. } | Self::Transport(_) | Self::Stalled { .. } => true,
            Self::Name { .. }
            | Self::Endpoint { .. }
            | Self::Offline
            | Self::NotFound { .. }
            | Self::Refused { .. }
            | Self::Mismatch { .. }
            | Self::NoRanges
            | Self::Corrupt { .. }
            | Self::Answer { .. }
            | Self::Unsupported { .. }
            | Self::Incomplete { .. }
            | Self::Space { .. }
            | Self::Taken { .. }
            | Self::Occupied { .. }
            | Self::Io { .. }
            | Self::GaveUp { .. } => false,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Name { .. } => "as the hub's page shows it, such as org/model".into(),
            Self::Endpoint { .. } => {
                "models.endpoint or HF_ENDPOINT, such as https://huggingface.co or that of a mirror".into()
            }
            Self::Offline => "unset HF_HUB_OFFLINE, or put the model's folder into one of paths.models".into(),
            Self::NotFound { .. } => {
                "look at the spelling and at --revision; a private model needs a token that may read it (HF_TOKEN)".into()
            }
            Self::Refused { status: 401, .. } => {
                "set HF_TOKEN, or models.token_file, to a token that may read this model".into()
            }
            Self::Refused { .. } => {
                "where the model is gated, accept its terms on its page at the hub, and set HF_TOKEN to a token of that \
                 account"
                    .into()
            }
            Self::Busy { .. } => "a token (HF_TOKEN) raises the hub's limits; what has arrived stays".into(),
            Self::Server { .. } | Self::Transport(_) | Self::Stalled { .. } => {
                "pull again later: it goes on from where it was".into()
            }
            Self::Mismatch { .. } | Self::Corrupt { .. } | Self::NoRanges | Self::Answer { .. } => {
                "if it stays so, the hub or a proxy on the way is at fault; HF_ENDPOINT names another".into()
            }
            Self::Unsupported { hint, .. } => hint.clone(),
            Self::Incomplete { .. } => "name what is missing with a further --include, or leave --include out".into(),
            Self::Space { .. } => "free some space, or choose another folder with --dir".into(),
            Self::Taken { .. } => "`atelier models list` shows how far it is".into(),
            Self::Occupied { .. } => "remove it first (`atelier models rm`), or choose another folder with --dir".into(),
            Self::Io { error, .. } if error.kind() == io::ErrorKind::StorageFull => {
                "free some space and pull again: it goes on from where it was".into()
            }
            Self::Io { error, .. } if error.kind() == io::ErrorKind::PermissionDenied => {
                "choose a folder that this user may write to with --dir, or change its owner".into()
            }
            Self::Io { .. } => "look at the file system and the kernel's log".into(),
            Self::GaveUp { last, .. } => last.hint(),
        }
    }
}

//! What can be wrong with a component's weights.

use std::{io, path::PathBuf};

use crate::torch::TorchError;

/// How many names of one list a message shows.
const SHOWN: usize = 12;

#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    #[error("{}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error("{}: not a safetensors file: {detail}", path.display())]
    Format { path: PathBuf, detail: String },
    #[error("{}: {detail}", path.display())]
    Index { path: PathBuf, detail: String },
    #[error("{}: {detail}", path.display())]
    Gguf { path: PathBuf, detail: String },
    #[error("{}: no weights; looked for {}{}", folder.display(), looked_for.join(", "), pickled(pickles))]
    Absent { folder: PathBuf, looked_for: Vec<String>, pickles: Vec<String> },
    #[error("{}: {mismatch}", path.display())]
    Mismatch { path: PathBuf, mismatch: Mismatch },
    #[error("{}: {error}", path.display())]
    Torch { path: PathBuf, error: TorchError },
    /// The progress callback asked for it.
    #[error("{}: loading was interrupted", path.display())]
    Interrupted { path: PathBuf },
}

impl WeightsError {
    pub const fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Torch { error: TorchError::OutOfMemory(_), .. })
    }
}

impl From<WeightsError> for TorchError {
    fn from(error: WeightsError) -> Self {
        match error {
            WeightsError::Torch { error, .. } => error,
            other @ (WeightsError::Io { .. }
            | WeightsError::Format { .. }
            | WeightsError::Index { .. }
            | WeightsError::Gguf { .. }
            | WeightsError::Absent { .. }
            | WeightsError::Mismatch { .. }
            | WeightsError::Interrupted { .. }) => Self::Other(other.to_string()),
        }
    }
}

/// Everything in which the files and the network differ. Tensors of a component with several files are named with
/// the file that holds them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mismatch {
    pub missing: Vec<String>,
    pub unexpected: Vec<String>,
    pub misshaped: Vec<String>,
    pub mistyped: Vec<String>,
}

impl Mismatch {
    pub const fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.misshaped.is_empty() && self.mistyped.is_empty()
    }
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lists = [
            ("missing", &self.missing),
            ("unexpected", &self.unexpected),
            ("of another shape", &self.misshaped),
            ("of another type", &self.mistyped),
        ];
        let mut separator = "";
        for (what, names) in lists.into_iter().filter(|(_, names)| !names.is_empty()) {
            write!(f, "{separator}{what}: {}", some_of(names))?;
            separator = "; ";
        }
        Ok(())
    }
}

/// The first names, and how many more there are.
pub(crate) fn some_of(names: &[String]) -> String {
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

fn pickled(pickles: &[String]) -> String {
    if pickles.is_empty() {
        return String::new();
    }
    format!("; {} can run code when it is read, and is not: install the model's safetensors files", pickles.join(", "))
}

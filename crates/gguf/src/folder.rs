//! GGUF files of a folder.

use std::{ffi::OsStr, path::Path};

/// The names of the files that end with `.gguf`, in their order.
pub fn gguf_files(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.filter_map(Result::ok).map(|entry| entry.path());
    let is_gguf = |path: &Path| path.extension() == Some(OsStr::new("gguf")) && path.is_file();
    let mut names: Vec<String> = paths
        .filter(|path| is_gguf(path))
        .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
        .filter(|name| !name.starts_with('.'))
        .collect();
    names.sort();
    names
}

//! `exiftool`, the oracle for metadata.

use std::{ffi::OsStr, path::Path, process::Command};

/// Runs `exiftool` and returns what it prints.
pub(crate) fn exiftool<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> String {
    let output = Command::new("exiftool").args(arguments).output().unwrap_or_else(|error| {
        panic!("exiftool does not run ({error}): these tests need it (Debian: libimage-exiftool-perl)")
    });
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "exiftool failed: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// The value of one tag as a number or plain text; empty when the file does not have it.
pub(crate) fn tag(path: &Path, tag: &str) -> String {
    exiftool(["-s3", "-n", &format!("-{tag}"), &path.to_string_lossy()]).trim_end().to_owned()
}

/// All tags, as `[Group] Name: value` lines, of the groups asked for.
pub(crate) fn tags(path: &Path, groups: &[&str]) -> Vec<String> {
    let mut arguments = vec!["-G1".to_owned(), "-s".into(), "-n".into(), "-a".into(), "-u".into()];
    arguments.extend(groups.iter().map(|group| format!("-{group}:all")));
    arguments.push(path.to_string_lossy().into_owned());
    exiftool(arguments).lines().map(str::to_owned).collect()
}

/// What exiftool finds wrong with a file, apart from what it calls minor.
pub(crate) fn problems(path: &Path) -> Vec<String> {
    exiftool(["-validate", "-warning", "-error", "-a", "-s3", &path.to_string_lossy()])
        .lines()
        .filter(|line| !line.contains("[minor]") && *line != "OK" && !line.ends_with("all minor)"))
        .map(str::to_owned)
        .collect()
}

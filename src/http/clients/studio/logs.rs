//! The rolling log files: their last lines, and emptying them. Blocks.

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

/// Bytes of the newest file that are looked at.
const TAIL: u64 = 1 << 20;

/// The log's files, oldest first. The day is in their names.
fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let is_log = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with("atelier.") && path.extension().is_some_and(|extension| extension == "log") && path.is_file()
    };
    let mut files: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_log).collect();
    files.sort();
    Ok(files)
}

/// The last lines, oldest first.
pub(super) fn tail(folder: &Path, lines: usize) -> io::Result<Vec<String>> {
    let Some(newest) = files(folder)?.pop() else { return Ok(Vec::new()) };
    let mut file = File::open(newest)?;
    let length = file.metadata()?.len();
    let from = length.saturating_sub(TAIL);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    // The first line is cut where the file is longer than what was read.
    let mut found: Vec<_> = text.lines().skip(usize::from(from > 0)).collect();
    let surplus = found.len().saturating_sub(lines);
    Ok(found.drain(surplus..).map(str::to_owned).collect())
}

/// Empties the file that is written to and removes the older ones. Returns how many bytes went.
pub(super) fn clear(folder: &Path) -> io::Result<u64> {
    let mut files = files(folder)?;
    let newest = files.pop();
    let mut bytes = 0;
    for file in files {
        bytes += fs::metadata(&file).map_or(0, |meta| meta.len());
        fs::remove_file(&file)?;
    }
    if let Some(newest) = newest {
        bytes += fs::metadata(&newest).map_or(0, |meta| meta.len());
        // Its writer appends, so it goes on at the beginning.
        fs::OpenOptions::new().write(true).open(&newest)?.set_len(0)?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_file_is_told_and_all_are_cleared() {
        let dir = tempfile::tempdir().expect("temp dir");
        assert_eq!(tail(&dir.path().join("absent"), 5).expect("no folder"), Vec::<String>::new());
        for (name, text) in
            [("atelier.2026-01-01.log", "old\n"), ("atelier.2026-01-02.log", "one\ntwo\nthree\n"), ("other.log", "x\n")]
        {
            fs::write(dir.path().join(name), text).expect("written");
        }
        assert_eq!(tail(dir.path(), 2).expect("reads"), ["two", "three"]);
        assert_eq!(clear(dir.path()).expect("clears"), 18);
        assert_eq!(tail(dir.path(), 2).expect("reads"), Vec::<String>::new());
        assert!(!dir.path().join("atelier.2026-01-01.log").exists());
        assert!(dir.path().join("atelier.2026-01-02.log").exists());
        assert_eq!(fs::read_to_string(dir.path().join("other.log")).expect("reads"), "x\n");
    }
}

//! Copying files for a backup and back.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

/// Copies a file and puts it on the disk. Nothing is written over: what is there already is the same file.
///
/// # Errors
/// Whatever the file system says; `NotFound` is the source's.
pub(super) fn copy(from: &Path, to: &Path) -> io::Result<u64> {
    if let Ok(there) = fs::metadata(to) {
        return Ok(there.len());
    }
    // Asked first, so that the folder above is made only for something.
    fs::metadata(from)?;
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    let bytes = fs::copy(from, to)?;
    File::open(to)?.sync_all()?;
    Ok(bytes)
}

/// Copies all files below `from` to the same places below `to`; those that vanish meanwhile are passed over.
///
/// # Errors
/// Whatever the file system says.
pub(super) fn copy_tree(from: &Path, to: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for file in files_below(from)? {
        if let Ok(rest) = file.strip_prefix(from) {
            match copy(&file, &to.join(rest)) {
                Ok(n) => bytes += n,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(bytes)
}

/// All files below a folder that may not be there. Links are not followed.
pub(super) fn files_below(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut waiting = vec![folder.to_owned()];
    while let Some(folder) = waiting.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                waiting.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Puts the names in a folder, and in all below it, on the disk.
pub(super) fn sync_folders(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_folders(&entry.path())?;
        }
    }
    File::open(folder)?.sync_all()
}

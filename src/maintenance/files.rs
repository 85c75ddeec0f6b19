//! Removing what a job leaves on the disk.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use atelier_domain::JobId;

/// Removes what only a running job needs: its checkpoint, and its uploads unless they serve a later retry. Blocks.
///
/// # Errors
/// Whatever the file system says; it is safe to try again.
pub fn remove_working_files(data: &Path, id: JobId, keep_inputs: bool) -> io::Result<()> {
    remove_folder(&data.join("checkpoints").join(id.to_string()))?;
    if !keep_inputs {
        remove_folder(&data.join("spool").join(id.to_string()))?;
    }
    Ok(())
}

/// Removes everything of a job that is ours: outputs, uploads, checkpoint. Blocks.
///
/// # Errors
/// Whatever the file system says; it is safe to try again.
pub fn remove_job_files(data: &Path, id: JobId, outputs: &[PathBuf]) -> io::Result<u64> {
    let mut removed = 0;
    for output in outputs {
        // The job's id is part of the name of every file that we published; anything else is somebody's.
        let ours = output.file_name().is_some_and(|name| name.to_string_lossy().contains(&id.to_string()));
        if ours {
            match fs::remove_file(output) {
                Ok(()) => removed += 1,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    remove_working_files(data, id, false)?;
    Ok(removed)
}

fn remove_folder(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

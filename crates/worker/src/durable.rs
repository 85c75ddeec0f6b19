//! Files that are either whole or not there, whatever happens in between.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
};

/// Writes `bytes` as the file `name` in `folder`. Once this returns, it survives a loss of power.
pub fn replace(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = folder.join(format!("{name}.part"));
    File::create(&temporary)?.write_all(bytes)?;
    publish(folder, &format!("{name}.part"), name)
}

/// Makes the file `from` durable and gives it the name `to`.
pub fn publish(folder: &Path, from: &str, to: &str) -> io::Result<()> {
    File::open(folder.join(from))?.sync_all()?;
    fs::rename(folder.join(from), folder.join(to))?;
    sync_folder(folder)
}

pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Removes a file, which may have gone already.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

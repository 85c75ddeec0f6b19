//! A backup becomes a data folder: on the machine that it was made on, on another, or beside the old one.
//!
//! The rows are made to speak of the folders of the configuration that it is restored for. The database comes last:
//! a restore that is cut off leaves no data folder that looks whole, and can be repeated.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    backup::{BackupError, DATABASE, INBOX, Manifest, OUTBOX, SPOOL, at},
    copies::{copy, copy_tree, sync_folders},
};
use crate::{
    config::Config,
    data_lock,
    store::{relocate, schema_of},
};

/// Puts the backup in `folder` into the folders of `config`. The data folder must hold no database.
///
/// # Errors
/// A daemon is at work there, a database is there, the backup is of a newer version, or what cannot be read or written.
pub async fn restore(config: &Config, folder: &Path) -> Result<Manifest, BackupError> {
    let manifest = Manifest::read(folder)?;
    let copied = folder.join(DATABASE);
    schema_of(&copied).await?;
    let data = &config.paths.data;
    fs::create_dir_all(data).map_err(at(data))?;
    let _lock = data_lock::acquire(data)?;
    let database = data.join(DATABASE);
    // The log of a database is part of it, and would be taken for the restored one's.
    for path in [database.clone(), data.join("atelier.db-wal"), data.join("atelier.db-shm")] {
        if path.exists() {
            return Err(BackupError::Exists(path));
        }
    }
    for (from, to) in [(SPOOL, &data.join(SPOOL)), (INBOX, &config.inbox.dir), (OUTBOX, &config.outbox.dir)] {
        fs::create_dir_all(to).map_err(at(to))?;
        copy_tree(&folder.join(from), to).map_err(at(to))?;
        sync_folders(to).map_err(at(to))?;
    }
    let unfinished = data.join(".atelier.db.restored");
    let _ = fs::remove_file(&unfinished);
    copy(&copied, &unfinished).map_err(at(&unfinished))?;
    let moves = moves(&manifest, config);
    if moves.iter().any(|(before, after)| before != after) {
        relocate(&unfinished, &moves).await?;
    }
    fs::rename(&unfinished, &database).map_err(at(&database))?;
    fs::File::open(data).and_then(|data| data.sync_all()).map_err(at(data))?;
    Ok(manifest)
}

/// The folders before and after, the innermost first: the outbox and the inbox may lie in the data folder.
fn moves(manifest: &Manifest, config: &Config) -> Vec<(PathBuf, PathBuf)> {
    let mut moves = vec![
        (manifest.outbox.clone(), config.outbox.dir.clone()),
        (manifest.inbox.clone(), config.inbox.dir.clone()),
        (manifest.data.clone(), config.paths.data.clone()),
    ];
    moves.sort_by_key(|(before, _)| std::cmp::Reverse(before.components().count()));
    moves
}

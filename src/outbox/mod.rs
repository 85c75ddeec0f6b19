//! Finished files on their way to where people look for them.
//!
//! A file is never visible in the outbox before it is whole and on the disk, and a job's files always get the same
//! names, so that publishing again after a crash changes nothing.

pub mod webhooks;

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::{Path, PathBuf},
};

use atelier_domain::{
    Job, Output, SourceType,
    protocol::{Finished, OutputFile, WirePath},
};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{
    failpoint,
    store::{JobRecord, Published},
};

/// The note in a job's folder that says what is being published; written before the first file moves.
const NOTE: &str = "publishing.json";

/// What a worker has written as a text and no file.
const TEXT: &str = "output.txt";

/// Longest name of a file on the common file systems, in bytes.
const NAME_MAX: usize = 255;

/// Moves a job's finished files from its folder into the outbox, durably.
///
/// `work_dir` is the job's own folder. Blocks.
///
/// # Errors
/// Whatever the file system says; everything done so far is done again harmlessly by the next call.
pub fn publish(
    record: &JobRecord,
    finished: &Finished,
    resumed: Option<u32>,
    work_dir: &Path,
    outbox: &Path,
) -> io::Result<Published> {
    let finished = &with_text(record, finished, work_dir)?;
    let dir = target_dir(record, outbox);
    let mut outputs = Vec::new();
    let mut output_paths = Vec::new();
    for (index, file) in finished.outputs.iter().enumerate() {
        let index = u32::try_from(index).map_err(|_| io::ErrorKind::InvalidData)?;
        let name = output_name(record, file, index);
        output_paths.push(WirePath(dir.join(&name)));
        outputs.push(Output {
            index,
            name: name.to_string_lossy().into_owned(),
            media_type: file.media_type.clone(),
            bytes: file.bytes,
            width: file.width,
            height: file.height,
            sha256: file.sha256.clone(),
            url: Output::url_of(record.job.id, index),
        });
    }
    let manifest = complete(finished.manifest.clone(), record, &outputs);
    let published = Published {
        model: finished.model.clone(),
        outputs,
        output_paths,
        result: finished.result.clone(),
        manifest,
        resumed_from_step: resumed,
    };
    let files: Vec<&str> = finished.outputs.iter().map(|file| file.file.as_str()).collect();
    write_durably(&work_dir.join(NOTE), &serde_json::to_vec(&(&files, &published))?)?;
    failpoint::hit("publish.after_note");
    move_all(&files, &published, work_dir)?;
    Ok(published)
}

/// Where a picture was dropped, a text about it comes back as a file: whoever drops files looks for files. Over HTTP it
/// is the job's result alone.
fn with_text(record: &JobRecord, finished: &Finished, work_dir: &Path) -> io::Result<Finished> {
    let mut finished = finished.clone();
    let text = finished.result.as_ref().and_then(|result| result.get("text")).and_then(Value::as_str);
    let is_wanted = record.job.source.r#type == SourceType::Inbox && finished.outputs.is_empty();
    if let Some(text) = text.filter(|_| is_wanted) {
        let bytes = format!("{text}\n").into_bytes();
        write_durably(&work_dir.join(TEXT), &bytes)?;
        finished.outputs.push(OutputFile {
            file: TEXT.to_owned(),
            media_type: "text/plain; charset=utf-8".to_owned(),
            extension: "txt".to_owned(),
            bytes: bytes.len() as u64,
            width: 0,
            height: 0,
            sha256: format!("{:x}", Sha256::digest(&bytes)),
        });
    }
    Ok(finished)
}

/// The worker's manifest with what `atelier replay` needs and the daemon knows: kind, inputs and outputs.
fn complete(manifest: Value, record: &JobRecord, outputs: &[Output]) -> Value {
    let Value::Object(mut manifest) = manifest else { return manifest };
    let job = &record.job;
    let inputs = || job.inputs.iter().map(|input| json!({"sha256": input.sha256})).collect::<Vec<_>>();
    manifest.entry("kind").or_insert_with(|| json!(job.kind));
    manifest.entry("inputs").or_insert_with(|| json!(inputs()));
    manifest.insert("job".into(), json!(job.id));
    manifest.insert("atelier_version".into(), json!(env!("CARGO_PKG_VERSION")));
    let outputs = outputs.iter().map(|output| {
        json!({"index": output.index, "media_type": output.media_type, "bytes": output.bytes, "sha256": output.sha256})
    });
    manifest.insert("outputs".into(), outputs.collect());
    Value::Object(manifest)
}

/// Goes on with a publication that a crash cut short; `None` where none had begun.
///
/// # Errors
/// As [`publish`].
pub fn resume(work_dir: &Path) -> io::Result<Option<Published>> {
    let note = match fs::read(work_dir.join(NOTE)) {
        Ok(note) => note,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let Ok((files, published)) = serde_json::from_slice::<(Vec<String>, Published)>(&note) else {
        // Written atomically, so this is damage: the job runs again, to the same names.
        return Ok(None);
    };
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    for (file, (path, output)) in files.iter().zip(published.output_paths.iter().zip(&published.outputs)) {
        let whole = |path: &Path| path.metadata().is_ok_and(|meta| meta.len() == output.bytes);
        if !whole(path.as_path()) && !whole(&work_dir.join(file)) {
            return Ok(None);
        }
    }
    move_all(&files, &published, work_dir)?;
    Ok(Some(published))
}

/// Takes back the note of a publication that is to be done differently; what it had moved is written over.
///
/// # Errors
/// Whatever the file system says.
pub fn forget(work_dir: &Path) -> io::Result<()> {
    match fs::remove_file(work_dir.join(NOTE)) {
        Ok(()) => sync_dir(work_dir),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn move_all(files: &[&str], published: &Published, work_dir: &Path) -> io::Result<()> {
    for (file, path) in files.iter().zip(&published.output_paths) {
        let (from, to) = (work_dir.join(file), path.as_path());
        if !from.exists() && to.exists() {
            continue;
        }
        let dir = to.parent().ok_or(io::ErrorKind::InvalidInput)?;
        create_dir_durably(dir)?;
        failpoint::fails("publish.rename")?;
        File::open(&from)?.sync_all()?;
        match fs::rename(&from, to) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => copy_over(&from, to)?,
            Err(error) => return Err(error),
        }
        failpoint::hit("publish.after_rename");
        sync_dir(dir)?;
    }
    Ok(())
}

fn target_dir(record: &JobRecord, outbox: &Path) -> PathBuf {
    match &record.output_dir {
        Some(sub) => outbox.join(sub),
        None => outbox.to_owned(),
    }
}

/// `<source stem>-<job id>.<ext>`, or `<kind>-<job id>.<ext>`; the second and further files get `-<index>` before the
/// dot.
fn output_name(record: &JobRecord, file: &OutputFile, index: u32) -> OsString {
    let Job { id, kind, .. } = &record.job;
    let suffix =
        if index == 0 { format!("-{id}.{}", file.extension) } else { format!("-{id}-{index}.{}", file.extension) };
    let stem = record.output_stem.as_ref().map_or(OsStr::new(kind.as_str()), |stem| stem.as_os_str());
    let mut bytes = stem.as_bytes().to_vec();
    let room = NAME_MAX.saturating_sub(suffix.len());
    if bytes.len() > room {
        // Not in the middle of a character, where the name has characters.
        let text = String::from_utf8_lossy(&bytes[..room]);
        bytes = text.trim_end_matches('\u{fffd}').as_bytes().to_vec();
        bytes.truncate(room);
    }
    bytes.extend_from_slice(suffix.as_bytes());
    OsString::from_vec(bytes)
}

fn copy_over(from: &Path, to: &Path) -> io::Result<()> {
    let name = to.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut hidden = OsString::from(".");
    hidden.push(name);
    let mut hidden = hidden.into_vec();
    hidden.truncate(NAME_MAX - 5);
    hidden.extend_from_slice(b".part");
    let temp = to.with_file_name(OsString::from_vec(hidden));
    let copied = (|| {
        fs::copy(from, &temp)?;
        File::open(&temp)?.sync_all()?;
        failpoint::fails("publish.after_copy")?;
        fs::rename(&temp, to)
    })();
    if copied.is_err() {
        let _ = fs::remove_file(&temp);
    }
    copied?;
    sync_dir(to.parent().ok_or(io::ErrorKind::InvalidInput)?)?;
    failpoint::hit("publish.before_remove");
    fs::remove_file(from)
}

/// Writes a small file so that it is either wholly there or not at all, also after power loss.
///
/// # Errors
/// Whatever the file system says.
pub fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use io::Write as _;
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut temp_name = OsString::from(".");
    temp_name.push(name);
    temp_name.push(".tmp");
    let temp = dir.join(temp_name);
    let written = (|| {
        let mut file = File::create(&temp)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temp, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temp);
    }
    written?;
    sync_dir(dir)
}

/// Makes a folder and those above it, and puts their names on the disk.
///
/// # Errors
/// Whatever the file system says.
pub fn create_dir_durably(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent() {
        create_dir_durably(parent)?;
        match fs::create_dir(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Ok(()) | Err(_) => sync_dir(parent)?,
        }
    }
    Ok(())
}

/// Puts a folder's names on the disk.
///
/// # Errors
/// Whatever the file system says.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_durable_write_leaves_the_whole_file_and_no_other() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("note.json");
        write_durably(&path, b"one").expect("first");
        write_durably(&path, b"two").expect("second");
        assert_eq!(fs::read(&path).expect("reads"), b"two");
        assert_eq!(fs::read_dir(dir.path()).expect("lists").count(), 1);
    }
}

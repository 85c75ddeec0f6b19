//! Claims files: a rename out of everybody's reach into `.processing/`, and a second look there.
//!
//! The row that says so is written before (by the caller, for a whole batch), so that a crash at any point leaves
//! either a file in the inbox or one that the next start finds and goes on with.

use std::{
    collections::HashSet,
    ffi::OsStr,
    fs::File,
    io::Read as _,
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
    sync::Arc,
    time::Instant,
};

use atelier_domain::{ErrorInfo, Input, JobId, JobSpec};
use rustix::{fs::AtFlags, io::Errno};

use super::{
    dirs::{self, Fingerprint, Root, is_regular},
    intake::Judge,
    ladder::{Wrong, unfinished_or_wrong},
    lease::{self, Writers},
    names::{self, NameKind},
    place::Bundle,
    scout::Ready,
    sidecar,
};
use crate::failpoint;

/// A file in `.processing/` that is ours and not a job yet.
#[derive(Clone, Debug)]
pub struct Claimed {
    pub id: JobId,
    pub bundle: Bundle,
    pub kind: NameKind,
    /// As it was when it was last looked at.
    pub print: Fingerprint,
    /// The first of our looks that saw it so.
    pub since: Instant,
    /// When it was first seen in the inbox, or found at the start.
    pub seen: Instant,
    pub root: Arc<Root>,
    /// How often something went wrong on its way to a job.
    pub troubles: u32,
}

/// Moves a ready file and its sidecars to `.processing/`.
///
/// # Errors
/// `NOENT` where it has gone; anything else leaves the file where it is.
pub fn claim(root: &Arc<Root>, id: JobId, ready: &Ready) -> Result<Claimed, Errno> {
    let mut bundle = Bundle::new(&ready.rel, &ready.sidecars);
    let folder = root.folder(&bundle.folder)?;
    let processing = root.processing()?;
    failpoint::hit("inbox.claim.before_rename");
    let at = names::processing(id, &bundle.name);
    dirs::rename((folder.as_fd(), &bundle.name), (processing.as_fd(), &at))?;
    failpoint::hit("inbox.claim.after_rename");
    take_sidecars(folder.as_fd(), processing.as_fd(), id, &mut bundle);
    stow_report(root, folder.as_fd(), &bundle);
    Ok(Claimed {
        id,
        bundle,
        kind: ready.kind,
        print: ready.print,
        since: ready.since,
        seen: ready.since,
        root: Arc::clone(root),
        troubles: 0,
    })
}

/// Moves the sidecars of a claimed file; forgets those that have gone or will not move.
pub fn take_sidecars(folder: BorrowedFd<'_>, processing: BorrowedFd<'_>, id: JobId, bundle: &mut Bundle) {
    bundle.sidecars.retain(|name| {
        let at = names::processing(id, name);
        let moved = dirs::rename((folder, name), (processing, &at));
        failpoint::hit("inbox.claim.sidecar");
        match moved {
            Ok(()) => true,
            // Moved before a crash, or never there.
            Err(Errno::NOENT) => dirs::exists(processing, &at).unwrap_or(false),
            Err(error) => {
                tracing::warn!(sidecar = %name.to_string_lossy(), "inbox: cannot be claimed: {error}");
                false
            }
        }
    });
}

/// A report of ours that came back into the inbox with its file returns to `failed/`, where it goes on counting.
fn stow_report(root: &Root, folder: BorrowedFd<'_>, bundle: &Bundle) {
    for (suffix, keep) in [(names::ERROR_SUFFIX, true), (names::DUPLICATE_SUFFIX, false)] {
        let report = names::suffixed(&bundle.name, suffix);
        if !dirs::exists(folder, &report).unwrap_or(false) {
            continue;
        }
        let failed = keep.then(|| root.make_folder(&Path::new(names::FAILED).join(&bundle.folder)));
        let stowed = match failed {
            Some(Ok(failed)) => dirs::rename((folder, &report), (failed.as_fd(), &report)),
            Some(Err(error)) => Err(error),
            None => Err(Errno::EXIST),
        };
        if stowed == Err(Errno::EXIST) {
            // One is there already, or it says nothing any more. A report that stays is ignored all the same.
            let _ = rustix::fs::unlinkat(folder, &report, AtFlags::empty());
        }
    }
}

/// Makes a batch of claims durable: a job's row must never outlive the rename that it rests on.
pub fn sync(root: &Root, claimed: &[Claimed]) -> Result<(), Errno> {
    dirs::sync(root.processing()?.as_fd())?;
    let folders: HashSet<_> = claimed.iter().map(|claimed| claimed.bundle.folder.as_path()).collect();
    for folder in folders {
        match root.folder(folder) {
            Ok(folder) => dirs::sync(folder.as_fd())?,
            // The folder was taken away after its file.
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What the second look, at a file that nobody else can reach by name any more, has brought.
#[derive(Debug)]
pub enum Examined {
    /// Whole, read to its end, on the disk.
    Whole(Box<Wish>),
    /// Somebody still writes to it, or did so while it was read.
    StillWritten,
    /// Not complete after all; to be looked at again.
    Unfinished(ErrorInfo),
    Failed(ErrorInfo),
    Trouble(ErrorInfo),
    Gone,
    /// What was claimed is no file.
    NotAFile,
}

/// What a claimed file asks for.
#[derive(Debug)]
pub struct Wish {
    pub spec: JobSpec,
    /// The same without its sidecars, to tell who is to blame when it cannot be fulfilled.
    pub plain: JobSpec,
    pub input: Option<Input>,
    pub sidecar_texts: Vec<(std::ffi::OsString, Vec<u8>)>,
}

/// Looks at a claimed file again, reads it, and reads what its sidecars say. Notes in `claimed` what it has seen.
pub fn examine(judge: &impl Judge, claimed: &mut Claimed, now: Instant) -> Examined {
    examine_file(judge, claimed, now).unwrap_or_else(|error| match error {
        Errno::NOENT => Examined::Gone,
        Errno::LOOP => Examined::NotAFile,
        error => Examined::Trouble(trouble(error, &claimed.bundle.name)),
    })
}

fn examine_file(judge: &impl Judge, claimed: &mut Claimed, now: Instant) -> Result<Examined, Errno> {
    let processing = claimed.root.processing()?;
    let name = names::processing(claimed.id, &claimed.bundle.name);
    let stat = dirs::stat(processing.as_fd(), &name)?;
    if !is_regular(&stat) {
        return Ok(Examined::NotAFile);
    }
    let before = Fingerprint::of(&stat);
    if !before.same_content(&claimed.print) {
        claimed.print = before;
        claimed.since = now;
        return Ok(Examined::StillWritten);
    }
    let file = dirs::open_file(processing.as_fd(), &name)?;
    let writers = lease::writers(file.as_fd());
    if writers == Writers::Some {
        return Ok(Examined::StillWritten);
    }
    let file = File::from(file);
    if claimed.kind == NameKind::Picture {
        take_late_sidecars(claimed, processing.as_fd());
    }
    let shown = claimed.bundle.rel().to_string_lossy().into_owned();
    let input = match claimed.kind {
        NameKind::Picture => {
            let path = claimed.root.path.join(names::PROCESSING).join(&name);
            match judge.inspect(&path, &shown) {
                Ok(input) => Some(input),
                Err(error) => {
                    return Ok(match unfinished_or_wrong(&error, &file, writers) {
                        Wrong::Unfinished => Examined::Unfinished(error),
                        Wrong::ForEver => Examined::Failed(error),
                        Wrong::NotItsFault => Examined::Trouble(error),
                    });
                }
            }
        }
        NameKind::Spec | NameKind::Prompt => None,
    };
    // A job that is promised to survive a power cut needs its input to survive it too.
    rustix::fs::fdatasync(&file)?;
    let after = Fingerprint::of(&rustix::fs::fstat(&file)?);
    if after != before {
        claimed.print = after;
        claimed.since = now;
        return Ok(Examined::StillWritten);
    }
    Ok(match wish(judge, claimed, processing.as_fd()) {
        Ok(mut wish) => {
            wish.input = input;
            Examined::Whole(Box::new(wish))
        }
        Err(error) => Examined::Failed(error),
    })
}

/// A sidecar may have come while its picture was claimed.
fn take_late_sidecars(claimed: &mut Claimed, processing: BorrowedFd<'_>) {
    let Ok(folder) = claimed.root.folder(&claimed.bundle.folder) else { return };
    let known = claimed.bundle.sidecars.clone();
    let mut late = claimed.bundle.clone();
    late.sidecars = names::sidecars_of(&claimed.bundle.name)
        .filter(|name| !known.contains(name))
        .filter(|name| is_complete(folder.as_fd(), name))
        .collect();
    take_sidecars(folder.as_fd(), processing, claimed.id, &mut late);
    claimed.bundle.sidecars.extend(late.sidecars);
}

/// Only where the kernel says so: there is no time here to see whether it stands still.
fn is_complete(folder: BorrowedFd<'_>, name: &OsStr) -> bool {
    dirs::stat(folder, name).is_ok_and(|stat| is_regular(&stat) && stat.st_size > 0)
        && dirs::open_file(folder, name).is_ok_and(|file| lease::writers(file.as_fd()) == Writers::None)
}

/// What the sidecars, the strongest first, and the folder ask for.
fn wish(judge: &impl Judge, claimed: &Claimed, processing: BorrowedFd<'_>) -> Result<Wish, ErrorInfo> {
    let route = names::route(&claimed.bundle.rel(), |name| judge.is_preset(name));
    let plain = JobSpec { preset: route.preset, ..JobSpec::default() };
    let own = (claimed.kind == NameKind::Spec).then(|| claimed.bundle.name.clone());
    let order: Vec<_> = names::sidecars_of(&claimed.bundle.name).collect();
    let mut names: Vec<_> = own.into_iter().chain(claimed.bundle.sidecars.iter().cloned()).collect();
    names.sort_by_key(|name| order.iter().position(|known| known == name));
    let mut spec = JobSpec::default();
    let mut sidecar_texts = Vec::new();
    for name in names {
        let text = read(processing, &names::processing(claimed.id, &name)).map_err(|error| trouble(error, &name))?;
        spec = spec.over(sidecar::parse(&name, &text)?);
        sidecar_texts.push((name, text));
    }
    Ok(Wish { spec: spec.over(plain.clone()), plain, input: None, sidecar_texts })
}

fn read(dir: BorrowedFd<'_>, name: &OsStr) -> Result<Vec<u8>, Errno> {
    let file = File::from(dirs::open_file(dir, name)?);
    let mut text = Vec::new();
    let read = file.take(sidecar::MAX_BYTES + 1).read_to_end(&mut text);
    read.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    Ok(text)
}

/// What went wrong with a file of ours, in words.
pub fn trouble(error: Errno, name: &OsStr) -> ErrorInfo {
    use atelier_domain::ErrorCode as E;
    let (code, hint) = match error {
        Errno::NOSPC | Errno::DQUOT => (E::DiskFull, "make room on the inbox's disk"),
        Errno::ACCESS | Errno::PERM | Errno::ROFS => {
            (E::PermissionDenied, "give the daemon's user the right to read and move it")
        }
        _ => (E::IoError, "look at the disk that holds the inbox"),
    };
    ErrorInfo::new(code, format!("{}: {error}", name.to_string_lossy())).with_hint(hint)
}

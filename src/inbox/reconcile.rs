//! The start: walks `.processing/` against claims and jobs, and finishes what a crash has cut off.
//!
//! | a file in `.processing/` with … | |
//! |---|---|
//! | a claim | is ours, goes on to become a job |
//! | a job | stays: it is that job's, and the queue sees to its end |
//! | neither | goes back into the inbox under its own name |
//!
//! A claim without a file there came to nothing: the file is still in the inbox, or gone.

use std::{
    collections::{BTreeMap, HashSet},
    ffi::{OsStr, OsString},
    os::{fd::AsFd as _, unix::ffi::OsStrExt as _},
    sync::Arc,
    time::Instant,
};

use atelier_domain::JobId;
use rustix::io::Errno;

use super::{
    claim::{Claimed, take_sidecars},
    dirs::{self, Fingerprint, Root},
    intake::{InboxClaim, Intake, IntakeError},
    names,
    place::{self, Bundle, Here, Target},
    scan,
};

#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    #[error("{0}")]
    Intake(#[from] IntakeError),
    #[error("the inbox: {0}")]
    Files(#[from] Errno),
    #[error("{0}")]
    Internal(#[from] tokio::task::JoinError),
}

/// Puts the folders in order. Gives back the claims that are to be taken up again. May be repeated.
pub async fn reconcile<I: Intake>(intake: &I, root: Arc<Root>, now: Instant) -> Result<Vec<Claimed>, ReconcileError> {
    let claims = intake.claims().await?;
    let listing = Arc::clone(&root);
    let files = tokio::task::spawn_blocking(move || processing_files(&listing)).await??;
    let mut ids: Vec<_> = claims.iter().map(|claim| claim.id).chain(files.keys().copied()).collect();
    ids.sort_unstable();
    ids.dedup();
    let jobs = intake.known(ids).await?;
    let (adopted, over) = tokio::task::spawn_blocking(move || put_in_order(&root, &claims, files, &jobs, now)).await?;
    if !over.is_empty() {
        intake.claim_end(over).await?;
    }
    Ok(adopted)
}

/// The files in `.processing/` by the job they are for, under their own names.
fn processing_files(root: &Root) -> Result<BTreeMap<JobId, Vec<OsString>>, Errno> {
    let mut files: BTreeMap<JobId, Vec<OsString>> = BTreeMap::new();
    let dir = root.processing()?;
    scan::entries(dir.as_fd(), &mut Vec::new(), |name, _| {
        if let Some((id, own)) = names::parse_processing(OsStr::from_bytes(name)) {
            files.entry(id).or_default().push(own.to_owned());
        } else {
            let name = String::from_utf8_lossy(name);
            tracing::warn!(%name, "inbox: something in .processing/ that is none of ours; left where it is");
        }
    })?;
    Ok(files)
}

fn put_in_order(
    root: &Arc<Root>,
    claims: &[InboxClaim],
    mut files: BTreeMap<JobId, Vec<OsString>>,
    jobs: &HashSet<JobId>,
    now: Instant,
) -> (Vec<Claimed>, Vec<JobId>) {
    let mut adopted = Vec::new();
    let mut over = Vec::new();
    for claim in claims.iter().filter(|claim| !jobs.contains(&claim.id)) {
        match adopt(root, claim, now) {
            Ok(Some(claimed)) => {
                files.remove(&claim.id);
                tracing::info!(job = %claim.id, source = %claim.rel_path.display(), "inbox: takes up a claim again");
                adopted.push(claimed);
            }
            Ok(None) => {
                if root.stat(claim.rel_path.as_os_str()).is_err() {
                    let source = claim.rel_path.display();
                    tracing::warn!(job = %claim.id, %source, "inbox: a claimed file has gone; nothing to do");
                }
                over.push(claim.id);
            }
            Err(error) => {
                let source = claim.rel_path.display();
                tracing::warn!(job = %claim.id, %source, "inbox: a claim cannot be taken up: {error}");
                files.remove(&claim.id);
            }
        }
    }
    // The job was made; the claim should have ended with that.
    over.extend(claims.iter().map(|claim| claim.id).filter(|id| jobs.contains(id)));
    for (id, own_names) in files.into_iter().filter(|(id, _)| !jobs.contains(id)) {
        give_back(root, id, own_names);
    }
    (adopted, over)
}

/// Takes up a claim whose file is in `.processing/`, with the sidecars that the crash has left in the inbox.
fn adopt(root: &Arc<Root>, claim: &InboxClaim, now: Instant) -> Result<Option<Claimed>, Errno> {
    let mut bundle = Bundle::new(claim.rel_path.as_os_str(), &claim.sidecars);
    let processing = root.processing()?;
    let stat = match dirs::stat(processing.as_fd(), &names::processing(claim.id, &bundle.name)) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error),
    };
    match root.folder(&bundle.folder) {
        Ok(folder) => take_sidecars(folder.as_fd(), processing.as_fd(), claim.id, &mut bundle),
        Err(_) => bundle
            .sidecars
            .retain(|name| dirs::exists(processing.as_fd(), &names::processing(claim.id, name)).unwrap_or(false)),
    }
    Ok(Some(Claimed {
        id: claim.id,
        kind: names::kind_of(bundle.name.as_bytes()),
        bundle,
        print: Fingerprint::of(&stat),
        since: now,
        seen: now,
        root: Arc::clone(root),
        troubles: 0,
    }))
}

/// Nobody knows these files: they return to the inbox, the sidecars before what they may belong to.
fn give_back(root: &Root, id: JobId, mut own_names: Vec<OsString>) {
    own_names.sort_by_key(|name| (names::kind_of(name.as_bytes()) == names::NameKind::Picture, name.clone()));
    for name in own_names {
        let bundle = Bundle::new::<OsString>(&name, &[]);
        let shown = name.to_string_lossy();
        match place::place(root, &bundle, &Here::Processing(id), &Target::Inbox) {
            Ok(_) => tracing::warn!(job = %id, name = %shown, "inbox: back in the inbox, since no row knows its claim"),
            Err(error) => tracing::warn!(job = %id, name = %shown, "inbox: cannot be given back: {error}"),
        }
    }
}

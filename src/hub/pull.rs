//! A whole pull: list, choose, make sure that there is room, fetch, check, and let it appear.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use atelier_domain::{Timestamp, model::LORA_FILE};
use futures::{StreamExt as _, TryStreamExt as _};
use tokio::sync::Semaphore;

use super::{
    HubError, MANIFEST, Manifest, ManifestFile, Patience, Progress, PullNote, RepoId, Revision,
    client::Client,
    fetch::{Fetcher, Item},
    folder::PullFolder,
    journal,
    listing::{Hash, Listing},
    meter::Meter,
    select,
};
use crate::config::HubAccess;

/// What to pull, and where to.
#[derive(Clone, Debug)]
pub struct Request {
    pub id: RepoId,
    pub revision: Revision,
    /// Files that match one of these, instead of what the family needs.
    pub include: Vec<String>,
    /// Weights in half precision, where the hub has such.
    pub half: bool,
    /// The models directory that it is put into.
    pub models: PathBuf,
}

/// What is there now.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Pulled {
    pub id: String,
    pub revision: String,
    pub commit: String,
    pub path: PathBuf,
    pub files: u64,
    pub bytes: u64,
    /// What came over the network this time.
    pub received_bytes: u64,
    /// Nothing was to be done.
    pub already: bool,
}

/// How often watchers are told.
const TICK: Duration = Duration::from_millis(500);

/// Fetches a model, or goes on where an earlier pull of it ended. `watch` hears of progress now and then.
///
/// # Cancellation
/// Dropping the future ends the pull as any other end does: the next goes on.
///
/// # Errors
/// Nothing is visible in the models directory then.
pub async fn pull(
    access: HubAccess,
    patience: Patience,
    request: &Request,
    mut watch: impl FnMut(&Progress),
) -> Result<Pulled, HubError> {
    let client = Arc::new(Client::new(access, patience)?);
    let target = request.models.join(request.id.org()).join(request.id.name());
    installed(&target)?;
    let (models, id) = (request.models.clone(), request.id.clone());
    let folder = tokio::task::spawn_blocking(move || PullFolder::open(&models, &id))
        .await
        .map_err(|error| HubError::Transport(error.to_string()))??;
    let meter = Arc::new(Meter::default());
    let fetcher = Fetcher { client, meter: meter.clone(), slots: Arc::new(Semaphore::new(patience.parallel)) };
    let job = Pull { request, target: &target, files: folder.files(), fetcher };
    let note =
        |progress| PullNote { id: request.id.to_string(), revision: request.revision.as_str().to_owned(), progress };
    let fetched = {
        let work = job.fetch(&folder);
        tokio::pin!(work);
        let mut tick = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                done = &mut work => break done,
                _ = tick.tick() => {
                    folder.note(&note(meter.progress()));
                    watch(&meter.progress());
                }
            }
        }
    };
    watch(&meter.progress());
    if fetched.is_err() {
        // What the next pull, and whoever looks meanwhile, starts from.
        folder.note(&note(meter.progress()));
    }
    let (pulled, is_new) = fetched?;
    if is_new {
        folder.publish(&target)?;
    } else {
        folder.remove()?;
    }
    Ok(pulled)
}

/// What an earlier pull has installed at `target`.
fn installed(target: &Path) -> Result<Option<Manifest>, HubError> {
    if target.symlink_metadata().is_err() {
        return Ok(None);
    }
    match Manifest::read(target) {
        Ok(Some(manifest)) if !target.is_symlink() => Ok(Some(manifest)),
        Ok(_) | Err(_) => Err(HubError::Occupied { path: target.to_owned() }),
    }
}

struct Pull<'a> {
    request: &'a Request,
    target: &'a Path,
    files: PathBuf,
    fetcher: Fetcher,
}

impl Pull<'_> {
    /// Everything up to the moment before it appears; `false`: it is there already, as it is on the hub.
    async fn fetch(&self, folder: &PullFolder) -> Result<(Pulled, bool), HubError> {
        let Request { id, revision, .. } = self.request;
        let before = installed(self.target)?;
        let listing = self.fetcher.client.list(id, revision.as_str()).await?;
        let (wanted, mut known) = self.choose(&listing).await?;
        let files = wanted.len() as u64;
        let bytes = wanted.iter().filter_map(|path| listing.files.get(path)).map(|entry| entry.bytes).sum();
        let pulled = Pulled {
            id: id.to_string(),
            revision: revision.as_str().to_owned(),
            commit: listing.commit.clone(),
            path: self.target.to_owned(),
            files,
            bytes,
            received_bytes: 0,
            already: false,
        };
        if before.as_ref().is_some_and(|before| self.is_current(before, &listing, &wanted)) {
            return Ok((Pulled { already: true, ..pulled }, false));
        }
        folder.keep_only(&wanted)?;
        if let Some(before) = &before {
            self.reuse(before, &listing, &wanted);
        }
        self.fetcher.meter.plan(bytes, files);
        let items = self.items(&listing, wanted.iter().filter(|path| !known.contains_key(*path)))?;
        self.make_sure_of_room(&items)?;
        let fetched: Vec<(String, String)> = futures::stream::iter(items)
            .map(|item| {
                let fetcher = self.fetcher.clone();
                async move {
                    let sha256 = fetcher.fetch(&item).await?;
                    Ok::<_, HubError>((item.path, sha256))
                }
            })
            .buffer_unordered(self.fetcher.client.patience.parallel)
            .try_collect()
            .await?;
        known.extend(fetched);
        self.describe(&listing, known)?;
        self.check_whole()?;
        Ok((Pulled { received_bytes: self.fetcher.meter.received(), ..pulled }, true))
    }

    /// The files to have, and the sha256 of those that had to be fetched to know.
    async fn choose(&self, listing: &Listing) -> Result<(BTreeSet<String>, BTreeMap<String, String>), HubError> {
        let id = self.request.id.to_string();
        let mut known = BTreeMap::new();
        let describing = select::describing(listing);
        if !self.request.include.is_empty() {
            let mut wanted = select::matching(&id, listing, &self.request.include)?;
            wanted.extend(describing.map(str::to_owned));
            return Ok((wanted, known));
        }
        let describing = describing.ok_or_else(|| HubError::Unsupported {
            what: format!("{id} has neither a model_index.json nor a config.json"),
            hint: "docs/MODELS.md lists what is run; --include fetches single files".to_owned(),
        })?;
        // Weights are no description, and are fetched with the rest.
        let text =
            if describing == LORA_FILE { Vec::new() } else { self.read(listing, describing, &mut known).await? };
        let family = select::family(&id, describing, &text)?;
        let selection = select::needed(&id, family, listing, self.request.half)?;
        let mut wanted = selection.files;
        for index in &selection.indexes {
            let text = self.read(listing, index, &mut known).await?;
            wanted.extend(select::parts_of(&id, listing, index, &text)?);
        }
        Ok((wanted, known))
    }

    /// Fetches a small file and reads it.
    async fn read(
        &self,
        listing: &Listing,
        path: &str,
        known: &mut BTreeMap<String, String>,
    ) -> Result<Vec<u8>, HubError> {
        let path = path.to_owned();
        for item in self.items(listing, std::iter::once(&path))? {
            if item.entry.bytes > MAX_TEXT {
                return Err(HubError::Answer {
                    what: item.path,
                    why: "it is too large for what it should be".to_owned(),
                });
            }
            known.insert(path.clone(), self.fetcher.fetch(&item).await?);
        }
        let file = self.files.join(&path);
        std::fs::read(&file).map_err(HubError::io(&file))
    }

    fn items<'p>(&self, listing: &Listing, paths: impl Iterator<Item = &'p String>) -> Result<Vec<Item>, HubError> {
        let missing = |path: &str| HubError::NotFound { what: format!("{path} of {}", self.request.id) };
        paths
            .map(|path| {
                let entry = listing.files.get(path).ok_or_else(|| missing(path))?.clone();
                let url = self.fetcher.client.file_url(&self.request.id, &listing.commit, path);
                Ok(Item { path: path.clone(), url, target: self.files.join(path), entry })
            })
            .collect()
    }

    fn is_current(&self, before: &Manifest, listing: &Listing, wanted: &BTreeSet<String>) -> bool {
        let whole: BTreeSet<&str> = before
            .files
            .iter()
            .filter(|file| self.target.join(&file.path).metadata().is_ok_and(|meta| meta.len() == file.bytes))
            .map(|file| file.path.as_str())
            .collect();
        before.commit == listing.commit && wanted.iter().all(|path| whole.contains(path.as_str()))
    }

    /// Files of the installed revision that are the same in this one need not come again.
    fn reuse(&self, before: &Manifest, listing: &Listing, wanted: &BTreeSet<String>) {
        for file in before.files.iter().filter(|file| wanted.contains(&file.path)) {
            let same =
                listing.files.get(&file.path).map(|entry| &entry.hash) == Some(&Hash::Sha256(file.sha256.clone()));
            let to = self.files.join(&file.path);
            if !same || to.exists() {
                continue;
            }
            let parent = to.parent().unwrap_or(&self.files);
            let linked =
                std::fs::create_dir_all(parent).and_then(|()| std::fs::hard_link(self.target.join(&file.path), &to));
            if let Err(error) = linked {
                tracing::debug!(%error, "{} is fetched again", file.path);
            }
        }
    }

    fn make_sure_of_room(&self, items: &[Item]) -> Result<(), HubError> {
        let needed: u64 = items
            .iter()
            .filter(|item| !item.target.is_file())
            .map(|item| item.entry.bytes - journal::arrived(&item.target, &item.entry).min(item.entry.bytes))
            .sum();
        // For folders, journals and whatever else is written meanwhile.
        let needed_with_margin = needed + (needed / 50).max(1 << 20);
        let dir = &self.request.models;
        let stat = rustix::fs::statvfs(dir).map_err(|error| HubError::io(dir)(error.into()))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if needed > 0 && free < needed_with_margin {
            return Err(HubError::Space { needed: needed_with_margin, free, dir: dir.clone() });
        }
        Ok(())
    }

    fn describe(&self, listing: &Listing, sha256: BTreeMap<String, String>) -> Result<(), HubError> {
        let bytes = |path: &String| listing.files.get(path).map_or(0, |entry| entry.bytes);
        let files =
            sha256.into_iter().map(|(path, sha256)| ManifestFile { bytes: bytes(&path), path, sha256 }).collect();
        let manifest = Manifest {
            id: self.request.id.to_string(),
            source: self.fetcher.client.source(),
            revision: self.request.revision.as_str().to_owned(),
            commit: listing.commit.clone(),
            pulled_at: Timestamp::now(),
            files,
        };
        let path = self.files.join(MANIFEST);
        let text = serde_json::to_vec_pretty(&manifest).map_err(|error| HubError::io(&path)(error.into()))?;
        crate::outbox::write_durably(&path, &text).map_err(HubError::io(&path))
    }

    /// What is about to appear is a model that can be used.
    fn check_whole(&self) -> Result<(), HubError> {
        let id = self.request.id.to_string();
        let problem = match crate::models::inspect_folder(&id, &self.files) {
            Some(model) => model.problem,
            None => Some("nothing in it says what it is".to_owned()),
        };
        problem.map_or(Ok(()), |problem| Err(HubError::Incomplete { id, problem }))
    }
}

/// Descriptions and indexes are at most a few megabytes.
const MAX_TEXT: u64 = 64 << 20;

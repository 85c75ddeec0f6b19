//! One file from the hub: in stretches at the same time, each as often as it takes, and checked as a whole.

use std::{
    fs::{self, File},
    io::Read as _,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use futures::{StreamExt as _, TryStreamExt as _};
use reqwest::{Response, StatusCode, Url, header};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

use super::{
    HubError,
    client::Client,
    journal::Part,
    listing::{Entry, Hash},
    meter::Meter,
};
use crate::admission::hex;

/// Written at once.
const BUFFER: usize = 1 << 20;
/// A file that arrives wrong is fetched once more; a second time it is the hub's own.
const WHOLE_TRIES: u32 = 2;

/// What all files of a pull share.
#[derive(Clone)]
pub(super) struct Fetcher {
    pub(super) client: Arc<Client>,
    pub(super) meter: Arc<Meter>,
    /// One permit for each request under way.
    pub(super) slots: Arc<Semaphore>,
}

/// A file to fetch.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) path: String,
    pub(super) url: Url,
    pub(super) target: PathBuf,
    pub(super) entry: Entry,
}

/// One stretch under way.
struct Stretch {
    number: u64,
    /// The next byte that is wanted.
    at: u64,
    first: u64,
    end: u64,
}

/// What one file has added to the meter, so that it can be taken back as a whole.
struct Share<'a> {
    meter: &'a Meter,
    bytes: AtomicU64,
}

impl Share<'_> {
    fn have(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Relaxed);
        self.meter.have(bytes);
    }

    fn receive(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Relaxed);
        self.meter.receive(bytes);
    }

    fn lose(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Relaxed);
        self.meter.lose(bytes);
    }

    fn give_back(&self) {
        self.meter.lose(self.bytes.swap(0, Relaxed));
    }
}

impl Fetcher {
    /// Fetches a file unless it is there already; answers with its sha256.
    pub(super) async fn fetch(&self, item: &Item) -> Result<String, HubError> {
        if item.target.is_file() {
            if let Ok(sha256) = check(&item.target, item).await {
                self.meter.have(item.entry.bytes);
                self.meter.file_done();
                return Ok(sha256);
            }
            fs::remove_file(&item.target).map_err(HubError::io(&item.target))?;
        }
        if let Some(parent) = item.target.parent() {
            fs::create_dir_all(parent).map_err(HubError::io(parent))?;
        }
        let mut tries = 0;
        let mut whole = false;
        loop {
            tries += 1;
            match self.once(item, whole).await {
                Ok(sha256) => {
                    self.meter.file_done();
                    return Ok(sha256);
                }
                Err(HubError::NoRanges) if !whole => {
                    tracing::info!("{}: the hub sends whole files only", item.path);
                    whole = true;
                    tries = 0;
                }
                Err(error @ HubError::Corrupt { .. }) if tries < WHOLE_TRIES => {
                    tracing::warn!(%error, "fetching it once more");
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn once(&self, item: &Item, whole: bool) -> Result<String, HubError> {
        let parallel = self.client.patience.parallel;
        let io = HubError::io(&item.target);
        let part = Part::open(&item.target, &item.entry, parallel, whole).map_err(io)?;
        let share = Share { meter: &self.meter, bytes: AtomicU64::new(0) };
        let done = self.fill(item, &Arc::new(part), &share).await;
        if done.is_err() {
            share.give_back();
        }
        done
    }

    async fn fill(&self, item: &Item, part: &Arc<Part>, share: &Share<'_>) -> Result<String, HubError> {
        let missing = part.missing(item.entry.bytes);
        share.have(item.entry.bytes - missing.iter().map(|(_, first, end)| end - first).sum::<u64>());
        let stretches = missing.into_iter().map(|(number, first, end)| Stretch { number, at: first, first, end });
        futures::stream::iter(stretches)
            .map(|stretch| self.stretch(item, part, stretch, share))
            .buffer_unordered(self.client.patience.parallel)
            .try_collect::<()>()
            .await?;
        let io = HubError::io(&item.target);
        match check(&super::journal::part_path(&item.target), item).await {
            Ok(sha256) => {
                part.finish(&item.target).map_err(io)?;
                Ok(sha256)
            }
            Err(error) => {
                part.discard().map_err(io)?;
                Err(error)
            }
        }
    }

    async fn stretch(
        &self,
        item: &Item,
        part: &Arc<Part>,
        mut stretch: Stretch,
        share: &Share<'_>,
    ) -> Result<(), HubError> {
        let mut failures = 0;
        while stretch.at < stretch.end {
            let before = stretch.at;
            let permit = self.slots.acquire().await;
            let sent = self.take(item, part, &mut stretch, share).await;
            drop(permit);
            if let Err(error) = sent {
                failures = if stretch.at > before { 1 } else { failures + 1 };
                let what = format!("{}, from byte {}", item.path, stretch.at);
                self.client.after_failure(&what, failures, error).await?;
            }
        }
        let (part, number) = (part.clone(), stretch.number);
        let io = HubError::io(&item.target);
        blocking(move || part.arrived(number)).await.map_err(io)
    }

    /// Asks for what is missing of a stretch and writes it down as it comes.
    async fn take(
        &self,
        item: &Item,
        part: &Arc<Part>,
        stretch: &mut Stretch,
        share: &Share<'_>,
    ) -> Result<(), HubError> {
        let range = (stretch.at, stretch.end - 1);
        let mut response = self.client.get(item.url.clone(), Some(range), &item.path).await?;
        if response.status() == StatusCode::PARTIAL_CONTENT {
            expect_range(&response, item, stretch.at)?;
        } else {
            expect_whole(&response, item)?;
            if stretch.end - stretch.first < item.entry.bytes {
                return Err(HubError::NoRanges);
            }
            share.lose(stretch.at - stretch.first);
            stretch.at = stretch.first;
        }
        let mut buffer = Vec::with_capacity(BUFFER);
        let mut received = stretch.at;
        loop {
            let next = self.client.chunk(&mut response).await;
            if let Ok(Some(bytes)) = &next {
                received += bytes.len() as u64;
                if received > stretch.end {
                    return Err(mismatch(item, "more comes than was asked for"));
                }
                buffer.extend_from_slice(bytes);
            }
            let ends = !matches!(next, Ok(Some(_)));
            // What came before a cut counts too.
            if ends || buffer.len() >= BUFFER {
                let length = buffer.len() as u64;
                write(part, std::mem::take(&mut buffer), stretch.at, item).await?;
                stretch.at += length;
                share.receive(length);
            }
            if ends {
                next?;
                break;
            }
        }
        if stretch.at < stretch.end {
            return Err(HubError::Transport(format!("the hub stopped {} bytes early", stretch.end - stretch.at)));
        }
        Ok(())
    }
}

async fn write(part: &Arc<Part>, bytes: Vec<u8>, at: u64, item: &Item) -> Result<(), HubError> {
    let part = part.clone();
    blocking(move || part.data.write_all_at(&bytes, at)).await.map_err(HubError::io(&item.target))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> std::io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other)?
}

fn mismatch(item: &Item, what: impl Into<String>) -> HubError {
    HubError::Mismatch { file: item.path.clone(), what: what.into() }
}

/// `Content-Range: bytes FIRST-LAST/TOTAL`, of the file that the list describes.
fn expect_range(response: &Response, item: &Item, at: u64) -> Result<(), HubError> {
    let range = response.headers().get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let parts = range.and_then(|range| {
        let (span, total) = range.strip_prefix("bytes ")?.split_once('/')?;
        let (first, _) = span.split_once('-')?;
        Some((first.parse::<u64>().ok()?, total.parse::<u64>().ok()))
    });
    let Some((first, total)) = parts else { return Err(mismatch(item, "the hub does not say which part it sends")) };
    if total.is_some_and(|total| total != item.entry.bytes) {
        return Err(wrong_size(item, total.unwrap_or_default()));
    }
    if first != at {
        return Err(mismatch(item, format!("byte {at} was asked for, and byte {first} comes")));
    }
    Ok(())
}

fn expect_whole(response: &Response, item: &Item) -> Result<(), HubError> {
    match response.content_length() {
        Some(length) if length != item.entry.bytes => Err(wrong_size(item, length)),
        Some(_) | None => Ok(()),
    }
}

fn wrong_size(item: &Item, length: u64) -> HubError {
    mismatch(item, format!("the hub lists {} bytes and sends {length}", item.entry.bytes))
}

/// Reads a file to its end: its sha256, if its content is what the list names.
async fn check(path: &Path, item: &Item) -> Result<String, HubError> {
    let (path, entry, name) = (path.to_owned(), item.entry.clone(), item.path.clone());
    let read = path.clone();
    let with_git = matches!(entry.hash, Hash::GitBlob(_));
    let (sha256, git, bytes) = blocking(move || digests(&read, with_git)).await.map_err(HubError::io(&path))?;
    let (kind, expected, found) = match entry.hash {
        Hash::Sha256(expected) => ("sha256", expected, sha256.clone()),
        Hash::GitBlob(expected) => ("git hash", expected, git),
    };
    if bytes != entry.bytes || expected != found {
        return Err(HubError::Corrupt { file: name, kind, expected, found });
    }
    Ok(sha256)
}

/// The sha256 of the content, git's name of it where that is wanted, and its length.
fn digests(path: &Path, with_git: bool) -> std::io::Result<(String, String, u64)> {
    let mut file = File::open(path)?;
    let bytes = file.metadata()?.len();
    let mut sha256 = Sha256::new();
    let mut git = Sha1::new();
    git.update(format!("blob {bytes}\0"));
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = file.read(&mut buffer)?;
        let read = buffer.get(..length).unwrap_or_default();
        if read.is_empty() {
            break;
        }
        sha256.update(read);
        if with_git {
            git.update(read);
        }
    }
    Ok((hex(&sha256.finalize()), hex(&git.finalize()), bytes))
}

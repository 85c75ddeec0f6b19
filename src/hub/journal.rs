//! Which stretches of a file have arrived and are on the disk: what lets a pull go on after any end of the one before.
//!
//! One line of JSON that names the content and the length of a stretch, then the number of each stretch, in the order
//! of their arrival. A number is written after its stretch has been synced, so that after a loss of power it is never
//! wrong about what the disk holds.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};

use super::listing::{Entry, Hash};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    bytes: u64,
    hash: Hash,
    stretch: u64,
}

/// A file that is arriving.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) data: File,
    log: Mutex<File>,
    path: PathBuf,
    log_path: PathBuf,
    pub(super) stretch: u64,
    /// Those that are here.
    pub(super) done: BTreeSet<u64>,
}

const SMALLEST: u64 = 1 << 20;
const LARGEST: u64 = 32 << 20;

/// Stretches that keep all connections busy, large enough that asking for them costs nothing beside them.
fn stretch_of(bytes: u64, parallel: usize) -> u64 {
    let even = bytes.div_ceil(u64::try_from(parallel).unwrap_or(1).max(1));
    even.next_multiple_of(SMALLEST).clamp(SMALLEST, LARGEST)
}

pub(super) fn part_path(target: &Path) -> PathBuf {
    with_suffix(target, ".part")
}

fn log_path(target: &Path) -> PathBuf {
    with_suffix(target, ".part.journal")
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    path.with_file_name(name)
}

/// How many bytes of a file have arrived for good, without opening it for more.
pub(super) fn arrived(target: &Path, entry: &Entry) -> u64 {
    let Some((head, done)) = read(&log_path(target)) else { return 0 };
    if (head.bytes, &head.hash) != (entry.bytes, &entry.hash) || !part_path(target).is_file() {
        return 0;
    }
    done.iter().map(|number| length(entry.bytes, head.stretch, *number)).sum()
}

fn length(bytes: u64, stretch: u64, number: u64) -> u64 {
    stretch.min(bytes.saturating_sub(number.saturating_mul(stretch)))
}

fn read(path: &Path) -> Option<(Head, BTreeSet<u64>)> {
    let text = fs::read_to_string(path).ok()?;
    let (head, rest) = text.split_once('\n')?;
    let head: Head = serde_json::from_str(head).ok().filter(|head: &Head| head.stretch > 0)?;
    let last = head.bytes.div_ceil(head.stretch);
    // A line without its end was cut off, and may be the beginning of another number.
    let whole = rest.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
    let done = whole.filter_map(|line| line.parse().ok()).filter(|number| *number < last).collect();
    Some((head, done))
}

impl Part {
    /// Opens what an earlier pull has left of `entry`, or begins anew. `whole`: as one stretch.
    pub(super) fn open(target: &Path, entry: &Entry, parallel: usize, whole: bool) -> io::Result<Self> {
        let (path, log_path) = (part_path(target), log_path(target));
        let found = read(&log_path).filter(|(head, _)| {
            (head.bytes, &head.hash) == (entry.bytes, &entry.hash)
                && (!whole || head.stretch >= entry.bytes)
                && path.metadata().is_ok_and(|meta| meta.len() == entry.bytes)
        });
        let (head, done) = if let Some(found) = found {
            found
        } else {
            let stretch = if whole { entry.bytes.max(1) } else { stretch_of(entry.bytes, parallel) };
            let head = Head { bytes: entry.bytes, hash: entry.hash.clone(), stretch };
            File::create(&path)?.set_len(entry.bytes)?;
            let mut text = serde_json::to_string(&head)?;
            text.push('\n');
            fs::write(&log_path, text)?;
            (head, BTreeSet::new())
        };
        let data = OpenOptions::new().read(true).write(true).open(&path)?;
        let mut log = OpenOptions::new().append(true).open(&log_path)?;
        // Spoils a line that was cut off, and ends it, so that the next begins on its own.
        log.write_all(b"-\n")?;
        Ok(Self { data, log: Mutex::new(log), path, log_path, stretch: head.stretch, done })
    }

    /// The stretches that are missing: number, first byte, and the byte after the last.
    pub(super) fn missing(&self, bytes: u64) -> Vec<(u64, u64, u64)> {
        (0..bytes.div_ceil(self.stretch))
            .filter(|number| !self.done.contains(number))
            .map(|number| {
                let first = number * self.stretch;
                (number, first, first + length(bytes, self.stretch, number))
            })
            .collect()
    }

    /// A stretch has been written. Blocks until it is on the disk.
    pub(super) fn arrived(&self, number: u64) -> io::Result<()> {
        self.data.sync_data()?;
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.write_all(format!("{number}\n").as_bytes())
    }

    /// Throws everything away: it was wrong.
    pub(super) fn discard(&self) -> io::Result<()> {
        fs::remove_file(&self.log_path)?;
        fs::remove_file(&self.path)
    }

    /// The file is right and gets its name.
    pub(super) fn finish(&self, target: &Path) -> io::Result<()> {
        self.data.sync_all()?;
        fs::rename(&self.path, target)?;
        fs::remove_file(&self.log_path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(bytes: u64) -> Entry {
        Entry { bytes, hash: Hash::Sha256("a".repeat(64)) }
    }

    #[test]
    fn what_has_arrived_is_known_to_the_next_and_a_cut_line_is_not_believed() {
        let folder = tempfile::tempdir().expect("a folder");
        let target = folder.path().join("w.safetensors");
        let entry = entry((12 << 20) + 5);
        let part = Part::open(&target, &entry, 4, false).expect("opened");
        assert_eq!(part.stretch, 4 << 20);
        assert_eq!(part.missing(entry.bytes).len(), 4);
        part.arrived(3).expect("written");
        part.arrived(1).expect("written");
        drop(part);
        let log = log_path(&target);
        let mut text = fs::read_to_string(&log).expect("read");
        text.push('2');
        fs::write(&log, &text).expect("written");
        assert_eq!(arrived(&target, &entry), (4 << 20) + 5);
        let part = Part::open(&target, &entry, 9, false).expect("opened");
        assert_eq!(part.done, BTreeSet::from([1, 3]), "the stretch's length is the first pull's");
        part.arrived(0).expect("written");
        drop(part);
        let part = Part::open(&target, &entry, 4, false).expect("opened");
        assert_eq!(part.done, BTreeSet::from([0, 1, 3]));
    }

    #[test]
    fn other_content_under_the_name_begins_anew() {
        let folder = tempfile::tempdir().expect("a folder");
        let target = folder.path().join("w");
        let part = Part::open(&target, &entry(10), 1, false).expect("opened");
        part.arrived(0).expect("written");
        drop(part);
        let other = Entry { bytes: 10, hash: Hash::Sha256("b".repeat(64)) };
        assert_eq!((arrived(&target, &entry(10)), arrived(&target, &other)), (10, 0));
        assert_eq!(Part::open(&target, &other, 1, false).expect("opened").missing(10), [(0, 0, 10)]);
        assert_eq!(Part::open(&target, &entry(11), 1, false).expect("opened").missing(11), [(0, 0, 11)]);
    }

    #[test]
    fn stretches_follow_the_connections_within_bounds() {
        assert_eq!(stretch_of(1, 4), 1 << 20);
        assert_eq!(stretch_of(40 << 20, 4), 10 << 20);
        assert_eq!(stretch_of(40 << 30, 4), 32 << 20);
    }
}

//! The table of files that are waited for, and who gets into it when there are more than it holds.
//!
//! A file stays until it is claimed, disappears or is refused, so nothing is stranded; the table is bounded, so that a
//! hundred thousand waiting files cost no more memory than four thousand. Pure: status and time are handed in.

use std::{
    cmp::Ordering,
    collections::{BinaryHeap, HashMap},
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt as _,
    time::{Duration, Instant},
};

use atelier_domain::ErrorInfo;

use super::{dirs::Fingerprint, names};

/// Why a file is not claimed yet.
#[derive(Clone, Debug, PartialEq)]
pub enum Waits {
    /// It was only just seen to change.
    Settling,
    /// A program has it open for writing.
    Writer,
    /// A picture's sidecar is not there yet, or not complete.
    Sidecar,
    /// What is there is the beginning of a picture.
    Incomplete(ErrorInfo),
    /// It cannot be read, moved or judged for now.
    Trouble,
    /// A sidecar whose picture is not there, or not ready.
    Picture,
}

impl Waits {
    /// Whether it may wait for long, so that it must not keep others out of the table.
    const fn is_long(&self) -> bool {
        match self {
            Self::Settling | Self::Writer | Self::Sidecar => false,
            Self::Incomplete(_) | Self::Trouble | Self::Picture => true,
        }
    }
}

#[derive(Clone, Debug)]
pub struct Entry {
    pub print: Fingerprint,
    /// The first of our looks that saw it as it is now.
    pub since: Instant,
    pub first_seen: Instant,
    /// It was renamed to this name, complete, and not touched since.
    pub moved_in: bool,
    /// When the next look is due.
    pub look_at: Instant,
    pub waits: Waits,
    /// How often in a row something went wrong.
    pub troubles: u32,
    scan: u64,
}

impl Entry {
    /// Puts off the next look, longer each time.
    pub fn trouble(&mut self, now: Instant, longest: Duration) {
        self.waits = Waits::Trouble;
        self.look_at = now + Duration::from_secs(1 << self.troubles.min(10)).min(longest);
        self.troubles += 1;
    }
}

/// How many files are kept that wait briefly, and as many again that wait for long.
pub const CAPACITY: usize = 4096;

#[derive(Debug)]
pub struct Table {
    entries: HashMap<OsString, Entry>,
    capacity: usize,
    long: usize,
    scan: u64,
    /// Where on the ring of hashed names the next scan goes on to admit files.
    cursor: u64,
}

impl Table {
    pub fn new(capacity: usize) -> Self {
        Self { entries: HashMap::new(), capacity, long: 0, scan: 0, cursor: 0 }
    }

    pub fn get(&self, rel: &OsStr) -> Option<&Entry> {
        self.entries.get(rel)
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many more that wait briefly fit in.
    pub fn room(&self) -> usize {
        self.capacity.saturating_sub(self.entries.len() - self.long)
    }

    /// Takes in what a look has seen. A file that is not known is admitted where there is room, or in any case when
    /// `needed`; `false` where there is none. `moved_in`: an event just said that it was renamed to this name.
    pub fn observe(&mut self, rel: &OsStr, print: Fingerprint, now: Instant, moved_in: bool, needed: bool) -> bool {
        if let Some(entry) = self.entries.get_mut(rel) {
            entry.scan = self.scan;
            entry.moved_in |= moved_in;
            if entry.print != print {
                self.long -= usize::from(entry.waits.is_long());
                entry.print = print;
                entry.since = now;
                entry.moved_in = moved_in;
                entry.look_at = now;
                entry.waits = Waits::Settling;
                entry.troubles = 0;
            } else if moved_in {
                entry.look_at = now;
            }
            return true;
        }
        if self.room() == 0 && !needed {
            return false;
        }
        let entry = Entry {
            print,
            since: now,
            first_seen: now,
            moved_in,
            look_at: now,
            waits: Waits::Settling,
            troubles: 0,
            scan: self.scan,
        };
        self.entries.insert(rel.to_owned(), entry);
        true
    }

    /// Has the file looked at again at once.
    pub fn hurry(&mut self, rel: &OsStr, now: Instant) {
        if let Some(entry) = self.entries.get_mut(rel) {
            entry.look_at = entry.look_at.min(now);
        }
    }

    /// Changes an entry. One that comes to wait for long is forgotten where too many do already: a later scan finds it
    /// again, after everybody else had a turn.
    pub fn update(&mut self, rel: &OsStr, change: impl FnOnce(&mut Entry)) {
        let Some(entry) = self.entries.get_mut(rel) else { return };
        let before = entry.waits.is_long();
        change(entry);
        match (before, entry.waits.is_long()) {
            (false, true) if self.long >= self.capacity => {
                self.entries.remove(rel);
            }
            (false, true) => self.long += 1,
            (true, false) => self.long -= 1,
            _ => {}
        }
    }

    pub fn forget(&mut self, rel: &OsStr) -> Option<Entry> {
        let entry = self.entries.remove(rel)?;
        self.long -= usize::from(entry.waits.is_long());
        Some(entry)
    }

    /// Starts a scan of everything: what it does not come by is gone.
    pub fn begin_scan(&mut self) -> Ring {
        self.scan += 1;
        Ring { cursor: self.cursor, room: self.room(), heap: BinaryHeap::new(), left_over: 0 }
    }

    /// Marks a known file as still there; `false` for one that is not known.
    pub fn is_known(&mut self, rel: &OsStr) -> bool {
        self.entries.get_mut(rel).is_some_and(|entry| {
            entry.scan = self.scan;
            true
        })
    }

    /// Ends a scan; names what has gone.
    pub fn end_scan(&mut self, ring_end: Option<u64>) -> Vec<OsString> {
        if let Some(end) = ring_end {
            self.cursor = end;
        }
        let scan = self.scan;
        let gone: Vec<_> = self.entries.iter().filter(|(_, e)| e.scan != scan).map(|(rel, _)| rel.clone()).collect();
        for rel in &gone {
            self.forget(rel);
        }
        gone
    }

    /// The files whose look is due, oldest first.
    pub fn due(&self, now: Instant) -> Vec<OsString> {
        let mut due: Vec<_> = self.entries.iter().filter(|(_, entry)| entry.look_at <= now).collect();
        due.sort_unstable_by(|a, b| (a.1.print.mtime, a.0).cmp(&(b.1.print.mtime, b.0)));
        due.into_iter().map(|(rel, _)| rel.clone()).collect()
    }

    pub fn next_look(&self) -> Option<Instant> {
        self.entries.values().map(|entry| entry.look_at).min()
    }

    pub fn known(&self) -> impl Iterator<Item = &OsString> {
        self.entries.keys()
    }
}

/// Chooses, among files that are not in the table, those that there is room for.
///
/// Files stand on a ring by the hash of their names; each scan goes on where the last one ended. New arrivals spread
/// evenly over the ring, so the way to any one file is never blocked by a stream of others.
#[derive(Debug)]
pub struct Ring {
    cursor: u64,
    room: usize,
    heap: BinaryHeap<Place>,
    left_over: u64,
}

#[derive(Debug, PartialEq, Eq)]
struct Place {
    distance: u64,
    rel: OsString,
}

impl Ord for Place {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.distance, &self.rel).cmp(&(other.distance, &other.rel))
    }
}

impl PartialOrd for Place {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Stirs the bits: names that differ in their last letter only have FNV hashes that lie close together.
const fn spread(hash: u64) -> u64 {
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

impl Ring {
    pub fn offer(&mut self, rel: &OsStr) {
        let distance = spread(names::fnv(rel.as_bytes())).wrapping_sub(self.cursor);
        if self.heap.len() >= self.room {
            self.left_over += 1;
            match self.heap.peek() {
                Some(farthest) if farthest.distance > distance => self.heap.pop(),
                _ => return,
            };
        }
        self.heap.push(Place { distance, rel: rel.to_owned() });
    }

    /// The chosen ones, how many were left over, and where the next scan shall go on.
    pub fn finish(self) -> (Vec<OsString>, u64, Option<u64>) {
        let end = (self.left_over > 0)
            .then(|| self.heap.peek().map(|last| self.cursor.wrapping_add(last.distance).wrapping_add(1)))
            .flatten();
        (self.heap.into_iter().map(|place| place.rel).collect(), self.left_over, end)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use atelier_domain::ErrorCode;

    use super::*;
    use crate::inbox::dirs::FileId;

    fn print(size: u64) -> Fingerprint {
        Fingerprint { id: FileId { dev: 1, ino: 1 }, size, mtime: (0, 0), ctime: (0, 0) }
    }

    fn see(table: &mut Table, rel: &str, size: u64, now: Instant) -> bool {
        table.observe(OsStr::new(rel), print(size), now, false, false)
    }

    #[test]
    fn any_change_starts_the_wait_anew_and_ends_a_rename_ins_privilege() {
        let start = Instant::now();
        let later = start + Duration::from_secs(1);
        let rel = OsStr::new("a");
        let changes: [fn(&mut Fingerprint); 5] = [
            |p| p.size += 1,
            |p| p.mtime.1 += 1,
            |p| p.ctime.1 += 1,
            |p| p.id.ino += 1,
            // A clock that was set back is a change like any other.
            |p| p.mtime.0 -= 3600,
        ];
        for change in changes {
            let mut table = Table::new(10);
            table.observe(rel, print(5), start, true, false);
            table.observe(rel, print(5), later, false, false);
            let entry = table.get(rel).expect("known");
            assert!(entry.moved_in && entry.since == start);
            let mut changed = print(5);
            change(&mut changed);
            table.observe(rel, changed, later, false, false);
            let entry = table.get(rel).expect("known");
            assert!(!entry.moved_in && entry.since == later && entry.first_seen == start);
        }
    }

    #[test]
    fn the_table_is_bounded_and_gone_files_leave_it() {
        let now = Instant::now();
        let mut table = Table::new(2);
        assert!(see(&mut table, "a", 1, now) && see(&mut table, "b", 1, now));
        assert!(!see(&mut table, "c", 1, now));
        assert!(table.observe(OsStr::new("c"), print(1), now, false, true), "a needed one is admitted in any case");
        table.begin_scan();
        assert!(table.is_known(OsStr::new("b")));
        let mut gone = table.end_scan(None);
        gone.sort();
        assert_eq!(gone, ["a", "c"]);
        assert_eq!(table.room(), 1);
    }

    #[test]
    fn files_that_wait_for_long_do_not_keep_others_out() {
        let now = Instant::now();
        let mut table = Table::new(3);
        for round in 0..3 {
            for n in 0..3 {
                let rel = format!("{round}-{n}");
                assert!(see(&mut table, &rel, 1, now), "{rel}");
                let info = ErrorInfo::new(ErrorCode::ImageTruncated, "half");
                table.update(OsStr::new(&rel), |entry| entry.waits = Waits::Incomplete(info));
            }
            assert_eq!(table.room(), 3);
        }
        assert_eq!(table.len(), 3, "the first ones keep their place and their clock");
        assert!(table.get(OsStr::new("0-0")).is_some());
        see(&mut table, "0-0", 2, now);
        assert_eq!(table.room(), 2, "one that changes waits briefly again");
        table.forget(OsStr::new("0-0"));
        assert_eq!(table.room(), 3);
    }

    #[test]
    fn due_files_come_oldest_first() {
        let now = Instant::now();
        let mut table = Table::new(9);
        for (rel, mtime) in [("z", 1), ("b", 2), ("a", 2), ("later", 0)] {
            let mut print = print(1);
            print.mtime.0 = mtime;
            table.observe(OsStr::new(rel), print, now, false, false);
        }
        table.update(OsStr::new("later"), |entry| entry.look_at = now + Duration::from_secs(1));
        assert_eq!(table.due(now), ["z", "a", "b"]);
        assert_eq!(table.next_look(), Some(now));
    }

    #[test]
    fn troubles_are_looked_at_less_and_less_often() {
        let now = Instant::now();
        let mut table = Table::new(9);
        see(&mut table, "a", 1, now);
        let mut waits = Vec::new();
        for _ in 0..6 {
            table.update(OsStr::new("a"), |entry| {
                entry.trouble(now, Duration::from_secs(10));
                waits.push((entry.look_at - now).as_secs());
            });
        }
        assert_eq!(waits, [1, 2, 4, 8, 10, 10]);
    }

    #[test]
    fn every_file_gets_its_turn_although_new_ones_keep_coming() {
        let mut waiting: BTreeSet<String> = (0..500).map(|n| format!("old-{n}")).collect();
        let mut table = Table::new(20);
        let now = Instant::now();
        let mut arrived = 0;
        for scan in 0..2000 {
            // Twice as many arrive as are served.
            for _ in 0..40 {
                arrived += 1;
                waiting.insert(format!("aaa-{arrived:06}"));
            }
            let mut ring = table.begin_scan();
            for rel in &waiting {
                ring.offer(OsStr::new(rel));
            }
            let (chosen, left_over, end) = ring.finish();
            assert!(chosen.len() == 20 && left_over > 0);
            for rel in chosen {
                assert!(table.observe(&rel, print(1), now, false, false));
                waiting.remove(rel.to_str().expect("text"));
                table.forget(&rel);
            }
            table.end_scan(end);
            if !waiting.iter().any(|rel| rel.starts_with("old")) {
                assert!(scan > 0);
                return;
            }
        }
        panic!("{} files starved", waiting.iter().filter(|rel| rel.starts_with("old")).count());
    }
}

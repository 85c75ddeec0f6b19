//! Pages of files that are read into memory ahead of their use, on a thread of its own, which never calls torch.

use std::{
    cell::{Cell, OnceCell},
    sync::mpsc::{self, Receiver, Sender},
    thread,
};

use super::shards::Range;

/// One fetch at a time, so that no more than what is waited for is ever held. The thread comes with the first fetch and
/// goes with this.
#[derive(Default)]
pub(super) struct Fetcher {
    /// None where there can be no thread: then pages are read at their use, as without this.
    line: OnceCell<Option<Line>>,
    is_busy: Cell<bool>,
}

struct Line {
    wanted: Sender<Vec<Range>>,
    done: Receiver<()>,
}

impl Fetcher {
    /// Begins to read the ranges, once the fetch before is done.
    pub(super) fn fetch(&self, ranges: Vec<Range>) {
        self.wait();
        if let Some(line) = self.line.get_or_init(Line::open) {
            self.is_busy.set(line.wanted.send(ranges).is_ok());
        }
    }

    /// Until the last fetch is done.
    pub(super) fn wait(&self) {
        if self.is_busy.replace(false)
            && let Some(Some(line)) = self.line.get()
        {
            // An error means that the thread has ended, and nothing is read any more.
            let _ = line.done.recv();
        }
    }
}

impl Line {
    fn open() -> Option<Self> {
        let (wanted, orders) = mpsc::channel::<Vec<Range>>();
        let (finished, done) = mpsc::channel();
        let work = move || {
            for ranges in orders {
                ranges.iter().for_each(Range::populate);
                if finished.send(()).is_err() {
                    return;
                }
            }
        };
        match thread::Builder::new().name("weights".into()).spawn(work) {
            Ok(_) => Some(Self { wanted, done }),
            Err(error) => {
                tracing::warn!(%error, "no thread reads weights ahead; they are read when they are needed");
                None
            }
        }
    }
}

//! Somebody who looks at the outbox all the time, as a program would that picks finished files up from there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use sha2::{Digest as _, Sha256};

pub(crate) fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// Files whose names begin with a dot are not visible: no program that picks up files takes them.
pub(crate) fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

/// Ends with the test.
#[derive(Debug)]
pub(crate) struct Watcher {
    stop: Arc<AtomicBool>,
    complaints: Arc<Mutex<Vec<String>>>,
    thread: Option<JoinHandle<u64>>,
}

impl Watcher {
    /// Decodes every visible file the moment it is first seen. `known`: the only contents that may be there; empty
    /// where they are still to be found out.
    pub(crate) fn start(outbox: PathBuf, known: BTreeSet<String>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let complaints = Arc::new(Mutex::new(Vec::new()));
        let (stopped, told) = (Arc::clone(&stop), Arc::clone(&complaints));
        let thread = std::thread::spawn(move || {
            let mut seen = BTreeMap::new();
            loop {
                // Looks once more after it was told to stop.
                let last = stopped.load(Ordering::Relaxed);
                look(&outbox, &known, &mut seen, &told);
                if last {
                    return seen.len() as u64;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        Self { stop, complaints, thread: Some(thread) }
    }

    /// What was seen that nobody should see.
    pub(crate) fn complaints(&self) -> Vec<String> {
        self.complaints.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many files were seen.
    pub(crate) fn end(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("ended once").join().expect("the watcher looks on whatever it sees")
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn look(folder: &Path, known: &BTreeSet<String>, seen: &mut BTreeMap<PathBuf, u64>, complaints: &Mutex<Vec<String>>) {
    for entry in fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
        let path = entry.path();
        if seen.contains_key(&path) || is_hidden(&path) {
            continue;
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            look(&path, known, seen, complaints);
            continue;
        }
        let wrong = match fs::read(&path) {
            Err(error) => Some(error.to_string()),
            Ok(bytes) => {
                seen.insert(path.clone(), bytes.len() as u64);
                match image::load_from_memory(&bytes) {
                    Err(error) => Some(format!("{} bytes that do not decode: {error}", bytes.len())),
                    Ok(_) if !known.is_empty() && !known.contains(&sha256(&bytes)) => {
                        Some(format!("{} bytes that no undisturbed run makes", bytes.len()))
                    }
                    Ok(_) => None,
                }
            }
        };
        if let Some(wrong) = wrong {
            complaints
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(format!("{} was visible in the outbox: {wrong}", path.display()));
        }
    }
}

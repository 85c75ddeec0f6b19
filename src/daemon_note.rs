//! `<data>/daemon.json`: where the daemon of a data folder is, and which configuration it lives by. Written while it is
//! ready, for the command line on the same machine.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// What the note says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonNote {
    pub pid: u32,
    /// Of the HTTP server.
    pub address: String,
    /// How often the configuration was read again.
    #[serde(default)]
    pub generation: u64,
    /// Why the last reading changed nothing, if it was refused.
    #[serde(default)]
    pub refused: Option<String>,
    /// Keys that the last reading has changed and that count only after a restart.
    #[serde(default)]
    pub needs_restart: Vec<String>,
}

impl DaemonNote {
    pub fn path(data: &Path) -> PathBuf {
        data.join("daemon.json")
    }

    /// The note in a data folder; `None` where no daemon is ready.
    pub fn read(data: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(Self::path(data)).ok()?).ok()
    }

    /// Replaces the note in a data folder as a whole.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn write(&self, data: &Path) -> io::Result<()> {
        crate::outbox::write_durably(&Self::path(data), &serde_json::to_vec(self)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_a_short_note_will_do() {
        let data = tempfile::tempdir().expect("a folder");
        assert_eq!(DaemonNote::read(data.path()), None);
        let note = DaemonNote { pid: 7, address: "127.0.0.1:1".into(), generation: 2, ..DaemonNote::default() };
        note.write(data.path()).expect("written");
        assert_eq!(DaemonNote::read(data.path()), Some(note));
        std::fs::write(DaemonNote::path(data.path()), r#"{"pid":1,"address":"x","more":[]}"#).expect("written");
        assert_eq!(DaemonNote::read(data.path()).map(|note| (note.pid, note.generation)), Some((1, 0)));
    }
}

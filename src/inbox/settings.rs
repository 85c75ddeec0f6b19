//! What the inbox takes from the configuration.

use std::{path::PathBuf, time::Duration};

/// The `[inbox]` section as far as scanning and claiming need it. Taken anew at each scan, but for `dir`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub dir: PathBuf,
    /// How long a file that was written in place must stand still.
    pub settle: Duration,
    pub rescan: Duration,
    pub sidecar_wait: Duration,
    /// How long an unfinished file may stand still before it has failed.
    pub give_up: Duration,
    pub watch: WatchMode,
    /// Patterns of names to leave alone, beside the built-in ones.
    pub ignore: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchMode {
    /// By the kernel's events where the file system has them, else by looking.
    Auto,
    /// By events in any case.
    Always,
    /// By looking only.
    Never,
}

impl Settings {
    /// The shipped defaults, for an inbox at `dir`.
    pub fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            settle: Duration::from_secs(2),
            rescan: Duration::from_secs(30),
            sidecar_wait: Duration::from_secs(2),
            give_up: Duration::from_mins(10),
            watch: WatchMode::Auto,
            ignore: Vec::new(),
        }
    }
}

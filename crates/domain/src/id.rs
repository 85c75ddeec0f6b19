//! The job's identifier: a ULID, so that ids sort by creation and are unique across restarts.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use ulid::Ulid;

/// Identifies one job for ever; also names its apalis task, its folders and its outputs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(Ulid);

impl JobId {
    pub const fn from_ulid(ulid: Ulid) -> Self {
        Self(ulid)
    }

    pub const fn as_ulid(self) -> Ulid {
        self.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The text is not a ULID: 26 characters of Crockford's base 32.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a job id: a job id is a ULID of 26 characters")]
pub struct InvalidJobId(String);

impl FromStr for JobId {
    type Err = InvalidJobId;

    /// # Errors
    /// Anything but 26 characters of Crockford's base 32.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ulid::from_string(text).map(Self).map_err(|_| InvalidJobId(text.chars().take(64).collect()))
    }
}

//! How a command ends, and what it says when it does not end well.

use std::io;

/// The exit codes of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Done,
    /// The job failed, or was refused by the daemon for what it is.
    Failed,
    /// Wrong usage or configuration.
    Usage,
    /// The daemon cannot be reached.
    Unreachable,
    NotFound,
    /// Ctrl-C.
    Interrupted,
    /// Whoever read our output has had enough. Not an error.
    ClosedPipe,
}

impl Exit {
    pub const fn code(self) -> u8 {
        match self {
            Self::Done | Self::ClosedPipe => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Unreachable => 3,
            Self::NotFound => 4,
            Self::Interrupted => 130,
        }
    }
}

/// Why a command ends early.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CliError {
    pub exit: Exit,
    /// What happened, and to what; empty where everything has been said.
    pub message: String,
    /// What to do; may be empty.
    pub hint: String,
}

impl CliError {
    pub(super) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: String::new() }
    }

    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    pub(super) fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message)
    }

    #[must_use]
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// Ends with a code when all has been said already.
    pub(super) fn silent(exit: Exit) -> Self {
        Self::new(exit, "")
    }

    /// Standard output could not be written.
    pub(super) fn stdout(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::silent(Exit::ClosedPipe);
        }
        Self::failed(format!("standard output: {error}"))
    }
}

pub(super) type Result<T = ()> = std::result::Result<T, CliError>;

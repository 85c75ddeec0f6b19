//! Waiting for what other processes do: looking again and again until a deadline, never sleeping blindly.

use std::time::{Duration, Instant};

/// Long enough for anything on a loaded machine, short enough to learn of a hang.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// Looks until `look` finds something.
///
/// # Panics
/// When `patience` is over; says `what` was waited for.
#[track_caller]
pub fn wait_until<T>(what: &str, patience: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        // Asked after the deadline once more: a test process that was not scheduled for long is not to blame.
        let late = Instant::now() >= deadline;
        if let Some(found) = look() {
            return found;
        }
        assert!(!late, "waited {patience:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

//! Signs of life of the parts that the daemon cannot do without.
//!
//! A part says with every round that it is alive, and by when it will say so again. Whoever is late hangs, and
//! [`crate::systemd`] feeds the watchdog only while nobody is. Knows nothing of what the parts do.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// One part's sign of life. Cloning is cheap; all clones are the same sign.
#[derive(Clone, Debug)]
pub struct Beat {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    part: &'static str,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// When it was last heard of, and for how long it may be silent from then on; `None`: nothing is expected of it.
    heard: Option<(Instant, Duration)>,
    /// How many reasons there are for it to be silent.
    excuses: u32,
}

/// A part that is silent for longer than it said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Late {
    pub part: &'static str,
    pub silent: Duration,
    pub bound: Duration,
}

impl Beat {
    /// Of a part that nothing is expected of until it is first heard of.
    pub fn new(part: &'static str) -> Self {
        Self { inner: Arc::new(Inner { part, state: Mutex::default() }) }
    }

    /// It is alive, and will say so again within `bound`.
    pub fn alive(&self, bound: Duration) {
        self.state().heard = Some((Instant::now(), bound));
    }

    /// Like [`Self::alive`]; nothing is expected any more once the answer is dropped.
    #[must_use]
    pub fn while_alive(&self, bound: Duration) -> Ending {
        self.alive(bound);
        Ending(self.clone())
    }

    /// Nothing is expected of it from now on.
    pub fn end(&self) {
        self.state().heard = None;
    }

    /// It may be silent until the answer is dropped, and has its whole time from then on.
    #[must_use]
    pub fn excuse(&self) -> Excuse {
        self.state().excuses += 1;
        Excuse(self.clone())
    }

    /// Whether it is silent for longer than it said.
    pub fn late(&self, now: Instant) -> Option<Late> {
        let state = self.state();
        let (at, bound) = state.heard?;
        let silent = now.saturating_duration_since(at);
        (state.excuses == 0 && silent > bound).then_some(Late { part: self.inner.part, silent, bound })
    }

    /// When it was last heard of, if anything is expected of it.
    pub fn heard(&self) -> Option<Instant> {
        self.state().heard.map(|(at, _)| at)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends what is expected of a part.
#[derive(Debug)]
pub struct Ending(Beat);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// A reason for a part to be silent.
#[derive(Debug)]
pub struct Excuse(Beat);

impl Drop for Excuse {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.excuses -= 1;
        state.heard = state.heard.map(|(_, bound)| (Instant::now(), bound));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_secs(60);

    fn later(seconds: u64) -> Instant {
        Instant::now() + Duration::from_secs(seconds)
    }

    #[test]
    fn a_part_is_late_only_when_it_is_silent_for_longer_than_it_said() {
        let beat = Beat::new("scanner");
        assert_eq!(beat.late(later(3600)), None, "it was never heard of");
        beat.alive(BOUND);
        assert_eq!(beat.late(later(59)), None);
        let late = beat.clone().late(later(62)).expect("silent for too long");
        assert_eq!((late.part, late.bound), ("scanner", BOUND));
        assert!(late.silent >= Duration::from_secs(61), "{late:?}");
        beat.end();
        assert_eq!(beat.late(later(3600)), None, "nothing is expected any more");
    }

    #[test]
    fn an_excused_part_may_be_silent_and_has_its_whole_time_afterwards() {
        let beat = Beat::new("fetcher");
        beat.alive(BOUND);
        let before = beat.heard();
        let (first, second) = (beat.excuse(), beat.excuse());
        assert_eq!(beat.late(later(3600)), None);
        drop(first);
        assert_eq!(beat.late(later(3600)), None, "one reason is left");
        drop(second);
        assert!(beat.heard() > before);
        assert!(beat.late(later(62)).is_some());
    }

    #[test]
    fn what_is_watched_ends_with_its_guard() {
        let beat = Beat::new("step");
        let watched = beat.while_alive(BOUND);
        assert!(beat.late(later(62)).is_some());
        drop(watched);
        assert_eq!(beat.late(later(62)), None);
        drop(beat.excuse());
        assert_eq!(beat.heard(), None, "an excuse alone expects nothing");
    }
}

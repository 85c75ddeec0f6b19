//! Named places where a test makes the daemon die or fail.
//!
//! Compiled into debug builds and the feature `failpoints` only; a release build has none of it. The places are
//! armed by `ATELIER_FAILPOINTS`, read once by `config`: `name=action[@nth]`, separated by commas, with the actions
//! `kill` (SIGKILL to the daemon itself), `eio`, `enospc` and `eacces` (the call fails so, from the nth hit on once,
//! or for ever with `@n+`), and `hang`, for the places of [`stall`].

#[cfg(not(any(debug_assertions, feature = "failpoints")))]
use std::time::Duration;

/// Marks a place that may be killed at. Nothing happens unless a test has armed it.
pub fn hit(name: &'static str) {
    // An armed error belongs to `fails`; a place marked with `hit` can only be killed at.
    let _ = fails(name);
}

/// Marks a place before an I/O call that may be made to fail.
///
/// # Errors
/// The error that a test has armed.
#[cfg(not(any(debug_assertions, feature = "failpoints")))]
pub fn fails(_name: &'static str) -> std::io::Result<()> {
    Ok(())
}

/// Marks a place where a test may have the daemon hang.
#[cfg(not(any(debug_assertions, feature = "failpoints")))]
pub fn stall(_name: &'static str) {}

/// How long a part may be silent: `usual`, unless a test has armed `name` with so many `ms`.
#[cfg(not(any(debug_assertions, feature = "failpoints")))]
pub fn patience(_name: &'static str, usual: Duration) -> Duration {
    usual
}

#[cfg(any(debug_assertions, feature = "failpoints"))]
pub use armed::{arm, fails, patience, stall};

#[cfg(any(debug_assertions, feature = "failpoints"))]
mod armed {
    use std::{
        collections::HashMap,
        io,
        sync::{Mutex, PoisonError},
        time::Duration,
    };

    struct Point {
        action: String,
        from: u64,
        sticky: bool,
        hits: u64,
    }

    static POINTS: Mutex<Option<HashMap<String, Point>>> = Mutex::new(None);

    /// Arms the places that `spec` names; an empty text disarms all.
    pub fn arm(spec: &str) {
        let points = spec.split(',').filter_map(|entry| {
            let (name, rest) = entry.trim().split_once('=')?;
            let (action, nth) = rest.split_once('@').unwrap_or((rest, "1"));
            let sticky = nth.ends_with('+');
            let from = nth.trim_end_matches('+').parse().unwrap_or(1);
            Some((name.to_owned(), Point { action: action.to_owned(), from, sticky, hits: 0 }))
        });
        let points: HashMap<_, _> = points.collect();
        *POINTS.lock().unwrap_or_else(PoisonError::into_inner) = Some(points).filter(|p| !p.is_empty());
    }

    /// The action of an armed place whose time has come.
    fn due(name: &str) -> Option<String> {
        let mut points = POINTS.lock().unwrap_or_else(PoisonError::into_inner);
        let point = points.as_mut()?.get_mut(name)?;
        point.hits += 1;
        let now = point.hits == point.from || (point.hits > point.from && point.sticky);
        now.then(|| point.action.clone())
    }

    /// Never returns where a test has armed the place with `hang`.
    pub fn stall(name: &'static str) {
        if due(name).is_some() {
            tracing::warn!(place = name, "a test has this hang");
            loop {
                std::thread::park();
            }
        }
    }

    /// `usual`, or what a test has armed.
    pub fn patience(name: &'static str, usual: Duration) -> Duration {
        let points = POINTS.lock().unwrap_or_else(PoisonError::into_inner);
        let armed = points.as_ref().and_then(|points| points.get(name));
        let millis = armed.and_then(|point| point.action.strip_suffix("ms")?.parse().ok());
        millis.map_or(usual, Duration::from_millis)
    }

    /// # Errors
    /// The error that a test has armed.
    pub fn fails(name: &'static str) -> io::Result<()> {
        let Some(action) = due(name) else { return Ok(()) };
        let errno = match action.as_str() {
            "eio" => rustix::io::Errno::IO,
            "enospc" => rustix::io::Errno::NOSPC,
            "eacces" => rustix::io::Errno::ACCESS,
            _ => {
                // Nothing below this line may run: the test asks what a power cut here leaves behind.
                let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
                loop {
                    std::thread::park();
                }
            }
        };
        Err(io::Error::from(errno))
    }
}

#[cfg(all(test, any(debug_assertions, feature = "failpoints")))]
mod tests {
    use super::*;

    #[test]
    fn an_armed_place_fails_once_or_for_ever_and_others_never() {
        arm("a=eio@2,b=enospc@1+");
        assert!(fails("a").is_ok());
        assert_eq!(fails("a").expect_err("second").raw_os_error(), Some(5));
        assert!(fails("a").is_ok());
        assert!(fails("b").is_err() && fails("b").is_err());
        assert!(fails("c").is_ok());
        arm("");
        assert!(fails("b").is_ok());
    }
}

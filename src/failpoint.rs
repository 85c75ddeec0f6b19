//! Named places where a test makes the daemon die or fail.
//!
//! Compiled into debug builds and the feature `failpoints` only; a release build has none of it. The places are
//! armed by `ATELIER_FAILPOINTS`, read once by `config`: `name=action[@nth]`, separated by commas, with the actions
//! `kill` (SIGKILL to the daemon itself), `eio`, `enospc` and `eacces` (the call fails so, from the nth hit on once,
//! or for ever with `@n+`).

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

#[cfg(any(debug_assertions, feature = "failpoints"))]
pub use armed::{arm, fails};

#[cfg(any(debug_assertions, feature = "failpoints"))]
mod armed {
    use std::{
        collections::HashMap,
        io,
        sync::{Mutex, PoisonError},
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

    /// # Errors
    /// The error that a test has armed.
    pub fn fails(name: &'static str) -> io::Result<()> {
        let mut points = POINTS.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(point) = points.as_mut().and_then(|points| points.get_mut(name)) else { return Ok(()) };
        point.hits += 1;
        if point.hits < point.from || (point.hits > point.from && !point.sticky) {
            return Ok(());
        }
        let errno = match point.action.as_str() {
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

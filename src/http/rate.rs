//! How often somebody may ask: a token, or without tokens an address.
//!
//! One time per caller, up to which what was asked is paid for (GCRA); an own dozen of lines because the limit follows a
//! reload of the configuration, which the libraries' limiters do not.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::tokens::TokenDigest;

/// Callers that are remembered before those are forgotten that have nothing to pay.
const REMEMBERED: usize = 4096;

/// As much as a caller may ask for at once, in time at the steady rate.
const BURST: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Who {
    Token(TokenDigest),
    Address(IpAddr),
}

#[derive(Debug, Default)]
pub(crate) struct Rates {
    paid_until: Mutex<HashMap<Who, Instant>>,
}

impl Rates {
    /// Takes one request at `now`; `per_minute` 0 sets no bound.
    ///
    /// # Errors
    /// How long to wait until the next is taken.
    pub(crate) fn take(&self, who: Who, per_minute: u32, now: Instant) -> Result<(), Duration> {
        let Some(cost) = Duration::from_mins(1).checked_div(per_minute) else { return Ok(()) };
        let mut paid_until = self.paid_until.lock().unwrap_or_else(PoisonError::into_inner);
        if paid_until.len() >= REMEMBERED {
            paid_until.retain(|_, until| *until > now);
        }
        let until = paid_until.get(&who).copied().unwrap_or(now).max(now);
        let ahead = until - now;
        // Whatever the rate, one request is always taken from who has nothing to pay.
        if !ahead.is_zero() && ahead + cost > BURST.max(cost) {
            return Err((ahead + cost).saturating_sub(BURST.max(cost)));
        }
        paid_until.insert(who, until + cost);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> Who {
        Who::Address(IpAddr::from([10, 0, 0, last]))
    }

    #[test]
    fn a_burst_is_taken_and_then_the_steady_rate() {
        let (rates, begin) = (Rates::default(), Instant::now());
        // 60 a minute: ten at once, then one a second.
        for _ in 0..10 {
            rates.take(address(1), 60, begin).expect("within the burst");
        }
        assert_eq!(rates.take(address(1), 60, begin), Err(Duration::from_secs(1)));
        rates.take(address(2), 60, begin).expect("somebody else");
        rates.take(address(1), 60, begin + Duration::from_secs(1)).expect("one second later");
        assert!(rates.take(address(1), 60, begin + Duration::from_secs(1)).is_err());
    }

    #[test]
    fn a_slow_rate_takes_one_and_no_rate_takes_all() {
        let (rates, begin) = (Rates::default(), Instant::now());
        rates.take(address(1), 1, begin).expect("the first");
        assert_eq!(rates.take(address(1), 1, begin), Err(Duration::from_mins(1)));
        rates.take(address(1), 1, begin + Duration::from_mins(1)).expect("the next minute");
        for _ in 0..10_000 {
            rates.take(address(3), 0, begin).expect("no bound");
        }
    }

    #[test]
    fn callers_that_owe_nothing_are_forgotten() {
        let (rates, begin) = (Rates::default(), Instant::now());
        for n in 0..20_000_u32 {
            let now = begin + Duration::from_secs(u64::from(n));
            rates.take(Who::Address(IpAddr::from(n.to_be_bytes())), 60, now).expect("the first");
        }
        assert!(rates.paid_until.lock().expect("lock").len() <= REMEMBERED);
    }
}

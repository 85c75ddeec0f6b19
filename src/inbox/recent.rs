//! Pictures that were claimed so recently that a sidecar may still come for them.
//!
//! A picture that is renamed in is not kept waiting for a sidecar which most pictures never get. When one comes after
//! all, within `inbox.sidecar_wait`, the job is called off, the picture returns to the inbox, and both start together.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt as _,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use atelier_domain::JobId;

use super::{
    names,
    place::{Bundle, Placed},
};

/// More pictures at once than this and the oldest are past recall.
const CAPACITY: usize = 4096;
/// A sidecar may have been seen in time and be complete only later.
const KEEP: Duration = Duration::from_mins(1);
/// How long a picture that was called back may take to return, before its sidecar is nobody's.
const PATIENCE: Duration = Duration::from_mins(10);

#[derive(Debug)]
struct Claim {
    id: JobId,
    /// Sidecars that were first seen until then belong to it.
    until: Instant,
    /// It is a job by now.
    admitted: bool,
    /// Called back: whatever becomes of the job, its source goes back into the inbox.
    recalled: bool,
    placed: Option<(Bundle, Placed)>,
}

#[derive(Debug, Default)]
pub struct Recent {
    claims: Mutex<HashMap<OsString, Claim>>,
}

/// Whose sidecar it is that has come late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Late {
    /// Nobody's who was here of late.
    No,
    /// That picture is on its way to a job, or back.
    Later,
    Recall(JobId),
}

impl Recent {
    fn lock(&self) -> MutexGuard<'_, HashMap<OsString, Claim>> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A picture was claimed without having waited for a sidecar.
    pub fn claimed(&self, rel: OsString, id: JobId, until: Instant, now: Instant) {
        let mut claims = self.lock();
        claims.retain(|_, claim| now < claim.until + if claim.recalled { PATIENCE } else { KEEP });
        if claims.len() >= CAPACITY {
            let oldest = claims.iter().filter(|(_, claim)| !claim.recalled).min_by_key(|(_, claim)| claim.until);
            if let Some(oldest) = oldest.map(|(rel, _)| rel.clone()) {
                claims.remove(&oldest);
            }
        }
        claims.insert(rel, Claim { id, until, admitted: false, recalled: false, placed: None });
    }

    /// The claim has become a job, or something else that can be called back.
    pub fn admitted(&self, id: JobId) {
        if let Some(claim) = self.lock().values_mut().find(|claim| claim.id == id) {
            claim.admitted = true;
        }
    }

    /// Whether the sidecar `rel`, first seen at `seen`, is for a picture that was just claimed.
    pub fn late(&self, rel: &OsStr, seen: Instant, now: Instant) -> Late {
        let claims = self.lock();
        if claims.is_empty() {
            return Late::No;
        }
        let (folder, name) = names::split(rel);
        let base = names::base_of_sidecar(name.as_bytes());
        let mut found = Late::No;
        let counts = |claim: &Claim| if claim.recalled { now < claim.until + PATIENCE } else { seen <= claim.until };
        for (picture, claim) in claims.iter().filter(|(_, claim)| counts(claim)) {
            let (its_folder, its_name) = names::split(picture);
            if its_folder == folder && names::belongs(base, its_name.as_bytes()) {
                if claim.recalled || !claim.admitted {
                    found = Late::Later;
                } else {
                    return Late::Recall(claim.id);
                }
            }
        }
        found
    }

    /// Marks a job as called back; says where its source was placed, should that have happened already.
    pub fn recall(&self, id: JobId) -> Option<(Bundle, Placed)> {
        let mut claims = self.lock();
        let claim = claims.values_mut().find(|claim| claim.id == id)?;
        claim.recalled = true;
        claim.placed.take()
    }

    /// The source that was called back lies in the inbox again.
    pub fn returned(&self, id: JobId) {
        self.lock().retain(|_, claim| claim.id != id);
    }

    /// Runs `place` on a source whose job has ended; its argument says whether the source was called back. What it
    /// placed is remembered, in case a sidecar comes yet.
    pub fn ending<E>(
        &self,
        id: JobId,
        bundle: &Bundle,
        place: impl FnOnce(bool) -> Result<Option<Placed>, E>,
    ) -> Result<(), E> {
        let mut claims = self.lock();
        let Some((rel, claim)) = claims.iter_mut().find(|(_, claim)| claim.id == id) else {
            drop(claims);
            return place(false).map(drop);
        };
        // Under the lock: a recall must see either a source that is not placed yet, or where it was placed.
        let placed = place(claim.recalled)?;
        if claim.recalled {
            let rel = rel.clone();
            claims.remove(&rel);
        } else if let Some(placed) = placed {
            claim.placed = Some((bundle.clone(), placed));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(last: char) -> JobId {
        format!("01JD000000000000000000000{last}").parse().expect("an id")
    }

    fn placed() -> Placed {
        Placed { folder: "done".into(), name: "a.jpg".into(), sidecars: Vec::new() }
    }

    #[test]
    fn only_a_sidecar_of_that_picture_and_in_time_calls_it_back() {
        let now = Instant::now();
        let until = now + Duration::from_secs(2);
        let recent = Recent::default();
        recent.claimed("x/a.jpg".into(), id('1'), until, now);
        let late = |rel: &str, seen| recent.late(OsStr::new(rel), seen, now);
        assert_eq!(late("x/a.jpg.toml", now), Late::Later, "not a job yet");
        recent.admitted(id('1'));
        for sidecar in ["x/a.jpg.toml", "x/a.json", "x/a.txt"] {
            assert_eq!(late(sidecar, now), Late::Recall(id('1')), "{sidecar}");
        }
        assert_eq!(late("x/a.jpg.toml", until + Duration::from_millis(1)), Late::No);
        assert_eq!(late("a.jpg.toml", now), Late::No, "another folder");
        assert_eq!(late("x/b.toml", now), Late::No);
    }

    fn bundle(rel: &str) -> Bundle {
        Bundle::new::<OsString>(OsStr::new(rel), &[])
    }

    #[test]
    fn a_recall_meets_the_source_before_or_after_it_was_placed() {
        let now = Instant::now();
        let recent = Recent::default();
        for (n, placed_first) in [('1', true), ('2', false)] {
            recent.claimed(format!("{n}.jpg").into(), id(n), now, now);
            recent.admitted(id(n));
            if placed_first {
                let end = |recalled: bool| Ok::<_, ()>((!recalled).then(placed));
                recent.ending(id(n), &bundle("1.jpg"), end).expect("fine");
                assert_eq!(recent.recall(id(n)), Some((bundle("1.jpg"), placed())));
                recent.returned(id(n));
                assert_eq!(recent.late(OsStr::new("1.toml"), now, now), Late::No);
            } else {
                assert_eq!(recent.recall(id(n)), None);
                assert_eq!(recent.late(OsStr::new("2.toml"), now, now), Late::Later);
                let mut back = false;
                let end = |recalled| {
                    back = recalled;
                    Ok::<_, ()>(None)
                };
                recent.ending(id(n), &bundle("2.jpg"), end).expect("fine");
                assert!(back);
                assert_eq!(recent.late(OsStr::new("2.toml"), now, now), Late::No, "it is back beside its picture");
            }
        }
    }

    #[test]
    fn pictures_are_remembered_for_a_while_and_not_without_bound() {
        let now = Instant::now();
        let recent = Recent::default();
        for n in 0..2 * CAPACITY {
            let id = JobId::from_ulid(ulid::Ulid::from_parts(n as u64, 0));
            recent.claimed(n.to_string().into(), id, now + Duration::from_secs(1), now);
        }
        assert_eq!(recent.lock().len(), CAPACITY);
        recent.claimed("new".into(), id('1'), now, now + Duration::from_mins(10));
        assert_eq!(recent.lock().len(), 1);
    }
}

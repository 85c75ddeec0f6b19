//! What the inbox says about itself: its status, its problems, its metrics.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    sync::{Mutex, PoisonError},
};

use atelier_domain::Timestamp;
use serde::Serialize;

/// How the inbox as a whole is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct InboxStatus {
    /// `inotify`, `poll` or `off`.
    pub watching: &'static str,
    /// Files that are there and not claimed yet.
    pub waiting: u64,
    pub last_scan: Option<Timestamp>,
    /// Looks at everything since the start.
    pub scans: u64,
    /// How often the kernel's queue of events ran over.
    pub overflows: u64,
    /// What somebody has to do something about.
    pub problems: Vec<Problem>,
}

/// A file or folder that is not taken, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Below the inbox; bytes that are no UTF-8 shown as U+FFFD.
    pub path: String,
    pub problem: String,
    pub since: Timestamp,
}

/// More are neither kept nor said, until some of these are solved.
const MAX_PROBLEMS: usize = 256;

/// Problems, each said once for as long as it lasts.
#[derive(Debug, Default)]
pub struct Problems {
    known: HashMap<OsString, (Problem, u64)>,
    scan: u64,
}

impl Problems {
    /// Notes a problem and, where it is new, logs it.
    pub fn report(&mut self, rel: &OsStr, problem: impl Into<String>) {
        let problem = problem.into();
        let path = rel.to_string_lossy().into_owned();
        if let Some((known, scan)) = self.known.get_mut(rel) {
            *scan = self.scan;
            if known.problem == problem {
                return;
            }
        }
        if self.known.len() >= MAX_PROBLEMS && !self.known.contains_key(rel) {
            return;
        }
        tracing::warn!(path, "inbox: {problem}");
        metrics::counter!("atelier_inbox_problems_total").increment(1);
        let problem = Problem { path, problem, since: Timestamp::now() };
        self.known.insert(rel.to_owned(), (problem, self.scan));
    }

    pub fn solved(&mut self, rel: &OsStr) {
        self.known.remove(rel);
    }

    pub fn begin_scan(&mut self) {
        self.scan += 1;
    }

    /// Forgets what this scan did not come by and `lasts` does not vouch for.
    pub fn end_scan(&mut self, lasts: impl Fn(&OsStr) -> bool) {
        let scan = self.scan;
        self.known.retain(|rel, (_, seen)| *seen == scan || lasts(rel));
    }

    pub fn list(&self) -> Vec<Problem> {
        let mut list: Vec<_> = self.known.values().map(|(problem, _)| problem.clone()).collect();
        list.sort_by(|a, b| (a.since, &a.path).cmp(&(b.since, &b.path)));
        list
    }
}

/// The status as the handle reads it.
#[derive(Debug, Default)]
pub struct Shared(Mutex<InboxStatus>);

impl Shared {
    pub fn get(&self) -> InboxStatus {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set(&self, status: InboxStatus) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_kept_for_as_long_as_it_lasts_and_their_number_is_bounded() {
        let mut problems = Problems::default();
        let rel = OsStr::new("link");
        problems.report(rel, "is a symbolic link");
        let since = problems.list()[0].since;
        problems.begin_scan();
        problems.report(rel, "is a symbolic link");
        problems.end_scan(|_| false);
        assert_eq!(problems.list()[0].since, since);
        problems.begin_scan();
        problems.end_scan(|_| true);
        assert_eq!(problems.list().len(), 1);
        problems.begin_scan();
        problems.end_scan(|_| false);
        assert!(problems.list().is_empty());
        for n in 0..2 * MAX_PROBLEMS {
            problems.report(OsStr::new(&n.to_string()), "x");
        }
        assert_eq!(problems.list().len(), MAX_PROBLEMS);
    }
}

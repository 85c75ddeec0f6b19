//! What the thread that reads requests tells the one that works.

use std::sync::{Mutex, MutexGuard, PoisonError};

use atelier_domain::{JobId, protocol::Stop};

/// Shared by both threads.
#[derive(Debug, Default)]
pub struct Control {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The job that was asked for and has not ended yet.
    job: Option<JobId>,
    stop: Option<Stop>,
}

impl Control {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here can be half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `job` was asked for. False while another one runs.
    pub fn begin(&self, job: JobId) -> bool {
        let mut state = self.state();
        if state.job.is_some() {
            return false;
        }
        *state = State { job: Some(job), stop: None };
        true
    }

    /// Asks for the end of `job`, if it is the one that runs. Calling it off outweighs a checkpoint.
    pub fn stop(&self, job: JobId, how: Stop) {
        let mut state = self.state();
        if state.job == Some(job) && state.stop != Some(Stop::Cancel) {
            state.stop = Some(how);
        }
    }

    /// Whether the running job is to end. To be asked between two steps.
    pub fn stop_requested(&self) -> Option<Stop> {
        self.state().stop
    }

    pub fn is_busy(&self) -> bool {
        self.state().job.is_some()
    }

    /// The job has ended. Before its last event is sent, so that what the daemon asks next is not taken for a request
    /// during the job.
    pub fn end(&self) {
        *self.state() = State::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_reaches_only_the_job_that_runs_and_cancel_outweighs_a_checkpoint() {
        let id = |n: u128| JobId::from_ulid(n.into());
        let control = Control::default();
        control.stop(id(1), Stop::Cancel);
        assert!(control.begin(id(1)));
        assert_eq!(control.stop_requested(), None, "a stop from before the job");
        assert!(!control.begin(id(2)), "one job at a time");
        control.stop(id(2), Stop::Cancel);
        assert_eq!(control.stop_requested(), None, "a stop for another job");
        control.stop(id(1), Stop::Checkpoint);
        assert_eq!(control.stop_requested(), Some(Stop::Checkpoint));
        control.stop(id(1), Stop::Cancel);
        control.stop(id(1), Stop::Checkpoint);
        assert_eq!(control.stop_requested(), Some(Stop::Cancel));
        control.end();
        assert!(!control.is_busy());
        assert!(control.begin(id(1)));
        assert_eq!(control.stop_requested(), None, "an old stop");
    }
}

//! A job's status and every way it may change. The one place that decides; the database's CHECKs mirror it.

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobStatus {
    /// Waits for the worker.
    Queued,
    /// The worker has it.
    Running,
    /// Failed in a way worth trying again; waits for its back-off to end.
    Retrying,
    Succeeded,
    Failed,
    Cancelled,
}

/// What happens to a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobEvent {
    /// The worker takes it.
    Start,
    /// Its outputs are published.
    Succeed,
    /// It failed for good.
    Fail,
    /// It failed and will be tried again after a pause.
    Retry,
    /// The pause has ended.
    RetryDue,
    /// A shutdown, a crash or a lost worker: it waits again.
    Interrupt,
    /// Somebody called it off.
    Cancel,
    /// Somebody asks for another try of an ended job.
    Resubmit,
}

impl JobEvent {
    pub const ALL: [Self; 8] = [
        Self::Start,
        Self::Succeed,
        Self::Fail,
        Self::Retry,
        Self::RetryDue,
        Self::Interrupt,
        Self::Cancel,
        Self::Resubmit,
    ];
}

impl JobStatus {
    pub const ALL: [Self; 6] =
        [Self::Queued, Self::Running, Self::Retrying, Self::Succeeded, Self::Failed, Self::Cancelled];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Retrying => "retrying",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == name)
    }

    /// Whether the job will not change by itself any more.
    pub const fn is_ended(self) -> bool {
        match self {
            Self::Queued | Self::Running | Self::Retrying => false,
            Self::Succeeded | Self::Failed | Self::Cancelled => true,
        }
    }

    /// The status after `event`, or `None` where the event is not possible.
    #[must_use]
    pub const fn after(self, event: JobEvent) -> Option<Self> {
        match (self, event) {
            (Self::Queued, JobEvent::Start) => Some(Self::Running),
            (Self::Running, JobEvent::Succeed) => Some(Self::Succeeded),
            // A job may fail before it ever starts: an input that has gone, crashes counted at boot.
            (Self::Queued | Self::Running | Self::Retrying, JobEvent::Fail) => Some(Self::Failed),
            (Self::Running, JobEvent::Retry) => Some(Self::Retrying),
            (Self::Retrying, JobEvent::RetryDue)
            | (Self::Running, JobEvent::Interrupt)
            | (Self::Failed | Self::Cancelled, JobEvent::Resubmit) => Some(Self::Queued),
            (Self::Queued | Self::Running | Self::Retrying, JobEvent::Cancel) => Some(Self::Cancelled),
            _ => None,
        }
    }

    /// The statuses from which `event` is possible, for compare-and-set updates.
    pub fn sources(event: JobEvent) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(move |status| status.after(event).is_some())
    }
}

impl std::fmt::Display for JobStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wire_names_are_stable() {
        let names: Vec<_> = JobStatus::ALL.iter().map(|status| status.as_str()).collect();
        assert_eq!(names, ["queued", "running", "retrying", "succeeded", "failed", "cancelled"]);
        for status in JobStatus::ALL {
            assert_eq!(serde_json::to_string(&status).expect("serialises"), format!("\"{status}\""));
            assert_eq!(JobStatus::parse(status.as_str()), Some(status));
        }
    }

    #[test]
    fn every_pair_of_status_and_event_is_decided() {
        use JobEvent as E;
        use JobStatus as S;
        let allowed = [
            (S::Queued, E::Start, S::Running),
            (S::Queued, E::Fail, S::Failed),
            (S::Queued, E::Cancel, S::Cancelled),
            (S::Running, E::Succeed, S::Succeeded),
            (S::Running, E::Fail, S::Failed),
            (S::Running, E::Retry, S::Retrying),
            (S::Running, E::Interrupt, S::Queued),
            (S::Running, E::Cancel, S::Cancelled),
            (S::Retrying, E::RetryDue, S::Queued),
            (S::Retrying, E::Fail, S::Failed),
            (S::Retrying, E::Cancel, S::Cancelled),
            (S::Failed, E::Resubmit, S::Queued),
            (S::Cancelled, E::Resubmit, S::Queued),
        ];
        for status in S::ALL {
            for event in E::ALL {
                let expected = allowed.iter().find(|(s, e, _)| *s == status && *e == event).map(|(_, _, to)| *to);
                assert_eq!(status.after(event), expected, "{status:?} {event:?}");
            }
        }
    }

    #[test]
    fn an_ended_job_only_leaves_its_status_when_asked_to() {
        for status in S_ENDED {
            for event in JobEvent::ALL {
                if event != JobEvent::Resubmit {
                    assert_eq!(status.after(event), None);
                }
            }
        }
    }

    const S_ENDED: [JobStatus; 3] = [JobStatus::Succeeded, JobStatus::Failed, JobStatus::Cancelled];
}

//! How far things are: a bar where a person waits on a terminal, lines elsewhere.

use atelier_domain::{Job, JobStatus};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output::{note, plain, stderr_is_terminal};

/// A job's progress on standard error.
pub(super) enum JobBar {
    Bar(ProgressBar),
    /// One line for each status, phase and tenth.
    Lines {
        last: Option<(JobStatus, String, u32)>,
    },
}

const SCALE: u64 = 1000;

impl JobBar {
    pub(super) fn new() -> Self {
        if !stderr_is_terminal() {
            return Self::Lines { last: None };
        }
        let bar = ProgressBar::with_draw_target(Some(SCALE), ProgressDrawTarget::stderr());
        bar.set_style(style("{bar:30} {percent:>3} % {elapsed:>4} {wide_msg}"));
        bar.enable_steady_tick(std::time::Duration::from_millis(250));
        Self::Bar(bar)
    }

    pub(super) fn show(&mut self, job: &Job) {
        let progress = &job.progress;
        let fraction = progress.fraction.clamp(0.0, 1.0);
        match self {
            Self::Bar(bar) => {
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 1000")]
                bar.set_position((fraction * 1000.0) as u64);
                bar.set_message(describe(job));
            }
            Self::Lines { last } => {
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 10")]
                let tenth = (fraction * 10.0) as u32;
                let now = (job.status, progress.phase.clone(), tenth);
                if last.as_ref() != Some(&now) {
                    note(&format!("{} {:>3.0} % {}", job.id, fraction * 100.0, describe(job)));
                    *last = Some(now);
                }
            }
        }
    }

    /// Leaves the terminal as it was.
    pub(super) fn finish(self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

/// `running: run 7/20`.
fn describe(job: &Job) -> String {
    let progress = &job.progress;
    let phase = plain(&progress.phase);
    match job.status {
        JobStatus::Running if progress.steps > 0 => {
            format!("running: {phase} {}/{}", progress.step, progress.steps)
        }
        JobStatus::Running => format!("running: {phase}"),
        JobStatus::Retrying => format!("retrying after attempt {} of {}", job.attempt, job.max_attempts),
        // What it waits for, where that is not just its turn.
        JobStatus::Queued if progress.phase != "queued" => format!("queued: {phase}"),
        JobStatus::Queued | JobStatus::Succeeded | JobStatus::Failed | JobStatus::Cancelled => {
            job.status.as_str().to_owned()
        }
    }
}

/// Bytes on their way; hidden where nobody watches.
pub(super) fn bytes(total: u64, what: &str) -> ProgressBar {
    if !stderr_is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    bar.set_style(style("{bar:30} {percent:>3} % {bytes}/{total_bytes} {bytes_per_sec} {wide_msg}"));
    bar.set_message(plain(what));
    bar
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the template is right").progress_chars("=> ")
}

//! How far things are: a bar where a person waits on a terminal, lines elsewhere.

use atelier_domain::{Job, JobStatus};
use console::{Term, measure_text_width};
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
/// What stands before the message, with the spaces between: `BAR`, `100 %` and how long it has taken.
const BEFORE_MESSAGE: usize = 42;

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
                bar.set_message(with_text(&describe(job), spoken(job), room()));
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

/// What a running job has written so far; empty where it writes nothing.
fn spoken(job: &Job) -> &str {
    job.progress.text.as_deref().filter(|_| job.status == JobStatus::Running).unwrap_or_default()
}

/// How many columns a message has beside its bar.
fn room() -> usize {
    let columns = Term::stderr().size_checked().map_or(80, |(_, columns)| usize::from(columns));
    // The last one stays free: some terminals begin a new line there.
    columns.saturating_sub(BEFORE_MESSAGE + 1)
}

/// `running: run 7/20  … end of the text so far`, in so many columns.
fn with_text(message: &str, text: &str, columns: usize) -> String {
    let end = tail(text, columns.saturating_sub(measure_text_width(message) + 2));
    if end.is_empty() { message.to_owned() } else { format!("{message}  {end}") }
}

/// The end of a text's last line in at most so many columns, without control characters.
fn tail(text: &str, columns: usize) -> String {
    let line = text.trim_end().lines().next_back().unwrap_or_default();
    let line: String = line.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if measure_text_width(&line) <= columns {
        return line;
    }
    let width = |c: char| measure_text_width(c.encode_utf8(&mut [0; 4]));
    let mut start = line.len();
    // For the mark that something is left out.
    let mut left = columns.saturating_sub(1);
    for (at, c) in line.char_indices().rev() {
        let Some(rest) = left.checked_sub(width(c)) else { break };
        left = rest;
        start = at;
    }
    // A word begins there, and no accent without its letter.
    let end = line[start..].trim_start_matches(|c: char| c.is_whitespace() || width(c) == 0);
    if end.is_empty() { String::new() } else { format!("…{end}") }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_shown_from_its_end() {
        assert_eq!(tail("a red boat", 10), "a red boat");
        assert_eq!(tail("a red boat", 9), "…red boat");
        assert_eq!(tail("a red boat", 6), "…boat");
        assert_eq!(tail("one line\n\na red boat\n", 40), "a red boat");
        for nothing in [tail("a red boat", 1), tail("a red boat", 0), tail("", 9), tail("\n \n", 9)] {
            assert_eq!(nothing, "");
        }
    }

    #[test]
    fn a_text_cannot_command_the_terminal() {
        let text = tail("a\x1b[2Jboat\rat\u{9b}31m sea\x07\t!", 60);
        assert!(!text.chars().any(char::is_control), "{text:?}");
        assert!(text.ends_with("31m sea  !"), "{text:?}");
    }

    #[test]
    fn a_text_is_never_wider_than_its_room() {
        for text in ["湖に赤い小舟が浮かぶ", "cafe\u{301} au bord de l’e\u{301}tang", "🦊 and 👩‍👩‍👧 on a boat"]
        {
            for columns in 0..30 {
                let end = tail(text, columns);
                assert!(measure_text_width(&end) <= columns, "{end:?} in {columns}");
                let shown = end.strip_prefix('…').unwrap_or(&end);
                assert!(text.ends_with(shown) && !shown.starts_with('\u{301}'), "{end:?} in {columns}");
            }
        }
        assert_eq!(tail("湖に赤い", 6), "…赤い");
        assert_eq!(tail("湖に赤い", 8), "湖に赤い");
    }

    #[test]
    fn a_message_leaves_the_rest_of_its_room_to_the_text() {
        assert_eq!(with_text("running: run 7/20", "", 60), "running: run 7/20");
        assert_eq!(with_text("running: run 7/20", "a red boat", 29), "running: run 7/20  a red boat");
        assert_eq!(with_text("running: run 7/20", "a red boat", 25), "running: run 7/20  …boat");
        assert_eq!(with_text("running: run 7/20", "a red boat", 12), "running: run 7/20");
    }
}

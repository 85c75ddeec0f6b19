//! What shall go wrong, written in a job's prompt.
//!
//! `fake:CLAUSE;CLAUSE|TEXT`: clauses are `NAME[@STEP][=VALUE][*TIMES]`, and TEXT is the prompt that the picture is
//! made of, so that a run with mishaps can be compared with one without. `@STEP`: once so many steps are done (and
//! the checkpoint that is due then is written); a job that goes on from a later step meets it at once. `*TIMES`: only
//! while attempt + crashes is at most TIMES. Every clause may repeat the `fake:`.
//!
//! | clause | what happens |
//! | --- | --- |
//! | `segv@3`, `abort@3` | dies by SIGSEGV, SIGABRT |
//! | `kill@3`, `oom@3` | dies by SIGKILL, as at the kernel's hands when memory runs out |
//! | `exit@3=7` | exits with code 7 |
//! | `hang@3` | goes on for ever without a word, deaf to `Stop` |
//! | `garbage@3` | writes bytes that are no frame to the socket |
//! | `noise@3` | writes rubbish to standard output and error, and goes on |
//! | `fail@3=disk_full` | answers `Failed` with that code |
//! | `preview@3` | a small picture of how far it is |
//! | `slow=200` | every step takes 200 ms |
//! | `ignore-cancel` | deaf to `Stop`, but goes on |

use std::time::Duration;

use atelier_domain::ErrorCode;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mishap {
    Segv,
    Abort,
    Kill,
    Exit(u8),
    Hang,
    Garbage,
    Noise,
    /// None, but what a worker does at a step now and then.
    Preview,
    Fail(ErrorCode),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Script {
    /// Each happens once so many steps are done.
    mishaps: Vec<(u32, Mishap)>,
    pub(crate) step_time: Option<Duration>,
    pub(crate) ignores_stop: bool,
    /// The prompt without the script.
    pub(crate) text: String,
}

impl Script {
    /// Reads `prompt`; `tries` is attempt + crashes.
    ///
    /// # Errors
    /// A clause that does not exist: a test that misspells one must not pass.
    pub(crate) fn parse(prompt: &str, tries: u32) -> Result<Self, String> {
        let Some(rest) = prompt.strip_prefix("fake:") else {
            return Ok(Self { text: prompt.into(), ..Self::default() });
        };
        let (clauses, text) = rest.split_once('|').unwrap_or((rest, ""));
        let mut script = Self { text: text.into(), ..Self::default() };
        for clause in clauses.split(';') {
            let clause = clause.trim();
            let clause = clause.strip_prefix("fake:").unwrap_or(clause);
            script.add(clause, tries).ok_or_else(|| format!("the prompt's clause {clause:?} is not one I know"))?;
        }
        Ok(script)
    }

    fn add(&mut self, clause: &str, tries: u32) -> Option<()> {
        let (clause, times) = match clause.split_once('*') {
            Some((clause, times)) => (clause, times.parse::<u32>().ok()?),
            None => (clause, u32::MAX),
        };
        let (clause, value) = match clause.split_once('=') {
            Some((clause, value)) => (clause, Some(value)),
            None => (clause, None),
        };
        let (name, step) = match clause.split_once('@') {
            Some((name, step)) => (name, Some(step.parse::<u32>().ok()?)),
            None => (clause, None),
        };
        let active = tries <= times;
        let mishap = match (name, value) {
            ("slow", Some(ms)) if step.is_none() => {
                let time = Duration::from_millis(ms.parse().ok()?);
                self.step_time = self.step_time.or(active.then_some(time));
                return Some(());
            }
            ("ignore-cancel", None) if step.is_none() => {
                self.ignores_stop |= active;
                return Some(());
            }
            ("segv", None) => Mishap::Segv,
            ("abort", None) => Mishap::Abort,
            ("kill" | "oom", None) => Mishap::Kill,
            ("exit", Some(code)) => Mishap::Exit(code.parse().ok()?),
            ("hang", None) => Mishap::Hang,
            ("garbage", None) => Mishap::Garbage,
            ("noise", None) => Mishap::Noise,
            ("preview", None) => Mishap::Preview,
            ("fail", Some(code)) => Mishap::Fail(ErrorCode::parse(code)?),
            _ => return None,
        };
        if active {
            self.mishaps.push((step?, mishap));
        }
        step.map(|_| ())
    }

    /// Takes what is due once `done` of `steps` steps are done. A step beyond the last means the last.
    pub(crate) fn due(&mut self, done: u32, steps: u32) -> Vec<Mishap> {
        let (due, later) = self.mishaps.drain(..).partition(|(step, _)| (*step).min(steps) <= done);
        self.mishaps = later;
        due.into_iter().map(|(_, mishap): (u32, Mishap)| mishap).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(prompt: &str, tries: u32) -> Script {
        Script::parse(prompt, tries).expect(prompt)
    }

    #[test]
    fn an_ordinary_prompt_is_only_text() {
        let script = parse("a house; a lake | fake:kill@1", 1);
        assert_eq!(script, Script { text: "a house; a lake | fake:kill@1".into(), ..Script::default() });
    }

    #[test]
    fn clauses_and_text_are_told_apart() {
        let mut script = parse("fake:slow=20; noise@2;fake:exit@3=7;ignore-cancel|a house|or two", 1);
        assert_eq!(script.text, "a house|or two");
        assert_eq!(script.step_time, Some(Duration::from_millis(20)));
        assert!(script.ignores_stop);
        assert_eq!(script.due(1, 8), []);
        assert_eq!(script.due(2, 8), [Mishap::Noise]);
        assert_eq!(script.due(2, 8), []);
        assert_eq!(script.due(5, 8), [Mishap::Exit(7)]);
    }

    #[test]
    fn a_clause_with_a_number_of_times_leaves_later_tries_alone() {
        assert_eq!(parse("fake:kill@3*2", 2).due(3, 8), [Mishap::Kill]);
        assert_eq!(parse("fake:kill@3*2", 3).due(3, 8), []);
        assert_eq!(parse("fake:slow=20*1;ignore-cancel*1", 2), Script::default());
    }

    #[test]
    fn a_step_beyond_the_last_means_the_last() {
        let mut script = parse("fake:fail@99=disk_full", 1);
        assert_eq!(script.due(7, 8), []);
        assert_eq!(script.due(8, 8), [Mishap::Fail(ErrorCode::DiskFull)]);
    }

    #[test]
    fn a_misspelt_clause_is_an_error() {
        for prompt in [
            "fake:",
            "fake:kil@3",
            "fake:kill",
            "fake:kill@x",
            "fake:kill@3=1",
            "fake:exit@3",
            "fake:exit@3=x",
            "fake:fail@3=made_up",
            "fake:slow",
            "fake:slow@3=1",
            "fake:kill@3*x",
            "fake:noise@1;;kill@3",
        ] {
            assert!(Script::parse(prompt, 1).is_err(), "{prompt}");
        }
    }
}

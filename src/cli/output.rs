//! What people and programs read: text and JSON on standard output, notes on standard error.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _, Write as _},
};

use atelier_domain::Timestamp;
use serde::Serialize;

use super::error::{CliError, Result};

/// Writes to standard output. A reader that has gone ends the command quietly.
pub(super) fn print(text: &str) -> Result {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|error| CliError::stdout(&error))
}

pub(super) fn line(text: &str) -> Result {
    print(&format!("{text}\n"))
}

/// A whole JSON document, readable.
pub(super) fn json(value: &impl Serialize) -> Result {
    let text = serde_json::to_string_pretty(value).map_err(|error| CliError::failed(error.to_string()))?;
    line(&text)
}

/// One JSON document a line, for streams.
pub(super) fn json_line(value: &impl Serialize) -> Result {
    let text = serde_json::to_string(value).map_err(|error| CliError::failed(error.to_string()))?;
    line(&text)
}

/// Says something beside the output. That nobody listens does not matter.
pub(super) fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Tells an error and what to do about it.
pub(super) fn complain(error: &CliError) {
    if error.message.is_empty() {
        return;
    }
    let mut lines = error.message.lines().map(plain);
    let mut text = format!("atelier: {}", lines.next().unwrap_or_default());
    for line in lines {
        let _ = write!(text, "\n  {line}");
    }
    for line in error.hint.lines() {
        let _ = write!(text, "\n  → {}", plain(line));
    }
    note(&text);
}

pub(super) fn stdout_is_terminal() -> bool {
    io::stdout().is_terminal()
}

pub(super) fn stderr_is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Without control characters: names come from others, and a terminal obeys escape sequences.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// A text of several lines, as [`plain`] where a person reads it; a program gets it as it is.
pub(super) fn text(text: &str) -> Result {
    if stdout_is_terminal() { line(&plain_lines(text)) } else { line(text) }
}

fn plain_lines(text: &str) -> String {
    text.lines().map(plain).collect::<Vec<_>>().join("\n")
}

/// Columns as wide as their widest cell; nothing follows the last.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let head: Vec<String> = head.iter().map(|&cell| cell.to_owned()).collect();
    let rows: Vec<Vec<String>> =
        std::iter::once(&head).chain(rows).map(|row| row.iter().map(|cell| plain(cell)).collect()).collect();
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Names and values under each other.
pub(super) fn pairs<S: AsRef<str>>(pairs: &[(S, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.as_ref().chars().count()).max().unwrap_or(0);
    pairs.iter().fold(String::new(), |mut text, (name, value)| {
        let _ = writeln!(text, "{:<width$}  {}", plain(name.as_ref()), plain(value));
        text
    })
}

/// A point in time in the reader's own zone.
pub(super) fn local(time: Timestamp) -> String {
    jiff::Timestamp::from_millisecond(time.0).map_or_else(
        |_| time.to_string(),
        |t| t.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string(),
    )
}

/// `9.1 MB`.
pub(super) fn size(bytes: u64) -> String {
    indicatif::DecimalBytes(bytes).to_string()
}

/// A stretch of time to the second, or to the tenth below a minute.
pub(super) fn seconds(from: Timestamp, to: Timestamp) -> String {
    let millis = u64::try_from(to.0.saturating_sub(from.0)).unwrap_or(0);
    if millis < 60_000 {
        return format!("{}.{} s", millis / 1000, millis % 1000 / 100);
    }
    humantime::format_duration(std::time::Duration::from_secs(millis / 1000)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_end_with_text() {
        let rows = vec![vec!["1".into(), "long one".into(), String::new()], vec!["22".into(), "x".into(), "y".into()]];
        assert_eq!(table(&["ID", "NAME", "Z"], &rows), "ID  NAME      Z\n1   long one\n22  x         y\n");
    }

    #[test]
    fn a_name_cannot_command_the_terminal() {
        assert_eq!(plain("a\x1b[31mb\nc"), "a\u{fffd}[31mb\u{fffd}c");
        let text = table(&["NAME"], &[vec!["x\ty\u{9b}31m".into()]]);
        assert!(!text.trim_end().replace('\n', "").chars().any(char::is_control), "{text:?}");
    }

    #[test]
    fn a_text_keeps_its_lines_and_commands_nothing() {
        assert_eq!(plain_lines("a boat\n\non a \x1b[31mlake\r\n"), "a boat\n\non a \u{fffd}[31mlake");
    }

    #[test]
    fn times_are_short() {
        assert_eq!(seconds(Timestamp(0), Timestamp(3_249)), "3.2 s");
        assert_eq!(seconds(Timestamp(0), Timestamp(83_249)), "1m 23s");
        assert_eq!(seconds(Timestamp(5), Timestamp(0)), "0.0 s");
    }
}

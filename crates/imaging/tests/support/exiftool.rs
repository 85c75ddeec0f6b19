//! `exiftool`, the oracle for metadata. It takes long to start, so each test's thread keeps one running.

use std::{
    cell::RefCell,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

struct Server {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

thread_local! {
    static SERVER: RefCell<Option<Server>> = const { RefCell::new(None) };
}

impl Server {
    fn start() -> Self {
        // Under `timeout`, because exiftool would wait for ever for a test that was killed.
        let mut child = Command::new("timeout")
            .args(["600", "exiftool", "-stay_open", "True", "-@", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("timeout runs");
        let input = child.stdin.take().expect("is piped");
        let output = BufReader::new(child.stdout.take().expect("is piped"));
        Self { child, input, output }
    }

    /// Runs one command, its arguments one a line; returns what it prints and whether it succeeded.
    fn run(&mut self, arguments: &[String]) -> (String, bool) {
        let mut lines = arguments.join("\n");
        lines.push_str("\n-echo3\nstatus ${status}\n-execute\n");
        // When it does not listen, it does not answer either, and is missed below.
        let _ = self.input.write_all(lines.as_bytes());
        let _ = self.input.flush();
        let mut text = String::new();
        while !text.ends_with("{ready}\n") {
            let read = self.output.read_line(&mut text).expect("exiftool answers");
            assert!(read > 0, "exiftool does not run; these tests need it (Debian: libimage-exiftool-perl): {text}");
        }
        let text = text.strip_suffix("{ready}\n").expect("has just been seen");
        let (text, status) = text.rsplit_once("status ").expect("the status comes last");
        (text.to_owned(), status.trim() == "0")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.input.write_all(b"-stay_open\nFalse\n");
        let _ = self.input.flush();
        let _ = self.child.wait();
    }
}

/// Runs `exiftool` and returns what it prints.
pub(crate) fn exiftool<S: AsRef<str>>(arguments: impl IntoIterator<Item = S>) -> String {
    let arguments: Vec<String> = arguments.into_iter().map(|argument| argument.as_ref().to_owned()).collect();
    SERVER.with_borrow_mut(|server| {
        let (text, succeeded) = server.get_or_insert_with(Server::start).run(&arguments);
        assert!(succeeded, "exiftool {arguments:?} failed: {text}");
        text
    })
}

/// The value of one tag as a number or plain text; empty when the file does not have it.
pub(crate) fn tag(path: &Path, tag: &str) -> String {
    exiftool(["-s3", "-n", &format!("-{tag}"), &path.to_string_lossy()]).trim_end().to_owned()
}

/// All tags, as `[Group] Name: value` lines, of the groups asked for.
pub(crate) fn tags(path: &Path, groups: &[&str]) -> Vec<String> {
    let mut arguments = vec!["-G1".to_owned(), "-s".into(), "-n".into(), "-a".into(), "-u".into()];
    arguments.extend(groups.iter().map(|group| format!("-{group}:all")));
    arguments.push(path.to_string_lossy().into_owned());
    exiftool(arguments).lines().map(str::to_owned).collect()
}

/// What exiftool finds wrong with a file, apart from what it calls minor.
pub(crate) fn problems(path: &Path) -> Vec<String> {
    exiftool(["-validate", "-warning", "-error", "-a", "-s3", &path.to_string_lossy()])
        .lines()
        .filter(|line| !line.contains("[minor]") && *line != "OK" && !line.ends_with("all minor)"))
        .map(str::to_owned)
        .collect()
}

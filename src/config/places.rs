//! Which folder a path in the configuration means.

use std::{
    ffi::OsString,
    path::{Component, Path, PathBuf},
};

use super::{
    error::{Origin, Wrong},
    value::Given,
};

/// The folders that relative paths and placeholders refer to.
#[derive(Clone, Debug)]
pub(super) struct Places {
    /// Absolute: for values from the defaults, the environment and flags.
    pub(super) working_dir: PathBuf,
    /// Absolute: for values from the file.
    pub(super) file_dir: Option<PathBuf>,
    /// `<credentials>`, where systemd passes credentials.
    pub(super) credentials: Option<PathBuf>,
    /// Where the hub's own programs keep models.
    pub(super) hf_cache: Option<PathBuf>,
    /// `<data>`, once it is known.
    pub(super) data: Option<PathBuf>,
}

impl Places {
    pub(super) fn path(&self, given: &Given) -> Result<PathBuf, Wrong> {
        const HINT: &str = "the path of a folder or file";
        let text = given.text().map_err(|wrong| wrong.hint(HINT))?;
        self.absolute(&text, given)
    }

    /// `""` is no path.
    pub(super) fn optional_path(&self, given: &Given) -> Result<Option<PathBuf>, Wrong> {
        if given.text().is_ok_and(|text| text.is_empty()) {
            return Ok(None);
        }
        self.path(given).map(Some)
    }

    pub(super) fn paths(&self, given: &Given) -> Result<Vec<PathBuf>, Wrong> {
        given.texts()?.iter().map(|text| self.absolute(text, given)).collect()
    }

    /// A program and its arguments; a program without a slash is looked up in `PATH` when it is started.
    pub(super) fn command(&self, given: &Given) -> Result<Vec<OsString>, Wrong> {
        let mut words = match given.text() {
            Ok(text) if text.is_empty() => Vec::new(),
            Ok(program) if !(given.bare && program.starts_with('[')) => vec![program],
            _ => given.texts().map_err(|_| {
                Wrong::new("expected a program, or a list of program and arguments")
                    .hint("for example \"/usr/lib/atelier/atelier-worker\"")
            })?,
        };
        if words.iter().any(|word| word.contains('\0')) || words.first().is_some_and(String::is_empty) {
            return Err(Wrong::new("the program has no name, or one with a NUL character"));
        }
        let arguments = words.split_off(words.len().min(1)).into_iter().map(OsString::from);
        let program = match words.pop() {
            Some(program) if program.contains('/') => Some(self.absolute(&program, given)?.into()),
            other => other.map(OsString::from),
        };
        Ok(program.into_iter().chain(arguments).collect())
    }

    fn absolute(&self, text: &str, given: &Given) -> Result<PathBuf, Wrong> {
        if text.is_empty() {
            return Err(Wrong::new("is empty").hint("write \".\" for the folder itself"));
        }
        if text.contains('\0') {
            return Err(Wrong::new("holds a NUL character"));
        }
        if text == "~" || text.starts_with("~/") {
            return Err(Wrong::new(format!("{text:?}: \"~\" is not expanded here")).hint("write the whole path"));
        }
        let path = if let Some(rest) = under(text, "<data>") {
            self.data.clone().ok_or_else(|| Wrong::new("\"<data>\" is this very folder"))?.join(rest)
        } else if let Some(rest) = under(text, "<credentials>") {
            let folder = self.credentials.clone().ok_or_else(|| {
                Wrong::new("systemd passes no credentials to this process")
                    .hint("\"<credentials>\" needs LoadCredential= in the unit")
            })?;
            folder.join(rest)
        } else {
            match (&given.origin, &self.file_dir) {
                (Origin::File { .. }, Some(folder)) => folder.join(text),
                _ => self.working_dir.join(text),
            }
        };
        Ok(plain(&path))
    }
}

fn under<'a>(text: &'a str, placeholder: &str) -> Option<&'a str> {
    let rest = text.strip_prefix(placeholder)?;
    if rest.is_empty() { Some(rest) } else { rest.strip_prefix('/').map(|rest| rest.trim_start_matches('/')) }
}

/// Without `.`, and without a slash at the end. `..` stays: what it means depends on symbolic links.
fn plain(path: &Path) -> PathBuf {
    path.components().filter(|component| *component != Component::CurDir).collect()
}

/// Whether `inner` is `outer` or lies in it, symbolic links followed as far as the paths exist.
/// Answers with what is left of `inner`.
pub(super) fn inside(inner: &Path, outer: &Path) -> Option<PathBuf> {
    real(inner).strip_prefix(real(outer)).ok().map(Path::to_owned)
}

fn real(path: &Path) -> PathBuf {
    for ancestor in path.ancestors() {
        if let Ok(real) = ancestor.canonicalize() {
            return match path.strip_prefix(ancestor) {
                Ok(rest) if !rest.as_os_str().is_empty() => lexical(&real.join(rest)),
                _ => real,
            };
        }
    }
    lexical(path)
}

fn lexical(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                out.pop();
            }
            Component::Normal(_) | Component::RootDir | Component::Prefix(_) => out.push(component),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use toml::Value;

    use super::*;

    fn places() -> Places {
        Places {
            working_dir: "/here".into(),
            file_dir: Some("/etc/atelier".into()),
            credentials: None,
            hf_cache: None,
            data: Some("/var/lib/atelier".into()),
        }
    }

    fn given(value: impl Into<Value>, origin: Origin) -> Given {
        let bare = origin == Origin::Flag;
        Given { value: value.into(), bare, origin }
    }

    fn file() -> Origin {
        Origin::File { path: "/etc/atelier/config.toml".into(), line: 1 }
    }

    #[test]
    fn a_relative_path_counts_from_where_it_stands() {
        let path = |text: &str, origin| places().path(&given(text, origin)).expect("a path");
        assert_eq!(path("data", Origin::Default), Path::new("/here/data"));
        assert_eq!(path("data", Origin::Flag), Path::new("/here/data"));
        assert_eq!(path("data", file()), Path::new("/etc/atelier/data"));
        assert_eq!(path("./data/", file()), Path::new("/etc/atelier/data"));
        assert_eq!(path("/abs", file()), Path::new("/abs"));
        assert_eq!(path("<data>/outbox", file()), Path::new("/var/lib/atelier/outbox"));
        assert_eq!(path("<data>", file()), Path::new("/var/lib/atelier"));
        assert_eq!(path("<data>//etc", file()), Path::new("/var/lib/atelier/etc"));
        assert_eq!(path("<data>x", file()), Path::new("/etc/atelier/<data>x"));
    }

    #[test]
    fn what_is_no_path_is_refused() {
        for text in ["", "~", "~/inbox", "a\0b", "<credentials>/tokens"] {
            places().path(&given(text, file())).expect_err(text);
        }
        assert_eq!(places().optional_path(&given("", file())), Ok(None));
        let with = Places { credentials: Some("/run/credentials/a".into()), ..places() };
        assert_eq!(with.path(&given("<credentials>/tokens", file())), Ok(PathBuf::from("/run/credentials/a/tokens")));
    }

    #[test]
    fn a_command_is_a_program_or_a_list() {
        let command = |value: Value, origin| {
            let words = places().command(&given(value, origin)).expect("a command");
            words.into_iter().map(|word| word.into_string().expect("UTF-8")).collect::<Vec<_>>()
        };
        assert_eq!(command("".into(), file()), Vec::<String>::new());
        assert_eq!(command(Value::Array(vec![]), file()), Vec::<String>::new());
        assert_eq!(command("atelier-worker".into(), file()), ["atelier-worker"]);
        assert_eq!(command("bin/my worker".into(), file()), ["/etc/atelier/bin/my worker"]);
        assert_eq!(command(vec!["python3", "./x.py"].into(), file()), ["python3", "./x.py"]);
        assert_eq!(command("['a', '-v']".into(), Origin::Flag), ["a", "-v"]);
        assert_eq!(command("/bin/w".into(), Origin::Flag), ["/bin/w"]);
        places().command(&given(3, file())).expect_err("a number");
        places().command(&given(vec![""], file())).expect_err("no name");
    }

    #[test]
    fn nesting_follows_symbolic_links() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path();
        std::fs::create_dir(root.join("inbox")).expect("mkdir");
        std::os::unix::fs::symlink(root.join("inbox"), root.join("link")).expect("symlink");
        assert_eq!(inside(&root.join("link/out"), &root.join("inbox")), Some("out".into()));
        assert_eq!(inside(&root.join("inbox"), &root.join("inbox")), Some("".into()));
        assert_eq!(inside(&root.join("inbox2"), &root.join("inbox")), None);
        assert_eq!(inside(&root.join("new/../inbox/x"), &root.join("inbox")), Some("x".into()));
    }
}

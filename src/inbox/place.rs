//! Moves a source and its sidecars to where they belong: `done/`, `failed/`, or back into the inbox.
//!
//! Nothing is ever replaced; every step may be done again after a crash. Does not know why a file goes where it goes.

use std::{
    ffi::{OsStr, OsString},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use atelier_domain::JobId;
use rustix::io::Errno;

use super::{
    dirs::{self, Root},
    error_file::{self, DuplicateFile, Failure},
    names,
};
use crate::failpoint;

/// A source and its sidecars, which lie in one folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// Below the inbox; empty for the inbox itself.
    pub folder: PathBuf,
    pub name: OsString,
    pub sidecars: Vec<OsString>,
}

impl Bundle {
    pub fn new<S: AsRef<OsStr>>(rel: &OsStr, sidecars: &[S]) -> Self {
        let (folder, name) = names::split(rel);
        let sidecars = sidecars.iter().map(|rel| names::split(rel.as_ref()).1.to_owned()).collect();
        Self { folder: folder.to_owned(), name: name.to_owned(), sidecars }
    }

    pub fn rel(&self) -> OsString {
        names::join(&self.folder, &self.name)
    }

    pub fn rel_sidecars(&self) -> Vec<PathBuf> {
        self.sidecars.iter().map(|name| self.folder.join(name)).collect()
    }
}

/// Where the files are now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Here {
    Inbox,
    Processing(JobId),
    /// Placed before, in a folder below the inbox and under perhaps other names.
    Placed(Placed),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Done,
    /// Like done, with a word on which job it repeats.
    Duplicate(DuplicateFile),
    Failed(Failure),
    /// Into the inbox under its own name, or one like it where that is taken.
    Inbox,
}

/// Where the files have gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Below the inbox.
    pub folder: PathBuf,
    pub name: OsString,
    pub sidecars: Vec<OsString>,
}

/// Moves what is still there. `None` where the source is not: it was moved before, or somebody took it.
pub fn place(root: &Root, bundle: &Bundle, here: &Here, target: &Target) -> Result<Option<Placed>, Errno> {
    let from = open_here(root, bundle, here)?;
    let members = present(from.as_fd(), bundle, here)?;
    let folder = match target {
        Target::Done | Target::Duplicate(_) => Path::new(names::DONE).join(&bundle.folder),
        Target::Failed(_) => Path::new(names::FAILED).join(&bundle.folder),
        Target::Inbox => bundle.folder.clone(),
    };
    let to = root.make_folder(&folder)?;
    if let Here::Placed(placed) = here
        && placed.folder == folder
    {
        // It lies there already, and only what is to be said about it is new.
        report(to.as_fd(), &placed.name, target)?;
        return Ok(Some(placed.clone()));
    }
    let mut number = 1;
    loop {
        let numbered = |own: &OsStr| names::numbered(own, &bundle.name, number);
        let named: Vec<_> = members.iter().map(|member| (member, numbered(&member.own))).collect();
        if !all_free(to.as_fd(), &named)? {
            number += 1;
            continue;
        }
        let source = numbered(&bundle.name);
        let has_source = members.iter().any(|member| member.own == bundle.name);
        if has_source {
            report(to.as_fd(), &source, target)?;
            failpoint::hit("inbox.place.reported");
        }
        if !move_all(from.as_fd(), to.as_fd(), &named)? {
            if has_source {
                unreport(to.as_fd(), &source, target)?;
            }
            number += 1;
            continue;
        }
        if matches!(target, Target::Done | Target::Duplicate(_)) {
            forget_failure(root, bundle)?;
        }
        if let Here::Placed(placed) = here {
            // What was said about it there is true no more.
            for suffix in [names::ERROR_SUFFIX, names::DUPLICATE_SUFFIX] {
                error_file::remove(from.as_fd(), &placed.name, suffix)?;
            }
        }
        let sidecars = bundle.sidecars.iter().map(|name| numbered(name)).collect();
        return Ok(has_source.then_some(Placed { folder, name: source, sidecars }));
    }
}

/// A file of a bundle that is still there: its own name, and the one it has for now.
struct Member {
    own: OsString,
    here: OsString,
}

fn open_here(root: &Root, bundle: &Bundle, here: &Here) -> Result<OwnedFd, Errno> {
    match here {
        Here::Inbox => root.folder(&bundle.folder),
        Here::Processing(_) => root.processing(),
        Here::Placed(placed) => root.folder(&placed.folder),
    }
}

/// The sidecars first and the source last, so that a source which has arrived has its sidecars with it, and one that
/// has not is found again.
fn present(from: BorrowedFd<'_>, bundle: &Bundle, here: &Here) -> Result<Vec<Member>, Errno> {
    let all = bundle.sidecars.iter().enumerate().map(|(index, name)| (Some(index), name)).chain([(None, &bundle.name)]);
    let mut members = Vec::new();
    for (sidecar, own) in all {
        let here = match (here, sidecar) {
            (Here::Inbox, _) => own.clone(),
            (Here::Processing(id), _) => names::processing(*id, own),
            (Here::Placed(placed), None) => placed.name.clone(),
            (Here::Placed(placed), Some(index)) => placed.sidecars.get(index).unwrap_or(own).clone(),
        };
        if dirs::exists(from, &here)? {
            members.push(Member { own: own.clone(), here });
        }
    }
    Ok(members)
}

fn all_free(to: BorrowedFd<'_>, named: &[(&Member, OsString)]) -> Result<bool, Errno> {
    for (_, name) in named {
        if dirs::exists(to, name)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// `false` where a name was taken in the meantime.
fn move_all(from: BorrowedFd<'_>, to: BorrowedFd<'_>, named: &[(&Member, OsString)]) -> Result<bool, Errno> {
    for (member, name) in named {
        match dirs::rename((from, &member.here), (to, name)) {
            // Somebody took it away: then it needs no moving.
            Ok(()) | Err(Errno::NOENT) => failpoint::hit("inbox.place.moved"),
            Err(Errno::EXIST) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

fn report(to: BorrowedFd<'_>, name: &OsStr, target: &Target) -> Result<(), Errno> {
    match target {
        Target::Failed(failure) => error_file::write(to, name, failure.clone()),
        Target::Duplicate(duplicate) => error_file::write_duplicate(to, name, duplicate),
        Target::Done | Target::Inbox => Ok(()),
    }
}

fn unreport(to: BorrowedFd<'_>, name: &OsStr, target: &Target) -> Result<(), Errno> {
    match target {
        Target::Failed(_) => error_file::remove(to, name, names::ERROR_SUFFIX),
        Target::Duplicate(_) => error_file::remove(to, name, names::DUPLICATE_SUFFIX),
        Target::Done | Target::Inbox => Ok(()),
    }
}

/// Removes the report of an earlier failure, when what it reported on has left `failed/` and is done now.
fn forget_failure(root: &Root, bundle: &Bundle) -> Result<(), Errno> {
    match root.folder(&Path::new(names::FAILED).join(&bundle.folder)) {
        Ok(failed) if !dirs::exists(failed.as_fd(), &bundle.name)? => {
            error_file::remove(failed.as_fd(), &bundle.name, names::ERROR_SUFFIX)
        }
        Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use atelier_domain::{ErrorCode, ErrorInfo, Timestamp};

    use super::*;

    struct Bench {
        temp: tempfile::TempDir,
        root: Root,
    }

    impl Bench {
        fn new() -> Self {
            let temp = tempfile::tempdir().expect("a folder");
            let root = Root::open(temp.path()).expect("opens");
            Self { temp, root }
        }
        fn put(&self, rel: impl AsRef<Path>, text: &str) {
            let path = self.temp.path().join(rel);
            fs::create_dir_all(path.parent().expect("has one")).expect("made");
            fs::write(path, text).expect("written");
        }
        fn text(&self, rel: &str) -> String {
            fs::read_to_string(self.temp.path().join(rel)).unwrap_or_else(|_| format!("no {rel}"))
        }
        fn has(&self, rel: impl AsRef<Path>) -> bool {
            self.temp.path().join(rel).exists()
        }
        fn processing(&self, name: &str, text: &str) {
            self.put(Path::new(".processing").join(names::processing(id(), OsStr::new(name))), text);
        }
    }

    fn id() -> JobId {
        "01JD0000000000000000000000".parse().expect("an id")
    }

    fn failed() -> Target {
        Target::Failed(Failure::refused(ErrorInfo::new(ErrorCode::ImageCorrupt, "broken"), Timestamp(1)))
    }

    fn bundle(rel: &str, sidecars: &[&str]) -> Bundle {
        Bundle::new(OsStr::new(rel), sidecars)
    }

    #[test]
    fn a_finished_source_goes_to_done_with_its_sidecars_and_folder() {
        let bench = Bench::new();
        bench.processing("a.jpg", "picture");
        bench.processing("a.jpg.toml", "sidecar");
        let bundle = bundle("x/y/a.jpg", &["x/y/a.jpg.toml"]);
        let placed = place(&bench.root, &bundle, &Here::Processing(id()), &Target::Done).expect("placed");
        assert_eq!(placed.expect("was there").folder, Path::new("done/x/y"));
        assert_eq!(bench.text("done/x/y/a.jpg"), "picture");
        assert_eq!(bench.text("done/x/y/a.jpg.toml"), "sidecar");
        let again = place(&bench.root, &bundle, &Here::Processing(id()), &Target::Done).expect("fine");
        assert_eq!(again, None, "again changes nothing");
    }

    #[test]
    fn a_taken_name_is_never_replaced_and_sidecars_keep_to_their_picture() {
        let bench = Bench::new();
        bench.put("done/a.jpg.toml", "older");
        bench.put("done/a (2).jpg", "older still");
        bench.processing("a.jpg", "picture");
        bench.processing("a.jpg.toml", "sidecar");
        place(&bench.root, &bundle("a.jpg", &["a.jpg.toml"]), &Here::Processing(id()), &Target::Done).expect("placed");
        assert_eq!(bench.text("done/a (3).jpg"), "picture");
        assert_eq!(bench.text("done/a (3).jpg.toml"), "sidecar");
        assert_eq!(bench.text("done/a.jpg.toml") + &bench.text("done/a (2).jpg"), "olderolder still");
    }

    #[test]
    fn a_crash_between_the_moves_is_made_good_when_it_is_done_again() {
        let bench = Bench::new();
        // The report and the sidecar had arrived, the source had not.
        bench.processing("a.jpg", "picture");
        bench.put("failed/a.jpg.toml", "sidecar");
        bench.put("failed/.a.jpg.error.json.tmp", "{\"jo");
        let bundle = bundle("a.jpg", &["a.jpg.toml"]);
        place(&bench.root, &bundle, &Here::Processing(id()), &failed()).expect("placed");
        assert_eq!(bench.text("failed/a.jpg"), "picture");
        assert_eq!(bench.text("failed/a.jpg.toml"), "sidecar");
        assert!(bench.text("failed/a.jpg.error.json").contains("image_corrupt"));
        assert!(!bench.has("failed/.a.jpg.error.json.tmp"));
    }

    #[test]
    fn a_success_removes_the_report_of_an_earlier_failure_but_not_another_files() {
        let bench = Bench::new();
        bench.put("failed/a.jpg.error.json", "stale");
        bench.processing("a.jpg", "picture");
        place(&bench.root, &bundle("a.jpg", &[]), &Here::Processing(id()), &Target::Done).expect("placed");
        assert!(!bench.has("failed/a.jpg.error.json"));
        bench.put("failed/b.jpg.error.json", "about the other b.jpg");
        bench.put("failed/b.jpg", "other");
        bench.processing("b.jpg", "picture");
        place(&bench.root, &bundle("b.jpg", &[]), &Here::Processing(id()), &Target::Done).expect("placed");
        assert!(bench.has("failed/b.jpg.error.json"));
    }

    #[test]
    fn a_second_failure_under_the_same_name_has_its_own_report() {
        let bench = Bench::new();
        for text in ["one", "two"] {
            bench.put("a.jpg", text);
            place(&bench.root, &bundle("a.jpg", &[]), &Here::Inbox, &failed()).expect("placed");
        }
        assert_eq!(bench.text("failed/a.jpg") + &bench.text("failed/a (2).jpg"), "onetwo");
        assert!(bench.has("failed/a.jpg.error.json") && bench.has("failed/a (2).jpg.error.json"));
        // Moved back into the inbox and failed again: one report that has added up.
        fs::rename(bench.temp.path().join("failed/a.jpg"), bench.temp.path().join("a.jpg")).expect("moved");
        place(&bench.root, &bundle("a.jpg", &[]), &Here::Inbox, &failed()).expect("placed");
        assert!(bench.text("failed/a.jpg.error.json").contains("\"attempts\": 2"));
    }

    #[test]
    fn what_was_placed_comes_back_under_its_own_name() {
        let bench = Bench::new();
        bench.put("done/x/a.jpg", "older");
        bench.processing("a.jpg", "picture");
        let bundle = bundle("x/a.jpg", &[]);
        let placed = place(&bench.root, &bundle, &Here::Processing(id()), &Target::Done).expect("placed");
        let here = Here::Placed(placed.expect("was there"));
        place(&bench.root, &bundle, &here, &Target::Inbox).expect("back");
        assert_eq!(bench.text("x/a.jpg"), "picture");
        assert_eq!(bench.text("done/x/a.jpg"), "older");
        assert!(!bench.has("done/x/a (2).jpg"));
    }

    #[test]
    fn done_as_a_symbolic_link_is_refused() {
        let bench = Bench::new();
        fs::remove_dir(bench.temp.path().join("done")).expect("removed");
        std::os::unix::fs::symlink("/tmp", bench.temp.path().join("done")).expect("linked");
        bench.processing("a.jpg", "picture");
        let result = place(&bench.root, &bundle("a.jpg", &[]), &Here::Processing(id()), &Target::Done);
        assert!(result.is_err());
        assert!(bench.has(Path::new(".processing").join(names::processing(id(), OsStr::new("a.jpg")))));
    }
}

//! What becomes of a source when its job ends: to `done/`, to `failed/` with a report, or back into the inbox when a
//! late sidecar has called it back.
//!
//! Called after the job's own transaction, and again at the start for those that a crash has cut off; the second time
//! changes nothing.

use std::{
    ffi::OsStr,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use atelier_domain::JobId;
use rustix::io::Errno;

use super::{
    dirs::{self, Root},
    error_file,
    intake::EndedSource,
    names,
    place::{self, Bundle, Here, Placed, Target},
    recent::Recent,
};

/// Moves the sources of ended jobs. Shared by the queue's hook and the inbox.
#[derive(Debug)]
pub struct Ended {
    dir: PathBuf,
    recent: Arc<Recent>,
}

impl Ended {
    pub fn new(dir: PathBuf, recent: Arc<Recent>) -> Self {
        Self { dir, recent }
    }

    /// Moves a source to where it belongs now, and says where that is; `None` where it was taken away. Blocking.
    pub fn end(&self, ended: &EndedSource) -> Result<Option<PathBuf>, Errno> {
        let root = Root::open(&self.dir)?;
        let bundle = Bundle::new(ended.rel_path.as_os_str(), &ended.sidecars);
        let target = ended.failure.clone().map_or(Target::Done, Target::Failed);
        let here = locate(&root, ended.id, &bundle)?;
        let mut now_at = None;
        self.recent.ending(ended.id, &bundle, |recalled| {
            let target = if recalled { &Target::Inbox } else { &target };
            let placed = place::place(&root, &bundle, &here, target)?;
            now_at = placed.as_ref().map(|placed| root.path.join(&placed.folder).join(&placed.name));
            Ok(placed)
        })?;
        Ok(now_at)
    }

    /// Has the source of a job go back into the inbox: at once where the job has ended, else when it does. Blocking.
    pub fn recall(&self, id: JobId) -> Result<(), Errno> {
        let Some((bundle, placed)) = self.recent.recall(id) else { return Ok(()) };
        let back =
            Root::open(&self.dir).and_then(|root| place::place(&root, &bundle, &Here::Placed(placed), &Target::Inbox));
        self.recent.returned(id);
        back.map(drop)
    }
}

/// A job's source is in `.processing/`, or in `failed/` where the job has failed before and was tried again.
fn locate(root: &Root, id: JobId, bundle: &Bundle) -> Result<Here, Errno> {
    let processing = Here::Processing(id);
    if dirs::exists(root.processing()?.as_fd(), &names::processing(id, &bundle.name))? {
        return Ok(processing);
    }
    Ok(find_failed(root, id, bundle)?.map_or(processing, Here::Placed))
}

/// Where in `failed/` the source of that very job lies: the report beside it says so.
fn find_failed(root: &Root, id: JobId, bundle: &Bundle) -> Result<Option<Placed>, Errno> {
    let folder = Path::new(names::FAILED).join(&bundle.folder);
    let failed = match root.folder(&folder) {
        Ok(failed) => failed,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error),
    };
    for number in 1.. {
        let numbered = |name: &OsStr| names::numbered(name, &bundle.name, number);
        let name = numbered(&bundle.name);
        let report = error_file::read(failed.as_fd(), &name);
        let there = dirs::exists(failed.as_fd(), &name)?;
        if there && report.as_ref().is_some_and(|report| report.job == Some(id)) {
            let sidecars = bundle.sidecars.iter().map(|name| numbered(name)).collect();
            return Ok(Some(Placed { folder, name, sidecars }));
        }
        if !there && report.is_none() {
            break;
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Instant};

    use atelier_domain::{ErrorCode, ErrorInfo, Timestamp};

    use super::*;
    use crate::inbox::error_file::Failure;

    fn id(last: char) -> JobId {
        format!("01JD000000000000000000000{last}").parse().expect("an id")
    }

    fn bench() -> (tempfile::TempDir, Ended) {
        let temp = tempfile::tempdir().expect("a folder");
        Root::open(temp.path()).expect("opens");
        let ended = Ended::new(temp.path().to_owned(), Arc::default());
        (temp, ended)
    }

    fn claimed(temp: &tempfile::TempDir, id: JobId, name: &str) {
        let path = temp.path().join(".processing").join(names::processing(id, OsStr::new(name)));
        fs::write(path, name).expect("written");
    }

    fn source(id: JobId, failed: bool) -> EndedSource {
        let error = ErrorInfo::new(ErrorCode::WorkerStalled, "no answer").with_hint("wait");
        EndedSource {
            id,
            rel_path: "x/a.jpg".into(),
            sidecars: vec!["x/a.jpg.toml".into()],
            failure: failed.then(|| Failure::of_job(id, Some(error), 3, Timestamp(5))),
        }
    }

    #[test]
    fn a_failed_job_leaves_its_source_with_a_report_and_ends_from_there_when_it_is_tried_again() {
        let (temp, ended) = bench();
        let path = |rel: &str| temp.path().join(rel);
        for (n, name) in [('1', "a.jpg"), ('2', "a (2).jpg")] {
            claimed(&temp, id(n), "a.jpg");
            claimed(&temp, id(n), "a.jpg.toml");
            for _ in 0..2 {
                let now_at = ended.end(&source(id(n), true)).expect("put away, the second time as well");
                assert_eq!(now_at, Some(path("failed/x").join(name)));
            }
        }
        let report = fs::read_to_string(path("failed/x/a (2).jpg.error.json")).expect("a report");
        assert!(report.contains(&id('2').to_string()) && report.contains("\"attempts\": 3"), "{report}");
        assert!(path("failed/x/a (2).jpg.toml").exists());

        // The second job is tried again where its source is, and succeeds.
        assert_eq!(ended.end(&source(id('2'), false)).expect("fine"), Some(path("done/x/a.jpg")));
        assert!(path("done/x/a.jpg.toml").exists() && path("failed/x/a.jpg").exists());
        assert!(!path("failed/x/a (2).jpg").exists() && !path("failed/x/a (2).jpg.error.json").exists());
        assert_eq!(ended.end(&source(id('3'), false)).expect("fine"), None, "a job that has no source there");
    }

    #[test]
    fn a_source_that_cannot_be_moved_stays_and_is_moved_the_next_time() {
        let (temp, ended) = bench();
        claimed(&temp, id('1'), "a.jpg");
        fs::remove_dir(temp.path().join("done")).expect("removed");
        fs::write(temp.path().join("done"), "in the way").expect("written");
        assert!(ended.end(&source(id('1'), false)).is_err());
        fs::remove_file(temp.path().join("done")).expect("removed");
        ended.end(&source(id('1'), false)).expect("now it can");
        assert!(temp.path().join("done/x/a.jpg").exists());
    }

    #[test]
    fn a_recalled_source_goes_back_into_the_inbox_whenever_its_job_ends() {
        let (temp, ended) = bench();
        let now = Instant::now();
        for (n, ends_first) in [('1', true), ('2', false)] {
            claimed(&temp, id(n), "a.jpg");
            ended.recent.claimed("x/a.jpg".into(), id(n), now, now);
            if ends_first {
                ended.end(&source(id(n), false)).expect("fine");
                assert!(temp.path().join("done/x/a.jpg").exists());
            }
            ended.recall(id(n)).expect("fine");
            if !ends_first {
                let cancelled = Failure::cancelled(id(n), 1, Timestamp(1));
                ended.end(&EndedSource { failure: Some(cancelled), ..source(id(n), true) }).expect("fine");
            }
            fs::remove_file(temp.path().join("x/a.jpg")).expect("it is back");
            assert!(!temp.path().join("done/x/a.jpg").exists() && !temp.path().join("failed/x").exists());
        }
    }
}

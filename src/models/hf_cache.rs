//! Models in the cache of Hugging Face's own programs, used where they lie.
//!
//! Layout (huggingface_hub, `file_download.py`): `models--ORG--NAME/refs/main` holds a commit; the files of that
//! commit are symbolic links `snapshots/COMMIT/PATH` to `blobs/HASH`.

use std::path::{Path, PathBuf};

use super::{InstalledModel, Origin, inspect::inspect};
use crate::hub::RepoId;

const PREFIX: &str = "models--";

/// Whether a folder's name is one of a cache's, for models or for something else.
pub(super) fn is_of_a_cache(name: &str) -> bool {
    [PREFIX, "datasets--", "spaces--"].iter().any(|prefix| name.starts_with(prefix))
}

/// The model of one repository in a cache. What this version does not run is left to whoever has put it there.
pub(super) fn model(name: &str, root: &Path) -> Option<InstalledModel> {
    let id = RepoId::from_flat(name.strip_prefix(PREFIX)?)?.to_string();
    let snapshot = snapshot(root)?;
    let mut model = inspect(&id, &snapshot)?;
    if model.family.is_none() {
        tracing::debug!(%id, class = model.class_name, "in Hugging Face's cache, and not run");
        return None;
    }
    model.origin = Origin::HfCache;
    if let Err(problem) = stays_inside(root, &snapshot) {
        model.problem = Some(problem);
    }
    Some(model)
}

/// The folder of the commit that `main` stands for, else of the newest.
fn snapshot(root: &Path) -> Option<PathBuf> {
    let snapshots = root.join("snapshots");
    let main = std::fs::read_to_string(root.join("refs/main")).ok();
    let named = main.as_deref().map(str::trim).filter(|commit| is_commit(commit)).map(|commit| snapshots.join(commit));
    if let Some(named) = named.filter(|path| path.is_dir()) {
        return Some(named);
    }
    let entries = std::fs::read_dir(&snapshots).ok()?.filter_map(Result::ok);
    let commits = entries.filter(|entry| entry.file_name().to_str().is_some_and(is_commit) && entry.path().is_dir());
    commits.max_by_key(|entry| entry.metadata().and_then(|meta| meta.modified()).ok()).map(|entry| entry.path())
}

fn is_commit(name: &str) -> bool {
    name.len() == 40 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Links lead to the repository's own blobs and nowhere else.
fn stays_inside(root: &Path, snapshot: &Path) -> Result<(), String> {
    let real = root.canonicalize().map_err(|error| format!("{}: {error}", root.display()))?;
    let mut folders = vec![(snapshot.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let entries = std::fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
            let shown = path.strip_prefix(snapshot).unwrap_or(&path).display();
            let target = path.canonicalize().map_err(|_| format!("{shown} is a link to what is not there"))?;
            if !target.starts_with(&real) {
                return Err(format!("{shown} leads out of the cache's folder, to {}", target.display()));
            }
            if target.is_dir() && depth < 5 {
                folders.push((path, depth + 1));
            }
        }
    }
    Ok(())
}

/// The sha256 that a cached file should have: its blob is called by it, where the hub keeps it as a large file.
pub fn expected_sha256(path: &Path) -> Option<String> {
    let blob = path.canonicalize().ok()?;
    if blob.parent()?.file_name()? != "blobs" {
        return None;
    }
    let name = blob.file_name()?.to_str()?;
    (name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| name.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::Registry;
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
    const OLDER: &str = "1123456789abcdef0123456789abcdef01234567";

    /// A cache with one model, laid out as huggingface_hub does.
    fn cache(class: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("a folder");
        let root = dir.path().join("models--org--name");
        for folder in ["blobs", "refs", &format!("snapshots/{COMMIT}"), &format!("snapshots/{OLDER}")] {
            std::fs::create_dir_all(root.join(folder)).expect("made");
        }
        std::fs::write(root.join("refs/main"), COMMIT).expect("written");
        std::fs::write(root.join("blobs/c0ffee"), format!("{{\"_class_name\":{class:?}}}")).expect("written");
        std::fs::write(root.join("blobs").join("a".repeat(64)), "12345").expect("written");
        let snapshot = root.join("snapshots").join(COMMIT);
        symlink("../../blobs/c0ffee", snapshot.join("config.json")).expect("linked");
        symlink(format!("../../blobs/{}", "a".repeat(64)), snapshot.join("model.safetensors")).expect("linked");
        (dir, root)
    }

    fn found(dir: &Path) -> Option<InstalledModel> {
        let registry = Registry::scan(&[dir.to_owned()]);
        assert!(registry.list().count() <= 1, "nothing else of the cache is taken for a model");
        registry.get("org/name").cloned()
    }

    #[test]
    fn a_cached_model_is_used_where_it_lies() {
        let (dir, root) = cache("SPAN");
        let model = found(dir.path()).expect("found");
        assert_eq!((model.origin, model.problem.as_deref()), (Origin::HfCache, None));
        assert_eq!(model.path, root.join("snapshots").join(COMMIT));
        assert_eq!(model.bytes, 5 + 22);
        assert_eq!(expected_sha256(&model.path.join("model.safetensors")), Some("a".repeat(64)));
        assert_eq!(expected_sha256(&model.path.join("config.json")), None);
    }

    #[test]
    fn what_is_not_run_or_half_there_is_not_offered() {
        let (dir, _) = cache("BertModel");
        assert_eq!(found(dir.path()), None);
        let (dir, root) = cache("SPAN");
        std::fs::remove_file(root.join("blobs").join("a".repeat(64))).expect("removed");
        let problem = found(dir.path()).expect("found").problem.expect("a problem");
        assert!(problem.contains("model.safetensors is a link to what is not there"), "{problem}");
        std::fs::remove_dir_all(root.join("snapshots")).expect("removed");
        assert_eq!(found(dir.path()), None);
    }

    #[test]
    fn a_link_that_leads_out_is_refused() {
        let (dir, root) = cache("SPAN");
        let outside = dir.path().join("secret");
        std::fs::write(&outside, "x").expect("written");
        symlink(&outside, root.join("snapshots").join(COMMIT).join("extra.json")).expect("linked");
        let problem = found(dir.path()).expect("found").problem.expect("a problem");
        assert!(problem.contains("leads out of the cache's folder"), "{problem}");
    }

    #[test]
    fn a_reference_cannot_name_another_folder() {
        let (dir, root) = cache("SPAN");
        std::fs::write(root.join("refs/main"), "../../elsewhere").expect("written");
        std::fs::remove_dir_all(root.join("snapshots").join(OLDER)).expect("removed");
        assert_eq!(found(dir.path()).expect("the only one").path, root.join("snapshots").join(COMMIT));
    }
}

//! Whether the daemon can work in its folders: there, writable, with room, on a file system that tells of changes.

use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::Check;
use crate::{config::Config, data_lock};

/// Below this a folder counts as nearly full.
const LITTLE_BYTES: u64 = 1 << 30;

/// Folders that are counted before the watch limit is taken for too small.
const MAX_COUNTED: usize = 100_000;

pub(super) fn data(config: &Config) -> Vec<Check> {
    let data = &config.paths.data;
    let mut checks = vec![writable("data", data, "paths.data")];
    checks.push(room("free space", data));
    // Asking takes the lock for a moment, in a file that only a daemon shall make.
    if data.join("atelier.lock").exists() {
        checks.push(match data_lock::holder(data) {
            Some(pid) => Check::ok("lock", format!("a daemon is at work, pid {pid}")),
            None => Check::ok("lock", "free: no daemon is at work"),
        });
    }
    checks
}

pub(super) fn outbox(config: &Config) -> Check {
    writable("outbox", &config.outbox.dir, "outbox.dir")
}

pub(super) fn inbox(config: &Config) -> Vec<Check> {
    let inbox = &config.inbox.dir;
    let mut checks = vec![writable("inbox", inbox, "inbox.dir")];
    if !inbox.is_dir() {
        return checks;
    }
    checks.push(same_file_system(inbox));
    checks.extend(claiming_tried(inbox));
    checks.push(mount(inbox));
    checks.push(watches(inbox));
    checks
}

/// There and writable, or to be made in a folder that is.
fn writable(name: &'static str, folder: &Path, key: &str) -> Check {
    let shown = folder.display();
    match fs::metadata(folder) {
        Ok(about) if !about.is_dir() => {
            return Check::fail(name, format!("{shown} is no folder"), format!("move it away, or change {key}"));
        }
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let above = existing(folder);
            return match try_writing(&above) {
                Ok(()) => Check::ok(name, format!("{shown} is made at the first start")),
                Err(error) => Check::fail(
                    name,
                    format!("{shown} does not exist, and {} cannot be written: {error}", above.display()),
                    format!("make it for the daemon's user, or change {key}"),
                ),
            };
        }
        Err(error) => return Check::fail(name, format!("{shown}: {error}"), format!("change {key}")),
    }
    match try_writing(folder) {
        Ok(()) => Check::ok(name, format!("{shown} is writable")),
        Err(error) => Check::fail(
            name,
            format!("{shown} cannot be written: {error}"),
            format!("give it to the daemon's user, or change {key}"),
        ),
    }
}

/// The nearest folder above that exists.
pub(super) fn existing(folder: &Path) -> PathBuf {
    folder.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

/// Permissions alone do not tell: a read-only mount, a quota and root's rights decide too.
fn try_writing(folder: &Path) -> std::io::Result<()> {
    let probe = folder.join(format!(".atelier-doctor-{}", std::process::id()));
    fs::write(&probe, b"x")?;
    fs::remove_file(&probe)
}

fn room(name: &'static str, folder: &Path) -> Check {
    let folder = existing(folder);
    match rustix::fs::statvfs(&folder) {
        Ok(about) => {
            let free = about.f_bavail.saturating_mul(about.f_frsize);
            let message = format!("{} at {}", super::super::output::size(free), folder.display());
            if free < LITTLE_BYTES {
                Check::warn(
                    name,
                    message,
                    "make room, lower [cleanup], or move paths.data: a full disk stops the queue",
                )
            } else {
                Check::ok(name, message)
            }
        }
        Err(errno) => Check::warn(name, format!("{}: {errno}", folder.display()), "the file system does not tell"),
    }
}

/// Claiming a file is a rename, which does not cross file systems.
fn same_file_system(inbox: &Path) -> Check {
    let device = |folder: &Path| fs::metadata(folder).map(|about| about.dev()).ok();
    let here = device(inbox);
    let elsewhere: Vec<&str> = [".processing", "done", "failed"]
        .into_iter()
        .filter(|name| device(&inbox.join(name)).is_some_and(|there| Some(there) != here))
        .collect();
    if elsewhere.is_empty() {
        return Check::ok("claiming", ".processing, done and failed lie on the inbox's own file system");
    }
    Check::fail(
        "claiming",
        format!("{} of {} lies on another file system", elsewhere.join(", "), inbox.display()),
        "a claim is a rename: unmount it there, and mount the whole inbox instead",
    )
}

/// Claims a file of its own, where a daemon has made the folders already.
fn claiming_tried(inbox: &Path) -> Option<Check> {
    let processing = inbox.join(".processing");
    if !processing.is_dir() {
        return None;
    }
    let name = format!(".atelier-doctor-{}", std::process::id());
    let (from, to) = (inbox.join(&name), processing.join(&name));
    let tried = fs::write(&from, b"x").and_then(|()| fs::rename(&from, &to));
    let _ = fs::remove_file(&from).and(fs::remove_file(&to));
    let _ = fs::remove_file(&to);
    Some(match tried {
        Ok(()) => Check::ok("rename", "a file was moved into .processing and away again"),
        Err(error) => Check::fail(
            "rename",
            format!("a file cannot be moved into {}: {error}", processing.display()),
            "every claim is such a move: give both folders to the daemon's user",
        ),
    })
}

fn mount(inbox: &Path) -> Check {
    let name = "inbox mount";
    match rustix::fs::statfs(inbox).map(|about| network(about.f_type)) {
        Ok(Some(kind)) => Check::warn(
            name,
            format!("{} lies on {kind}", inbox.display()),
            "the kernel does not tell what others drop there; the inbox is scanned every inbox.rescan instead",
        ),
        Ok(None) => Check::ok(name, "a local file system"),
        Err(errno) => Check::warn(name, format!("{}: {errno}", inbox.display()), "the file system does not tell"),
    }
}

/// File systems whose changes come from elsewhere, by their magic numbers (linux/magic.h, and the file systems' own).
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "magic numbers are 32 bits")]
pub(super) fn network(magic: rustix::fs::FsWord) -> Option<&'static str> {
    match magic as u32 {
        0x6969 => Some("NFS"),
        0x517b => Some("SMB"),
        0xff53_4d42 => Some("CIFS"),
        0xfe53_4d42 => Some("SMB2"),
        0x6573_5546 => Some("FUSE"),
        0x0102_1997 => Some("9P"),
        0x00c3_6400 => Some("Ceph"),
        0x5346_414f | 0x6b41_4653 => Some("AFS"),
        0x0bd0_0bd0 => Some("Lustre"),
        0x0116_1970 => Some("GFS2"),
        0x7461_636f => Some("OCFS2"),
        _ => None,
    }
}

/// Every folder of the inbox takes one watch.
fn watches(inbox: &Path) -> Check {
    let name = "watches";
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_user_watches")
        .ok()
        .and_then(|text| text.trim().parse::<usize>().ok());
    let Some(limit) = limit else {
        return Check::warn(
            name,
            "the kernel does not tell its limit",
            "the inbox is scanned every inbox.rescan anyway",
        );
    };
    let folders = count_folders(inbox);
    let message = format!("{folders} of {limit} allowed to this user");
    if folders.saturating_mul(2) > limit {
        let more = format!("sysctl fs.inotify.max_user_watches={}", (folders * 4).max(8192));
        return Check::warn(name, message, format!("{more}; without watches, files wait for the next scan"));
    }
    Check::ok(name, message)
}

fn count_folders(root: &Path) -> usize {
    let mut waiting = vec![root.to_owned()];
    let mut count = 0;
    while let Some(folder) = waiting.pop() {
        count += 1;
        if count >= MAX_COUNTED {
            break;
        }
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        // The entry's own type: links are not followed, so there are no circles.
        waiting.extend(
            entries
                .filter_map(Result::ok)
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."))
                .map(|entry| entry.path()),
        );
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Verdict;

    #[test]
    fn a_folder_that_is_not_there_yet_is_fine_where_it_can_be_made() {
        let folder = tempfile::tempdir().expect("a folder");
        let check = writable("data", &folder.path().join("a/b"), "paths.data");
        assert_eq!(check.verdict, Verdict::Ok, "{check:?}");
        assert!(!folder.path().join("a").exists(), "doctor makes nothing");
        fs::write(folder.path().join("file"), "").expect("written");
        let check = writable("data", &folder.path().join("file"), "paths.data");
        assert_eq!(check.verdict, Verdict::Fail, "{check:?}");
        assert_eq!(writable("data", folder.path(), "paths.data").verdict, Verdict::Ok);
        assert_eq!(fs::read_dir(folder.path()).expect("list").count(), 1, "the probe is gone");
        let check = writable("data", Path::new("/proc/1/none"), "paths.data");
        assert_eq!(check.verdict, Verdict::Fail, "{check:?}");
    }

    #[test]
    fn a_share_is_told_from_a_disk() {
        assert_eq!(network(0x6969), Some("NFS"));
        assert_eq!(network(0xef53), None);
        let smb2: i64 = -28_095_166;
        assert_eq!(network(smb2), Some("SMB2"), "a sign-extended number");
    }

    #[test]
    fn links_and_hidden_folders_need_no_watch() {
        let root = tempfile::tempdir().expect("a folder");
        for name in ["a/b", ".processing/x", "c"] {
            fs::create_dir_all(root.path().join(name)).expect("mkdir");
        }
        std::os::unix::fs::symlink(root.path(), root.path().join("loop")).expect("symlink");
        assert_eq!(count_folders(root.path()), 4);
    }
}

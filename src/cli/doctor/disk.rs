//! Whether the disk with the data folder keeps its promises: what is written stays, locks hold, and SQLite's log works.

use std::{
    fs::{self, File},
    path::Path,
    time::Instant,
};

use super::{
    Check,
    folders::{existing, network},
};

/// Slower than this, durable writes are what limits the queue.
const SLOW_MS: u128 = 200;

pub(super) fn check(data: &Path) -> Vec<Check> {
    let folder = existing(data);
    let mut checks = vec![kind(&folder)];
    checks.extend(promises(&folder));
    checks
}

fn kind(folder: &Path) -> Check {
    let name = "file system";
    let shown = folder.display();
    match rustix::fs::statfs(folder) {
        Ok(about) => match network(about.f_type) {
            Some(kind) => Check::warn(
                name,
                format!("{shown} lies on {kind}"),
                "SQLite's log needs shared memory, which shares do not have: put paths.data on a local disk",
            ),
            None => Check::ok(name, format!("{} at {shown}", local_name(about.f_type))),
        },
        Err(errno) => Check::warn(name, format!("{shown}: {errno}"), "the file system does not tell"),
    }
}

/// The usual ones, by their magic numbers (linux/magic.h).
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "magic numbers are 32 bits")]
fn local_name(magic: rustix::fs::FsWord) -> String {
    match magic as u32 {
        0xef53 => "ext4".to_owned(),
        0x5846_5342 => "xfs".to_owned(),
        0x9123_683e => "btrfs".to_owned(),
        0xf2f5_2010 => "f2fs".to_owned(),
        0x2fc1_2fc1 => "zfs".to_owned(),
        0x794c_7630 => "overlayfs".to_owned(),
        0x0102_1994 => "tmpfs, which a restart of the machine empties,".to_owned(),
        other => format!("a file system of type {other:#x}"),
    }
}

/// Tried, not asked: a file is written, put on the disk and locked.
fn promises(folder: &Path) -> Option<Check> {
    let name = "durability";
    let probe = folder.join(format!(".atelier-doctor-{}-sync", std::process::id()));
    let tried = (|| {
        let file = File::create(&probe)?;
        let begun = Instant::now();
        std::io::Write::write_all(&mut &file, &[0x5a; 4096])?;
        file.sync_all()?;
        File::open(folder)?.sync_all()?;
        let took = begun.elapsed();
        file.try_lock()?;
        // A lock that a second handle can take as well is none.
        let second = File::open(&probe)?;
        Ok::<_, std::io::Error>((took, second.try_lock().is_err()))
    })();
    let _ = fs::remove_file(&probe);
    match tried {
        // That it cannot be written is another check's.
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => None,
        Err(error) => Some(Check::fail(
            name,
            format!("{}: {error}", folder.display()),
            "the disk does not confirm what is written: look at the kernel's log, or move paths.data",
        )),
        Ok((_, false)) => Some(Check::fail(
            name,
            format!("{}: locks do not hold", folder.display()),
            "two daemons could use it at once: put paths.data on a local disk",
        )),
        Ok((took, true)) => {
            let message = format!("fsync takes {:.1} ms, locks hold", took.as_secs_f64() * 1e3);
            Some(if took.as_millis() > SLOW_MS {
                Check::warn(name, message, "every accepted job waits for that: a faster disk helps")
            } else {
                Check::ok(name, message)
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Verdict;

    #[test]
    fn a_disk_is_tried_and_nothing_is_left_on_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let check = promises(folder.path()).expect("it is writable");
        assert_ne!(check.verdict, Verdict::Fail, "{check:?}");
        assert!(check.message.contains("locks hold"), "{check:?}");
        assert_eq!(fs::read_dir(folder.path()).expect("list").count(), 0);
        assert_eq!(kind(folder.path()).verdict, Verdict::Ok);
    }
}

//! Small disks for tests: real file systems in memory, mounted where nobody else sees them.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

const MAY_MOUNT: &str = "ATELIER_TEST_MAY_MOUNT";

/// Runs the test `name` once more where it may mount: in a process with a mount namespace of its own, with which all
/// mounts go. Works as root, and for others where the kernel lets them have user namespaces.
///
/// # Panics
/// The test fails there, or nothing may be mounted.
pub fn where_it_may_mount(name: &str, test: impl FnOnce()) {
    if std::env::var_os(MAY_MOUNT).is_some() {
        return test();
    }
    let as_root = ["--user", "--map-root-user"];
    let as_root = if rustix::process::geteuid().is_root() { &as_root[..0] } else { &as_root[..] };
    let inside = Command::new("unshare")
        .args(as_root)
        .args(["--mount", "--propagation", "private"])
        .arg(std::env::current_exe().expect("a test knows its program"))
        .args(["--exact", name, "--nocapture"])
        .env(MAY_MOUNT, "1")
        .output()
        .expect("unshare, of util-linux, is needed to mount a small disk");
    let output = [inside.stdout, inside.stderr].concat();
    let output = String::from_utf8_lossy(&output);
    assert!(
        inside.status.success() && output.contains("1 passed"),
        "{output}\nIf this is about the right to mount: run it as root, or allow user namespaces."
    );
}

/// A small file system in memory. Unmounted when dropped; declared after the daemon, it goes before its folders.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
}

impl Disk {
    /// Mounts a file system with these options, such as `size=4m`, at `path`.
    ///
    /// # Panics
    /// It may not be mounted: call this within [`where_it_may_mount`].
    pub fn mount(path: impl Into<PathBuf>, options: &str) -> Self {
        let path = path.into();
        fs::create_dir_all(&path).expect("a folder to mount at");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&path).status();
        assert!(mounted.expect("mount is needed").success(), "{} cannot be mounted", path.display());
        Self { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file that [`Self::fill`] makes.
    pub fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }

    /// Leaves not a byte.
    pub fn fill(&self) {
        let mut ballast = File::options().create(true).append(true).open(self.ballast()).expect("a file on the disk");
        for size in [64 << 10, 4 << 10, 1] {
            while ballast.write_all(&vec![1; size]).is_ok() {}
        }
    }

    /// Takes back what [`Self::fill`] has taken.
    pub fn make_room(&self) {
        fs::remove_file(self.ballast()).expect("it was filled");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.path).status();
    }
}

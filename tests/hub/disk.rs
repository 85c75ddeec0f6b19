//! Models directories without room: real small file systems, where nobody else sees them.

use std::{
    fs::{self, File},
    io::Write as _,
    path::PathBuf,
    process::Command,
};

use crate::{
    loopback::Fault,
    scene::{Scene, said},
};

const MAY_MOUNT: &str = "ATELIER_TEST_MAY_MOUNT";

/// As in `tests/disk.rs`: once more in a process with a mount namespace of its own.
fn where_it_may_mount(name: &str, test: impl FnOnce()) {
    if std::env::var_os(MAY_MOUNT).is_some() {
        return test();
    }
    let as_root = ["--user", "--map-root-user"];
    let as_root = if rustix::process::geteuid().is_root() { &as_root[..0] } else { &as_root[..] };
    let inside = Command::new("unshare")
        .args(as_root)
        .args(["--mount", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(MAY_MOUNT, "1")
        .output()
        .expect("unshare, of util-linux, is needed to mount a small disk");
    let output = [inside.stdout, inside.stderr].concat();
    let output = String::from_utf8_lossy(&output);
    assert!(inside.status.success() && output.contains("1 passed"), "{output}\nIt needs the right to mount.");
}

/// Unmounted when dropped.
struct Disk(PathBuf);

impl Disk {
    fn mount(path: PathBuf, size: &str) -> Self {
        let options = format!("size={size}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&path).status();
        assert!(mounted.expect("mount is needed").success(), "{} cannot be mounted", path.display());
        Self(path)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn a_disk_that_is_too_small_is_said_before_anything_is_fetched() {
    where_it_may_mount("disk::a_disk_that_is_too_small_is_said_before_anything_is_fetched", || {
        let scene = Scene::new();
        let _disk = Disk::mount(scene.models(), "4m");
        scene.pull(&[]).exits(1).says("more bytes are needed").says("free some space");
        assert!(scene.hub.seen("model.safetensors").is_empty());
        scene.is_absent();
    });
}

#[test]
fn a_disk_that_fills_up_meanwhile_ends_the_pull_and_the_next_goes_on() {
    where_it_may_mount("disk::a_disk_that_fills_up_meanwhile_ends_the_pull_and_the_next_goes_on", || {
        let scene = Scene::new();
        let disk = Disk::mount(scene.models(), "8m");
        scene.hub.fault("model.safetensors", Fault::Hold(1000), 2);
        let child = scene.spawn(&["models", "pull", "org/net"]);
        scene.wait_for_requests("model.safetensors", 2);
        let ballast = disk.0.join("ballast");
        let mut file = File::create(&ballast).unwrap();
        for size in [64 << 10, 4 << 10, 1] {
            while file.write_all(&vec![1; size]).is_ok() {}
        }
        drop(file);
        scene.hub.let_go();
        said(child).exits(1).says("No space left").says("goes on from where it was");
        scene.is_absent();
        fs::remove_file(ballast).unwrap();
        scene.pull(&[]).exits(0);
        scene.is_whole();
    });
}

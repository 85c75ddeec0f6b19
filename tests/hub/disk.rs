//! Models directories without room: real small file systems, where nobody else sees them.

use atelier_testkit::disk::{Disk, where_it_may_mount};

use crate::{
    loopback::Fault,
    scene::{Scene, said},
};

#[test]
fn a_disk_that_is_too_small_is_said_before_anything_is_fetched() {
    where_it_may_mount("disk::a_disk_that_is_too_small_is_said_before_anything_is_fetched", || {
        let scene = Scene::new();
        let _disk = Disk::mount(scene.models(), "size=4m");
        scene.pull(&[]).exits(1).says("more bytes are needed").says("free some space");
        assert!(scene.hub.seen("model.safetensors").is_empty());
        scene.is_absent();
    });
}

#[test]
fn a_disk_that_fills_up_meanwhile_ends_the_pull_and_the_next_goes_on() {
    where_it_may_mount("disk::a_disk_that_fills_up_meanwhile_ends_the_pull_and_the_next_goes_on", || {
        let scene = Scene::new();
        let disk = Disk::mount(scene.models(), "size=8m");
        scene.hub.fault("model.safetensors", Fault::Hold(1000), 2);
        let child = scene.spawn(&["models", "pull", "org/net"]);
        scene.wait_for_requests("model.safetensors", 2);
        disk.fill();
        scene.hub.let_go();
        said(child).exits(1).says("No space left").says("goes on from where it was");
        scene.is_absent();
        disk.make_room();
        scene.pull(&[]).exits(0);
        scene.is_whole();
    });
}

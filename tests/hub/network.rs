//! Networks that break, and pulls that go on.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    loopback::Fault,
    scene::{MIB, Scene, TOKEN, said},
};

const WEIGHTS: &str = "model.safetensors";

#[test]
fn a_pull_fetches_what_is_needed_and_nothing_else() {
    let scene = Scene::new();
    let pulled = scene.pull(&["--json"]).exits(0).json();
    assert_eq!((&pulled["id"], &pulled["files"], &pulled["already"]), (&"org/net".into(), &2.into(), &false.into()));
    assert_eq!(pulled["received_bytes"], pulled["bytes"]);
    scene.is_whole();
    for part in ["onnx", ".bin", "README", "gitattributes"] {
        assert!(scene.hub.seen(part).is_empty(), "{part} was fetched");
    }
    let firsts: std::collections::BTreeSet<_> = scene.hub.seen(WEIGHTS).iter().map(|seen| seen.first_byte).collect();
    assert!(firsts.len() > 1, "in stretches: {firsts:?}");
    scene.hub.forget();
    let again = scene.pull(&[]).exits(0);
    assert!(again.stdout.contains("is there already"), "{again:#?}");
    assert!(scene.hub.seen(WEIGHTS).is_empty());
    scene.is_whole();
}

#[test]
fn a_connection_that_breaks_goes_on_from_its_last_byte() {
    let scene = Scene::new();
    scene.hub.fault(WEIGHTS, Fault::Cut(300_000), 5);
    scene.hub.fault("config.json", Fault::Cut(5), 1);
    scene.pull(&[]).exits(0).says("trying again");
    scene.is_whole();
    let inside = scene.hub.seen(WEIGHTS).iter().filter(|seen| seen.first_byte.unwrap() % MIB != 0).count();
    assert_eq!(inside, 5, "each cut is followed by a request from within its stretch");
}

#[test]
fn a_connection_that_says_nothing_is_given_up_and_begun_anew() {
    let scene = Scene::with(|setup| setup.set("models.pull_stall", "300ms"));
    scene.hub.fault(WEIGHTS, Fault::Stall(100_000), 2);
    scene.pull(&[]).exits(0).says("nothing came for");
    scene.is_whole();
}

#[test]
fn a_pull_that_is_killed_is_not_installed_and_the_next_goes_on() {
    let scene = Scene::with(|setup| setup.set("models.pull_parallel", 1));
    scene.hub.put("org/net", WEIGHTS, crate::scene::weights(40 * MIB));
    // A first stretch of 32 MiB comes; the second has no more than begun when the program dies.
    scene.hub.fault_from(WEIGHTS, 32 * MIB, Fault::Hold(1000));
    let mut child = scene.spawn(&["models", "pull", "org/net"]);
    scene.wait_for_requests(WEIGHTS, 2);
    kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
    child.wait().unwrap();
    scene.is_absent();
    assert_eq!(scene.pull_state("org/net").as_deref(), Some("interrupted"));
    scene.hub.behave();
    scene.hub.forget();
    scene.pull(&[]).exits(0);
    let firsts: Vec<_> = scene.hub.seen(WEIGHTS).iter().map(|seen| seen.first_byte).collect();
    assert_eq!(firsts, [Some(32 * MIB)], "the first stretch did not come again");
    assert!(scene.listed("org/net").is_some());
    scene.run(&["models", "verify", "org/net"]).exits(0);
}

#[test]
fn a_pull_that_is_interrupted_says_that_it_can_go_on() {
    let scene = Scene::new();
    scene.hub.fault(WEIGHTS, Fault::Hold(1000), 9);
    let child = scene.spawn(&["models", "pull", "org/net"]);
    scene.wait_for_requests(WEIGHTS, 1);
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    said(child).exits(130).says("pull again to go on");
    scene.is_absent();
}

#[test]
fn two_pulls_of_a_model_do_not_meet() {
    let scene = Scene::new();
    scene.hub.fault(WEIGHTS, Fault::Hold(1000), 9);
    let first = scene.spawn(&["models", "pull", "org/net"]);
    scene.wait_for_requests(WEIGHTS, 1);
    scene.pull(&[]).exits(1).says(&format!("is being pulled already (pid {})", first.id()));
    assert_eq!(scene.pull_state("org/net").as_deref(), Some("pulling"));
    scene.run(&["models", "rm", "--yes", "org/net"]).exits(1).says("is being pulled");
    scene.hub.let_go();
    said(first).exits(0);
    scene.is_whole();
}

#[test]
fn a_hub_that_is_overrun_is_left_alone_for_as_long_as_it_says() {
    let scene = Scene::new();
    scene.hub.fault("/api/", Fault::Status(429, Some(("Retry-After", "1"))), 1);
    scene.hub.fault("config.json", Fault::Status(503, Some(("Retry-After", "1"))), 1);
    let begun = Instant::now();
    scene.pull(&[]).exits(0).says("left alone");
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
    scene.is_whole();
}

#[test]
fn a_hub_that_fails_is_asked_again_and_not_for_ever() {
    let scene = Scene::new();
    scene.hub.fault("/api/", Fault::Status(500, None), 3);
    scene.pull(&[]).exits(0);
    scene.is_whole();

    let scene = Scene::new();
    scene.hub.fault("config.json", Fault::Status(502, None), usize::MAX);
    scene.pull(&[]).exits(1).says("the hub failed (502); tried 4 times");
    assert_eq!(scene.hub.seen("config.json").len(), 4);
    scene.is_absent();
}

#[test]
fn a_hub_that_is_not_there_is_said() {
    let scene = Scene::with(|setup| setup.set("models.endpoint", "http://127.0.0.1:1").set("models.pull_retries", 1));
    scene.pull(&[]).exits(1).says("cannot be reached");
    scene.is_absent();
}

#[test]
fn a_server_that_knows_no_parts_sends_the_whole() {
    let scene = Scene::new();
    scene.hub.fault(WEIGHTS, Fault::Whole, usize::MAX);
    scene.pull(&[]).exits(0);
    scene.is_whole();
}

#[test]
fn the_token_goes_to_the_hub_and_to_nobody_else() {
    let scene = Scene::new();
    scene.hub.fault(WEIGHTS, Fault::Elsewhere, usize::MAX);
    scene.pull(&[]).exits(0);
    scene.is_whole();
    let seen = scene.hub.seen("");
    let of = |host: &str| seen.iter().filter(|seen| seen.host == host).collect::<Vec<_>>();
    let bearer = format!("Bearer {TOKEN}");
    assert!(of("hub").iter().all(|seen| seen.authorization.as_ref() == Some(&bearer)), "{seen:#?}");
    assert!(!of("cdn").is_empty() && of("cdn").iter().all(|seen| seen.authorization.is_none()), "{seen:#?}");
}

use std::{fs, process::Stdio};

use atelier_domain::{Job, JobStatus};
use serde_json::{Value, json};

use crate::{
    api::{self, Api, World},
    program::{Program, said, until},
};

fn updated(seq: u32, job: &Job) -> (Option<u32>, &'static str, Value) {
    (Some(seq), "job.updated", serde_json::to_value(job).unwrap())
}

fn moved(step: u32) -> (Option<u32>, &'static str, Value) {
    (None, "job.progress", json!({"id": api::id(1), "progress": api::progress(step)}))
}

/// A world whose job goes on over `scripts`, and stands like `stages` when it is asked for.
fn world(scripts: Vec<api::Script>, stages: Vec<Job>) -> World {
    World { scripts: scripts.into(), stages: stages.into(), ..World::default() }
}

#[test]
fn files_and_parameters_arrive_as_they_were_typed() {
    let api = Api::start(World { token: Some("s3cret".into()), ..World::default() });
    let program = Program::new();
    program.write("a b.jpg", vec![7; 300_000]);
    program.write("Größe.png", b"second");
    program.write("mask.png", b"mask");
    program.write("token", "# mine\ns3cret\n");
    let args = [
        "submit",
        "--server",
        &api.url(),
        "--token-file",
        "token",
        "--kind",
        "upscale",
        "--model",
        "span-x2",
        "--image",
        "a b.jpg",
        "Größe.png",
        "--mask",
        "mask.png",
        "--prompt",
        "12",
        "--seed",
        "0",
        "--scale",
        "4",
        "--denoise",
        "2",
        "--param",
        "strength=0.5",
        "--param",
        "negative_prompt=true",
        "--priority",
        "-5",
        "--name",
        "mine",
        "--idempotency-key",
        "k1",
        "--format",
        "webp",
        "--steps",
        "9",
    ];
    let said = program.run(&args).exits(0);
    assert_eq!(said.stdout, format!("{}\n", api::id(1)));
    assert_eq!(said.stderr, "");
    let submitted = api.world(|world| world.submitted.clone()).remove(0);
    assert_eq!(
        submitted.job,
        json!({"kind": "upscale", "model": "span-x2", "priority": -5, "name": "mine", "params": {
            "prompt": "12", "negative_prompt": "true", "seed": 0, "scale": 4, "denoise": 2, "strength": 0.5,
            "format": "webp", "steps": 9}})
    );
    assert_eq!(submitted.idempotency_key.as_deref(), Some("k1"));
    let names: Vec<_> = submitted.files.iter().map(|(part, name, _)| (part.as_str(), name.as_str())).collect();
    assert_eq!(names, [("image", "a b.jpg"), ("image", "Größe.png"), ("mask", "mask.png")]);
    assert_eq!(submitted.files[0].2, vec![7; 300_000]);
    assert_eq!(submitted.files[2].2, b"mask");
}

#[test]
fn a_job_without_pictures_is_json_and_json_is_answered() {
    let api = Api::start(World::default());
    let program = Program::new();
    let args = ["submit", "--server", &api.url(), "--preset", "sunset", "--denoise", "auto", "--json"];
    let said = program.run(&args).exits(0);
    assert_eq!(said.json(), serde_json::to_value(api::job(1)).unwrap());
    let submitted = api.world(|world| world.submitted.clone()).remove(0);
    assert_eq!(submitted.job, json!({"preset": "sunset", "params": {"denoise": "auto"}}));
    assert!(submitted.files.is_empty());
}

#[test]
fn waiting_survives_a_broken_stream_and_brings_the_output() {
    let done = api::succeeded(1, "photo-01.png", b"the picture");
    let scripts = vec![
        vec![updated(5, &api::running(1, 0)), moved(7)],
        vec![moved(14), (None, "job.unheard_of", json!({})), updated(9, &done)],
    ];
    let mut world = world(scripts, vec![api::job(1), api::running(1, 7)]);
    world.files.insert(api::id(1), ("../../photo-01.png".into(), b"the picture".to_vec()));
    let api = Api::start(world);
    let program = Program::new();
    program.write("photo.jpg", b"jpeg");
    let args = ["submit", "--server", &api.url(), "--image", "photo.jpg", "--output", "out/here"];
    let said = program.run(&args).exits(0);
    assert_eq!(said.stdout, "out/here/photo-01.png\n");
    assert!(said.stderr.contains("running: run 7/20") && said.stderr.contains("70 %"), "{said:#?}");
    assert!(said.stderr.contains("succeeded in 3.2 s"), "{said:#?}");
    assert!(!said.stderr.contains('\u{1b}'), "no bar where nobody watches: {said:#?}");
    assert_eq!(fs::read(program.path().join("out/here/photo-01.png")).unwrap(), b"the picture");
    assert_eq!(fs::read_dir(program.path().join("out/here")).unwrap().count(), 1);
    assert_eq!(api.world(|world| world.last_event_ids.clone()), [None, Some("5".into())]);
}

#[test]
fn waiting_asks_where_events_do_not_come() {
    let stages = vec![api::job(1), api::job(1), api::running(1, 10), api::succeeded(1, "x.png", b"x")];
    let api = Api::start(World { no_events: Some(501), ..world(vec![], stages) });
    let said = Program::new().run(&["submit", "--server", &api.url(), "--kind", "generate", "--wait"]).exits(0);
    assert_eq!(said.stdout, format!("{}/api/v1/jobs/{}/outputs/0\n", api.url(), api::id(1)));
    assert!(said.stderr.contains("running: run 10/20"), "{said:#?}");
}

#[test]
fn waiting_survives_a_restart_of_the_daemon() {
    let first = Api::start(world(vec![], vec![api::job(1)]));
    let program = Program::new();
    let child = program.command(&["submit", "--server", &first.url(), "--kind", "upscale", "--wait"]).spawn().unwrap();
    until("the job is watched", || first.world(|world| !world.last_event_ids.is_empty()));
    let (shared, address) = (first.world.clone(), first.address);
    drop(first);
    shared.lock().unwrap().stages = vec![api::succeeded(1, "x.png", b"x")].into();
    let _second = Api::listen(shared, address);
    said(child).exits(0);
}

#[test]
fn a_failed_job_is_exit_1_with_the_reason_and_what_to_do() {
    for (job, expected) in [
        (api::failed(1), "photo.jpg ends too early"),
        (Job { status: JobStatus::Cancelled, ..api::running(1, 2) }, "was cancelled"),
    ] {
        let api = Api::start(world(vec![vec![updated(3, &job)]], vec![api::job(1), api::running(1, 1)]));
        let url = api.url();
        let said = Program::new().run(&["submit", "--server", &url, "--kind", "upscale", "--wait", "--json"]).exits(1);
        assert!(said.stderr.contains(expected), "{said:#?}");
        assert_eq!(said.json()["status"], job.status.as_str());
        if job.error.is_some() {
            assert!(said.stderr.contains("→ copy it again"), "{said:#?}");
        }
    }
}

#[test]
fn a_result_that_is_no_file_is_printed() {
    let done = Job { result: Some(json!({"text": "a cat on a wall"})), outputs: vec![], ..api::succeeded(1, "", b"") };
    let api = Api::start(world(vec![], vec![done]));
    let said = Program::new().run(&["submit", "--server", &api.url(), "--kind", "caption", "--wait"]).exits(0);
    assert_eq!(said.stdout, "a cat on a wall\n");
}

#[test]
fn an_output_that_arrives_damaged_is_not_kept() {
    let mut world = world(vec![], vec![api::succeeded(1, "x.png", b"right")]);
    world.files.insert(api::id(1), ("x.png".into(), b"wrong".to_vec()));
    let api = Api::start(world);
    let program = Program::new();
    let said = program.run(&["submit", "--server", &api.url(), "--kind", "upscale", "--output", "out"]).exits(1);
    assert!(said.stderr.contains("not what the job made"), "{said:#?}");
    assert_eq!(fs::read_dir(program.path().join("out")).unwrap().count(), 0);
}

#[test]
fn ctrl_c_leaves_the_job_running_and_says_so() {
    let api = Api::start(world(vec![], vec![api::job(1), api::running(1, 1)]));
    let program = Program::new();
    let child = program
        .command(&["submit", "--server", &api.url(), "--kind", "upscale", "--wait"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    until("the job is watched", || api.world(|world| !world.last_event_ids.is_empty()));
    until("the job is asked for", || {
        api.world(|world| world.requests.iter().any(|request| request == &format!("GET /api/v1/jobs/{}", api::id(1))))
    });
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let said = said(child).exits(130);
    assert!(said.stderr.contains(&format!("job {} goes on", api::id(1))), "{said:#?}");
    assert!(said.stderr.contains("atelier jobs cancel"), "{said:#?}");
    assert!(api.world(|world| world.requests.iter().all(|request| !request.contains("cancel"))));
}

#[test]
fn a_refusal_tells_its_reason_and_ends_with_its_code() {
    let program = Program::new();
    for (status, code, exit) in
        [(422, "invalid_params", 2), (422, "image_truncated", 1), (429, "queue_full", 1), (500, "internal", 1)]
    {
        let body = json!({"title": code, "detail": "it went so", "code": code, "hint": "do this", "request_id": "r9"});
        let api = Api::start(World { refusal: Some((status, body)), ..World::default() });
        let said = program.run(&["submit", "--server", &api.url(), "--kind", "upscale"]).exits(exit);
        assert!(said.stderr.contains("it went so") && said.stderr.contains("→ do this"), "{said:#?}");
        assert_eq!(said.stderr.contains("r9"), status == 500, "{said:#?}");
        assert!(said.stderr.contains("try again in 7 s"), "{said:#?}");
    }
}

#[test]
fn what_cannot_be_sent_is_usage() {
    let api = Api::start(World::default());
    let program = Program::new();
    program.write("photo.jpg", b"x");
    let url = api.url();
    for (args, expected) in [
        (vec!["--image", "missing.jpg"], "missing.jpg: No such file"),
        (vec!["--image", "."], "is a folder"),
        (vec!["--param", "scael=2"], "did you mean \"scale\""),
        (vec!["--param", "scale=2", "--scale", "4"], "given twice"),
        (vec!["--param", "scale"], "NAME=VALUE"),
        (vec!["--kind", "paint"], "possible values"),
        (vec!["--idempotency-key", "two words"], "visible ASCII"),
        (vec!["--output", "photo.jpg"], "--output photo.jpg"),
        (vec!["--seed", "-1"], "--seed"),
    ] {
        let args: Vec<&str> = ["submit", "--server", &url].into_iter().chain(args).collect();
        let said = program.run(&args).exits(2);
        assert!(said.stderr.contains(expected), "{args:?}: {said:#?}");
    }
    assert!(api.world(|world| world.submitted.is_empty()));
}

#[test]
fn without_a_daemon_it_is_exit_3() {
    let program = Program::new();
    program.write("photo.jpg", b"x");
    let said = program.run(&["submit", "--server", "127.0.0.1:1", "--image", "photo.jpg"]).exits(3);
    assert!(said.stderr.contains("http://127.0.0.1:1 cannot be reached"), "{said:#?}");
    assert!(said.stderr.contains("atelier serve"), "{said:#?}");
}

#[test]
fn a_missing_token_is_told_how_to_give_one() {
    let api = Api::start(World { token: Some("s3cret".into()), ..World::default() });
    let program = Program::new();
    let said = program.run(&["submit", "--server", &api.url(), "--kind", "upscale"]).exits(2);
    assert!(said.stderr.contains("--token-file"), "{said:#?}");
    let child = program
        .command(&["submit", "--server", &api.url(), "--kind", "upscale"])
        .env("ATELIER_TOKEN", "s3cret")
        .spawn()
        .unwrap();
    crate::program::said(child).exits(0);
}

use std::io::{BufRead as _, BufReader};

use atelier_domain::{Job, JobStatus};
use serde_json::json;

use crate::{
    api::{self, Api, World},
    program::{Program, said},
};

fn many(count: u64) -> World {
    World { jobs: (1..=count).map(|n| (api::id(n), api::job(n))).collect(), ..World::default() }
}

#[test]
fn a_list_is_a_table_for_people_and_the_answer_for_programs() {
    let mut world = many(3);
    world.jobs.insert(api::id(2), api::running(2, 7));
    let api = Api::start(world);
    let program = Program::new();
    let said = program.run(&["jobs", "list", "--server", &api.url(), "--limit", "2"]).exits(0);
    assert_eq!(
        said.stdout,
        format!(
            "ID                          KIND         STATUS     DONE    CREATED              NAME\n\
             {}  upscale      queued        0 %  2025-11-21 20:51:04  photo 3.jpg\n\
             {}  upscale      running      35 %  2025-11-21 20:51:04  photo 2.jpg\n",
            api::id(3),
            api::id(2)
        )
    );
    assert!(said.stderr.contains(&format!("--cursor {}", api::id(2))), "{said:#?}");
    let said = program.run(&["--json", "jobs", "list", "--server", &api.url(), "--status", "running"]).exits(0);
    assert_eq!(said.json(), json!({"jobs": [api::running(2, 7)], "next_cursor": null}));
    let said =
        program.run(&["jobs", "list", "--json", "--server", &api.url(), "--cursor", &api::id(2).to_string()]).exits(0);
    assert_eq!(said.json()["jobs"][0]["id"], json!(api::id(1)));
}

#[test]
fn all_pages_are_one_table() {
    let api = Api::start(many(450));
    let program = Program::new();
    let said = program.run(&["jobs", "list", "--all", "--server", &api.url()]).exits(0);
    assert_eq!(said.stdout.lines().count(), 451);
    assert_eq!(said.stdout.matches("STATUS").count(), 1);
    let json = program.run(&["jobs", "list", "--all", "--json", "--server", &api.url()]).exits(0).json();
    assert_eq!(json["jobs"].as_array().unwrap().len(), 450);
}

#[test]
fn a_reader_that_has_gone_ends_it_quietly() {
    let api = Api::start(many(5000));
    let mut child = Program::new().command(&["jobs", "list", "--all", "--server", &api.url()]).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert!(first.starts_with("ID"), "{first}");
    let said = said(child).exits(0);
    assert_eq!(said.stderr, "");
}

#[test]
fn a_job_is_shown_whole() {
    let mut world = many(0);
    world.jobs.insert(api::id(1), api::failed(1));
    let api = Api::start(world);
    let program = Program::new();
    let id = api::id(1).to_string();
    let said = program.run(&["jobs", "show", &id, "--server", &api.url()]).exits(0);
    for expected in
        ["status    failed", "error     image_truncated: photo.jpg ends", "param     scale = 2", "copy it again"]
    {
        assert!(said.stdout.contains(expected), "{said:#?}");
    }
    let json = program.run(&["jobs", "show", &id, "--json", "--server", &api.url()]).exits(0).json();
    assert_eq!(json, serde_json::to_value(api::failed(1)).unwrap());
}

#[test]
fn a_job_that_is_not_there_is_exit_4() {
    let api = Api::start(many(1));
    let program = Program::new();
    let missing = api::id(9).to_string();
    for args in [
        vec!["show", &missing],
        vec!["watch", &missing],
        vec!["cancel", &missing],
        vec!["retry", &missing],
        vec!["rm", &missing],
        vec!["show", "no-id-at-all"],
    ] {
        let args: Vec<&str> = ["jobs", "--server"].into_iter().chain([api.url().leak() as &str]).chain(args).collect();
        let said = program.run(&args).exits(4);
        assert!(said.stderr.starts_with("atelier: "), "{said:#?}");
    }
}

#[test]
fn several_jobs_are_handled_one_by_one_and_the_first_failure_decides() {
    let mut world = many(2);
    world.jobs.insert(api::id(3), api::failed(3));
    let api = Api::start(world);
    let program = Program::new();
    let ids = [1, 9, 3, 2].map(|n| api::id(n).to_string());
    let args = |what: &str| {
        let url = api.url();
        let args = ["jobs", what, "--server", url.as_str()].map(str::to_owned);
        args.into_iter().chain(ids.clone()).collect::<Vec<_>>()
    };
    let said = program.run(&args("cancel")).exits(4);
    assert_eq!(said.stdout, format!("{} cancelled\n{} cancelled\n", api::id(1), api::id(2)));
    assert!(said.stderr.contains("does not exist") && said.stderr.contains("is failed"), "{said:#?}");
    let said = program.run(&["jobs", "retry", "--json", "--server", &api.url(), &api::id(3).to_string()]).exits(0);
    assert_eq!(said.json()["status"], "queued");
    program.run(&args("rm")).exits(4);
    assert!(api.world(|world| world.jobs.is_empty()));
}

#[test]
fn watching_in_json_is_a_job_a_line() {
    let done = api::succeeded(1, "x.png", b"x");
    let older = Job { progress: atelier_domain::Progress::queued(atelier_domain::Timestamp(-1)), ..api::running(1, 0) };
    let script = vec![
        (Some(1), "job.updated", serde_json::to_value(&older).unwrap()),
        (None, "job.progress", json!({"id": api::id(1), "progress": api::progress(12)})),
        (Some(2), "job.updated", serde_json::to_value(&done).unwrap()),
    ];
    let mut world = World { scripts: vec![script].into(), ..World::default() };
    world.jobs.insert(api::id(1), api::running(1, 3));
    let api = Api::start(world);
    let program = Program::new();
    let said = program.run(&["jobs", "watch", &api::id(1).to_string(), "--json", "--server", &api.url()]).exits(0);
    let jobs: Vec<Job> = said.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(jobs.iter().map(|job| job.progress.step).collect::<Vec<_>>(), [3, 12, 20]);
    assert_eq!(jobs[2], done);
}

#[test]
fn a_job_that_is_removed_while_it_is_watched_is_exit_4() {
    let script = vec![(Some(2), "job.removed", json!({"id": api::id(1)}))];
    let mut world = World { scripts: vec![script].into(), ..World::default() };
    world.jobs.insert(api::id(1), api::running(1, 3));
    let api = Api::start(world);
    let said = Program::new().run(&["jobs", "watch", &api::id(1).to_string(), "--server", &api.url()]).exits(4);
    assert!(said.stderr.contains("was removed"), "{said:#?}");
}

#[test]
fn all_jobs_are_watched_until_nobody_reads() {
    let job = Job { status: JobStatus::Running, ..api::job(1) };
    let updated = (Some(2), "job.updated", serde_json::to_value(&job).unwrap());
    let removed = (Some(3), "job.removed", json!({"id": api::id(2)}));
    let api = Api::start(World { scripts: vec![vec![updated, removed]].into(), ..World::default() });
    let mut child = Program::new().command(&["jobs", "watch", "--server", &api.url()]).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().take(2).map(Result::unwrap).collect::<Vec<_>>();
    assert_eq!(lines[0], format!("{} upscale     running   photo 1.jpg", api::id(1)));
    assert_eq!(lines[1], format!("{} removed", api::id(2)));
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    said(child).exits(130);
}

#[test]
fn the_queue_is_paused_and_resumed() {
    let mut world = World::default();
    world.jobs.insert(api::id(1), api::running(1, 1));
    let api = Api::start(world);
    let program = Program::new();
    let said = program.run(&["queue", "pause", "--server", &api.url()]).exits(0);
    assert!(said.stdout.contains("paused") && said.stdout.contains("yes"), "{said:#?}");
    assert!(said.stdout.contains("1 failed, 3 queued"), "{said:#?}");
    assert!(said.stdout.contains(&api::id(1).to_string()), "{said:#?}");
    let json = program.run(&["queue", "resume", "--json", "--server", &api.url()]).exits(0).json();
    assert_eq!(json["paused"], false);
    assert!(!api.world(|world| world.paused));
}

#[test]
fn cleanup_asks_the_daemon() {
    let api = Api::start(World::default());
    let program = Program::new();
    let said = program.run(&["cleanup", "--dry-run", "--server", &api.url()]).exits(0);
    assert!(said.stdout.contains("succeeded 8d ago"), "{said:#?}");
    assert!(said.stdout.contains("2 jobs and 3 files would be removed, 4.00 MB"), "{said:#?}");
    let json = program.run(&["cleanup", "--json", "--server", &api.url()]).exits(0).json();
    assert_eq!(json["jobs"], 2);
    assert_eq!(api.world(|world| world.cleanups.clone()), [json!({"dry_run": true}), json!({"dry_run": false})]);
}

#[test]
fn the_daemon_of_the_data_folder_is_found_with_its_token() {
    let mut world = many(1);
    world.token = Some("s3cret".into());
    let api = Api::start(world);
    let program = Program::new();
    program.write("there/daemon.json", json!({"pid": 1, "address": api.address.to_string()}).to_string());
    program.write("tokens", "laptop: s3cret\n");
    program.write("atelier.toml", "[paths]\ndata = \"there\"\n[server]\ntokens_file = \"tokens\"\n");
    let said = program.run(&["jobs", "list", "--config", "atelier.toml"]).exits(0);
    assert!(said.stdout.contains(&api::id(1).to_string()), "{said:#?}");
    let said = program.run(&["jobs", "list", "--data", "there", "--token", "s3cret"]).exits(0);
    assert!(said.stdout.contains(&api::id(1).to_string()), "{said:#?}");
    program.run(&["jobs", "list", "--data", "there"]).exits(2);
}

#[test]
fn an_answer_that_is_not_the_daemons_is_no_panic() {
    let api = Api::start(World::default());
    let url = format!("{}/healthz", api.url());
    Program::new().run(&["jobs", "list", "--server", &url]).exits(2);
    let said = Program::new().run(&["jobs", "list", "--server", "https://localhost"]).exits(2);
    assert!(said.stderr.contains("tunnel"), "{said:#?}");
}

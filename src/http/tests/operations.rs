use serde_json::json;

use super::*;

#[tokio::test]
async fn the_probes_tell_alive_from_ready() {
    let scene = Scene::new().await;
    assert_eq!(scene.get("/healthz").await.expect(200).json(), json!({"status": "ok"}));
    assert_eq!(scene.get("/readyz").await.expect(200).json(), json!({"status": "ok"}));
    scene.app.shutdown.cancel();
    scene.get("/healthz").await.expect(200);
    scene.get("/readyz").await.problem(503, "shutting_down");
}

#[tokio::test]
async fn a_database_that_does_not_answer_is_not_ready() {
    let scene = Scene::new().await;
    scene.app.store.close().await;
    scene.get("/readyz").await.problem(503, "not_ready");
    let problem = scene.get("/api/v1/jobs").await.problem(500, "internal");
    assert!(!problem.to_string().contains("sql"), "{problem}");
}

#[tokio::test]
async fn the_root_says_what_it_is() {
    let scene = Scene::new().await;
    scene.submitted().await;
    let about = scene.get("/").await.expect(200).json();
    assert_eq!(
        (&about["name"], &about["status"], &about["jobs"]["queued"]),
        (&json!("atelier"), &json!("ok"), &json!(1))
    );
    assert_eq!(about["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(about["worker"]["state"], "stopped");
}

#[tokio::test]
async fn what_is_not_there_and_what_is_not_done_are_problems_too() {
    let scene = Scene::new().await;
    let problem = scene.get("/api/v1/nothing").await.problem(404, "not_found");
    assert_eq!(problem["detail"], "/api/v1/nothing does not exist");
    let answer = scene.call(Method::PUT, "/api/v1/jobs", &[], "").await;
    let allow = answer.header("allow");
    assert!(allow.contains("GET") && allow.contains("POST"), "{allow:?}");
    answer.problem(405, "method_not_allowed");
    scene.call(Method::from_bytes(b"BREW").unwrap(), "/api/v1/queue", &[], "").await.problem(405, "method_not_allowed");
}

#[tokio::test]
async fn the_queue_shows_counts_and_places() {
    let scene = Scene::with(|config| config.queue.max_queued = 10).await;
    let (first, second, third) = (scene.submitted().await, scene.submitted().await, scene.submitted().await);
    scene.succeed(first, &[]).await;
    let queue = scene.get(&format!("/api/v1/queue?job={third}")).await.expect(200).json();
    assert_eq!(
        queue["counts"],
        json!({"queued": 2, "running": 0, "retrying": 0, "succeeded": 1, "failed": 0, "cancelled": 0})
    );
    assert_eq!((&queue["paused"], &queue["blocked"], &queue["running"]), (&json!(false), &json!(null), &json!(null)));
    assert_eq!((&queue["place"]["job"], &queue["place"]["position"]), (&json!(third), &json!(1)));
    assert!(queue["mean_job_seconds"].is_number() && queue["estimate_seconds"].is_number());
    assert!(queue["oldest_waiting_at"].is_string());
    assert_eq!(scene.get(&format!("/api/v1/queue?job={second}")).await.json()["place"]["position"], 0);
    assert_eq!(scene.get(&format!("/api/v1/queue?job={first}")).await.json()["place"], json!(null));
    scene.get("/api/v1/queue?job=x").await.problem(422, "invalid_request");
}

#[tokio::test]
async fn pausing_and_resuming_show() {
    let scene = Scene::new().await;
    assert_eq!(scene.call(Method::POST, "/api/v1/queue/pause", &[], "").await.expect(200).json()["paused"], true);
    assert_eq!(scene.get("/api/v1/queue").await.json()["paused"], true);
    scene.get("/readyz").await.expect(200);
    assert_eq!(scene.call(Method::POST, "/api/v1/queue/resume", &[], "").await.expect(200).json()["paused"], false);
}

#[tokio::test]
async fn models_are_listed_and_unloading_an_unknown_one_is_not_found() {
    let scene = Scene::new().await;
    let models = scene.get("/api/v1/models").await.expect(200).json();
    let ids: Vec<_> = models["models"].as_array().unwrap().iter().map(|model| &model["id"]).collect();
    assert_eq!(ids, ["fake", "span-x2"]);
    assert_eq!(models["models"][1]["kinds"], json!(["upscale"]));
    assert_eq!((&models["models"][1]["complete"], &models["models"][1]["loaded"]), (&json!(true), &json!(false)));
    let post = |path: &'static str| scene.call(Method::POST, path, &[], "");
    assert_eq!(post("/api/v1/models/unload").await.expect(200).json(), json!({"loaded": []}));
    assert_eq!(post("/api/v1/models/span-x2/unload").await.expect(200).json(), json!({"loaded": []}));
    post("/api/v1/models/nope/unload").await.problem(404, "not_found");
    post("/api/v1/models/org%2Fname/unload").await.problem(404, "not_found");
}

#[tokio::test]
async fn cleanup_tells_what_it_would_do_and_does_it() {
    let scene = Scene::with(|config| config.cleanup.keep_succeeded = Duration::ZERO).await;
    let id = scene.submitted().await;
    scene.succeed(id, &[("a.png", b"12345")]).await;
    scene.app.store.hooks_done(id, None).await.unwrap();
    // Cleanup takes what is older than now, in milliseconds.
    let dry = loop {
        let dry = scene.post("/api/v1/cleanup", &json!({"dry_run": true})).await.expect(200).json();
        if dry["jobs"] != 0 {
            break dry;
        }
    };
    assert_eq!((&dry["dry_run"], &dry["jobs"]), (&json!(true), &json!(1)), "{dry}");
    assert_eq!(dry["items"][0]["job"], json!(id));
    scene.get(&format!("/api/v1/jobs/{id}")).await.expect(200);
    scene.post("/api/v1/cleanup", &json!({"dryrun": true})).await.problem(422, "invalid_request");
    scene.get(&format!("/api/v1/jobs/{id}")).await.expect(200);
    let done = scene.call(Method::POST, "/api/v1/cleanup", &[], "").await.expect(200).json();
    assert_eq!((&done["dry_run"], &done["jobs"]), (&json!(false), &json!(1)), "{done}");
    scene.get(&format!("/api/v1/jobs/{id}")).await.problem(404, "not_found");
}

#[tokio::test]
async fn metrics_are_in_prometheus_text() {
    let scene = Scene::new().await;
    scene.submitted().await;
    let answer = scene.get("/metrics").await.expect(200);
    assert!(answer.header("content-type").starts_with("text/plain; version=0.0.4"));
    let text = answer.text();
    for line in [
        "atelier_jobs{status=\"queued\"} 1",
        "atelier_jobs{status=\"failed\"} 0",
        "atelier_queue_paused 0",
        "atelier_worker_up 0",
        "# TYPE atelier_jobs gauge",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
    }
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (_, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
    }
}

#[tokio::test]
async fn the_description_is_shown_without_anything_from_elsewhere() {
    use std::io::Read as _;
    let scene = Scene::new().await;
    let page = scene.get("/docs").await.expect(200);
    assert!(page.header("content-type").starts_with("text/html"));
    assert!(page.header("content-security-policy").contains("script-src 'self'"));
    let text = page.text();
    assert!(!text.contains("://"), "a page that fetches from elsewhere: {text}");
    for own in ["/docs/rapidoc-min.js", "/openapi.json"] {
        assert!(text.contains(own), "{own}");
        scene.get(own).await.expect(200);
    }
    let program = scene.get("/docs/rapidoc-min.js").await.expect(200);
    assert_eq!(program.header("content-encoding"), "gzip");
    let mut script = String::new();
    flate2::read::GzDecoder::new(&program.body[..]).read_to_string(&mut script).unwrap();
    assert!(script.starts_with("/*! RapiDoc 9.3.8"), "{}", &script[..60]);
    let plain = scene.call(Method::GET, "/docs/rapidoc-min.js", &[("accept-encoding", "identity")], "").await;
    plain.problem(406, "not_acceptable");
}

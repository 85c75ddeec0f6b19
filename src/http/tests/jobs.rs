use serde_json::json;

use super::*;

fn ids(page: &Value) -> Vec<String> {
    page["jobs"].as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn pages_follow_each_other_without_gap_or_repetition() {
    let scene = Scene::new().await;
    let mut made = Vec::new();
    for _ in 0..7 {
        made.push(scene.submitted().await.to_string());
    }
    made.reverse();
    let mut seen = Vec::new();
    let mut path = "/api/v1/jobs?limit=3".to_owned();
    loop {
        let page = scene.get(&path).await.expect(200).json();
        seen.extend(ids(&page));
        match page["next_cursor"].as_str() {
            Some(cursor) => path = format!("/api/v1/jobs?limit=3&cursor={cursor}"),
            None => break,
        }
    }
    assert_eq!(seen, made);
}

#[tokio::test]
async fn a_list_is_filtered_and_bad_filters_are_named() {
    let scene = Scene::new().await;
    let (waiting, done) = (scene.submitted().await, scene.submitted().await);
    scene.succeed(done, &[]).await;
    assert_eq!(ids(&scene.get("/api/v1/jobs?status=succeeded").await.expect(200).json()), [done.to_string()]);
    assert_eq!(
        ids(&scene.get("/api/v1/jobs?status=queued&kind=upscale&source=http").await.json()),
        [waiting.to_string()]
    );
    assert_eq!(ids(&scene.get("/api/v1/jobs?source=inbox").await.json()).len(), 0);
    assert_eq!(ids(&scene.get("/api/v1/jobs?status=&kind=&source=&limit=&cursor=").await.expect(200).json()).len(), 2);
    for query in [
        "status=done",
        "kind=paint",
        "source=ftp",
        "limit=0",
        "limit=201",
        "limit=-1",
        "limit=x",
        "cursor=x",
        "cursor=%00",
        "page=2",
        "status=queued&status=failed",
    ] {
        scene.get(&format!("/api/v1/jobs?{query}")).await.problem(422, "invalid_request");
    }
    assert_eq!(scene.get("/api/v1/jobs?status=suceeded").await.json()["hint"], "did you mean \"succeeded\"?");
}

#[tokio::test]
async fn a_job_has_the_names_of_the_contract_in_their_order() {
    let scene = Scene::new().await;
    let id = scene.submitted().await;
    let text = scene.get(&format!("/api/v1/jobs/{id}")).await.expect(200).text();
    let names = [
        "id",
        "kind",
        "model",
        "status",
        "priority",
        "progress",
        "attempt",
        "max_attempts",
        "crashes",
        "resumed_from_step",
        "source",
        "params",
        "inputs",
        "outputs",
        "result",
        "error",
        "created_at",
        "started_at",
        "finished_at",
    ];
    let places: Vec<_> = names.iter().map(|name| text.find(&format!("\"{name}\":")).expect(name)).collect();
    assert!(places.is_sorted(), "{text}");
}

#[tokio::test]
async fn what_is_no_job_is_not_found() {
    let scene = Scene::new().await;
    let absent = JobId::from_ulid(ulid::Ulid::generate());
    for id in [absent.to_string(), "x".into(), "..%2f..%2fetc%2fpasswd".into(), "%00".into(), "%ff".into()] {
        for path in ["", "/manifest", "/outputs/0", "/events"] {
            scene.get(&format!("/api/v1/jobs/{id}{path}")).await.problem(404, "not_found");
        }
        for path in ["/cancel", "/retry"] {
            scene.call(Method::POST, &format!("/api/v1/jobs/{id}{path}"), &[], "").await.problem(404, "not_found");
        }
        scene.call(Method::DELETE, &format!("/api/v1/jobs/{id}"), &[], "").await.problem(404, "not_found");
    }
}

#[tokio::test]
async fn cancel_and_retry_say_no_where_the_status_does() {
    let scene = Scene::new().await;
    let id = scene.submitted().await;
    let call = |what: &'static str| scene.call(Method::POST, format!("/api/v1/jobs/{id}/{what}").leak(), &[], "");
    call("retry").await.problem(409, "conflict");
    assert_eq!(call("cancel").await.expect(202).json()["status"], "cancelled");
    call("cancel").await.problem(409, "conflict");
    assert_eq!(call("retry").await.expect(202).json()["status"], "queued");
    scene.succeed(id, &[]).await;
    call("cancel").await.problem(409, "conflict");
    call("retry").await.problem(409, "conflict");
}

#[tokio::test]
async fn a_retry_without_its_picture_says_so() {
    let scene = Scene::new().await;
    let id = scene.submitted().await;
    scene.fail(id).await;
    std::fs::remove_dir_all(scene.spool().join(id.to_string())).unwrap();
    let problem =
        scene.call(Method::POST, &format!("/api/v1/jobs/{id}/retry"), &[], "").await.problem(409, "input_missing");
    assert!(problem["detail"].as_str().unwrap().contains("gone"), "{problem}");
}

#[tokio::test]
async fn deleting_takes_rows_and_files() {
    let scene = Scene::new().await;
    let (waiting, done) = (scene.submitted().await, scene.submitted().await);
    let output = format!("out-{done}.png");
    scene.succeed(done, &[(&output, b"bytes")]).await;
    for id in [waiting, done] {
        let answer = scene.call(Method::DELETE, &format!("/api/v1/jobs/{id}"), &[], "").await.expect(204);
        assert!(answer.body.is_empty());
        scene.get(&format!("/api/v1/jobs/{id}")).await.problem(404, "not_found");
    }
    scene.assert_nothing_is_left();
    assert!(!scene.app.config().outbox.dir.join(output).exists());
}

#[tokio::test]
async fn a_manifest_is_there_when_the_job_has_succeeded() {
    let scene = Scene::new().await;
    let id = scene.submitted().await;
    let path = format!("/api/v1/jobs/{id}/manifest");
    let problem = scene.get(&path).await.problem(404, "not_found");
    assert!(problem["hint"].as_str().unwrap().contains("queued"), "{problem}");
    scene.succeed(id, &[]).await;
    assert_eq!(scene.get(&path).await.expect(200).json(), json!({"seed": 7}));
}

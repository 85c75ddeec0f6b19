use serde_json::json;

use super::*;

fn upscale(image: &str) -> Value {
    json!({"kind": "upscale", "params": {"scale": 2}, "images": [image]})
}

#[tokio::test]
async fn a_job_in_json_is_queued_with_its_picture_on_disk() {
    let scene = Scene::new().await;
    let uri = format!("data:image/jpeg;base64,{}", base64(&png()));
    let answer = scene.post("/api/v1/jobs", &upscale(&uri)).await.expect(202);
    let job = answer.json();
    let id = job["id"].as_str().unwrap();
    assert_eq!(answer.header("location"), format!("/api/v1/jobs/{id}"));
    assert_eq!(job["status"], "queued");
    assert_eq!(job["source"], json!({"type": "http", "name": null}));
    assert_eq!(job["inputs"][0]["media_type"], "image/png", "the content decides, not the URI");
    assert_eq!((&job["inputs"][0]["width"], &job["inputs"][0]["height"]), (&json!(16), &json!(12)));
    let spooled = std::fs::read(scene.spool().join(id).join("0-image")).unwrap();
    assert_eq!(spooled, png());
    assert_eq!(scene.spooled(), (vec![id.to_owned()], 0));
    assert_eq!(scene.get(&format!("/api/v1/jobs/{id}")).await.expect(200).json(), job);
}

#[tokio::test]
async fn every_spelling_of_base64_is_the_same_picture() {
    let scene = Scene::new().await;
    let standard = base64(&png());
    let spellings = [
        standard.clone(),
        standard.trim_end_matches('=').to_owned(),
        standard.replace('+', "-").replace('/', "_"),
        standard.as_bytes().chunks(76).map(|line| String::from_utf8_lossy(line) + "\r\n").collect(),
        format!("DATA:;base64,{standard}"),
    ];
    let mut hashes = std::collections::BTreeSet::new();
    for spelling in spellings {
        let job = scene.post("/api/v1/jobs", &upscale(&spelling)).await.expect(202).json();
        hashes.insert(job["inputs"][0]["sha256"].as_str().unwrap().to_owned());
    }
    assert_eq!(hashes.len(), 1);
    // PHP writes `\/`, others `\u003d`.
    let body = upscale(&standard).to_string().replace('/', "\\/").replace('=', "\\u003d");
    scene
        .call(Method::POST, "/api/v1/jobs", &[("content-type", "application/json; charset=utf-8")], body)
        .await
        .expect(202);
}

#[tokio::test]
async fn a_form_takes_its_parts_in_any_order() {
    let scene = Scene::new().await;
    let (png, job) = (png(), br#"{"kind":"edit","model":"fake","params":{"prompt":"x"},"name":"Ferien"}"#.as_slice());
    let orders: [&[FormPart<'_>]; 2] = [
        &[
            ("job", None, job),
            ("image", Some("a.png"), &png),
            ("mask", Some("m.png"), &png),
            ("image", Some("b.png"), &png),
        ],
        &[
            ("image", Some("a.png"), &png),
            ("image[]", Some("b.png"), &png),
            ("mask", Some("m.png"), &png),
            ("job", None, job),
        ],
    ];
    for order in orders {
        let job = scene.form(&[], order).await.expect(202).json();
        let names: Vec<_> = job["inputs"].as_array().unwrap().iter().map(|i| i["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["a.png", "b.png"]);
        assert_eq!(job["source"]["name"], "Ferien");
        let id: JobId = job["id"].as_str().unwrap().parse().unwrap();
        let record = scene.app.store.record(id).await.unwrap().unwrap();
        let (mask, path) = record.mask.unwrap();
        assert_eq!(mask.name, "m.png");
        assert!(path.ends_with(format!("{id}/2-m.png")), "{}", path.display());
    }
}

#[tokio::test]
async fn plain_fields_may_stand_in_the_place_of_the_job() {
    let scene = Scene::new().await;
    let png = png();
    let fields: &[FormPart<'_>] = &[
        ("kind", None, b"upscale"),
        ("scale", None, b"4"),
        ("denoise", None, b"2"),
        ("priority", None, b"-3"),
        ("image", Some("x.png"), &png),
    ];
    let job = scene.form(&[], fields).await.expect(202).json();
    assert_eq!(
        (&job["params"]["scale"], &job["params"]["denoise"], &job["priority"]),
        (&json!(4), &json!(2), &json!(-3))
    );
    let fields: &[FormPart<'_>] =
        &[("kind", None, b"generate"), ("prompt", None, "7".as_bytes()), ("seed", None, b"18446744073709551615")];
    let job = scene.form(&[], fields).await.expect(202).json();
    assert_eq!(job["params"]["prompt"], "7", "a prompt is text, also when it is a number");
    assert_eq!(job["params"]["seed"], u64::MAX);
    let wrong: &[FormPart<'_>] = &[("kind", None, b"generate"), ("prompt", None, b"x"), ("steps", None, b"many")];
    scene.form(&[], wrong).await.problem(422, "invalid_params");
}

#[tokio::test]
async fn what_is_wrong_with_a_job_is_said_and_nothing_is_kept() {
    let scene = Scene::with(|config| config.limits.images = 2).await;
    let image = base64(&png());
    let prompt = "x".repeat(2001);
    let cases = [
        (json!([]), 422, "invalid_request"),
        (json!({}), 422, "invalid_request"),
        (json!({"kind": "paint"}), 422, "unknown_kind"),
        (json!({"kind": "upscale", "scael": 2}), 422, "invalid_request"),
        (json!({"kind": "upscale", "params": {"scale": 3}, "images": [image]}), 422, "invalid_params"),
        (json!({"kind": "upscale"}), 422, "invalid_request"),
        (json!({"kind": "upscale", "images": []}), 422, "invalid_request"),
        (json!({"kind": "upscale", "images": [image, image]}), 422, "invalid_request"),
        (json!({"kind": "caption", "images": [image, image]}), 422, "invalid_request"),
        (json!({"kind": "edit", "params": {"prompt": "x"}, "images": [image, image, image]}), 422, "invalid_request"),
        (json!({"kind": "upscale", "images": image}), 422, "invalid_request"),
        (json!({"kind": "upscale", "images": [7]}), 422, "invalid_request"),
        (json!({"kind": "upscale", "images": [[image]]}), 422, "invalid_request"),
        (json!({"kind": "upscale", "images": [image], "mask": ["x"]}), 422, "invalid_request"),
        (json!({"kind": "upscale", "images": ["%%%"]}), 422, "invalid_request"),
        (json!({"kind": "upscale", "images": ["https://example.org/a.png"]}), 422, "invalid_request"),
        (json!({"kind": "upscale", "images": [""]}), 422, "image_empty"),
        (json!({"kind": "upscale", "images": [base64(b"just text, really")]}), 415, "image_unsupported"),
        (json!({"kind": "upscale", "images": [base64(&png()[..200])]}), 422, "image_truncated"),
        (json!({"kind": "upscale", "model": "nope", "images": [image]}), 422, "unknown_model"),
        (json!({"kind": "upscale", "preset": "nope", "images": [image]}), 422, "unknown_preset"),
        (json!({"kind": "speech", "params": {"prompt": "x"}}), 501, "not_available"),
        (json!({"kind": "generate", "params": {"prompt": prompt}}), 422, "invalid_params"),
        (
            json!({"kind": "generate", "params": {"prompt": "x", "negative_prompt": "y".repeat(1001)}}),
            422,
            "invalid_params",
        ),
        (json!({"kind": "generate", "params": {"prompt": "x", "seed": -1}}), 422, "invalid_params"),
        (
            json!({"kind": "generate", "params": {"prompt": "x"}, "webhook": "http://127.0.0.1/"}),
            422,
            "invalid_request",
        ),
    ];
    for (body, status, code) in cases {
        let answer = scene.post("/api/v1/jobs", &body).await;
        let shown: String = body.to_string().chars().take(120).collect();
        assert_eq!(
            (answer.status.as_u16(), answer.json()["code"].as_str().unwrap()),
            (status, code),
            "{shown}\n{}",
            answer.text()
        );
        answer.problem(status, code);
    }
    assert!(scene.get("/api/v1/jobs").await.json()["jobs"].as_array().unwrap().is_empty());
    scene.assert_nothing_is_left();
    let misspelt = scene.post("/api/v1/jobs", &json!({"kind": "upscale", "scael": 2})).await.json();
    assert_eq!(misspelt["hint"], "did you mean \"scale\"?");
}

#[tokio::test]
async fn malformed_bodies_are_told_where() {
    let scene = Scene::new().await;
    let json = [("content-type", "application/json")];
    for (body, detail) in [
        ("", "line 1 column 0: EOF while parsing a value"),
        ("{\n  \"kind\": upscale\n}", "line 2 column 11: expected value"),
        ("{\"kind\":\"upscale\",\"kind\":\"edit\"}", "line 1 column 24: \"kind\" is given twice"),
        ("{\"params\":{\"strength\":NaN}}", "line 1 column 23: expected value"),
    ] {
        let problem = scene.call(Method::POST, "/api/v1/jobs", &json, body).await.problem(400, "malformed_json");
        assert_eq!(problem["detail"], detail);
    }
    let long = "A".repeat(1 << 20);
    let text = format!("{{\"images\":[\"{}\"] \"kind\":1}}", base64(&[7; 3000]));
    let problem = scene.call(Method::POST, "/api/v1/jobs", &json, text).await.problem(400, "malformed_json");
    assert_eq!(problem["detail"], "line 1 column 4016: expected `,` or `}`", "the place in what was sent");
    let problem = scene.call(Method::POST, "/api/v1/jobs", &json, format!("{{\"kind\":\"{long}\"}}")).await;
    assert!(problem.problem(413, "body_too_large")["hint"].as_str().unwrap().contains("multipart"));
    scene.assert_nothing_is_left();
}

#[tokio::test]
async fn only_json_and_forms_are_taken() {
    let scene = Scene::new().await;
    for headers in [
        vec![],
        vec![("content-type", "text/plain")],
        vec![("content-type", "application/x-www-form-urlencoded")],
        vec![("content-type", "multipart/mixed; boundary=x")],
    ] {
        let answer = scene.call(Method::POST, "/api/v1/jobs", &headers, "{}").await;
        assert_eq!(answer.header("accept-post"), "application/json, multipart/form-data");
        answer.problem(415, "unsupported_media_type");
    }
    let no_boundary = [("content-type", "multipart/form-data")];
    scene.call(Method::POST, "/api/v1/jobs", &no_boundary, "x").await.problem(400, "malformed_request");
    scene
        .call(Method::POST, "/api/v1/jobs", &[("content-type", "application/vnd.x+json")], "{}")
        .await
        .problem(422, "invalid_request");
}

#[tokio::test]
async fn forms_that_do_not_add_up_are_refused() {
    let scene = Scene::new().await;
    let png = png();
    let cases: [(&[FormPart<'_>], u16, &str); 7] = [
        (&[("job", None, b"{}"), ("job", None, b"{}")], 400, "malformed_request"),
        (&[("job", None, b"{")], 400, "malformed_json"),
        (&[("job", None, b"[]")], 422, "invalid_request"),
        (&[("kind", None, b"upscale"), ("kind", None, b"edit")], 400, "malformed_request"),
        (&[("job", None, br#"{"kind":"upscale"}"#), ("kind", None, b"edit")], 422, "invalid_request"),
        (&[("kind", None, b"upscale"), ("file", Some("x.png"), &png)], 422, "invalid_request"),
        (&[("kind", None, &[0xff, 0xfe])], 400, "malformed_request"),
    ];
    for (parts, status, code) in cases {
        scene.form(&[], parts).await.problem(status, code);
    }
    let (content_type, body) = form(&[("kind", None, b"upscale"), ("image", Some("x.png"), &png)]);
    for cut in [10, 60, body.len() - 200, body.len() - 5] {
        let answer =
            scene.call(Method::POST, "/api/v1/jobs", &[("content-type", &content_type)], body[..cut].to_vec()).await;
        answer.problem(400, "malformed_request");
    }
    scene.assert_nothing_is_left();
}

#[tokio::test]
async fn a_file_over_the_limit_is_refused() {
    let scene = Scene::with(|config| config.limits.upload = 100).await;
    let problem = scene.post("/api/v1/jobs", &upscale(&base64(&png()))).await.problem(413, "upload_too_large");
    assert!(problem["detail"].as_str().unwrap().contains("100 bytes"), "{problem}");
    scene
        .form(&[], &[("kind", None, b"upscale"), ("image", Some("p.png"), &png())])
        .await
        .problem(413, "upload_too_large");
    let length = [("content-type", "application/json"), ("content-length", "99999999")];
    scene.call(Method::POST, "/api/v1/jobs", &length, "{}").await.problem(413, "body_too_large");
    scene.assert_nothing_is_left();
}

#[tokio::test]
async fn a_picture_with_too_many_pixels_is_refused() {
    let scene = Scene::with(|config| config.limits.pixels = 100).await;
    scene.post("/api/v1/jobs", &upscale(&base64(&png()))).await.problem(422, "image_too_large");
    scene.assert_nothing_is_left();
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_back() {
    let scene = Scene::with(|config| config.queue.max_queued = 1).await;
    scene.submitted().await;
    let answer = scene.post("/api/v1/jobs", &upscale(&base64(&png()))).await;
    assert!(answer.header("retry-after").parse::<u64>().unwrap() > 0);
    answer.problem(429, "queue_full");
    // With a key the request might be the first one again, so it is read before it is refused.
    let (content_type, body) = form(&[("kind", None, b"upscale"), ("image", Some("p.png"), &png())]);
    let keyed = [("content-type", content_type.as_str()), ("idempotency-key", "k")];
    let answer = scene.call(Method::POST, "/api/v1/jobs", &keyed, body).await;
    assert!(answer.header("retry-after").parse::<u64>().unwrap() > 0);
    answer.problem(429, "queue_full");
    assert_eq!(scene.spooled().0.len(), 1, "only the queued job's folder");
    assert_eq!(scene.spooled().1, 0);
}

#[tokio::test]
async fn the_same_key_and_request_is_the_first_job_again() {
    let scene = Scene::new().await;
    let submit = |key: &'static str, job: &'static str| {
        let (content_type, body) = form(&[("job", None, job.as_bytes()), ("image", Some("p.png"), &png())]);
        let scene = &scene;
        async move {
            let headers = [("content-type", content_type.as_str()), ("idempotency-key", key)];
            scene.call(Method::POST, "/api/v1/jobs", &headers, body).await
        }
    };
    let edit = r#"{"kind":"edit","model":"fake","params":{"prompt":"x"}}"#;
    let first = submit("a", edit).await.expect(202);
    assert_eq!(first.header("idempotency-replayed"), "");
    let id = first.json()["id"].clone();
    let again = submit("a", edit).await.expect(202);
    assert_eq!(again.header("idempotency-replayed"), "true");
    assert_eq!(again.json()["id"], id);
    assert_eq!(again.json()["params"]["seed"], first.json()["params"]["seed"], "not a new seed");
    assert_eq!(again.header("location"), first.header("location"));
    assert_ne!(submit("b", edit).await.expect(202).json()["id"], id);
    submit("a", r#"{"kind":"edit","model":"fake","params":{"prompt":"y"}}"#).await.problem(422, "idempotency_mismatch");
    assert_eq!(scene.spooled().0.len(), 2, "replayed requests leave no files");

    scene.succeed(id.as_str().unwrap().parse().unwrap(), &[("a.png", b"x")]).await;
    let ended = submit("a", edit).await.expect(200);
    assert_eq!((ended.json()["id"].clone(), ended.json()["status"].clone()), (id, json!("succeeded")));
    for bad in ["", "two words", &"x".repeat(256)] {
        let headers = [("content-type", "application/json"), ("idempotency-key", bad)];
        scene.call(Method::POST, "/api/v1/jobs", &headers, "{}").await.problem(422, "invalid_request");
    }
}

#[tokio::test]
async fn waiting_answers_with_the_end_or_with_the_job_as_it_is() {
    let scene = Arc::new(Scene::new().await);
    let submit = |prefer: &'static str| {
        let scene = scene.clone();
        async move {
            scene.form(&[("prefer", prefer)], &[("kind", None, b"upscale"), ("image", Some("p.png"), &png())]).await
        }
    };
    let answer = submit("wait=0").await.expect(202);
    assert_eq!(answer.header("preference-applied"), "wait=0");
    assert_eq!(submit("respond-async").await.expect(202).header("preference-applied"), "respond-async");
    assert_eq!(submit("wait=never").await.expect(202).header("preference-applied"), "");

    let mut events = scene.app.queue.subscribe();
    let waiting = tokio::spawn(submit("respond-async, wait=100000"));
    let id = events.recv().await.unwrap().event.job_id();
    scene.succeed(id, &[("a.png", b"x")]).await;
    let answer = waiting.await.unwrap().expect(200);
    assert_eq!(answer.header("preference-applied"), "wait=600");
    assert_eq!(
        (answer.json()["id"].as_str().unwrap(), answer.json()["status"].as_str().unwrap()),
        (&*id.to_string(), "succeeded")
    );

    let waiting = tokio::spawn(submit("wait=600"));
    let id = events_until_queued(&mut events).await;
    scene.fail(id).await;
    let answer = waiting.await.unwrap().expect(200);
    assert_eq!(answer.json()["error"]["code"], "image_corrupt", "an end is an end");

    let waiting = tokio::spawn(submit("wait=600"));
    events_until_queued(&mut events).await;
    scene.app.shutdown.cancel();
    assert_eq!(waiting.await.unwrap().expect(202).json()["status"], "queued");
    submit("wait=1").await.problem(503, "shutting_down");
}

async fn events_until_queued(events: &mut tokio::sync::broadcast::Receiver<crate::queue::Message>) -> JobId {
    loop {
        if let crate::queue::JobMessage::Updated(job) = events.recv().await.unwrap().event
            && job.status == atelier_domain::JobStatus::Queued
        {
            return job.id;
        }
    }
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_leaves_no_file() {
    let scene = Scene::new().await;
    let (content_type, body) = form(&[("kind", None, b"upscale"), ("image", Some("p.png"), &vec![7; 300_000])]);
    let half = bytes::Bytes::from(body[..200_000].to_vec());
    let stalled = futures::StreamExt::chain(
        futures::stream::once(async { Ok::<_, std::io::Error>(half) }),
        futures::stream::pending(),
    );
    let request = request(Method::POST, "/api/v1/jobs", &[("content-type", &content_type)], Body::from_stream(stalled));
    let router = scene.router.clone();
    let sending = tokio::spawn(router.oneshot(request));
    eventually(|| scene.spooled().1 == 1).await;
    sending.abort();
    assert!(sending.await.unwrap_err().is_cancelled());
    scene.assert_nothing_is_left();
}

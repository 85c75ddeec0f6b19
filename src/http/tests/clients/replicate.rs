use super::*;

const DATA: &[u8] = b"the bytes of a picture";

#[tokio::test]
async fn a_prediction_is_a_job_in_other_words() {
    let scene = Scene::new().await;
    let input = json!({"prompt": "a boat", "num_outputs": 2, "num_inference_steps": 4, "guidance_scale": 3, "seed": 0,
        "output_format": "webp", "output_quality": 80, "go_fast": true});
    let made = scene.post("/v1/predictions", &json!({"version": "fake", "input": input})).await.expect(201).json();
    let id: JobId = made["id"].as_str().unwrap().parse().unwrap();
    assert_eq!((&made["status"], &made["model"]), (&json!("starting"), &json!("atelier/fake")));
    assert_eq!((&made["output"], &made["error"]), (&json!(null), &json!(null)));
    let job = scene.app.store.job(id).await.unwrap().unwrap();
    assert_eq!(
        serde_json::to_value(&job.params).unwrap(),
        json!({"prompt": "a boat", "num_images": 2, "steps": 4, "guidance_scale": 3.0, "seed": 0, "format": "webp",
            "quality": 80})
    );
    scene.succeed(id, &[("a.png", DATA), ("b.png", b"b")]).await;
    let get = made["urls"]["get"].as_str().unwrap().strip_prefix("http://127.0.0.1:8470").unwrap().to_owned();
    let done = scene.get(&get).await.expect(200).json();
    assert_eq!(done["status"], "succeeded");
    let uri = |bytes: &[u8]| format!("data:image/png;base64,{}", base64(bytes));
    assert_eq!(done["output"], json!([uri(DATA), uri(b"b")]));
    let tls = scene.call(Method::GET, &get, &[("x-forwarded-proto", "https")], "").await.expect(200).json();
    assert_eq!(tls["output"][0], format!("https://127.0.0.1:8470/api/v1/jobs/{id}/outputs/0"));
    let page = scene.get("/v1/predictions").await.expect(200).json();
    assert_eq!((&page["results"][0]["id"], &page["next"]), (&json!(id), &json!(null)));
}

#[tokio::test]
async fn a_client_that_waits_is_answered_with_the_end() {
    let scene = Scene::new().await;
    let wish = json!({"input": {"prompt": "a boat"}});
    let waiting = request(
        Method::POST,
        "/v1/models/atelier/fake/predictions",
        &[("content-type", "application/json"), ("prefer", "wait")],
        wish.to_string(),
    );
    let (_, answer) = scene.served(waiting, &[("a.png", DATA)]).await;
    assert_eq!(answer.expect(201).json()["status"], "succeeded");
    // A second one is a second job: nothing says that it is the same.
    let short = request(
        Method::POST,
        "/v1/models/atelier/fake/predictions",
        &[("content-type", "application/json"), ("prefer", "wait=0")],
        wish.to_string(),
    );
    let made = scene.send(short).await.expect(201).json();
    assert_eq!((&made["status"], scene.count().await), (&json!("starting"), 2));
    let id = made["id"].as_str().unwrap();
    let cancelled = scene.post(&format!("/v1/predictions/{id}/cancel"), &json!({})).await.expect(200).json();
    assert_eq!(cancelled["status"], "canceled");
    scene.post(&format!("/v1/predictions/{id}/cancel"), &json!({})).await.expect(200);
}

#[tokio::test]
async fn what_a_prediction_does_follows_from_what_comes_with_it() {
    let scene = Scene::new().await;
    let image = base64(&png());
    let version = scene.get("/v1/models/fake").await.json()["latest_version"]["id"].as_str().unwrap().to_owned();
    for (reference, input, kind) in [
        (version.as_str(), json!({"prompt": "x"}), "generate"),
        ("atelier/fake", json!({"prompt": "x", "image": image}), "edit"),
        ("fake:1234", json!({"prompt": "x", "image": image, "mask": image}), "inpaint"),
        ("fake", json!({"image": image, "scale": 4}), "upscale"),
        ("span-x2", json!({"image": image}), "upscale"),
        ("atelier/caption", json!({"image": image}), "caption"),
        ("fake", json!({"prompt": "x", "kind": "video"}), "video"),
    ] {
        let wish = json!({"version": reference, "input": input});
        let made = scene.post("/v1/predictions", &wish).await;
        let made = made.expect(201).json();
        let id = made["id"].as_str().unwrap().parse().unwrap();
        assert_eq!(scene.app.store.job(id).await.unwrap().unwrap().kind.as_str(), kind, "{reference}");
    }
    for (wish, status, code) in [
        (json!({"input": {"prompt": "x"}}), 422, "invalid_request"),
        (json!({"version": "nonesuch", "input": {"prompt": "x"}}), 404, "not_found"),
        (json!({"version": "fake", "input": "x"}), 422, "invalid_request"),
        (json!({"version": "fake", "input": {"prompt": "x", "seed": "abc"}}), 422, "invalid_params"),
        (json!({"version": "fake", "input": {"prompt": "x", "image": 7}}), 422, "invalid_request"),
    ] {
        scene.post("/v1/predictions", &wish).await.problem(status, code);
    }
    scene.get("/v1/predictions/nonesuch").await.problem(404, "not_found");
    scene.get("/v1/predictions?cursor=x").await.problem(422, "invalid_request");
}

#[tokio::test]
async fn a_caption_is_told_as_a_text() {
    let scene = Scene::new().await;
    let wish = json!({"version": "atelier/caption", "input": {"image": base64(&png())}});
    let made = scene.post("/v1/predictions", &wish).await.expect(201).json();
    let id = made["id"].as_str().unwrap();
    scene.succeed_with(id.parse().unwrap(), &[], Some(json!({"text": "a boat"}))).await;
    assert_eq!(scene.get(&format!("/v1/predictions/{id}")).await.expect(200).json()["output"], "a boat");
}

#[tokio::test]
async fn a_file_is_sent_ahead_used_and_removed() {
    let scene = Scene::new().await;
    let png = png();
    let upload = post_form("/v1/files", &[("content", Some("photo.png"), &png), ("metadata", None, b"{}")]);
    let file = scene.send(upload).await.expect(201).json();
    let id = file["id"].as_str().unwrap();
    assert_eq!(
        (&file["name"], &file["content_type"], &file["size"]),
        (&json!("photo.png"), &json!("image/png"), &json!(png.len()))
    );
    let url = file["urls"]["get"].as_str().unwrap();
    assert_eq!(scene.get(&format!("/v1/files/{id}")).await.expect(200).json(), file);
    assert_eq!(scene.get("/v1/files").await.expect(200).json()["results"], json!([file]));
    let wish = json!({"version": "fake", "input": {"image": url, "scale": 2}});
    let made = scene.post("/v1/predictions", &wish).await.expect(201).json();
    let job = scene.app.store.job(made["id"].as_str().unwrap().parse().unwrap()).await.unwrap().unwrap();
    assert_eq!((job.inputs[0].name.as_str(), &json!(job.inputs[0].sha256)), ("photo.png", &file["etag"]));
    scene.call(Method::DELETE, &format!("/v1/files/{id}"), &[], "").await.expect(204);
    scene.get(&format!("/v1/files/{id}")).await.problem(404, "not_found");
    scene.post("/v1/predictions", &wish).await.problem(422, "invalid_request");
    for id in ["..%2F..%2Fatelier.db", "*", "%00"] {
        scene.get(&format!("/v1/files/{id}")).await.problem(404, "not_found");
    }
    scene.send(post_form("/v1/files", &[("other", Some("a"), b"x")])).await.problem(422, "invalid_request");
    assert_eq!(scene.spooled().1, 0);
}

use super::*;

const DATA: &[u8] = b"the bytes of a picture";

#[tokio::test]
async fn a_route_without_its_model_says_which_folder_is_missing() {
    let scene = Scene::new().await;
    for (route, folder) in [
        ("generate/flux", "models/black-forest-labs/FLUX.1-schnell"),
        ("caption/llava", "models/llava-hf/llava-v1.6-mistral-7b-hf"),
        ("controlnet/mistoline", "models/TheMistoAI/MistoLine"),
        ("video/wan21", "models/Wan-AI/Wan2.1-T2V-1.3B-Diffusers"),
        ("talking-head/infinitetalk", "models/MeiGen-AI/InfiniteTalk"),
    ] {
        let wish = json!({"prompt": "x", "image": base64(&png())});
        let problem = scene.post(&format!("/api/{route}"), &wish).await.problem(503, "model_missing");
        assert!(problem["detail"].as_str().unwrap().contains(folder), "{problem}");
        assert!(problem["hint"].as_str().unwrap().contains("atelier models pull"), "{problem}");
    }
    scene.post("/api/generate/sd9", &json!({"prompt": "x"})).await.problem(404, "not_found");
    let models = scene.get("/models").await.expect(200).json();
    assert_eq!(models["models"].as_array().unwrap().len(), 13);
    assert!(models["models"].as_array().unwrap().iter().all(|model| model["available"] == false));
    assert_eq!(scene.get("/api/tts/status").await.expect(200).json()["available"], false);
    assert_eq!(scene.get("/api/comfyui/status").await.expect(200).json()["available"], false);
    assert_eq!(scene.count().await, 0);
    scene.assert_nothing_is_left();
}

#[tokio::test]
async fn a_route_answers_with_the_finished_result() {
    let scene = Scene::new().await;
    scene.install("sdxl").await;
    let wish = json!({"prompt": "a boat", "negative_prompt": "fog", "width": 512, "height": 256,
        "num_inference_steps": "8", "guidance_scale": 5, "seed": 0, "num_images": 2});
    let request = post_json("/api/generate/sdxl", &wish);
    let (job, answer) = scene.served(request, &[("a.png", DATA), ("b.png", b"b")]).await;
    assert_eq!((job.kind.as_str(), job.model.as_deref()), ("generate", Some("sdxl")));
    assert_eq!(
        serde_json::to_value(&job.params).unwrap(),
        json!({"prompt": "a boat", "negative_prompt": "fog", "seed": 0, "steps": 8, "guidance_scale": 5.0,
            "width": 512, "height": 256, "num_images": 2})
    );
    let answer = answer.expect(200).json();
    assert_eq!(
        (&answer["success"], &answer["status"], &answer["seed"]),
        (&json!(true), &json!("completed"), &json!(0))
    );
    assert_eq!(answer["images"], json!([base64(DATA), base64(b"b")]));
    let models = scene.get("/models").await.json();
    let sdxl = models["models"].as_array().unwrap().iter().find(|model| model["name"] == "sdxl").unwrap().clone();
    assert_eq!((&sdxl["available"], &sdxl["model_id"]), (&json!(true), &json!("sdxl")));
    scene.call(Method::POST, "/api/unload/sdxl", &[], "").await.expect(200);
    scene.call(Method::POST, "/api/unload-all", &[], "").await.expect(200);
    scene.call(Method::POST, "/api/unload/flux", &[], "").await.problem(503, "model_missing");
    scene.call(Method::POST, "/api/unload/nonesuch", &[], "").await.problem(404, "not_found");
}

#[tokio::test]
async fn a_caption_comes_back_as_a_text_for_either_spelling_of_a_picture() {
    let scene = Scene::new().await;
    scene.install("org/blip2-tiny").await;
    for image in [base64(&png()), format!("data:image/png;base64,{}", base64(&png()))] {
        let work = async {
            let job = scene.queued(1).await.remove(0);
            scene.succeed_with(job.id, &[], Some(json!("a boat"))).await;
            job
        };
        let wish = json!({"image": image, "question": "what is it?", "max_new_tokens": 9});
        let (answer, job) = tokio::join!(scene.post("/api/caption/blip", &wish), work);
        assert_eq!(answer.expect(200).json()["caption"], "a boat");
        assert_eq!((job.kind.as_str(), job.model.as_deref()), ("caption", Some("org/blip2-tiny")));
        assert_eq!((job.params.prompt.as_deref(), job.params.max_tokens), (Some("what is it?"), Some(9)));
        until_forgotten(&scene, job.id).await;
    }
    scene.post("/api/caption/blip", &json!({})).await.problem(422, "invalid_request");
}

#[tokio::test]
async fn asked_to_it_answers_at_once() {
    let scene = Scene::new().await;
    scene.install("flux").await;
    let wish = json!({"prompt": "a boat", "async": true});
    let mut ids = Vec::new();
    for _ in 0..2 {
        let answer = scene.post("/api/generate/flux", &wish).await.expect(202).json();
        assert_eq!(answer["status"], "queued");
        let status = scene.get(answer["status_url"].as_str().unwrap()).await.expect(200).json();
        assert_eq!(status["job_id"], answer["job_id"]);
        ids.push(answer["job_id"].clone());
    }
    assert_ne!(ids[0], ids[1], "who asks for an id gets one of his own");
}

#[tokio::test]
async fn a_file_is_downloaded_by_its_name_and_nothing_else_is() {
    let scene = Scene::new().await;
    let id = scene.submitted().await;
    let name = format!("photo-{id}.png");
    scene.succeed(id, &[(&name, DATA)]).await;
    assert_eq!(scene.get(&format!("/api/download/{name}")).await.expect(200).body, DATA);
    let part = scene.call(Method::GET, &format!("/api/download/{name}"), &[("range", "bytes=0-2")], "").await;
    assert_eq!(part.expect(206).body, b"the");
    let secret = scene.app.config().outbox.dir.join(format!("other-{id}.png"));
    std::fs::write(secret, "not an output").unwrap();
    for path in [
        "..%2F..%2Fdata%2Fatelier.db".to_owned(),
        "%2Fetc%2Fpasswd".to_owned(),
        format!("..%2Fphoto-{id}.png"),
        format!("other-{id}.png"),
        format!("photo-{id}.png%00"),
        format!("%2e%2e%2fphoto-{id}.png"),
        "atelier.db".to_owned(),
    ] {
        scene.get(&format!("/api/download/{path}")).await.problem(404, "not_found");
    }
}

#[tokio::test]
async fn the_editor_submits_looks_downloads_and_removes() {
    let scene = Scene::new().await;
    let png = png();
    let parts: &[FormPart<'_>] = &[
        ("prompt", None, b"warmer"),
        ("file", Some("photo.png"), &png),
        ("seed", None, b"0"),
        ("num_inference_steps", None, b"4"),
    ];
    let made = scene.send(post_form("/api/jobs", parts)).await.expect(202).json();
    let id = made["job_id"].as_str().unwrap().to_owned();
    let job = scene.queued(1).await.remove(0);
    assert_eq!((job.kind.as_str(), job.params.seed, job.params.steps), ("edit", Some(0), Some(4)));
    let path = |rest: &str| format!("/api/jobs/{id}{rest}");
    let status = scene.get(&path("/status")).await.expect(200).json();
    assert_eq!((&status["status"], &status["progress"]), (&json!("queued"), &json!(0)));
    assert_eq!(status, scene.get(&path("")).await.expect(200).json());
    assert_eq!(scene.get("/api/jobs").await.expect(200).json()["jobs"], json!([status]));
    scene.get(&path("/download")).await.problem(409, "conflict");
    let name = format!("edit-{id}.png");
    scene.succeed(job.id, &[(&name, DATA)]).await;
    let status = scene.get(&path("")).await.expect(200).json();
    assert_eq!((&status["status"], &status["progress"]), (&json!("completed"), &json!(100)));
    let file = scene.get(&format!("{}?cleanup=false", status["download_url"].as_str().unwrap())).await.expect(200);
    assert_eq!((file.body.as_slice(), file.header("content-type")), (DATA, "image/png"));
    assert!(file.header("content-disposition").starts_with(&format!("attachment; filename=\"{name}\"")));

    // A download that breaks off removes nothing.
    let broken = request(Method::GET, &path("/download"), &[], "");
    drop(scene.router.clone().oneshot(broken).await.unwrap());
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(scene.get(&path("/download?index=1")).await.status, 404);
    assert_eq!(scene.get(&path("/download")).await.expect(200).body, DATA);
    let outbox = scene.app.config().outbox.dir.clone();
    eventually(|| !outbox.join(&name).exists()).await;
    let gone = async {
        while scene.get(&path("")).await.status != 404 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), gone).await.expect("the job goes");

    let made = scene.send(post_form("/api/jobs", parts)).await.expect(202).json();
    let id = made["job_id"].as_str().unwrap();
    let cancelled = scene.call(Method::POST, &format!("/api/jobs/{id}/cancel"), &[], "").await.expect(200).json();
    assert_eq!(cancelled["status"], "cancelled");
    let removed = scene.call(Method::DELETE, &format!("/api/jobs/{id}"), &[], "").await.expect(200).json();
    assert_eq!(removed["success"], true);
    assert_eq!(scene.count().await, 0);
    scene.post("/api/jobs", &json!({"image": base64(&png)})).await.problem(422, "invalid_params");
}

#[tokio::test]
async fn the_dashboard_is_told_what_there_is() {
    let scene = Scene::new().await;
    let id = scene.submitted().await;
    scene.succeed(id, &[("a.png", DATA)]).await;
    let failed = scene.submitted().await;
    scene.fail(failed).await;
    let status = scene.get("/api/dashboard/status").await.expect(200).json();
    assert_eq!((&status["status"], &status["jobs"]["succeeded"]), (&json!("ok"), &json!(1)));
    let results = scene.get("/api/dashboard/results?limit=5").await.expect(200).json();
    assert_eq!((&results["results"][0]["job_id"], &results["results"][0]["kind"]), (&json!(id), &json!("upscale")));
    let metrics = scene.get("/api/dashboard/metrics").await.expect(200).json();
    assert_eq!((&metrics["total"], &metrics["success_rate"]), (&json!(2), &json!(0.5)));
    assert_eq!(metrics["models"]["span-x2"]["jobs"], 1);

    let logs = scene.app.config().log.dir.clone();
    std::fs::create_dir_all(&logs).unwrap();
    std::fs::write(logs.join("atelier.2026-01-01.log"), "one\ntwo\n").unwrap();
    let told = || async { scene.get("/api/dashboard/logs?lines=1").await.expect(200).json()["logs"].clone() };
    assert_eq!(told().await, json!(["two"]));
    scene.call(Method::DELETE, "/api/dashboard/logs", &[], "").await.expect(200);
    assert_eq!(told().await, json!([]));
    scene.call(Method::POST, "/api/dashboard/logs/clear", &[], "").await.expect(200);

    assert_eq!(scene.get("/api/dashboard/settings").await.expect(200).json()["settings"], json!({}));
    scene.post("/api/dashboard/settings", &json!({"theme": "dark", "columns": 3})).await.expect(200);
    let saved = scene.get("/api/dashboard/settings").await.expect(200).json();
    assert_eq!(saved["settings"], json!({"theme": "dark", "columns": 3}));
    assert_eq!((&saved["effective"]["max_queued"], &saved["effective"]["defaults"]), (&json!(10_000), &json!({})));
    assert_eq!(scene.post("/api/dashboard/settings", &saved).await.expect(200).json(), saved);
    scene.post("/api/dashboard/settings", &json!([1])).await.problem(422, "invalid_request");
    let large = json!({"x": "y".repeat(70_000)});
    scene.post("/api/dashboard/settings", &large).await.problem(422, "invalid_request");
}

#[tokio::test]
async fn saved_settings_are_the_defaults_of_what_a_wish_does_not_say() {
    let scene = Scene::new().await;
    scene.install("sdxl").await;
    let settings = json!({"theme": "dark", "num_inference_steps": 31, "guidance_scale": "4.5", "default_width": 512,
        "height": 256, "default_negative_prompt": "fog", "output_format": "webp"});
    let saved = scene.post("/api/dashboard/settings", &settings).await.expect(200).json();
    let defaults = json!({"steps": 31, "guidance_scale": 4.5, "width": 512, "height": 256, "negative_prompt": "fog",
        "format": "webp"});
    assert_eq!(saved["effective"]["defaults"], defaults);
    let params = async |path: &str, wish: Value| {
        let made = scene.post(path, &wish).await.expect(202).json();
        let id = made["job_id"].as_str().unwrap().parse().unwrap();
        let mut params = serde_json::to_value(scene.app.store.job(id).await.unwrap().unwrap().params).unwrap();
        params.as_object_mut().unwrap().remove("seed");
        params
    };
    let mut expected = defaults;
    expected["prompt"] = "a boat".into();
    let boat = json!({"prompt": "a boat", "async": true});
    assert_eq!(params("/api/generate/sdxl", boat.clone()).await, expected);
    // What is said counts, and a picture has its own size.
    let edit = json!({"prompt": "a boat", "image": base64(&png()), "steps": 5, "negative_prompt": "rain"});
    let edited = json!({"prompt": "a boat", "steps": 5, "guidance_scale": 4.5, "negative_prompt": "rain",
        "format": "webp"});
    assert_eq!(params("/api/jobs", edit).await, edited);
    // Other clients' wishes are their own.
    let native = json!({"kind": "generate", "params": {"prompt": "a boat"}});
    let made = scene.post("/api/v1/jobs", &native).await.expect(202).json();
    assert_eq!(made["params"].get("steps"), None);

    for wrong in [json!({"steps": 0}), json!({"guidance_scale": "much"})] {
        scene.post("/api/dashboard/settings", &wrong).await.problem(422, "invalid_params");
    }
    assert_eq!(scene.get("/api/dashboard/settings").await.json(), saved, "what is refused changes nothing");
    scene.post("/api/dashboard/settings", &json!({})).await.expect(200);
    assert_eq!(params("/api/generate/sdxl", boat).await, json!({"prompt": "a boat"}));
}

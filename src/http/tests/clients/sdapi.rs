use super::*;

const DATA: &[u8] = b"the bytes of a picture";

fn post(path: &str, json: &Value) -> Request<Body> {
    post_json(&format!("/sdapi/v1/{path}"), json)
}

#[track_caller]
fn refused(answer: Answer, status: u16, code: &str) {
    let answer = answer.expect(status);
    let body = answer.json();
    assert_eq!(body["error"], code, "{body}");
    assert!(body["detail"].is_string() && body["errors"].is_string(), "{body}");
}

/// What `webuiapi` sends beside what one asks for.
fn wish(more: &Value) -> Value {
    let mut wish = json!({
        "enable_hr": false, "denoising_strength": 0.7, "prompt": "a boat", "styles": [], "seed": -1, "subseed": -1,
        "batch_size": 1, "n_iter": 1, "steps": 20, "cfg_scale": 7.0, "width": 512, "height": 512, "tiling": false,
        "negative_prompt": "", "override_settings": {}, "sampler_name": "Euler a", "scheduler": "automatic",
        "sampler_index": "Euler a", "script_name": null, "script_args": [], "send_images": true, "alwayson_scripts": {},
    });
    wish.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    wish
}

#[tokio::test]
async fn text_to_image_answers_with_info_as_a_text() {
    let scene = Scene::new().await;
    let asked = wish(&json!({"seed": 0, "batch_size": 2, "n_iter": 2, "force_task_id": "task(abc)"}));
    let (job, answer) = scene.served(post("txt2img", &asked), &[("a.png", DATA), ("b.png", b"b")]).await;
    assert_eq!((job.kind.as_str(), job.source.name.as_deref()), ("generate", Some("task(abc)")));
    let params = &job.params;
    assert_eq!((params.seed, params.steps, params.num_images, params.strength), (Some(0), Some(20), Some(4), None));
    assert_eq!((params.guidance_scale, params.width, params.negative_prompt.as_deref()), (Some(7.0), Some(512), None));
    let answer = answer.expect(200).json();
    assert_eq!(answer["images"], json!([base64(DATA), base64(b"b")]));
    assert_eq!(answer["parameters"]["steps"], 20);
    let info: Value = serde_json::from_str(answer["info"].as_str().unwrap()).unwrap();
    assert_eq!((&info["seed"], &info["all_seeds"], &info["job"]), (&json!(0), &json!([0, 1]), &json!(job.id)));
    let text = info["infotexts"][0].as_str().unwrap();
    assert!(text.starts_with("a boat\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 0, Size: 2x2"), "{text}");
    until_forgotten(&scene, job.id).await;

    let (_, answer) = scene.served(post("txt2img", &wish(&json!({"send_images": false}))), &[("c.png", DATA)]).await;
    assert_eq!(answer.expect(200).json()["images"], json!([]));
}

#[tokio::test]
async fn image_to_image_takes_a_mask_either_way_round() {
    let scene = Scene::new().await;
    let image = base64(&png());
    let (job, answer) =
        scene.served(post("img2img", &wish(&json!({"init_images": [image]}))), &[("a.png", DATA)]).await;
    answer.expect(200);
    assert_eq!((job.kind.as_str(), job.params.strength, job.inputs.len()), ("generate", Some(0.7), 1));
    let mut mask = std::io::Cursor::new(Vec::new());
    image::GrayImage::from_pixel(16, 12, image::Luma([255])).write_to(&mut mask, image::ImageFormat::Png).unwrap();
    for (invert, expected) in [(0, 255), (1, 0)] {
        let asked = json!({"init_images": [image], "mask": base64(mask.get_ref()), "inpainting_mask_invert": invert});
        let (job, answer) = scene.served(post("img2img", &wish(&asked)), &[("a.png", DATA)]).await;
        answer.expect(200);
        assert_eq!(job.kind.as_str(), "inpaint");
        let (_, path) = scene.app.store.record(job.id).await.unwrap().unwrap().mask.unwrap();
        let ours = image::load_from_memory(&std::fs::read(path).unwrap()).unwrap().to_luma8();
        assert_eq!(ours.get_pixel(3, 3).0, [expected]);
    }
    refused(scene.send(post("img2img", &wish(&json!({})))).await, 404, "not_found");
}

#[tokio::test]
async fn what_would_change_the_picture_and_is_not_here_is_refused() {
    let scene = Scene::new().await;
    for (more, status, code) in [
        (json!({"enable_hr": true}), 501, "not_available"),
        (json!({"script_name": "x/y/z plot"}), 501, "not_available"),
        (json!({"batch_size": 4, "n_iter": 4}), 422, "invalid_params"),
        (json!({"steps": 0}), 422, "invalid_params"),
        (json!({"prompt": ""}), 422, "invalid_params"),
        (json!({"override_settings": {"sd_model_checkpoint": "nonesuch"}}), 404, "not_found"),
    ] {
        refused(scene.send(post("txt2img", &wish(&more))).await, status, code);
    }
    assert_eq!(scene.count().await, 0);
}

#[tokio::test]
async fn a_control_unit_steers_the_picture() {
    let scene = Scene::new().await;
    let unit = json!({"enabled": true, "module": "none", "model": "fake", "weight": 0.8, "image": base64(&png())});
    let asked = wish(&json!({"alwayson_scripts": {"ControlNet": {"args": [unit]}}}));
    let (job, answer) = scene.served(post("txt2img", &asked), &[("a.png", DATA)]).await;
    answer.expect(200);
    assert_eq!((job.kind.as_str(), job.model.as_deref(), job.inputs.len()), ("control", Some("fake"), 1));
    assert_eq!(scene.get("/controlnet/version").await.expect(200).json(), json!({"version": 2}));
    assert_eq!(scene.get("/controlnet/model_list").await.expect(200).json()["model_list"], json!(["fake"]));
    assert_eq!(scene.get("/controlnet/module_list").await.expect(200).json()["module_list"][0], "none");
}

#[tokio::test]
async fn a_task_is_looked_at_and_stopped_by_its_name() {
    let scene = Scene::new().await;
    let idle = scene.get("/sdapi/v1/progress?skip_current_image=true").await.expect(200).json();
    assert_eq!((&idle["progress"], &idle["state"]["job_count"]), (&json!(0.0), &json!(0)));
    let asked = wish(&json!({"force_task_id": "mine"}));
    let watch = async {
        let job = scene.queued(1).await.remove(0);
        let progress = scene.get("/sdapi/v1/progress?id_task=mine").await.expect(200).json();
        assert_eq!((&progress["current_task"], &progress["queued"]), (&json!("mine"), &json!(true)));
        assert_eq!(progress["state"]["job_count"], 1);
        refused(scene.get("/sdapi/v1/progress?id_task=other").await, 404, "not_found");
        scene.send(post("interrupt", &json!({"id_task": "other"}))).await.expect(200);
        scene.send(post("interrupt", &json!({}))).await.expect(200);
        assert_eq!(scene.queued(1).await[0].id, job.id, "what only waits is not what runs");
        scene.send(post("interrupt", &json!({"id_task": "mine"}))).await.expect(200);
        job.id
    };
    let (answer, id) = tokio::join!(scene.send(post("txt2img", &asked)), watch);
    let answer = answer.expect(200).json();
    let info: Value = serde_json::from_str(answer["info"].as_str().unwrap()).unwrap();
    assert_eq!((&answer["images"], &info["interrupted"]), (&json!([]), &json!(true)));
    let progress = scene.get(&format!("/sdapi/v1/progress?id_task={id}")).await.expect(200).json();
    assert_eq!((&progress["completed"], &progress["state"]["interrupted"]), (&json!(true), &json!(true)));
}

#[tokio::test]
async fn a_running_task_shows_its_preview() {
    let scene = Scene::new().await;
    let id = scene.submitted().await;
    scene.app.store.start(id).await.unwrap().unwrap();
    let folder = scene.app.config().paths.data.join("checkpoints").join(id.to_string());
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("preview.jpg"), b"half done").unwrap();
    let path = format!("/sdapi/v1/progress?id_task={id}");
    assert_eq!(scene.get(&path).await.expect(200).json()["current_image"], base64(b"half done"));
    let without = scene.get(&format!("{path}&skip_current_image=true")).await.expect(200).json();
    assert_eq!(without["current_image"], json!(null));
}

#[tokio::test]
async fn a_chosen_checkpoint_lasts_and_yields_to_what_it_cannot_do() {
    let scene = Scene::new().await;
    scene.install("other").await;
    let options = scene.get("/sdapi/v1/options").await.expect(200).json();
    assert_eq!(options["sd_model_checkpoint"], "fake");
    scene
        .send(post("options", &json!({"sd_model_checkpoint": "Other [abc123]", "CLIP_stop_at_last_layers": 2})))
        .await
        .expect(200);
    assert_eq!(scene.get("/sdapi/v1/options").await.json()["sd_model_checkpoint"], "other");
    let (job, answer) = scene.served(post("txt2img", &wish(&json!({}))), &[("a.png", DATA)]).await;
    answer.expect(200);
    assert_eq!(job.model.as_deref(), Some("other"));
    let asked = wish(&json!({"override_settings": {"sd_model_checkpoint": "fake", "samples_format": "webp"}}));
    let (job, answer) = scene.served(post("txt2img", &asked), &[("a.png", DATA)]).await;
    answer.expect(200);
    assert_eq!(job.model.as_deref(), Some("fake"));
    assert_eq!(job.params.format, Some(atelier_domain::OutputFormat::Webp));
    scene.send(post("options", &json!({"sd_model_checkpoint": "span-x2"}))).await.expect(200);
    let (job, answer) = scene.served(post("txt2img", &wish(&json!({"seed": 3}))), &[("a.png", DATA)]).await;
    answer.expect(200);
    assert_eq!(job.model.as_deref(), Some("fake"), "an upscaler draws nothing");
    refused(scene.send(post("options", &json!({"sd_model_checkpoint": "nonesuch"}))).await, 404, "not_found");
}

#[tokio::test]
async fn there_is_a_list_of_everything() {
    let scene = Scene::new().await;
    for (list, empty) in [
        ("samplers", false),
        ("schedulers", false),
        ("upscalers", false),
        ("sd-models", false),
        ("loras", true),
        ("sd-vae", true),
        ("face-restorers", true),
        ("prompt-styles", true),
    ] {
        let found = scene.get(&format!("/sdapi/v1/{list}")).await.expect(200).json();
        assert_eq!(found.as_array().unwrap().is_empty(), empty, "{list}: {found}");
    }
    assert_eq!(scene.get("/sdapi/v1/sd-models").await.json()[0]["title"], "fake");
    assert_eq!(scene.get("/sdapi/v1/scripts").await.json()["txt2img"], json!(["controlnet m2m"]));
    assert!(scene.get("/sdapi/v1/memory").await.expect(200).json()["ram"]["total"].as_u64().unwrap() > 0);
    refused(scene.get("/sdapi/v1/nonesuch").await, 404, "not_found");
    scene.install("late").await;
    scene.send(post("refresh-checkpoints", &json!({}))).await.expect(200);
    scene.send(post("unload-checkpoint", &json!({}))).await.expect(200);
    scene.send(post("reload-checkpoint", &json!({}))).await.expect(200);
}

#[tokio::test]
async fn extras_are_our_upscalers_one_job_a_picture() {
    let scene = Scene::new().await;
    let image = base64(&png());
    let asked =
        json!({"image": image, "upscaling_resize": 4, "upscaler_1": "None", "resize_mode": 0, "gfpgan_visibility": 0});
    let (job, answer) = scene.served(post("extra-single-image", &asked), &[("a.png", DATA)]).await;
    assert_eq!((job.kind.as_str(), job.params.scale, job.model), ("upscale", Some(4), None));
    assert_eq!(answer.expect(200).json()["image"], base64(DATA));

    let asked =
        json!({"imageList": [{"data": image, "name": "a"}, {"data": image, "name": "b"}], "upscaler_1": "span-x2"});
    let work = async {
        let jobs = scene.queued(2).await;
        scene.succeed(jobs[1].id, &[("second.png", b"2")]).await;
        scene.succeed(jobs[0].id, &[("first.png", b"1")]).await;
        assert_eq!(jobs[0].model.as_deref(), Some("span-x2"));
    };
    let (answer, ()) = tokio::join!(scene.send(post("extra-batch-images", &asked)), work);
    assert_eq!(answer.expect(200).json()["images"], json!([base64(b"1"), base64(b"2")]));

    for (asked, status, code) in [
        (json!({"image": image, "upscaling_resize": 3}), 422, "invalid_params"),
        (json!({"image": image, "resize_mode": 1}), 422, "invalid_params"),
        (json!({"image": image, "codeformer_visibility": 0.5}), 501, "not_available"),
        (json!({"image": image, "upscaler_1": "ESRGAN_4x"}), 404, "not_found"),
        (json!({}), 422, "invalid_request"),
    ] {
        refused(scene.send(post("extra-single-image", &asked)).await, status, code);
    }
    refused(scene.send(post("extra-batch-images", &json!({"imageList": []}))).await, 422, "invalid_request");
}

#[tokio::test]
async fn a_picture_is_read_and_captioned() {
    let scene = Scene::new().await;
    let info = scene.send(post("png-info", &json!({"image": base64(&png())}))).await.expect(200).json();
    assert_eq!((&info["info"], &info["items"]), (&json!(""), &json!({})));
    let work = async {
        let job = scene.queued(1).await.remove(0);
        scene.succeed_with(job.id, &[], Some(json!({"text": "a boat"}))).await;
        job.kind
    };
    let asked = json!({"image": format!("data:image/png;base64,{}", base64(&png())), "model": "clip"});
    let (answer, kind) = tokio::join!(scene.send(post("interrogate", &asked)), work);
    assert_eq!((answer.expect(200).json(), kind.as_str()), (json!({"caption": "a boat"}), "caption"));
}

use super::*;

const GENERATIONS: &str = "/v1/images/generations";
const EDITS: &str = "/v1/images/edits";
const DATA: &[u8] = b"not a picture, but the bytes of one";

#[track_caller]
fn refused(answer: Answer, status: u16, code: &str) -> Value {
    let answer = answer.expect(status);
    assert_eq!(answer.header("content-type"), "application/json");
    let body = answer.json();
    assert_eq!(body["error"]["code"], code, "{body}");
    assert!(body["error"]["message"].as_str().is_some_and(|message| !message.is_empty()));
    body["error"].clone()
}

#[tokio::test]
async fn a_wish_becomes_the_native_job_and_its_pictures_come_back() {
    let scene = Scene::new().await;
    let wish = json!({
        "model": "gpt-image-1", "prompt": "a lighthouse", "n": 2, "size": "640x480", "quality": "low", "seed": 0,
        "output_format": "jpeg", "output_compression": 80, "negative_prompt": "fog", "guidance_scale": 3.5,
        "user": "somebody", "moderation": "low",
    });
    let (job, answer) = scene.served(post_json(GENERATIONS, &wish), &[("a.jpg", DATA), ("b.jpg", b"")]).await;
    assert_eq!(
        serde_json::to_value(&job.params).unwrap(),
        json!({"prompt": "a lighthouse", "negative_prompt": "fog", "seed": 0, "steps": 12, "guidance_scale": 3.5,
            "width": 640, "height": 480, "num_images": 2, "format": "jpeg", "quality": 80})
    );
    assert_eq!(job.kind, atelier_domain::JobKind::Generate);
    let answer = answer.expect(200).json();
    assert_eq!(answer["data"], json!([{"b64_json": base64(DATA)}, {"b64_json": ""}]));
    assert_eq!((&answer["output_format"], &answer["seed"]), (&json!("jpeg"), &json!(0)));
    assert!(answer["created"].as_i64().unwrap() > 1_700_000_000);

    let wish = json!({"prompt": "x", "response_format": "url", "num_inference_steps": 7, "true_cfg_scale": "4.5"});
    let (job, answer) = scene.served(post_json(GENERATIONS, &wish), &[("c.png", DATA)]).await;
    assert_eq!((job.params.steps, job.params.guidance_scale), (Some(7), Some(4.5)));
    let url = answer.expect(200).json()["data"][0]["url"].as_str().unwrap().to_owned();
    let path = url.strip_prefix("http://127.0.0.1:8470").unwrap();
    assert_eq!(scene.get(path).await.expect(200).body, DATA);
}

#[tokio::test]
async fn the_same_wish_in_flight_is_one_job_and_a_new_one_once_it_is_answered() {
    let scene = Scene::new().await;
    let wish = json!({"prompt": "a lighthouse"});
    let work = async {
        let job = scene.queued(1).await.remove(0);
        // All three have come before the job ends.
        tokio::time::sleep(Duration::from_millis(100)).await;
        scene.succeed(job.id, &[("a.png", DATA)]).await;
        job.id
    };
    let send = || scene.send(post_json(GENERATIONS, &wish));
    let (one, two, three, id) = tokio::join!(send(), send(), send(), work);
    for answer in [one, two, three] {
        assert_eq!(answer.expect(200).json()["job"], json!(id));
    }
    assert_eq!(scene.count().await, 1);
    until_forgotten(&scene, id).await;
    let (again, answer) = scene.served(post_json(GENERATIONS, &wish), &[("b.png", DATA)]).await;
    answer.expect(200);
    assert_ne!(again.id, id, "whoever has the picture and asks again wants another one");
}

#[tokio::test]
async fn a_client_that_comes_back_finds_its_job_and_leaving_calls_nothing_off() {
    let scene = Scene::new().await;
    let wish = json!({"prompt": "a lighthouse"});
    let leaving = tokio::spawn(scene.router.clone().oneshot(post_json(GENERATIONS, &wish)));
    let id = scene.queued(1).await.remove(0).id;
    leaving.abort();
    assert!(leaving.await.unwrap_err().is_cancelled());
    assert_eq!(scene.jobs(JobStatus::Queued).await.len(), 1);
    // It ends while nobody waits.
    scene.succeed(id, &[("a.png", DATA)]).await;
    let retry = request(
        Method::POST,
        GENERATIONS,
        &[("content-type", "application/json"), ("x-stainless-retry-count", "1")],
        wish.to_string(),
    );
    let answer = scene.send(retry).await.expect(200).json();
    assert_eq!((&answer["job"], scene.count().await), (&json!(id), 1));
    // Something else is something else.
    let (other, answer) = scene.served(post_json(GENERATIONS, &json!({"prompt": "a boat"})), &[("b.png", DATA)]).await;
    answer.expect(200);
    assert_ne!(other.id, id);
}

#[tokio::test]
async fn an_answer_that_was_left_lying_for_long_is_not_taken_for_a_new_one() {
    let scene = Scene::new().await;
    let wish = json!({"prompt": "a lighthouse"});
    let leaving = tokio::spawn(scene.router.clone().oneshot(post_json(GENERATIONS, &wish)));
    let id = scene.queued(1).await.remove(0).id;
    leaving.abort();
    let _ = leaving.await;
    scene.succeed(id, &[("a.png", DATA)]).await;
    scene.app.store.set_back(id, 3_700_000).await.unwrap();
    let (again, answer) = scene.served(post_json(GENERATIONS, &wish), &[("b.png", DATA)]).await;
    answer.expect(200);
    assert_ne!(again.id, id);
}

#[tokio::test]
async fn an_edit_takes_its_pictures_as_a_form_and_as_json() {
    let scene = Scene::new().await;
    let png = png();
    let form: &[FormPart<'_>] = &[
        ("prompt", None, b"warmer"),
        ("image[]", Some("one.png"), &png),
        ("image[]", Some("two.png"), &png),
        ("size", None, b"auto"),
        ("n", None, b"1"),
        ("seed", None, b"7"),
    ];
    let (job, answer) = scene.served(post_form(EDITS, form), &[("a.png", DATA)]).await;
    answer.expect(200);
    let names: Vec<_> = job.inputs.iter().map(|input| input.name.as_str()).collect();
    assert_eq!((job.kind.as_str(), names), ("edit", vec!["one.png", "two.png"]));
    assert_eq!((job.params.width, job.params.seed), (None, Some(7)));

    let uri = format!("data:image/png;base64,{}", base64(&png));
    for (name, image) in
        [("image", json!(uri)), ("image", json!([base64(&png)])), ("images", json!([{"image_url": uri}]))]
    {
        let wish = json!({"prompt": "warmer", name: image, "seed": 1});
        let (job, answer) = scene.served(post_json(EDITS, &wish), &[("b.png", DATA)]).await;
        until_forgotten(&scene, job.id).await;
        answer.expect(200);
        assert_eq!(job.inputs[0].sha256, crate::admission::hex(&<sha2::Sha256 as sha2::Digest>::digest(&png)));
    }
}

#[tokio::test]
async fn a_picture_that_is_large_goes_to_the_disk_and_not_into_the_fields() {
    let scene = Scene::new().await;
    let large = atelier_testkit::pictures::png(&atelier_testkit::pictures::photo_like(300, 200, 3));
    assert!(large.len() > 40_000, "large enough to be taken out of the JSON");
    let wish = json!({"prompt": "warmer", "image": base64(&large)});
    let (job, answer) = scene.served(post_json(EDITS, &wish), &[("b.png", DATA)]).await;
    answer.expect(200);
    assert_eq!((job.inputs[0].width, job.inputs[0].bytes), (300, large.len() as u64));
    let long = "x".repeat(20_000);
    let error = refused(scene.post(GENERATIONS, &json!({"prompt": long})).await, 400, "invalid_params");
    assert_eq!(error["param"], "prompt");
}

#[tokio::test]
async fn a_mask_is_painted_where_it_is_transparent() {
    let scene = Scene::new().await;
    let png = png();
    // Left half transparent.
    let mask = image::RgbaImage::from_fn(16, 12, |x, _| image::Rgba([9, 9, 9, if x < 8 { 0 } else { 255 }]));
    let mut bytes = std::io::Cursor::new(Vec::new());
    mask.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    let parts: &[FormPart<'_>] =
        &[("prompt", None, b"a boat"), ("image", Some("one.png"), &png), ("mask", Some("mask.png"), bytes.get_ref())];
    let (job, answer) = scene.served(post_form(EDITS, parts), &[("a.png", DATA)]).await;
    answer.expect(200);
    assert_eq!(job.kind, atelier_domain::JobKind::Inpaint);
    let (_, path) = scene.app.store.record(job.id).await.unwrap().unwrap().mask.unwrap();
    let ours = image::load_from_memory(&std::fs::read(path).unwrap()).unwrap().to_luma8();
    assert_eq!((ours.get_pixel(0, 0).0, ours.get_pixel(15, 11).0), ([255], [0]));
}

#[tokio::test]
async fn what_is_wrong_is_told_in_their_words_and_not_to_be_sent_again() {
    let scene = Scene::new().await;
    let cases = [
        (json!({"prompt": "x", "size": "big"}), 400, "invalid_params", json!("size")),
        (json!({"prompt": "x", "size": "8x8"}), 400, "invalid_params", json!("size")),
        (json!({"prompt": "x", "n": 11}), 400, "invalid_params", json!("n")),
        (json!({"prompt": "x", "n": "two"}), 400, "invalid_params", json!("n")),
        (json!({"prompt": "x", "quality": "best"}), 400, "invalid_params", json!("quality")),
        (json!({"prompt": "x", "output_format": "svg"}), 400, "invalid_params", json!("output_format")),
        (json!({"prompt": "x", "background": "transparent"}), 400, "invalid_params", json!("background")),
        (json!({"prompt": "x", "seed": -7}), 400, "invalid_params", json!("seed")),
        (json!({"prompt": ["x"]}), 400, "invalid_params", json!("prompt")),
        (json!({}), 400, "invalid_params", json!("prompt")),
        (json!({"prompt": "x", "model": "nonesuch"}), 404, "not_found", json!(null)),
        (json!([]), 400, "invalid_request", json!(null)),
    ];
    for (wish, status, code, param) in cases {
        let answer = scene.post(GENERATIONS, &wish).await;
        assert_eq!(answer.header("x-should-retry"), "false", "{wish}");
        let error = refused(answer, status, code);
        assert_eq!(error["param"], param, "{wish}");
        assert_eq!(error["type"], "invalid_request_error");
    }
    refused(scene.post(EDITS, &json!({"prompt": "x"})).await, 400, "invalid_params");
    refused(
        scene.post(EDITS, &json!({"prompt": "x", "image": "http://127.0.0.1/a.png"})).await,
        400,
        "invalid_request",
    );
    refused(
        scene.post(EDITS, &json!({"prompt": "x", "image": base64(b"not a picture at all")})).await,
        415,
        "image_unsupported",
    );
    refused(scene.get(GENERATIONS).await, 405, "method_not_allowed");
    refused(scene.get("/v1/images/nothing").await, 404, "not_found");
    let malformed = scene.call(Method::POST, GENERATIONS, &[("content-type", "application/json")], "{").await;
    refused(malformed, 400, "malformed_json");
    assert_eq!(scene.count().await, 0);
    scene.assert_nothing_is_left();
}

#[tokio::test]
async fn a_failure_is_told_once_and_asking_again_is_a_new_job() {
    let scene = Scene::new().await;
    let wish = json!({"prompt": "a lighthouse"});
    for count in 1..=2 {
        let work = async {
            let id = scene.queued(1).await.remove(0).id;
            scene.fail(id).await;
        };
        let (answer, ()) = tokio::join!(scene.post(GENERATIONS, &wish), work);
        assert_eq!(answer.header("x-should-retry"), "false");
        refused(answer, 400, "image_corrupt");
        assert_eq!(scene.count().await, count);
    }
}

#[tokio::test]
async fn a_stream_tells_each_picture_when_it_is_there() {
    let scene = Scene::new().await;
    let wish = json!({"prompt": "a lighthouse", "stream": true, "partial_images": 2, "n": 2});
    let (job, answer) = scene.served(post_json(GENERATIONS, &wish), &[("a.png", DATA), ("b.png", b"b")]).await;
    let answer = answer.expect(200);
    assert_eq!(answer.header("content-type"), "text/event-stream");
    let text = answer.text();
    let data: Vec<Value> =
        text.lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok()).collect();
    assert_eq!(text.matches("event: image_generation.completed\n").count(), 2);
    assert_eq!(data.len(), 2);
    assert_eq!((&data[0]["type"], &data[0]["b64_json"]), (&json!("image_generation.completed"), &json!(base64(DATA))));
    assert_eq!(data[1]["b64_json"], base64(b"b"));
    until_forgotten(&scene, job.id).await;

    let work = async {
        let id = scene.queued(1).await.remove(0).id;
        scene.fail(id).await;
    };
    let (answer, ()) = tokio::join!(scene.post(GENERATIONS, &wish), work);
    assert!(answer.expect(200).text().contains("event: error\ndata: {\"error\":"));
}

#[tokio::test]
async fn previews_are_told_while_the_job_runs() {
    let scene = Scene::new().await;
    let wish = json!({"prompt": "a lighthouse", "stream": true, "partial_images": 1});
    let response = scene.router.clone().oneshot(post_json(GENERATIONS, &wish)).await.unwrap();
    let id = scene.queued(1).await.remove(0).id;
    let folder = scene.app.config().paths.data.join("checkpoints").join(id.to_string());
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("preview.jpg"), b"half done").unwrap();
    let mut body = response.into_body();
    let mut text = String::new();
    while !text.contains("partial_image\ndata: ") {
        let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
        text.push_str(&String::from_utf8_lossy(&frame));
    }
    assert!(text.contains(&format!("\"b64_json\":\"{}\"", base64(b"half done"))), "{text}");
    // One was asked for.
    std::fs::write(folder.join("preview.jpg"), b"nearly done").unwrap();
    scene.succeed(id, &[("a.png", DATA)]).await;
    let rest = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
    assert!(rest.contains("image_generation.completed") && !rest.contains("partial_image"), "{rest}");
}

#[tokio::test]
async fn a_daemon_that_ends_sends_the_client_away_and_keeps_the_job() {
    let scene = Scene::new().await;
    let wish = json!({"prompt": "a lighthouse"});
    let work = async {
        let job = scene.queued(1).await.remove(0);
        scene.app.shutdown.cancel();
        job.id
    };
    let (answer, id) = tokio::join!(scene.post(GENERATIONS, &wish), work);
    assert_eq!((answer.header("x-should-retry"), answer.header("retry-after")), ("true", "2"));
    refused(answer, 503, "shutting_down");
    assert!(scene.app.store.has_key(id).await.unwrap());
}

#[tokio::test]
async fn models_are_listed_for_both_kinds_of_client() {
    let scene = Scene::new().await;
    let list = scene.get("/v1/models").await.expect(200).json();
    let ids: Vec<_> = list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!((list["object"].as_str(), ids), (Some("list"), vec!["fake", "span-x2"]));
    assert_eq!(list["results"], list["data"]);
    let one = scene.get("/v1/models/fake").await.expect(200).json();
    assert_eq!((&one["object"], &one["owner"]), (&json!("model"), &json!("atelier")));
    assert_eq!(scene.get("/v1/models/atelier/fake").await.expect(200).json(), one);
    let version = one["latest_version"]["id"].as_str().unwrap();
    scene.get(&format!("/v1/models/atelier/fake/versions/{version}")).await.expect(200);
    scene.get("/v1/models/atelier/fake/versions/00").await.problem(404, "not_found");
    refused(scene.get("/v1/models/nonesuch").await, 404, "not_found");
    scene.get("/v1/models/no/such").await.problem(404, "not_found");
}

//! What nobody sends by accident.

use serde_json::json;

use super::*;

const JSON: &[(&str, &str)] = &[("content-type", "application/json")];

#[tokio::test]
async fn names_of_files_cannot_leave_their_folder() {
    let scene = Scene::new().await;
    let png = png();
    for name in [
        "../../../etc/cron.d/x",
        "..\\..\\x",
        "/etc/passwd",
        "a\\\"b",
        "..",
        ".",
        "",
        "%2e%2e%2fx",
        "con",
        "~$x",
        "-rf",
        "a;b",
        "Grüße 🎨.png",
        &"x".repeat(5000),
    ] {
        let job = scene.form(&[], &[("kind", None, b"upscale"), ("image", Some(name), &png)]).await.expect(202).json();
        let id: JobId = job["id"].as_str().unwrap().parse().unwrap();
        let record = scene.app.store.record(id).await.unwrap().unwrap();
        let folder = scene.spool().join(id.to_string());
        assert_eq!(record.input_paths[0].parent(), Some(folder.as_path()), "{name:?}");
        assert!(record.input_paths[0].is_file(), "{name:?}");
        let shown = job["inputs"][0]["name"].as_str().unwrap();
        assert!(!shown.is_empty() && !shown.contains(['/', '\\']) && shown.len() <= 120, "{name:?} became {shown:?}");
    }
}

#[tokio::test]
async fn a_name_that_turns_text_around_is_straightened() {
    let scene = Scene::new().await;
    let job = scene
        .form(&[], &[("kind", None, b"upscale"), ("image", Some("a\u{202e}gnp.exe"), &png())])
        .await
        .expect(202)
        .json();
    assert_eq!(job["inputs"][0]["name"], "agnp.exe");
}

#[tokio::test]
async fn deep_json_is_refused() {
    let scene = Scene::new().await;
    for text in [
        "[".repeat(500_000),
        "{\"a\":".repeat(150_000),
        format!("{{\"params\":{}1{}}}", "[".repeat(1000), "]".repeat(1000)),
    ] {
        scene.call(Method::POST, "/api/v1/jobs", JSON, text).await.problem(400, "malformed_json");
    }
}

#[tokio::test]
async fn numbers_that_are_none_are_refused() {
    let scene = Scene::new().await;
    for number in ["NaN", "Infinity", "-Infinity", "1e999", "0x10", "01", "+1", ".5"] {
        let text = format!("{{\"kind\":\"generate\",\"params\":{{\"prompt\":\"x\",\"guidance_scale\":{number}}}}}");
        scene.call(Method::POST, "/api/v1/jobs", JSON, text).await.problem(400, "malformed_json");
    }
    for (name, number) in [
        ("width", "-512"),
        ("height", "1e9"),
        ("steps", "2.5"),
        ("steps", "-1"),
        ("seed", "1.5"),
        ("width", "99999999999999999999"),
        ("strength", "-0.0"),
        ("quality", "256"),
    ] {
        let text = format!("{{\"kind\":\"generate\",\"params\":{{\"prompt\":\"x\",\"{name}\":{number}}}}}");
        scene.call(Method::POST, "/api/v1/jobs", JSON, text).await.problem(422, "invalid_params");
    }
}

#[tokio::test]
async fn a_nul_in_a_text_is_refused() {
    let scene = Scene::new().await;
    let body = json!({"kind": "generate", "params": {"prompt": "a\u{0}b"}});
    scene.post("/api/v1/jobs", &body).await.problem(422, "invalid_params");
}

#[tokio::test]
async fn megabytes_of_nothing_are_refused_cheaply() {
    let scene = Scene::new().await;
    let blanks = " ".repeat(10 << 20);
    scene.call(Method::POST, "/api/v1/jobs", JSON, blanks.clone()).await.problem(413, "body_too_large");
    let form = [("content-type", "multipart/form-data; boundary=x")];
    scene.call(Method::POST, "/api/v1/jobs", &form, blanks.clone()).await.problem(400, "malformed_request");
    scene
        .call(Method::POST, "/api/v1/jobs", &form, format!("--x\r\nA: {blanks}"))
        .await
        .problem(400, "malformed_request");
    let many = "--x\r\nContent-Disposition: form-data; name=\"images\"\r\n\r\n\r\n".repeat(1000);
    scene.call(Method::POST, "/api/v1/jobs", &form, many).await.problem(422, "invalid_request");
    let fields: String =
        (0..1000).map(|n| format!("--x\r\nContent-Disposition: form-data; name=\"f{n}\"\r\n\r\n\r\n")).collect();
    scene.call(Method::POST, "/api/v1/jobs", &form, fields).await.problem(400, "malformed_request");
    scene.call(Method::POST, "/api/v1/cleanup", JSON, blanks).await.problem(413, "body_too_large");
    scene.assert_nothing_is_left();
}

#[tokio::test]
async fn zeros_and_disguises_are_no_pictures() {
    let scene = Scene::new().await;
    let polyglot = [b"GIF89a/*".as_slice(), b"*/=1;alert(1)//"].concat();
    let svg = b"<svg xmlns=\"http://www.w3.org/2000/svg\" onload=\"alert(1)\"/>";
    let huge = {
        // A header that promises 2^31 pixels a side.
        let mut png = png();
        png[16..24].copy_from_slice(&[0x7f, 0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff]);
        png
    };
    for (data, name) in [
        (vec![0; 10 << 20], "zeros.png"),
        (polyglot, "x.gif"),
        (svg.to_vec(), "x.svg"),
        (b"%PDF-1.4".to_vec(), "x.png"),
        (b"MZ\x90\x00".to_vec(), "x.jpg"),
        (b"\x89PNG\r\n\x1a\n".to_vec(), "x.png"),
        (b"\xff\xd8\xff".to_vec(), "x.jpg"),
        (huge, "huge.png"),
    ] {
        let answer = scene.form(&[], &[("kind", None, b"upscale"), ("image", Some(name), &data)]).await;
        let status = answer.status.as_u16();
        assert!([415, 422].contains(&status), "{name}: {status} {}", answer.text());
        let code = answer.json()["code"].as_str().unwrap().to_owned();
        assert!(code.starts_with("image_"), "{name}: {code}");
        answer.problem(status, &code);
    }
    scene.assert_nothing_is_left();
}

#[tokio::test]
async fn paths_that_climb_find_nothing() {
    let scene = Scene::new().await;
    for path in [
        "/api/v1/../../etc/passwd",
        "/api/v1/jobs/..%2f..%2f",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//api/v1/jobs",
        "/api/v1/jobs/",
        "/API/v1/jobs",
    ] {
        scene.get(path).await.problem(404, "not_found");
    }
}

async fn panicking() -> &'static str {
    panic!("secret detail")
}

#[tokio::test]
async fn a_handler_that_panics_is_a_problem_with_an_id() {
    let panics = Router::new()
        .route("/", axum::routing::get(panicking))
        .layer(tower_http::catch_panic::CatchPanicLayer::custom(super::super::panicked))
        .layer(axum::middleware::from_fn(super::super::request_id::attach));
    let request = request(Method::GET, "/", &[], "");
    let response = panics.oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes().to_vec();
    let problem = Answer { status: parts.status, headers: parts.headers, body }.problem(500, "internal");
    assert!(!problem.to_string().contains("secret"), "{problem}");
}

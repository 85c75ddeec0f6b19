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

/// All files below a folder.
fn files_below(folder: &Path) -> std::collections::BTreeSet<PathBuf> {
    let mut found = std::collections::BTreeSet::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else {
            found.insert(path);
        }
    }
    found
}

#[tokio::test]
async fn no_text_of_a_job_leads_anywhere() {
    let scene = Scene::new().await;
    let root = scene.app.config().paths.data.parent().unwrap().to_owned();
    let image = base64(&png());
    let climbs =
        ["../../../../etc/passwd", "..", "/etc/passwd", "a/../../b", "%2e%2e%2f", "..\\..\\x", "a\u{0}b", "\u{202e}"];
    for climb in climbs {
        for field in ["kind", "model", "preset", "name", "mask", "webhook", "image_urls"] {
            let mut job = json!({"kind": "upscale", "images": [image]});
            job[field] = if field == "image_urls" { json!([climb]) } else { json!(climb) };
            let answer = scene.post("/api/v1/jobs", &job).await;
            let taken = answer.status.as_u16() == 202;
            assert!(taken == (field == "name"), "{field} {climb:?}: {}", answer.text());
            assert!(taken || (400..500).contains(&answer.status.as_u16()), "{field} {climb:?}: {}", answer.text());
        }
        let encoded: String = climb.bytes().map(|byte| format!("%{byte:02x}")).collect();
        for path in [
            format!("/api/v1/jobs/{encoded}"),
            format!("/api/v1/jobs/{encoded}/manifest"),
            format!("/api/v1/jobs/{encoded}/outputs/0"),
            format!("/api/v1/jobs/01ARZ3NDEKTSV4RRFFQ69G5FAV/outputs/{encoded}"),
            format!("/api/download/{encoded}"),
            format!("/v1/files/{encoded}"),
            format!("/api/jobs/{encoded}/download"),
            format!("/docs/{encoded}"),
        ] {
            scene.get(&path).await.problem(404, "not_found");
        }
    }
    let allowed = [root.join("data/spool"), root.join("models")];
    for file in files_below(&root) {
        let is_database = file.file_name().unwrap().to_string_lossy().starts_with("atelier.db");
        assert!(is_database || allowed.iter().any(|dir| file.starts_with(dir)), "{}", file.display());
    }
}

#[tokio::test]
async fn an_output_that_was_swapped_for_a_link_is_not_followed() {
    let scene = Scene::new().await;
    let id = scene.submitted().await;
    let secret = scene.app.config().paths.data.join("secret");
    std::fs::write(&secret, "0123456789").unwrap();
    scene.succeed(id, &[("out.png", b"0123456789")]).await;
    let path = format!("/api/v1/jobs/{id}/outputs/0");
    scene.get(&path).await.expect(200);
    let output = scene.app.config().outbox.dir.join("out.png");
    std::fs::remove_file(&output).unwrap();
    std::os::unix::fs::symlink(&secret, &output).unwrap();
    scene.get(&path).await.problem(404, "not_found");
}

/// A chunk of a PNG.
fn chunk(name: [u8; 4], content: &[u8]) -> Vec<u8> {
    let mut crc = flate2::Crc::new();
    crc.update(&name);
    crc.update(content);
    let length = u32::try_from(content.len()).unwrap().to_be_bytes();
    [&length[..], &name, content, &crc.sum().to_be_bytes()].concat()
}

/// A PNG of this size with these chunks before its end.
fn png_of(width: u32, height: u32, chunks: &[Vec<u8>]) -> Vec<u8> {
    let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
    [b"\x89PNG\r\n\x1a\n".to_vec(), chunk(*b"IHDR", &header), chunks.concat(), chunk(*b"IEND", b"")].concat()
}

/// So many zeros, compressed to a thousandth.
fn deflated(bytes: usize) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    let zeros = vec![0; 1 << 20];
    for _ in 0..bytes >> 20 {
        encoder.write_all(&zeros).unwrap();
    }
    encoder.finish().unwrap()
}

#[tokio::test]
async fn pictures_that_unfold_are_refused_by_what_they_say_and_never_unfolded() {
    let scene = Scene::new().await;
    let zeros = deflated(64 << 20);
    let sized = |width, height| png_of(width, height, &[chunk(*b"IDAT", &zeros)]);
    let gif = [b"GIF89a".as_slice(), &[0xff; 4], &[0x80, 0, 0], &[0; 6], b","].concat();
    for (name, data) in [
        ("square.png", sized(20_000, 20_000)),
        ("long.png", sized(400_000_000, 1)),
        ("empty.png", sized(0, 7)),
        ("negative.png", sized(u32::MAX, u32::MAX)),
        ("gif.gif", gif),
    ] {
        let answer = scene.form(&[], &[("kind", None, b"upscale"), ("image", Some(name), &data)]).await;
        let (status, code) = (answer.status.as_u16(), answer.json()["code"].as_str().unwrap().to_owned());
        assert!([415, 422].contains(&status) && code.starts_with("image_"), "{name}: {}", answer.text());
    }
    // Texts and profiles that unfold are left out by whoever decodes; here they are only passed over.
    let text = [b"Comment\0\0".as_slice(), &zeros].concat();
    let profile = [b"icc\0\0".as_slice(), &zeros].concat();
    let real = png();
    let (head, tail) = real.split_at(33);
    let bomb = [head, &chunk(*b"zTXt", &text), &chunk(*b"iCCP", &profile), tail].concat();
    scene.form(&[], &[("kind", None, b"upscale"), ("image", Some("bomb.png"), &bomb)]).await.expect(202);
}

#[tokio::test]
async fn a_picture_that_is_something_else_as_well_is_a_picture_and_nothing_else() {
    let scene = Scene::new().await;
    for tail in [b"<script>alert(1)</script>".as_slice(), b"PK\x03\x04 a zip", b"%PDF-1.7 %%EOF", b"GIF89a"] {
        let both = [png().as_slice(), tail].concat();
        let form = [("kind", None, b"upscale".as_slice()), ("image", Some("x.html"), both.as_slice())];
        let job = scene.form(&[], &form).await.expect(202).json();
        assert_eq!(job["inputs"][0]["media_type"], "image/png");
    }
    let id = scene.submitted().await;
    scene.succeed(id, &[("x.html", b"<script>")]).await;
    let answer = scene.get(&format!("/api/v1/jobs/{id}/outputs/0")).await.expect(200);
    // What it is called says nothing; what the job made it says all.
    assert_eq!(answer.header("content-type"), "image/png");
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
    assert!(answer.header("content-security-policy").contains("default-src 'none'"));
}

#[tokio::test]
async fn names_given_twice_are_refused_wherever_they_stand() {
    let scene = Scene::new().await;
    for text in [
        r#"{"kind":"generate","kind":"upscale","params":{"prompt":"x"}}"#,
        r#"{"kind":"generate","params":{"prompt":"x","prompt":"y"}}"#,
        r#"{"kind":"generate","params":{"prompt":"x"},"params":{"prompt":"y"}}"#,
        r#"{"kind":"generate","params":{"prompt":"x"},"webhook":{"url":"https://a.example/","url":"http://b.example/"}}"#,
        "{\"kind\":\"generate\",\"params\":{\"prompt\":\"x\",\"\\u0070rompt\":\"y\"}}",
    ] {
        scene.call(Method::POST, "/api/v1/jobs", JSON, text).await.problem(400, "malformed_json");
    }
}

#[tokio::test]
async fn pictures_by_address_are_off_and_when_on_from_the_public_internet_only() {
    let scene = Scene::new().await;
    let job = |url: &str| json!({"kind": "upscale", "image_urls": [url]});
    scene.post("/api/v1/jobs", &job("https://example.org/a.png")).await.problem(403, "forbidden");

    let scene = Scene::with(|config| config.limits.remote_images = true).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    for url in [
        format!("http://127.0.0.1:{port}/a.png"),
        format!("http://localhost:{port}/a.png"),
        format!("http://[::ffff:127.0.0.1]:{port}/"),
        "http://169.254.169.254/latest/meta-data".to_owned(),
        "file:///etc/passwd".to_owned(),
        "https://me:secret@example.org/".to_owned(),
    ] {
        scene.post("/api/v1/jobs", &job(&url)).await.problem(422, "invalid_request");
    }
    let connected = tokio::time::timeout(Duration::from_millis(50), listener.accept()).await;
    assert!(connected.is_err(), "nobody has connected");
    scene.post("/api/v1/jobs", &json!({"kind": "upscale", "image_urls": "x"})).await.problem(422, "invalid_request");
    let many: Vec<_> = (0..100).map(|n| format!("https://example.org/{n}")).collect();
    scene.post("/api/v1/jobs", &json!({"kind": "upscale", "image_urls": many})).await.problem(422, "invalid_request");
    scene.assert_nothing_is_left();
}

/// Answers every request with this, on a thread of its own.
fn web(answer: Vec<u8>) -> std::net::SocketAddr {
    use std::io::{Read as _, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(&answer);
        }
    });
    address
}

#[tokio::test]
async fn a_picture_by_address_is_fetched_within_its_bounds() {
    let anywhere = Settings { remote_reach: crate::egress::Reach::Anywhere, ..Settings::default() };
    let change = |config: &mut Config| {
        config.limits.remote_images = true;
        config.limits.upload = 10_000;
    };
    let scene = Scene::with_settings(change, anywhere).await;
    let head = |status: &str, more: &str| format!("HTTP/1.1 {status}\r\nConnection: close\r\n{more}\r\n").into_bytes();
    let good = web([head("200 OK", ""), png()].concat());
    let job = |address: std::net::SocketAddr| json!({"kind": "upscale", "image_urls": [format!("http://{address}/my/photo.png?x")]});
    let made = scene.post("/api/v1/jobs", &job(good)).await.expect(202).json();
    assert_eq!((&made["inputs"][0]["name"], &made["inputs"][0]["width"]), (&json!("photo.png"), &json!(16)));
    let (jobs, uploads) = scene.spooled();
    assert_eq!((jobs.len(), uploads), (1, 0));

    let large = web([head("200 OK", ""), vec![7; 20_000]].concat());
    scene.post("/api/v1/jobs", &job(large)).await.problem(413, "upload_too_large");
    let elsewhere = web(head("302 Found", &format!("Location: http://{good}/\r\n")));
    scene.post("/api/v1/jobs", &job(elsewhere)).await.problem(422, "invalid_request");
    let page = web([head("200 OK", ""), b"<html>".to_vec()].concat());
    scene.post("/api/v1/jobs", &job(page)).await.problem(415, "image_unsupported");
    assert_eq!(scene.spooled().1, 0);
}

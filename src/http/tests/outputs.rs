use super::*;

const DATA: &[u8] = b"0123456789abcdef";

async fn scene_with_output(name: &str) -> (Scene, String) {
    let scene = Scene::new().await;
    let id = scene.submitted().await;
    let job = scene.succeed(id, &[(name, DATA)]).await;
    (scene, job.outputs[0].url.clone())
}

async fn ask(scene: &Scene, path: &str, headers: &[(&str, &str)]) -> Answer {
    scene.call(Method::GET, path, headers, "").await
}

#[tokio::test]
async fn an_output_comes_whole_with_its_name_and_hash() {
    let (scene, url) = scene_with_output("Grüße-01.png").await;
    let answer = scene.get(&url).await.expect(200);
    assert_eq!(answer.body, DATA);
    assert_eq!(answer.header("content-type"), "image/png");
    assert_eq!(answer.header("content-length"), "16");
    assert_eq!(answer.header("accept-ranges"), "bytes");
    assert_eq!(
        answer.header("content-disposition"),
        "inline; filename=\"Gr__e-01.png\"; filename*=UTF-8''Gr%C3%BC%C3%9Fe-01.png"
    );
    assert_eq!(answer.header("cache-control"), "private, no-cache");
    let etag = answer.header("etag").to_owned();
    assert_eq!(etag.len(), 66);

    let head = scene.call(Method::HEAD, &url, &[], "").await.expect(200);
    assert_eq!((head.header("content-length"), head.body.len()), ("16", 0));

    let same = ask(&scene, &url, &[("if-none-match", &etag)]).await.expect(304);
    assert_eq!((same.header("etag"), same.body.len()), (etag.as_str(), 0));
}

#[tokio::test]
async fn a_part_is_the_bytes_that_were_asked_for() {
    let (scene, url) = scene_with_output("a.png").await;
    let etag = scene.get(&url).await.header("etag").to_owned();
    for (range, from, to) in [("bytes=0-3", 0, 4), ("bytes=10-", 10, 16), ("bytes=-1", 15, 16), ("bytes=4-400", 4, 16)]
    {
        let answer = ask(&scene, &url, &[("range", range), ("if-range", &etag)]).await.expect(206);
        assert_eq!(answer.body, &DATA[from..to], "{range}");
        assert_eq!(answer.header("content-range"), format!("bytes {from}-{}/16", to - 1));
        assert_eq!(answer.header("content-length"), (to - from).to_string());
        assert_eq!(answer.header("etag"), etag);
    }
    let beyond = ask(&scene, &url, &[("range", "bytes=16-")]).await;
    assert_eq!(beyond.header("content-range"), "bytes */16");
    beyond.problem(416, "range_not_satisfiable");
    let other = ask(&scene, &url, &[("range", "bytes=0-3"), ("if-range", "\"other\"")]).await.expect(200);
    assert_eq!(other.body, DATA);
}

#[tokio::test]
async fn an_output_that_somebody_has_touched_is_not_served() {
    let (scene, url) = scene_with_output("a.png").await;
    let file = scene.app.config().outbox.dir.join("a.png");
    std::fs::write(&file, b"shorter").unwrap();
    scene.get(&url).await.problem(404, "not_found");
    std::fs::remove_file(&file).unwrap();
    let problem = scene.get(&url).await.problem(404, "not_found");
    assert!(!problem.to_string().contains(scene.app.config().outbox.dir.to_str().unwrap()), "{problem}");
}

#[tokio::test]
async fn there_are_only_the_outputs_that_there_are() {
    let (scene, url) = scene_with_output("a.png").await;
    let base = url.strip_suffix('0').unwrap();
    for index in ["1", "-1", "x", "99999999999999999999", "0.0", "%2e%2e"] {
        scene.get(&format!("{base}{index}")).await.problem(404, "not_found");
    }
}

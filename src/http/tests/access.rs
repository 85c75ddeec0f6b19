use super::*;

async fn with_tokens() -> Scene {
    Scene::with(|config| {
        let file = config.paths.data.with_file_name("tokens");
        std::fs::write(&file, "laptop:first-secret\nsecond-secret\n").unwrap();
        config.server.tokens_file = Some(file);
    })
    .await
}

#[tokio::test]
async fn with_tokens_only_the_probes_and_the_description_are_open() {
    let scene = with_tokens().await;
    for path in ["/healthz", "/readyz"] {
        scene.get(path).await.expect(200);
    }
    for path in ["/docs", "/docs/rapidoc-min.js", "/openapi.json"] {
        scene.get(path).await.expect(200);
    }
    for path in ["/", "/metrics", "/api/v1/jobs", "/api/v1/nothing", "/api/v1/events"] {
        let answer = scene.get(path).await;
        assert!(answer.header("www-authenticate").starts_with("Bearer"), "{path}");
        answer.problem(401, "unauthorized");
        let wrong = scene.call(Method::GET, path, &[("authorization", "Bearer first-secre")], "").await;
        assert!(wrong.header("www-authenticate").contains("invalid_token"));
        wrong.problem(401, "unauthorized");
    }
    for token in ["first-secret", "second-secret"] {
        let bearer = format!("Bearer {token}");
        // A token may come from anywhere.
        scene
            .call(Method::GET, "/api/v1/jobs", &[("authorization", &bearer), ("host", "atelier.example")], "")
            .await
            .expect(200);
    }
}

#[tokio::test]
async fn a_token_does_what_its_scope_says_and_no_more() {
    let scene = Scene::with(|config| {
        let file = config.paths.data.with_file_name("tokens");
        let line = |name: &str| {
            let hash = <sha2::Sha256 as sha2::Digest>::digest(format!("{name}-secret"));
            format!("{name}:{name}:{}\n", crate::admission::hex(&hash))
        };
        std::fs::write(&file, ["read", "submit", "admin"].map(line).concat()).unwrap();
        config.server.tokens_file = Some(file);
    })
    .await;
    let id = {
        let (content_type, body) = form(&[("kind", None, b"upscale"), ("image", Some("p.png"), &png())]);
        let ask = async |who: &str| {
            let bearer = format!("Bearer {who}-secret");
            let headers = [("content-type", content_type.as_str()), ("authorization", &bearer)];
            scene.call(Method::POST, "/api/v1/jobs", &headers, body.clone()).await
        };
        let problem = ask("read").await.problem(403, "forbidden");
        assert!(problem["detail"].as_str().unwrap().contains("submit"), "{problem}");
        scene.assert_nothing_is_left();
        ask("submit").await.expect(202).json()["id"].as_str().unwrap().to_owned()
    };
    let call = async |who: &str, method: Method, path: &str| {
        let bearer = format!("Bearer {who}-secret");
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        scene.call(method, path, &headers, "{}").await
    };
    for who in ["read", "submit", "admin"] {
        call(who, Method::GET, &format!("/api/v1/jobs/{id}")).await.expect(200);
    }
    for who in ["read", "submit"] {
        call(who, Method::POST, "/api/v1/queue/pause").await.problem(403, "forbidden");
        call(who, Method::POST, "/api/v1/cleanup").await.problem(403, "forbidden");
    }
    call("admin", Method::POST, "/api/v1/queue/pause").await.expect(200);
    call("read", Method::DELETE, &format!("/api/v1/jobs/{id}")).await.problem(403, "forbidden");
    call("submit", Method::DELETE, &format!("/api/v1/jobs/{id}")).await.expect(204);
}

#[tokio::test]
async fn too_many_requests_are_put_off_and_tokens_do_not_count_for_each_other() {
    let scene = Scene::with(|config| {
        let file = config.paths.data.with_file_name("tokens");
        std::fs::write(&file, "one\ntwo\n").unwrap();
        config.server.tokens_file = Some(file);
        // One request at once, the next in a minute.
        config.server.rate_limit = 1;
    })
    .await;
    let ask = async |token: &str| {
        let bearer = format!("Bearer {token}");
        scene.call(Method::GET, "/api/v1/queue", &[("authorization", &bearer)], "").await
    };
    ask("one").await.expect(200);
    let refused = ask("one").await;
    let wait: u64 = refused.header("retry-after").parse().unwrap();
    assert!((1..=61).contains(&wait), "{wait}");
    refused.problem(429, "rate_limited");
    ask("two").await.expect(200);
    // Guessing counts by address, whatever is guessed.
    ask("guess").await.problem(401, "unauthorized");
    ask("another").await.problem(429, "rate_limited");
    ask("two").await.problem(429, "rate_limited");
    scene.get("/healthz").await.expect(200);
}

#[tokio::test]
async fn with_tokens_too_only_listed_names_are_answered_where_names_are_listed() {
    let scene = Scene::with(|config| {
        let file = config.paths.data.with_file_name("tokens");
        std::fs::write(&file, "secret").unwrap();
        config.server.tokens_file = Some(file);
        config.server.allowed_hosts = vec!["studio.lan".into()];
    })
    .await;
    let ask = async |host: &str| {
        scene.call(Method::GET, "/api/v1/jobs", &[("authorization", "Bearer secret"), ("host", host)], "").await
    };
    ask("studio.lan:8470").await.expect(200);
    ask("localhost:8470").await.expect(200);
    ask("evil.example").await.problem(403, "forbidden");
}

#[tokio::test]
async fn without_tokens_a_rebound_name_and_a_foreign_page_are_turned_away() {
    let scene = Scene::with(|config| config.server.allowed_origins = vec!["http://studio.example:3000".into()]).await;
    let ask = |headers: &'static [(&str, &str)]| scene.call(Method::GET, "/api/v1/jobs", headers, "");
    ask(&[("host", "localhost:8470")]).await.expect(200);
    ask(&[("host", "evil.example")]).await.problem(403, "forbidden");
    ask(&[("origin", "http://127.0.0.1:8470")]).await.expect(200);
    ask(&[("origin", "https://evil.example")]).await.problem(403, "forbidden");
    ask(&[("origin", "null")]).await.problem(403, "forbidden");
    ask(&[("origin", "http://studio.example:3000")]).await.expect(200);
    scene.call(Method::GET, "/healthz", &[("host", "probe.example")], "").await.expect(200);

    let (content_type, body) = form(&[("kind", None, b"upscale"), ("image", Some("p.png"), &png())]);
    let drive_by = [("content-type", content_type.as_str()), ("origin", "https://evil.example")];
    scene.call(Method::POST, "/api/v1/jobs", &drive_by, body).await.problem(403, "forbidden");
    scene.assert_nothing_is_left();
}

#[tokio::test]
async fn cors_is_for_the_listed_origins_letter_by_letter() {
    let scene = Scene::with(|config| config.server.allowed_origins = vec!["http://studio.example".into()]).await;
    let scene = &scene;
    let preflight = |origin: &'static str| async move {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "idempotency-key"),
        ];
        scene.call(Method::OPTIONS, "/api/v1/jobs", &headers, "").await.expect(200)
    };
    let allowed = preflight("http://studio.example").await;
    assert_eq!(allowed.header("access-control-allow-origin"), "http://studio.example");
    assert!(allowed.header("access-control-allow-methods").contains("DELETE"));
    assert!(allowed.header("access-control-allow-headers").contains("idempotency-key"));
    for other in ["http://studio.example.evil", "https://studio.example", "http://STUDIO.example", "null"] {
        assert_eq!(preflight(other).await.header("access-control-allow-origin"), "", "{other}");
    }
    let answer = scene.call(Method::GET, "/api/v1/jobs", &[("origin", "http://studio.example")], "").await.expect(200);
    assert_eq!(answer.header("access-control-allow-origin"), "http://studio.example");
    assert!(answer.header("access-control-expose-headers").contains("x-request-id"));
    assert!(answer.header("vary").contains("origin"));
}

#[tokio::test]
async fn a_page_of_an_allowed_origin_reads_the_refusal_of_its_token() {
    let scene = Scene::with(|config| {
        let file = config.paths.data.with_file_name("tokens");
        std::fs::write(&file, "secret").unwrap();
        config.server.tokens_file = Some(file);
        config.server.allowed_origins = vec!["http://studio.example".into()];
    })
    .await;
    let answer = scene.call(Method::GET, "/api/v1/jobs", &[("origin", "http://studio.example")], "").await;
    assert_eq!(answer.header("access-control-allow-origin"), "http://studio.example");
    answer.problem(401, "unauthorized");
}

#[tokio::test]
async fn every_answer_carries_its_id_and_the_security_headers() {
    let scene = Scene::new().await;
    for path in ["/", "/nothing", "/api/v1/jobs"] {
        let answer = scene.call(Method::GET, path, &[("x-request-id", "mine-1")], "").await;
        assert_eq!(answer.header("x-request-id"), "mine-1");
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        assert_eq!(answer.header("referrer-policy"), "no-referrer");
        assert_eq!(answer.header("cross-origin-resource-policy"), "same-origin");
        assert!(answer.header("content-security-policy").contains("frame-ancestors 'none'"));
    }
    assert_eq!(scene.get("/").await.header("x-request-id").len(), 26);
}

#[tokio::test]
async fn the_address_of_a_picture_opens_without_a_token_and_nothing_else_does() {
    let scene = with_tokens().await;
    let wish = serde_json::json!({"prompt": "a boat", "response_format": "url"}).to_string();
    let token = [("content-type", "application/json"), ("authorization", "Bearer first-secret")];
    let work = async {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        loop {
            let jobs = scene.app.store.list(&crate::store::JobFilter { limit: 1, ..Default::default() }).await.unwrap();
            if let [job] = &jobs.jobs[..] {
                scene.succeed(job.id, &[("a.png", b"a picture")]).await;
                return job.id;
            }
            assert!(tokio::time::Instant::now() < deadline, "no job was made");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let (answer, id) = tokio::join!(scene.call(Method::POST, "/v1/images/generations", &token, wish), work);
    let url = answer.expect(200).json()["data"][0]["url"].as_str().unwrap().to_owned();
    let signed = url.strip_prefix("http://127.0.0.1:8470").unwrap();
    assert_eq!(scene.get(signed).await.expect(200).body, b"a picture");
    let (path, query) = signed.split_once('?').unwrap();
    assert_eq!(path, format!("/api/v1/jobs/{id}/outputs/0"));
    for other in [
        path.to_owned(),
        format!("/api/v1/jobs/{id}/outputs/1?{query}"),
        format!("/api/v1/jobs/{id}?{query}"),
        format!("{path}?{}", query.replace("expires=", "expires=9")),
        format!("{signed}0"),
    ] {
        scene.get(&other).await.problem(401, "unauthorized");
    }
    scene.call(Method::DELETE, signed, &[], "").await.problem(401, "unauthorized");
    scene.get(path).await.problem(401, "unauthorized");
}

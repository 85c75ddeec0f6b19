//! Programs that were written for other servers.

mod openai;
mod replicate;
mod sdapi;
mod studio;

use atelier_domain::JobStatus;
use serde_json::json;

use super::*;
use crate::store::JobFilter;

impl Scene {
    /// Jobs in this status, oldest first.
    async fn jobs(&self, status: JobStatus) -> Vec<Job> {
        let filter = JobFilter { status: Some(status), limit: 200, ..JobFilter::default() };
        let mut jobs = self.app.store.list(&filter).await.unwrap().jobs;
        jobs.reverse();
        jobs
    }

    async fn count(&self) -> u64 {
        self.app.store.counts().await.unwrap().values().sum()
    }

    /// Waits until so many jobs are queued.
    async fn queued(&self, count: usize) -> Vec<Job> {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        loop {
            let jobs = self.jobs(JobStatus::Queued).await;
            if jobs.len() >= count {
                return jobs;
            }
            assert!(tokio::time::Instant::now() < deadline, "{} of {count} jobs are queued", jobs.len());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Sends a request whose client waits, and ends its job with these files meanwhile.
    async fn served(&self, request: Request<Body>, files: &[(&str, &[u8])]) -> (Job, Answer) {
        let work = async {
            let job = self.queued(1).await.remove(0);
            self.succeed(job.id, files).await;
            job
        };
        let (answer, job) = tokio::join!(self.send(request), work);
        (job, answer)
    }

    /// Installs a model that does everything.
    async fn install(&self, id: &str) {
        let dir = self.app.config().paths.models[0].join(id);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("config.json"), r#"{"_class_name":"AtelierFake"}"#).unwrap();
        self.app.rescan_models().await;
    }
}

fn post_json(path: &str, json: &Value) -> Request<Body> {
    request(Method::POST, path, &[("content-type", "application/json")], json.to_string())
}

fn post_form(path: &str, parts: &[FormPart<'_>]) -> Request<Body> {
    let (content_type, body) = form(parts);
    request(Method::POST, path, &[("content-type", &content_type)], body)
}

/// Whether A1111's or OpenAI's key is let go of; that happens after the answer.
async fn until_forgotten(scene: &Scene, id: JobId) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while scene.app.store.has_key(id).await.unwrap() {
        assert!(tokio::time::Instant::now() < deadline, "the key stays");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn the_limits_are_the_native_ones() {
    let scene = Scene::with(|config| {
        config.limits.upload = 30_000;
        config.limits.images = 2;
        config.queue.max_queued = 1;
    })
    .await;
    let large = "QUJD".repeat(20_000);
    let image = base64(&png());
    let prompt = "x".repeat(2001);
    for (path, wish, status) in [
        ("/v1/images/edits", json!({"prompt": "x", "image": large}), 413),
        ("/sdapi/v1/img2img", json!({"prompt": "x", "init_images": [large]}), 413),
        ("/v1/predictions", json!({"version": "fake", "input": {"image": large}}), 413),
        ("/api/jobs", json!({"prompt": "x", "image": large}), 413),
        ("/v1/images/edits", json!({"prompt": "x", "image": [image, image, image]}), 400),
        ("/v1/images/generations", json!({ "prompt": prompt }), 400),
        ("/sdapi/v1/txt2img", json!({ "prompt": prompt }), 422),
        ("/api/jobs", json!({ "prompt": prompt }), 422),
    ] {
        scene.post(path, &wish).await.expect(status);
    }
    let file = vec![7; 40_000];
    scene.send(post_form("/v1/files", &[("content", Some("a.png"), &file)])).await.problem(413, "upload_too_large");
    let parts: &[FormPart<'_>] = &[("prompt", None, b"x"), ("image", Some("a.png"), &file)];
    scene.send(post_form("/v1/images/edits", parts)).await.expect(413);
    let deep = format!("{{\"prompt\":{}1{}}}", "[".repeat(500), "]".repeat(500));
    let json = [("content-type", "application/json")];
    scene.call(Method::POST, "/v1/images/generations", &json, deep).await.expect(400);
    scene.call(Method::POST, "/sdapi/v1/txt2img", &json, "{\"prompt\":\"x\",\"prompt\":\"y\"}").await.expect(400);
    assert_eq!(scene.count().await, 0);
    scene.assert_nothing_is_left();

    scene.submitted().await;
    let full = scene.post("/v1/images/generations", &json!({"prompt": "x"})).await.expect(429);
    assert_eq!((full.header("retry-after"), full.header("x-should-retry")), ("30", "true"));
    assert_eq!(full.json()["error"]["type"], "rate_limit_error");
    scene.post("/sdapi/v1/txt2img", &json!({"prompt": "x"})).await.expect(429);
}

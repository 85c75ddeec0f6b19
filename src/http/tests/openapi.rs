//! The description of the API: complete, as committed, and true to what the domain's types write.

use std::collections::{BTreeMap, BTreeSet};

use atelier_domain::{
    ControlMode, Denoise, Detail, Fit, Input, Job, JobKind, JobStatus, Loras, OutputFormat, Params, Preprocessor,
    Progress, Source, SourceType, Timestamp,
    protocol::{Device, LoadedModel},
};
use serde_json::json;

use super::*;
use crate::{
    http::openapi,
    inbox::{InboxStatus, Problem},
};

fn document() -> Value {
    serde_json::from_str(openapi::json()).unwrap()
}

#[test]
fn the_document_is_the_committed_one() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openapi.json");
    let now = format!("{}\n", openapi::json());
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(&file, &now).unwrap();
    }
    let committed = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        now == committed,
        "the API's description has changed; if it was meant to, run the test with UPDATE_OPENAPI=1 and commit {}",
        file.display()
    );
}

#[tokio::test]
async fn the_document_is_served() {
    let scene = Scene::new().await;
    let answer = scene.get("/openapi.json").await.expect(200);
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(answer.json(), document());
}

#[test]
fn every_route_of_the_contract_is_described_with_its_errors() {
    let document = document();
    assert_eq!(document["openapi"], "3.1.0");
    let mut found = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            found.insert(format!("{method} {path}"));
            assert!(
                ids.insert(operation["operationId"].as_str().unwrap().to_owned()),
                "{method} {path} has another's id"
            );
            assert!(!operation["summary"].as_str().unwrap_or_default().is_empty(), "{method} {path} says nothing");
            let has_errors = operation["responses"].as_object().unwrap().iter().any(|(status, response)| {
                let content = &response["content"];
                let of_clients = &content["application/json"]["schema"]["$ref"];
                status.starts_with(['4', '5'])
                    && (content["application/problem+json"].is_object()
                        || *of_clients == "#/components/schemas/OpenAiError"
                        || *of_clients == "#/components/schemas/SdapiError")
            });
            assert!(has_errors || path == "/healthz", "{method} {path} has no errors");
        }
    }
    let expected = [
        "delete /api/dashboard/logs",
        "delete /api/jobs/{id}",
        "delete /api/v1/jobs/{id}",
        "delete /v1/files/{id}",
        "get /",
        "get /api/comfyui/status",
        "get /api/dashboard/logs",
        "get /api/dashboard/metrics",
        "get /api/dashboard/results",
        "get /api/dashboard/settings",
        "get /api/dashboard/status",
        "get /api/download/{file}",
        "get /api/jobs",
        "get /api/jobs/{id}",
        "get /api/jobs/{id}/download",
        "get /api/jobs/{id}/status",
        "get /api/jobs/{id}/ws",
        "get /api/tts/status",
        "get /api/v1/events",
        "get /api/v1/jobs",
        "get /api/v1/jobs/{id}",
        "get /api/v1/jobs/{id}/events",
        "get /api/v1/jobs/{id}/manifest",
        "get /api/v1/jobs/{id}/outputs/{index}",
        "get /api/v1/jobs/{id}/preview",
        "get /api/v1/models",
        "get /api/v1/queue",
        "get /api/v1/ws",
        "get /controlnet/model_list",
        "get /controlnet/module_list",
        "get /controlnet/version",
        "get /dashboard",
        "get /dashboard/app.js",
        "get /dashboard/style.css",
        "get /docs",
        "get /docs/rapidoc-min.js",
        "get /healthz",
        "get /metrics",
        "get /models",
        "get /openapi.json",
        "get /readyz",
        "get /sdapi/v1/memory",
        "get /sdapi/v1/options",
        "get /sdapi/v1/progress",
        "get /sdapi/v1/{list}",
        "get /v1/files",
        "get /v1/files/{id}",
        "get /v1/models",
        "get /v1/models/{id}",
        "get /v1/models/{owner}/{name}",
        "get /v1/models/{owner}/{name}/versions/{version}",
        "get /v1/predictions",
        "get /v1/predictions/{id}",
        "post /api/caption/{model}",
        "post /api/controlnet/{model}",
        "post /api/dashboard/logs/clear",
        "post /api/dashboard/settings",
        "post /api/generate/{model}",
        "post /api/jobs",
        "post /api/jobs/{id}/cancel",
        "post /api/talking-head/{model}",
        "post /api/unload-all",
        "post /api/unload/{model}",
        "post /api/v1/cleanup",
        "post /api/v1/jobs",
        "post /api/v1/jobs/{id}/cancel",
        "post /api/v1/jobs/{id}/retry",
        "post /api/v1/models/unload",
        "post /api/v1/models/{id}/unload",
        "post /api/v1/queue/pause",
        "post /api/v1/queue/resume",
        "post /api/video/{model}",
        "post /sdapi/v1/extra-batch-images",
        "post /sdapi/v1/extra-single-image",
        "post /sdapi/v1/img2img",
        "post /sdapi/v1/interrogate",
        "post /sdapi/v1/interrupt",
        "post /sdapi/v1/options",
        "post /sdapi/v1/png-info",
        "post /sdapi/v1/refresh-checkpoints",
        "post /sdapi/v1/refresh-loras",
        "post /sdapi/v1/reload-checkpoint",
        "post /sdapi/v1/skip",
        "post /sdapi/v1/txt2img",
        "post /sdapi/v1/unload-checkpoint",
        "post /v1/files",
        "post /v1/images/edits",
        "post /v1/images/generations",
        "post /v1/models/{owner}/{name}/predictions",
        "post /v1/predictions",
        "post /v1/predictions/{id}/cancel",
    ];
    assert_eq!(found, expected.map(str::to_owned).into());
}

#[test]
fn every_reference_leads_somewhere() {
    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(map) => {
                if let Some(reference) = map.get("$ref").and_then(Value::as_str) {
                    found.insert(reference.to_owned());
                }
                map.values().for_each(|value| references(value, found));
            }
            Value::Array(list) => list.iter().for_each(|value| references(value, found)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    let document = document();
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    assert!(!found.is_empty());
    for reference in found {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
}

/// A value of every type that is described twice, with nothing left out.
fn samples() -> BTreeMap<&'static str, Value> {
    let params = Params {
        prompt: Some("p".into()),
        negative_prompt: Some("n".into()),
        seed: Some(1),
        steps: Some(1),
        guidance_scale: Some(1.0),
        width: Some(16),
        height: Some(16),
        strength: Some(0.5),
        scale: Some(2),
        denoise: Some(Denoise::Auto),
        num_images: Some(1),
        format: Some(OutputFormat::Png),
        quality: Some(1),
        image_guidance_scale: Some(1.5),
        true_cfg_scale: Some(2.0),
        sampler: Some("euler".into()),
        clip_skip: Some(1),
        prompt_weighting: Some(true),
        loras: Some(Loras::default()),
        detail: Some(Detail::Auto),
        fit: Some(Fit::Source),
        control_mode: Some(ControlMode::Canny),
        control_scale: Some(1.0),
        preprocessor: Some(Preprocessor::Canny),
        base_model: Some("m".into()),
        preview_every: Some(5),
        tiling: Some(false),
        max_tokens: Some(1),
        temperature: Some(1.0),
        top_p: Some(1.0),
        step_cache: Some(0.1),
        skip_layer_guidance: Some(2.8),
    };
    let id = JobId::from_ulid(ulid::Ulid::generate());
    let input =
        Input { name: "a".into(), media_type: "image/png".into(), bytes: 1, width: 1, height: 1, sha256: "0".into() };
    let output = Output {
        index: 0,
        name: "a".into(),
        media_type: "image/png".into(),
        bytes: 1,
        width: 1,
        height: 1,
        sha256: "0".into(),
        url: Output::url_of(id, 0),
    };
    let job = Job {
        id,
        kind: JobKind::Upscale,
        model: Some("m".into()),
        status: JobStatus::Succeeded,
        priority: 0,
        progress: Progress { text: Some("a bo".into()), ..Progress::queued(Timestamp(0)) },
        attempt: 1,
        max_attempts: 3,
        crashes: 0,
        resumed_from_step: Some(1),
        source: Source { r#type: SourceType::Http, name: Some("n".into()) },
        params,
        inputs: vec![input],
        outputs: vec![output],
        result: Some(json!("text")),
        error: Some(ErrorInfo::new(ErrorCode::Internal, "m").with_hint("h")),
        created_at: Timestamp(0),
        started_at: Some(Timestamp(0)),
        finished_at: Some(Timestamp(0)),
    };
    let device = Device { name: "cpu".into(), ..Device::default() };
    let loaded = LoadedModel { id: "m".into(), bytes: 1 };
    let problem = Problem { path: "a".into(), problem: "p".into(), since: Timestamp(0) };
    let inbox = InboxStatus { last_scan: Some(Timestamp(0)), problems: vec![problem], ..InboxStatus::default() };
    let inbox = serde_json::to_value(&inbox).unwrap();
    let job = serde_json::to_value(&job).unwrap();
    BTreeMap::from([
        ("Progress", job["progress"].clone()),
        ("Source", job["source"].clone()),
        ("Params", job["params"].clone()),
        ("Input", job["inputs"][0].clone()),
        ("Output", job["outputs"][0].clone()),
        ("JobError", job["error"].clone()),
        ("Device", serde_json::to_value(&device).unwrap()),
        ("LoadedModel", serde_json::to_value(&loaded).unwrap()),
        ("Inbox", inbox.clone()),
        ("InboxProblem", inbox["problems"][0].clone()),
        ("Job", job),
    ])
}

#[test]
fn the_descriptions_name_what_the_domain_writes() {
    let document = document();
    for (name, sample) in samples() {
        let schema = &document["components"]["schemas"][name];
        let described: BTreeSet<_> =
            schema["properties"].as_object().unwrap_or_else(|| panic!("{name}")).keys().collect();
        let written: BTreeSet<_> = sample.as_object().unwrap().keys().collect();
        assert_eq!(described, written, "{name}");
        if name != "Params" {
            let required: BTreeSet<_> =
                schema["required"].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
            // A text so far is there while one is being written.
            let always = written.iter().map(|n| n.as_str()).filter(|n| (name, *n) != ("Progress", "text")).collect();
            assert_eq!(required, always, "{name}: all are always there");
        }
    }
    let words = |name: &str| document["components"]["schemas"][name]["enum"].clone();
    assert_eq!(words("JobKind"), json!(JobKind::ALL));
    assert_eq!(words("JobStatus"), json!(JobStatus::ALL));
    assert_eq!(words("SourceType"), json!([SourceType::Http, SourceType::Inbox]));
    assert_eq!(words("OutputFormat"), json!([OutputFormat::Png, OutputFormat::Jpeg, OutputFormat::Webp]));
}

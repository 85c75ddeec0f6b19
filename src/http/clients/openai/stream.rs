//! `stream=true`: the pictures as events, each as soon as it is there.

use std::{sync::Arc, time::Duration};

use atelier_domain::Timestamp;
use axum::{
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tokio::time::MissedTickBehavior;

use super::{
    super::{
        super::Http,
        door::{self, Placed},
        preview::Previews,
        reply::{self, After, Broken, Pictures, Sender},
    },
    OpenAiError,
    images::{size, usage},
    wish::Look,
};
use crate::store::JobRecord;

/// Proxies close what says nothing.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How often a new preview is looked for.
const LOOK: Duration = Duration::from_millis(250);

pub(super) fn answer(http: &Arc<Http>, placed: Placed, look: Look, edits: bool) -> Response {
    let after = After::forget(placed.key.clone());
    let body = reply::streamed(http, after, move |http, sender| async move {
        write(&http, &sender, &placed, &look, if edits { "image_edit" } else { "image_generation" }).await
    });
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

async fn write(http: &Arc<Http>, sender: &Sender, placed: &Placed, look: &Look, prefix: &str) -> Result<(), Broken> {
    let mut ended = std::pin::pin!(door::ended(http, placed.job.id));
    let mut tick = tokio::time::interval(KEEP_ALIVE);
    let mut look_again = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    look_again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut previews, mut sent) = (Previews::of(http, placed.job.id), 0);
    let ended = loop {
        tokio::select! {
            ended = &mut ended => break ended,
            _ = tick.tick() => sender.text(": the job is not done yet\n\n").await?,
            _ = look_again.tick(), if sent < look.partial_images => {
                if let Some(preview) = previews.next().await {
                    let name = format!("{prefix}.partial_image");
                    let data = partial(&name, look, &preview, sent);
                    sender.text(format!("event: {name}\ndata: {data}\n\n")).await?;
                    sent += 1;
                }
            }
        }
    };
    let record = match ended {
        Ok(record) => record,
        // The job goes on without the daemon; the client asks again, under the same key.
        Err(problem) => {
            error(sender, problem.code(), problem.detail(), problem.hint()).await?;
            return Err(Broken);
        }
    };
    if let Some(problem) = door::failure(&record.job) {
        return error(sender, problem.code(), problem.detail(), problem.hint()).await;
    }
    let mut pictures = Pictures::new();
    for index in 0..record.job.outputs.len() {
        let Some(mark) = pictures.output(&record, index) else { continue };
        let name = format!("{prefix}.completed");
        event(sender, &name, &completed(&name, &record, look, &mark), &pictures).await?;
    }
    Ok(())
}

fn partial(name: &str, look: &Look, preview: &[u8], index: u64) -> Value {
    json!({
        "type": name,
        "b64_json": STANDARD.encode(preview),
        "partial_image_index": index,
        "created_at": Timestamp::now().0 / 1000,
        "size": "auto",
        "quality": look.quality,
        "background": look.background,
        "output_format": "jpeg",
    })
}

fn completed(name: &str, record: &JobRecord, look: &Look, mark: &str) -> Value {
    json!({
        "type": name,
        "b64_json": mark,
        "created_at": record.job.finished_at.map_or(0, |finished| finished.0 / 1000),
        "size": size(record),
        "quality": look.quality,
        "background": look.background,
        "output_format": look.format,
        "usage": usage(),
    })
}

async fn event(sender: &Sender, name: &str, data: &Value, pictures: &Pictures) -> Result<(), Broken> {
    sender.with_pictures(&format!("event: {name}\ndata: {data}\n\n"), pictures).await
}

async fn error(sender: &Sender, code: &str, detail: &str, hint: &str) -> Result<(), Broken> {
    let body = serde_json::to_string(&OpenAiError::new(500, code, detail, hint)).expect("texts serialise");
    sender.text(format!("event: error\ndata: {body}\n\n")).await
}

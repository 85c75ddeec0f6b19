//! What a picture says of itself, what can be said of it, and how the machine is.

use std::{io::Read as _, path::Path, sync::Arc};

use atelier_domain::ErrorCode;
use axum::{Json, body::Body, extract::State, http::StatusCode, response::Response};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::super::{
    super::{Http, models as native, problem::Problem},
    SdapiErrors,
    door::{self, Order, Visitor},
    reply::{self, After, Pictures},
};

/// Text of a PNG that is looked at.
const MAX_TEXT: u64 = 1 << 20;

/// A picture.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only described, never made")]
pub(crate) struct SdapiImage {
    /// A data URI or base64.
    image: String,
    /// Passed over.
    model: Option<String>,
}

/// What was written into a picture.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only described, never made")]
pub(crate) struct SdapiPngInfo {
    /// The text `parameters`.
    info: String,
    /// All texts.
    #[schema(value_type = Value)]
    items: Value,
    #[schema(value_type = Value)]
    parameters: Value,
}

/// Texts in a picture (A1111)
///
/// Of a PNG; other files have none that is read here.
#[utoipa::path(
    post,
    path = "/sdapi/v1/png-info",
    operation_id = "sdapi_png_info",
    tag = "sdapi",
    request_body(content((SdapiImage = "application/json"))),
    responses((status = 200, description = "What is written in it", body = SdapiPngInfo), SdapiErrors)
)]
pub(crate) async fn png_info(
    State(http): State<Arc<Http>>,
    visitor: Visitor,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let mut arrival = door::receive(&http, &visitor, body).await?;
    let image = arrival.fields.image().await?;
    let texts = tokio::task::spawn_blocking(move || png_texts(image.path())).await;
    let texts = texts
        .map_err(|_| Problem::new(ErrorCode::Internal, "the picture could not be read"))?
        .map_err(|error| Problem::io("reading the picture", &error))?;
    let info = texts.get("parameters").cloned().unwrap_or_else(|| Value::String(String::new()));
    Ok(Json(json!({"info": info, "items": texts, "parameters": {}})))
}

/// The uncompressed texts of a PNG, by keyword.
fn png_texts(path: &Path) -> std::io::Result<Map<String, Value>> {
    let mut texts = Map::new();
    let mut file = std::io::BufReader::new(std::fs::File::open(path)?);
    let mut signature = [0; 8];
    if file.read_exact(&mut signature).is_err() || signature != *b"\x89PNG\r\n\x1a\n" {
        return Ok(texts);
    }
    let mut head = [0; 8];
    let mut left = MAX_TEXT;
    while file.read_exact(&mut head).is_ok() {
        let length = u64::from(u32::from_be_bytes([head[0], head[1], head[2], head[3]]));
        let kind = &head[4..];
        if (kind != b"tEXt" && kind != b"iTXt") || length > left {
            file.seek_relative(i64::try_from(length + 4).unwrap_or(i64::MAX))?;
            continue;
        }
        left -= length;
        let mut data = vec![0; usize::try_from(length).unwrap_or(0)];
        if file.read_exact(&mut data).is_err() {
            break;
        }
        file.seek_relative(4)?;
        if let Some((keyword, text)) = if kind == b"tEXt" { latin_text(&data) } else { utf8_text(&data) } {
            texts.insert(keyword, Value::String(text));
        }
    }
    Ok(texts)
}

fn split_nul(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = data.iter().position(|byte| *byte == 0)?;
    Some((&data[..at], &data[at + 1..]))
}

fn latin(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

fn latin_text(data: &[u8]) -> Option<(String, String)> {
    let (keyword, text) = split_nul(data)?;
    // Many programs write UTF-8 where Latin-1 belongs.
    let text = String::from_utf8(text.to_vec()).unwrap_or_else(|_| latin(text));
    Some((latin(keyword), text))
}

/// `keyword NUL compressed method language NUL translated NUL text`.
fn utf8_text(data: &[u8]) -> Option<(String, String)> {
    let (keyword, rest) = split_nul(data)?;
    let (0, rest) = (*rest.first()?, rest.get(2..)?) else { return None };
    let (_language, rest) = split_nul(rest)?;
    let (_translated, text) = split_nul(rest)?;
    Some((latin(keyword), String::from_utf8_lossy(text).into_owned()))
}

/// What a caption says.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only described, never made")]
pub(crate) struct SdapiCaption {
    caption: String,
}

/// Caption a picture (A1111)
#[utoipa::path(
    post,
    path = "/sdapi/v1/interrogate",
    operation_id = "sdapi_interrogate",
    tag = "sdapi",
    request_body(content((SdapiImage = "application/json"))),
    responses((status = 200, description = "What is on it", body = SdapiCaption), SdapiErrors)
)]
pub(crate) async fn interrogate(
    State(http): State<Arc<Http>>,
    visitor: Visitor,
    body: Body,
) -> Result<Response, Problem> {
    let key = visitor.key_of_waiting()?;
    let mut arrival = door::receive(&http, &visitor, body).await?;
    let mut order = Order::default();
    order.set("kind", "caption");
    order.images.push(arrival.fields.image().await?);
    let placed = arrival.place(&http, order, key).await?;
    let record = door::succeeded(&http, &placed).await?;
    let caption = record.job.caption().unwrap_or_default();
    let answer = json!({"caption": caption});
    reply::json(&http, StatusCode::OK, &answer, Pictures::new(), After::forget(placed.key)).await
}

/// Memory in use (A1111)
#[utoipa::path(
    get,
    path = "/sdapi/v1/memory",
    operation_id = "sdapi_memory",
    tag = "sdapi",
    responses((status = 200, description = "Bytes", body = Object), SdapiErrors)
)]
pub(crate) async fn memory(State(http): State<Arc<Http>>) -> Json<Value> {
    let status = http.app.engine.status();
    let (total, free) = machine_memory();
    let cuda = match &status.device {
        Some(device) if device.name.starts_with("cuda") => {
            let loaded: u64 = status.loaded.iter().map(|model| model.bytes).sum();
            let total = device.memory_bytes;
            json!({"system": {"free": total.saturating_sub(loaded), "used": loaded, "total": total}})
        }
        Some(_) | None => json!({"error": "the worker does not use a graphics card"}),
    };
    Json(json!({"ram": {"free": free, "used": status.rss_bytes, "total": total}, "cuda": cuda}))
}

/// Bytes of the machine's memory, all and available.
pub(crate) fn machine_memory() -> (u64, u64) {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let of = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()
    };
    (of("MemTotal:").unwrap_or(0) * 1024, of("MemAvailable:").unwrap_or(0) * 1024)
}

/// Let go of all models (A1111)
#[utoipa::path(
    post,
    path = "/sdapi/v1/unload-checkpoint",
    operation_id = "sdapi_unload_checkpoint",
    tag = "sdapi",
    responses((status = 200, description = "Nothing is loaded now", body = Object), SdapiErrors)
)]
pub(crate) async fn unload(State(http): State<Arc<Http>>) -> Result<Json<Value>, Problem> {
    let _nothing_is_loaded = native::let_go(&http, None).await?;
    Ok(Json(json!({})))
}

/// Load the chosen model (A1111)
///
/// Models are loaded by the jobs that need them: this does nothing.
#[utoipa::path(
    post,
    path = "/sdapi/v1/reload-checkpoint",
    operation_id = "sdapi_reload_checkpoint",
    tag = "sdapi",
    responses((status = 200, description = "As before", body = Object), SdapiErrors)
)]
pub(crate) async fn reload() -> Json<Value> {
    Json(json!({}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(kind: &[u8], data: &[u8]) -> Vec<u8> {
        [&u32::try_from(data.len()).expect("short").to_be_bytes()[..], kind, data, &[0; 4]].concat()
    }

    #[test]
    fn texts_are_found_among_other_chunks_and_damage_is_no_panic() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("a.png");
        let whole = [
            b"\x89PNG\r\n\x1a\n".to_vec(),
            chunk(b"IHDR", &[0; 13]),
            chunk(b"tEXt", b"parameters\0a cat\nSteps: 20"),
            chunk(b"iTXt", "note\0\0\0de\0Notiz\0Grüße".as_bytes()),
            chunk(b"iTXt", b"zipped\0\x01\0\0\0xx"),
            chunk(b"IEND", b""),
        ]
        .concat();
        std::fs::write(&path, &whole).expect("written");
        let texts = png_texts(&path).expect("reads");
        assert_eq!(Value::Object(texts), json!({"parameters": "a cat\nSteps: 20", "note": "Grüße"}));
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).expect("written");
            let _ = png_texts(&path);
        }
    }
}

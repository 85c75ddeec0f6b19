//! `extra-single-image` and `extra-batch-images`: our upscalers.

use std::sync::Arc;

use atelier_domain::ErrorCode;
use axum::{body::Body, extract::State, http::StatusCode, response::Response};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::super::{
    super::{
        Http,
        intake::{Fields, Received},
        problem::Problem,
    },
    SdapiErrors,
    door::{self, Order, Placed, Visitor},
    models::no_such_model,
    pick,
    reply::{self, After, Pictures},
};

/// A picture to enlarge, in the webui's words.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only described, never made")]
pub(crate) struct SdapiExtra {
    image: String,
    /// 2 or 4.
    upscaling_resize: Option<f64>,
    /// One of `upscalers`; `None`: chosen by the picture.
    upscaler_1: Option<String>,
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "only described, never made")]
pub(crate) struct SdapiExtraBatch {
    #[schema(rename = "imageList")]
    image_list: Vec<SdapiExtraImage>,
    /// 2 or 4.
    upscaling_resize: Option<f64>,
    upscaler_1: Option<String>,
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "only described, never made")]
pub(crate) struct SdapiExtraImage {
    data: String,
    name: String,
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "only described, never made")]
pub(crate) struct SdapiExtraAnswer {
    html_info: String,
    /// Base64.
    image: String,
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "only described, never made")]
pub(crate) struct SdapiExtraBatchAnswer {
    html_info: String,
    images: Vec<String>,
}

/// What is the same for all pictures of a request.
struct Enlarging {
    scale: u64,
    model: Option<String>,
}

fn enlarging(http: &Http, fields: &mut Fields) -> Result<Enlarging, Problem> {
    let invalid = |what: &str| Problem::new(ErrorCode::InvalidParams, what);
    if fields.whole(&["resize_mode"], 0..=1)? == Some(1) {
        return Err(invalid("params.resize_mode: a picture is enlarged by 2 or 4, not to a size"));
    }
    let scale = match fields.number(&["upscaling_resize"])? {
        None | Some(2.0) => 2,
        Some(4.0) => 4,
        Some(other) => return Err(invalid(&format!("params.upscaling_resize: {other} is not one of 2 and 4"))),
    };
    for name in ["gfpgan_visibility", "codeformer_visibility"] {
        if fields.number(&[name])?.is_some_and(|visibility| visibility > 0.0) {
            return Err(Problem::new(ErrorCode::NotAvailable, format!("params.{name}: no face restorer is installed")));
        }
    }
    let model = match fields.text(&["upscaler_1"])?.as_deref() {
        None | Some("None" | "Automatic") => None,
        Some(name) => Some(pick::find(&http.app.registry(), name).ok_or_else(|| no_such_model(name))?.id.clone()),
    };
    Ok(Enlarging { scale, model })
}

impl Enlarging {
    fn order(&self, image: Received) -> Order {
        let mut order = Order::default();
        order.set("kind", "upscale");
        if let Some(model) = &self.model {
            order.set("model", model.clone());
        }
        order.param("scale", Some(self.scale));
        order.param("format", Some("png"));
        order.images.push(image);
        order
    }
}

/// Enlarge a picture (A1111)
#[utoipa::path(
    post,
    path = "/sdapi/v1/extra-single-image",
    operation_id = "sdapi_extra_single_image",
    tag = "sdapi",
    request_body(content((SdapiExtra = "application/json"))),
    responses((status = 200, description = "The enlarged picture", body = SdapiExtraAnswer), SdapiErrors)
)]
pub(crate) async fn single(State(http): State<Arc<Http>>, visitor: Visitor, body: Body) -> Result<Response, Problem> {
    let key = visitor.key_of_waiting()?;
    let mut arrival = door::receive(&http, &visitor, body).await?;
    let enlarging = enlarging(&http, &mut arrival.fields)?;
    let text = arrival.fields.take(&["image"]).map(|(_, value)| value);
    let Some(Value::String(text)) = text else {
        return Err(Problem::new(ErrorCode::InvalidRequest, "image is missing"));
    };
    let image = arrival.fields.picture("image", &text).await?;
    let placed = arrival.place(&http, enlarging.order(image), key).await?;
    let record = door::succeeded(&http, &placed).await?;
    let mut pictures = Pictures::new();
    let image = pictures.output(&record, 0).unwrap_or_default();
    let answer = json!({"html_info": html_info(record.job.model.as_deref()), "image": image});
    reply::json(&http, StatusCode::OK, &answer, pictures, After::forget(placed.key)).await
}

fn html_info(model: Option<&str>) -> String {
    format!("<p>Upscaler: {}</p>", model.unwrap_or("automatic").replace(['<', '>', '&'], "_"))
}

/// Enlarge pictures (A1111)
///
/// Each is a job of its own.
#[utoipa::path(
    post,
    path = "/sdapi/v1/extra-batch-images",
    operation_id = "sdapi_extra_batch_images",
    tag = "sdapi",
    request_body(content((SdapiExtraBatch = "application/json"))),
    responses((status = 200, description = "The enlarged pictures, in order", body = SdapiExtraBatchAnswer), SdapiErrors)
)]
pub(crate) async fn batch(State(http): State<Arc<Http>>, visitor: Visitor, body: Body) -> Result<Response, Problem> {
    let key = visitor.key_of_waiting()?;
    let mut arrival = door::receive(&http, &visitor, body).await?;
    let enlarging = enlarging(&http, &mut arrival.fields)?;
    let list = arrival.fields.take(&["imageList"]).map(|(_, value)| value);
    let Some(Value::Array(list)) = list.filter(|list| list.as_array().is_some_and(|list| !list.is_empty())) else {
        return Err(Problem::new(ErrorCode::InvalidRequest, "imageList is a list of {data, name}"));
    };
    let mut images = Vec::with_capacity(list.len());
    for (index, entry) in list.iter().enumerate() {
        let place = format!("imageList[{index}].data");
        let Some(Value::String(text)) = entry.get("data") else {
            return Err(Problem::new(ErrorCode::InvalidRequest, format!("{place} is no picture")));
        };
        images.push(arrival.fields.picture(&place, text).await?);
    }
    let mut placed: Vec<Placed> = Vec::with_capacity(images.len());
    for (index, image) in images.into_iter().enumerate() {
        // The same picture twice is two entries of the answer.
        let key = key.nth(index);
        placed.push(door::place(&http, enlarging.order(image), key).await?);
    }
    drop(arrival);
    let (mut pictures, mut marks, mut used) = (Pictures::new(), Vec::new(), None);
    for placed in &placed {
        let record = door::succeeded(&http, placed).await?;
        marks.extend(pictures.output(&record, 0));
        used = record.job.model;
    }
    let keys = placed.into_iter().filter_map(|placed| placed.key).collect();
    let answer = json!({"html_info": html_info(used.as_deref()), "images": marks});
    reply::json(&http, StatusCode::OK, &answer, pictures, After::ForgetAll(keys)).await
}

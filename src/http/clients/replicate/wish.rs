//! What a prediction's input means as a job.

use std::{collections::BTreeSet, sync::Arc};

use atelier_domain::{ErrorCode, JobKind, JobStatus, Webhook};
use serde_json::{Value, json};
use ulid::Ulid;

use super::{
    super::{
        super::{
            Http,
            intake::{Fields, Received},
            problem::Problem,
        },
        door::{Order, Visitor},
        models::no_such_model,
        pick,
    },
    store,
};

const IMAGES: [&str; 8] =
    ["image", "input_image", "img", "image_input", "input_images", "images", "init_image", "control_image"];

/// Reads a prediction. `named` is the model of the route, where that names one.
pub(super) async fn read(
    http: &Arc<Http>,
    visitor: &Visitor,
    fields: &mut Fields,
    named: Option<String>,
) -> Result<Order, Problem> {
    let mut order = Order::default();
    let reference = match named {
        Some(named) => named,
        None => fields.text(&["version", "model"])?.ok_or_else(|| {
            Problem::new(ErrorCode::InvalidRequest, "the prediction names neither a version nor a model")
                .with_hint("GET /v1/models lists them, each with its latest_version.id")
        })?,
    };
    webhook(visitor, fields, &mut order)?;
    let input = fields.take(&["input"]).map_or(Value::Object(serde_json::Map::new()), |(_, input)| input);
    let Value::Object(input) = input else {
        return Err(Problem::new(ErrorCode::InvalidRequest, "input is an object of names and values"));
    };
    fields.values = input;

    order.images = pictures(http, fields, &IMAGES).await?;
    order.mask = pictures(http, fields, &["mask"]).await?.pop();
    params(fields, &mut order)?;
    what(http, fields, &mut order, &reference)?;
    // Whatever else is one of our own parameters; names of other models' inputs mean nothing here.
    let rest: Vec<_> = fields.values.iter().filter(|(name, value)| pick::knows(name) && !value.is_null()).collect();
    for (name, value) in rest {
        order.param(name, Some(value.clone()));
    }
    Ok(order)
}

/// Whom to tell, and of what. Replicate's events in ours: a prediction starts when its job runs, and its outputs come with
/// its end.
fn webhook(visitor: &Visitor, fields: &mut Fields, order: &mut Order) -> Result<(), Problem> {
    let filter = fields.take(&["webhook_events_filter"]).map(|(_, filter)| filter).filter(|filter| !filter.is_null());
    let Some((name, url)) = fields.take(&["webhook", "webhook_completed"]) else { return Ok(()) };
    let filter = match filter {
        None => json!(["completed"]),
        Some(_) if name == "webhook_completed" => json!(["completed"]),
        Some(filter) => filter,
    };
    let wrong = || {
        Problem::new(ErrorCode::InvalidRequest, "webhook_events_filter is no list of Replicate's events")
            .with_hint("some of start, output, logs and completed")
    };
    let mut events = BTreeSet::new();
    for event in filter.as_array().ok_or_else(wrong)? {
        match event.as_str().ok_or_else(wrong)? {
            "start" => drop(events.insert(JobStatus::Running)),
            "output" => drop(events.insert(JobStatus::Succeeded)),
            // Lines of the log are not told one by one.
            "logs" => {}
            "completed" => events.extend([JobStatus::Succeeded, JobStatus::Failed, JobStatus::Cancelled]),
            _ => return Err(wrong()),
        }
    }
    if !events.is_empty() {
        let events: Vec<_> = events.into_iter().map(Webhook::event_name).collect();
        order.set("webhook", json!({"url": url, "events": events}));
        order.prediction_at = Some(visitor.base_url());
    }
    Ok(())
}

fn params(fields: &mut Fields, order: &mut Order) -> Result<(), Problem> {
    order.param("prompt", fields.text(&["prompt", "text"])?);
    order.param("negative_prompt", fields.text(&["negative_prompt"])?);
    order.param("seed", fields.seed(&["seed"])?);
    order.param("num_images", fields.whole(&["num_outputs", "num_images"], 1..=10)?);
    order.param("steps", fields.whole(&["num_inference_steps", "steps"], 1..=1000)?);
    order.param("guidance_scale", fields.number(&["guidance_scale", "guidance", "cfg"])?);
    order.param("strength", fields.number(&["prompt_strength", "strength"])?);
    order.param("scale", fields.whole(&["scale", "upscale"], 1..=16)?);
    order.param("format", fields.text(&["output_format", "format"])?);
    order.param("quality", fields.whole(&["output_quality", "quality"], 0..=100)?.map(|percent| percent.max(1)));
    Ok(())
}

/// Decides model and kind. `atelier/KIND` is whatever does that kind.
fn what(http: &Http, fields: &mut Fields, order: &mut Order, reference: &str) -> Result<(), Problem> {
    let registry = http.app.registry();
    let (name, version) = reference.split_once(':').map_or((reference, None), |(name, version)| (name, Some(version)));
    let model = version
        .and_then(|version| pick::by_version(&registry, version))
        .or_else(|| pick::by_version(&registry, name))
        .or_else(|| pick::find(&registry, name));
    let by_kind = || name.strip_prefix(pick::OWNER).and_then(|rest| rest.strip_prefix('/')).and_then(JobKind::parse);
    let asked = fields.text(&["kind"])?;
    let kind = match (asked, model) {
        (Some(kind), _) => kind,
        (None, None) => by_kind().ok_or_else(|| no_such_model(name))?.as_str().to_owned(),
        (None, Some(model)) => {
            let has_prompt = order.has_param("prompt");
            let wanted: &[JobKind] = match (order.images.is_empty(), order.mask.is_some(), has_prompt) {
                (true, ..) => &[JobKind::Generate, JobKind::Video, JobKind::Speech],
                (false, true, _) => &[JobKind::Inpaint],
                (false, false, true) => {
                    &[JobKind::Edit, JobKind::Generate, JobKind::Control, JobKind::Caption, JobKind::Video]
                }
                (false, false, false) => {
                    &[JobKind::Upscale, JobKind::Caption, JobKind::Video, JobKind::TalkingHead, JobKind::Edit]
                }
            };
            pick::kind(&registry, Some(model), wanted).as_str().to_owned()
        }
    };
    order.set("kind", kind);
    if let Some(model) = model {
        order.set("model", model.id.clone());
    }
    Ok(())
}

async fn pictures(http: &Arc<Http>, fields: &mut Fields, names: &[&'static str]) -> Result<Vec<Received>, Problem> {
    let mut pictures = Vec::new();
    for name in names {
        let Some((name, value)) = fields.take(&[name]) else { continue };
        let list = if let Value::Array(list) = value { list } else { vec![value] };
        for value in list {
            let Value::String(text) = value else {
                return Err(Problem::new(ErrorCode::InvalidRequest, format!("input.{name} is no picture")));
            };
            pictures.push(picture(http, fields, name, &text).await?);
        }
    }
    Ok(pictures)
}

/// A data URI, base64, or the address of a file that was sent ahead.
async fn picture(http: &Arc<Http>, fields: &mut Fields, name: &str, text: &str) -> Result<Received, Problem> {
    let is_address = text.starts_with("http://") || text.starts_with("https://");
    let id = text.rsplit_once("/v1/files/").and_then(|(_, id)| id.parse::<Ulid>().ok());
    let (true, Some(id)) = (is_address, id) else {
        return fields.picture(&format!("input.{name}"), text).await;
    };
    let data = http.app.config().paths.data.clone();
    let copy = fields.keep(None, b"").await?;
    let copied = tokio::task::spawn_blocking(move || {
        let Some(stored) = store::find(&data, id)? else { return Ok(None) };
        std::fs::copy(&stored.path, copy.path())?;
        let mut copy = copy;
        copy.name = Some(stored.name);
        copy.bytes = stored.bytes;
        Ok(Some(copy))
    });
    let copied = copied.await.map_err(|_| Problem::new(ErrorCode::Internal, "the file could not be copied"))?;
    copied.map_err(|error| Problem::io("copying the file", &error))?.ok_or_else(|| {
        Problem::new(ErrorCode::InvalidRequest, format!("input.{name}: the file {id} does not exist"))
            .with_hint("files are kept for a day; send it again")
    })
}

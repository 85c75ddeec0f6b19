//! What a request to the Images API means as a job.

use std::sync::Arc;

use atelier_domain::{ErrorCode, JobKind};
use serde_json::{Map, Value};

use super::super::{
    super::{
        Http,
        intake::{Fields, Received},
        problem::Problem,
    },
    door::{Order, Visitor},
    mask::{self, Drawn},
    models::no_such_model,
    pick,
};

/// Names of OpenAI's own models mean whatever is installed for the purpose: programs have them built in.
const THEIRS: [&str; 4] = ["dall-e", "gpt-image", "chatgpt-image", "gpt-4"];

/// How the answer shall look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    pub(crate) as_url: bool,
    pub(crate) stream: bool,
    /// How many pictures of how far it is are wanted, at most.
    pub(crate) partial_images: u64,
    pub(crate) base_url: String,
    /// `png`, `jpeg` or `webp`.
    pub(crate) format: &'static str,
    pub(crate) quality: String,
    pub(crate) background: &'static str,
}

/// Reads a request of either route; `edits` has pictures.
pub(crate) async fn read(
    http: &Arc<Http>,
    visitor: &Visitor,
    fields: &mut Fields,
    edits: bool,
) -> Result<(Order, Look), Problem> {
    let mut order = Order::default();
    if edits {
        order.images = pictures(fields).await?;
        if let Some(mask) = mask_of(fields).await? {
            order.mask = Some(mask::ours(http, mask, Drawn::Transparent).await?);
        }
        if order.images.is_empty() {
            return Err(invalid("image", "an edit needs a picture"));
        }
    }
    let asked = fields.text(&["model"])?;
    let registry = http.app.registry();
    let is_theirs = |name: &str| THEIRS.iter().any(|theirs| name.starts_with(theirs));
    let model = match asked.as_deref() {
        None | Some("" | "default") => None,
        Some(name) => match pick::find(&registry, name) {
            None if is_theirs(name) => None,
            None => return Err(no_such_model(name)),
            found => found,
        },
    };
    let kind = match (edits, order.mask.is_some()) {
        (false, _) => JobKind::Generate,
        (true, true) => JobKind::Inpaint,
        (true, false) => pick::kind(&registry, model, &[JobKind::Edit, JobKind::Generate]),
    };
    order.set("kind", kind.as_str());
    if let Some(model) = model {
        order.set("model", model.id.clone());
    }
    params(fields, &mut order)?;
    let look = look(visitor, fields, &mut order, asked.as_deref())?;
    Ok((order, look))
}

fn params(fields: &mut Fields, order: &mut Order) -> Result<(), Problem> {
    order.param("prompt", fields.text(&["prompt"])?);
    order.param("negative_prompt", fields.text(&["negative_prompt"])?);
    order.param("seed", fields.seed(&["seed"])?);
    order.param("num_images", fields.whole(&["n", "num_images"], 1..=10)?);
    order.param("guidance_scale", fields.number(&["true_cfg_scale", "guidance_scale"])?);
    order.param("strength", fields.number(&["strength"])?);
    if let Some((name, loras)) = fields.take(&["loras", "lora"]) {
        if !pick::knows("loras") {
            return Err(Problem::new(ErrorCode::NotAvailable, format!("params.{name}: this version applies no LoRA")));
        }
        // A form writes a list as a text.
        let loras = loras.as_str().and_then(|text| serde_json::from_str(text).ok()).unwrap_or(loras);
        order.param("loras", Some(loras));
    }
    match fields.text(&["size"])?.as_deref() {
        None | Some("auto") => {
            order.param("width", fields.whole(&["width"], 16..=16384)?);
            order.param("height", fields.whole(&["height"], 16..=16384)?);
        }
        Some(size) => {
            let side = |text: &str| text.parse::<u32>().ok().filter(|side| (16..=16384).contains(side));
            let sides = size.split_once(['x', 'X', '×']).and_then(|(w, h)| Some((side(w)?, side(h)?)));
            let (width, height) = sides.ok_or_else(|| {
                let shown: String = size.chars().take(32).collect();
                invalid("size", &format!("{shown:?} is neither \"auto\" nor WIDTHxHEIGHT within 16 to 16384"))
            })?;
            order.param("width", Some(width));
            order.param("height", Some(height));
        }
    }
    Ok(())
}

fn look(visitor: &Visitor, fields: &mut Fields, order: &mut Order, model: Option<&str>) -> Result<Look, Problem> {
    let steps = fields.whole(&["num_inference_steps", "steps"], 1..=1000)?;
    let quality = fields.text(&["quality"])?.unwrap_or_else(|| "auto".into());
    // Fewer steps where less is asked for; `auto` is the model's own number.
    let by_quality = match quality.as_str() {
        "auto" | "standard" | "medium" => None,
        "low" => Some(12),
        "high" | "hd" => Some(40),
        "xhigh" => Some(60),
        "max" => Some(80),
        _ => return Err(invalid("quality", "is one of auto, low, medium, high, xhigh, max, standard, hd")),
    };
    order.param("steps", steps.or(by_quality));
    let format = match fields.text(&["output_format"])?.as_deref() {
        None | Some("png") => "png",
        Some("jpeg" | "jpg") => "jpeg",
        Some("webp") => "webp",
        Some(_) => return Err(invalid("output_format", "is one of png, jpeg, webp")),
    };
    order.param("format", Some(format));
    let compression = fields.whole(&["output_compression"], 0..=100)?;
    if format != "png" {
        order.param("quality", compression.map(|percent| percent.max(1)));
    }
    let background = match fields.text(&["background"])?.as_deref() {
        None | Some("auto") => "auto",
        Some("opaque") => "opaque",
        Some("transparent") => return Err(invalid("background", "no installed model draws without a background")),
        Some(_) => return Err(invalid("background", "is auto or opaque")),
    };
    // Their older models answer with addresses unless asked, the newer ones always with the picture.
    let as_url = match fields.text(&["response_format"])?.as_deref() {
        None => model.is_some_and(|model| model.starts_with("dall-e")),
        Some("url") => true,
        Some("b64_json") => false,
        Some(_) => return Err(invalid("response_format", "is url or b64_json")),
    };
    let stream = fields.flag(&["stream"])?.unwrap_or(false);
    let partial_images = fields.whole(&["partial_images"], 0..=3)?.unwrap_or(0);
    Ok(Look { as_url, stream, partial_images, base_url: visitor.base_url(), format, quality, background })
}

/// The pictures of an edit: parts `image` or `image[]`, or the same names in JSON, or `images` with their addresses.
async fn pictures(fields: &mut Fields) -> Result<Vec<Received>, Problem> {
    let mut pictures = fields.files_named(&["image", "image[]", "images", "images[]"]);
    for name in ["image", "image[]", "images", "images[]"] {
        let Some((name, value)) = fields.take(&[name]) else { continue };
        let list = if let Value::Array(list) = value { list } else { vec![value] };
        for (index, value) in list.iter().enumerate() {
            pictures.push(picture(fields, &format!("params.{name}: [{index}]"), value).await?);
        }
    }
    Ok(pictures)
}

async fn mask_of(fields: &mut Fields) -> Result<Option<Received>, Problem> {
    let mut masks = fields.files_named(&["mask", "mask_image"]);
    if let Some((name, value)) = fields.take(&["mask", "mask_image"]) {
        masks.push(picture(fields, &format!("params.{name}"), &value).await?);
    }
    if masks.len() > 1 {
        return Err(invalid("mask", "is given more than once"));
    }
    Ok(masks.pop())
}

/// A text, or an object with the text under `image_url`.
async fn picture(fields: &mut Fields, place: &str, value: &Value) -> Result<Received, Problem> {
    let of_object = |object: &Map<String, Value>| -> Option<String> {
        let url = object.get("image_url")?;
        url.as_str().or_else(|| url.get("url")?.as_str()).map(str::to_owned)
    };
    let text = match value {
        Value::String(text) => Some(text.clone()),
        Value::Object(object) => of_object(object),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => None,
    };
    let text = text.ok_or_else(|| Problem::new(ErrorCode::InvalidRequest, format!("{place} is no picture")))?;
    fields.picture(place, &text).await
}

fn invalid(name: &str, what: &str) -> Problem {
    Problem::new(ErrorCode::InvalidParams, format!("params.{name}: {what}"))
}

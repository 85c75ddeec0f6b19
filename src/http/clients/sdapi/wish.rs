//! What `txt2img` and `img2img` mean as a job.

use std::sync::Arc;

use atelier_domain::{ErrorCode, JobKind};
use serde_json::{Map, Value};

use super::{
    super::{
        super::{Http, intake::Fields, problem::Problem},
        door::Order,
        mask::{self, Drawn},
        models::no_such_model,
        pick,
    },
    options, samplers,
};

/// A request as it was understood.
#[derive(Debug)]
pub(super) struct Wish {
    pub(super) order: Order,
    /// What the client sent, without its pictures; it is sent back.
    pub(super) echo: Map<String, Value>,
    pub(super) send_images: bool,
}

pub(super) async fn read(http: &Arc<Http>, fields: &mut Fields, from_picture: bool) -> Result<Wish, Problem> {
    let echo = echo(fields);
    let mut order = Order::default();
    refuse_what_would_be_missed(fields)?;
    let overrides = fields.take(&["override_settings"]).map(|(_, value)| value).unwrap_or_default();
    let control = control(fields, &mut order).await?;
    if from_picture {
        pictures(http, fields, &mut order).await?;
    }
    let registry = http.app.registry();
    let asked = match overrides.get("sd_model_checkpoint").and_then(Value::as_str) {
        Some(name) if !name.is_empty() => Some(name.to_owned()),
        Some(_) | None => options::checkpoint(http).await?,
    };
    let named = match control.or(asked) {
        None => None,
        Some(name) => Some(pick::find(&registry, &name).ok_or_else(|| no_such_model(&name))?),
    };
    let wanted: &[JobKind] = if order.is_control {
        &[JobKind::Control]
    } else if order.mask.is_some() {
        &[JobKind::Inpaint]
    } else if from_picture {
        &[JobKind::Generate, JobKind::Edit]
    } else {
        &[JobKind::Generate]
    };
    // The checkpoint is a lasting choice; a job that it cannot do is done by a model that can.
    let able = named.filter(|model| order.is_control || wanted.iter().any(|kind| model.kinds.contains(kind)));
    order.set("kind", pick::kind(&registry, able, wanted).as_str());
    if let Some(model) = able {
        order.set("model", model.id.clone());
    }
    params(fields, &mut order)?;
    let format = match overrides.get("samples_format").and_then(Value::as_str) {
        Some("jpg" | "jpeg") => "jpeg",
        Some("webp") => "webp",
        Some(_) | None => "png",
    };
    order.param("format", Some(format));
    if let Some(task) = fields.text(&["force_task_id"])? {
        order.set("name", task);
    }
    let send_images = fields.flag(&["send_images"])?.unwrap_or(true);
    Ok(Wish { order, echo, send_images })
}

/// What would change the picture and cannot be done here is refused; what is off is passed over.
fn refuse_what_would_be_missed(fields: &mut Fields) -> Result<(), Problem> {
    let not_here = |name: &str, instead: &str| {
        Err(Problem::new(ErrorCode::NotAvailable, format!("params.{name}: this server does not do that"))
            .with_hint(instead))
    };
    if fields.flag(&["enable_hr"])? == Some(true) {
        return not_here("enable_hr", "send the result to extra-single-image instead");
    }
    if let Some(script) = fields.text(&["script_name"])?.filter(|name| name != "None") {
        return not_here("script_name", &format!("{script:?} runs in the webui alone"));
    }
    Ok(())
}

fn params(fields: &mut Fields, order: &mut Order) -> Result<(), Problem> {
    let prompt = fields.text(&["prompt"])?.unwrap_or_default();
    let (prompt, loras) = split_loras(&prompt);
    if !loras.is_empty() {
        if !pick::knows("loras") {
            return Err(Problem::new(ErrorCode::NotAvailable, "params.prompt: this version applies no LoRA"));
        }
        order.param("loras", Some(loras));
    }
    order.param("prompt", Some(prompt));
    order.param("negative_prompt", fields.text(&["negative_prompt"])?);
    order.param("seed", fields.seed(&["seed"])?);
    order.param("steps", fields.whole(&["steps"], 1..=1000)?);
    order.param("guidance_scale", fields.number(&["cfg_scale"])?);
    order.param("width", fields.whole(&["width"], 16..=16384)?);
    order.param("height", fields.whole(&["height"], 16..=16384)?);
    let batch = fields.whole(&["batch_size"], 1..=10)?.unwrap_or(1) * fields.whole(&["n_iter"], 1..=10)?.unwrap_or(1);
    if batch > 10 {
        return Err(Problem::new(ErrorCode::InvalidParams, format!("params.n_iter: {batch} pictures, at most 10")));
    }
    order.param("num_images", (batch > 1).then_some(batch));
    // Text to image has no source to keep to.
    let strength = fields.number(&["denoising_strength"])?;
    if !order.images.is_empty() && !order.is_control {
        order.param("strength", strength);
    }
    let scheduler = fields.text(&["scheduler"])?.unwrap_or_default();
    let sampler = fields.text(&["sampler_name", "sampler_index"])?;
    if let Some(sampler) = sampler.filter(|_| pick::knows("sampler")) {
        let ours = samplers::ours(&sampler, &scheduler).ok_or_else(|| {
            let shown: String = sampler.chars().take(64).collect();
            let known: Vec<_> = samplers::names().map(|(theirs, _)| theirs).collect();
            Problem::new(ErrorCode::InvalidParams, format!("params.sampler_name: {shown:?} is not known"))
                .with_hint(format!("one of {}", known.join(", ")))
        })?;
        order.param("sampler", Some(ours));
    }
    Ok(())
}

/// `<lora:name:0.8>` out of a prompt, as `name:0.8`.
fn split_loras(prompt: &str) -> (String, String) {
    let (mut text, mut loras, mut rest) = (String::new(), Vec::new(), prompt);
    while let Some((before, tail)) = rest.split_once("<lora:") {
        let Some((lora, after)) = tail.split_once('>') else { break };
        text.push_str(before);
        loras.push(lora.to_owned());
        rest = after;
    }
    text.push_str(rest);
    (text.trim().to_owned(), loras.join(", "))
}

async fn pictures(http: &Arc<Http>, fields: &mut Fields, order: &mut Order) -> Result<(), Problem> {
    let sources = match fields.take(&["init_images"]) {
        None => Vec::new(),
        Some((_, Value::Array(list))) => list,
        Some((_, value)) => vec![value],
    };
    for (index, source) in sources.iter().enumerate() {
        let place = format!("init_images[{index}]");
        let Value::String(text) = source else {
            return Err(Problem::new(ErrorCode::InvalidRequest, format!("{place} is no picture")));
        };
        order.images.push(fields.picture(&place, text).await?);
    }
    if order.images.is_empty() {
        return Err(Problem::new(ErrorCode::NotFound, "init_images: img2img needs a picture"));
    }
    if let Some((_, Value::String(text))) = fields.take(&["mask"]) {
        let inverted = fields.whole(&["inpainting_mask_invert"], 0..=1)? == Some(1);
        let mask = fields.picture("mask", &text).await?;
        order.mask = Some(mask::ours(http, mask, if inverted { Drawn::Black } else { Drawn::White }).await?);
    }
    Ok(())
}

/// The first ControlNet unit that is on: its picture becomes the job's, its model the job's.
async fn control(fields: &mut Fields, order: &mut Order) -> Result<Option<String>, Problem> {
    let scripts = fields.take(&["alwayson_scripts"]).map(|(_, scripts)| scripts).unwrap_or_default();
    let Value::Object(scripts) = scripts else { return Ok(None) };
    let units = scripts.into_iter().find(|(name, _)| name.eq_ignore_ascii_case("controlnet"));
    let Some(Value::Array(units)) = units.and_then(|(_, mut unit)| Some(unit.get_mut("args")?.take())) else {
        return Ok(None);
    };
    let is_on = |unit: &&Value| unit.is_object() && unit.get("enabled") != Some(&Value::Bool(false));
    let units: Vec<_> = units.iter().filter(is_on).collect();
    let Some(unit) = units.first() else { return Ok(None) };
    if units.len() > 1 {
        return Err(Problem::new(ErrorCode::NotAvailable, "alwayson_scripts.ControlNet: one unit at a time"));
    }
    // Either the text itself, or an object with it and a mask.
    let picture = ["image", "input_image"].iter().find_map(|name| {
        let image = unit.get(*name)?;
        image.as_str().or_else(|| image.get("image")?.as_str())
    });
    let Some(picture) = picture else {
        return Err(Problem::new(ErrorCode::InvalidRequest, "alwayson_scripts.ControlNet.args[0].image is missing"));
    };
    order.images.push(fields.picture("alwayson_scripts.ControlNet.args[0].image", picture).await?);
    order.is_control = true;
    if pick::knows("control_scale") {
        order.param("control_scale", unit.get("weight").cloned());
    }
    let module = unit.get("module").and_then(Value::as_str).unwrap_or("none");
    if pick::knows("preprocessor") {
        let ours = match module {
            "none" | "None" => "none",
            module if module.starts_with("lineart") => "lineart",
            module if module.starts_with("anyline") => "anyline",
            "canny" => "canny",
            other => {
                let shown: String = other.chars().take(64).collect();
                return Err(Problem::new(ErrorCode::InvalidParams, format!("params.module: {shown:?} is not known"))
                    .with_hint("GET /controlnet/module_list lists them"));
            }
        };
        order.param("preprocessor", Some(ours));
    }
    let model = unit.get("model").and_then(Value::as_str).filter(|name| !name.is_empty() && *name != "None");
    Ok(model.map(str::to_owned))
}

/// The client's own values, where they are short.
fn echo(fields: &Fields) -> Map<String, Value> {
    let is_picture = |name: &str| matches!(name, "init_images" | "mask" | "alwayson_scripts" | "image" | "imageList");
    fields
        .values
        .iter()
        .map(|(name, value)| {
            let long = value.as_str().is_some_and(|text| fields.is_long(text));
            (name.clone(), if is_picture(name) || long { Value::Null } else { value.clone() })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loras_leave_the_prompt() {
        assert_eq!(split_loras("a cat"), ("a cat".into(), String::new()));
        assert_eq!(
            split_loras("a <lora:film:0.8>cat <lora:grain> <lora:open"),
            ("a cat  <lora:open".into(), "film:0.8, grain".into())
        );
    }
}

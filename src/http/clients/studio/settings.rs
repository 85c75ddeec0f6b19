//! The dashboard's own settings, of which some count: as defaults of what the service's and the editor's routes are asked
//! for.

use atelier_domain::{ErrorCode, JobKind, Params, params::ParamLimits};
use serde_json::{Map, Value};

use super::super::{
    super::{Http, problem::Problem},
    door::Order,
    read,
};
use crate::store::MetaKey;

/// Our parameters, and the names under which dashboards save them, each also with `default_` before it.
const NAMES: [(&str, &[&str]); 8] = [
    ("steps", &["num_inference_steps", "steps"]),
    ("guidance_scale", &["guidance_scale", "true_cfg_scale", "cfg_scale"]),
    ("width", &["width"]),
    ("height", &["height"]),
    ("negative_prompt", &["negative_prompt"]),
    ("strength", &["strength"]),
    ("num_images", &["num_images", "num_images_per_prompt"]),
    ("format", &["output_format", "format"]),
];

/// What was saved.
pub(super) async fn saved(http: &Http) -> Result<Map<String, Value>, Problem> {
    let saved = http.app.store.meta(MetaKey::DashboardSettings).await?.unwrap_or_default();
    Ok(serde_json::from_str(&saved).unwrap_or_default())
}

/// The parameters that the settings are defaults of.
///
/// # Errors
/// One that no job could have.
pub(super) fn defaults(saved: &Map<String, Value>) -> Result<Map<String, Value>, Problem> {
    let mut params = Map::new();
    for (param, names) in NAMES {
        let of = |name: &&str| saved.get(*name).or_else(|| saved.get(&format!("default_{name}")));
        let Some((name, value)) = names.iter().find_map(|name| Some((*name, of(name)?))) else { continue };
        let value = match param {
            "steps" | "width" | "height" | "num_images" => {
                read::whole(name, value)?.map(|number| i64::try_from(number).unwrap_or(-1).into())
            }
            "guidance_scale" | "strength" => read::number(name, value)?.map(Value::from),
            _ => Some(value.clone()).filter(|value| !value.is_null() && value != ""),
        };
        params.extend(value.map(|value| (param.to_owned(), value)));
    }
    let mut job = params.clone();
    job.insert("prompt".into(), "a picture".into());
    let wrong = |error: String| Problem::new(ErrorCode::InvalidParams, error);
    let job: Params =
        serde_json::from_value(Value::Object(job)).map_err(|error| wrong(format!("settings: {error}")))?;
    job.validate(JobKind::Generate, ParamLimits::default()).map_err(|error| wrong(error.to_string()))?;
    Ok(params)
}

/// Gives a wish what it says nothing of. The size is the picture's, where there is one.
pub(super) async fn fill(http: &Http, order: &mut Order) -> Result<(), Problem> {
    // Saved by a version that looked at nothing.
    let defaults = defaults(&saved(http).await?).unwrap_or_default();
    let has_picture = !order.images.is_empty();
    for (param, value) in defaults {
        let is_the_pictures = has_picture && matches!(param.as_str(), "width" | "height");
        if !is_the_pictures && !order.has_param(&param) {
            order.param(&param, Some(value));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(saved: Value) -> Result<Value, String> {
        let Value::Object(saved) = saved else { panic!("an object") };
        defaults(&saved).map(Value::Object).map_err(|problem| problem.code().to_owned())
    }

    #[test]
    fn what_has_a_counterpart_is_read_as_requests_are() {
        let saved = json!({"theme": "dark", "default_steps": "12", "num_inference_steps": 30, "cfg_scale": "4.5",
            "default_width": 512.0, "height": "", "negative_prompt": "blur", "output_format": "webp"});
        assert_eq!(
            of(saved),
            Ok(json!({"steps": 30, "guidance_scale": 4.5, "width": 512, "negative_prompt": "blur", "format": "webp"}))
        );
        assert_eq!(of(json!({"theme": "dark", "steps": null})), Ok(json!({})));
    }

    #[test]
    fn what_no_job_could_have_is_refused() {
        for wrong in [
            json!({"steps": 0}),
            json!({"steps": "many"}),
            json!({"steps": 1.5}),
            json!({"guidance_scale": -1}),
            json!({"width": 1e12}),
            json!({"output_format": "xcf"}),
            json!({"negative_prompt": 7}),
            json!({"strength": [1]}),
        ] {
            assert_eq!(of(wrong.clone()), Err("invalid_params".into()), "{wrong}");
        }
    }
}

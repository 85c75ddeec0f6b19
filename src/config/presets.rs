//! From the keys of `[presets.NAME]` to a job's kind and parameters.

use std::collections::BTreeMap;

use atelier_domain::{JobSpec, params::ParamLimits};
use serde_json::{Map, Value as Json};
use toml::Value;

use super::{
    error::{Problem, Wrong},
    layers::RawPreset,
    value::Given,
};

/// Keys whose values are text even where the text looks like something else.
const TEXTS: [&str; 9] =
    ["kind", "model", "name", "prompt", "negative_prompt", "format", "sampler", "loras", "base_model"];

/// Names in the inbox that mean something else.
const RESERVED: [&str; 2] = ["done", "failed"];

pub(super) fn build(
    presets: &BTreeMap<String, RawPreset>,
    limits: ParamLimits,
    problems: &mut Vec<Problem>,
) -> BTreeMap<String, JobSpec> {
    let mut built = BTreeMap::new();
    let mut folded: BTreeMap<String, &String> = BTreeMap::new();
    for (name, raw) in presets {
        let key = format!("presets.{name}");
        if let Err(wrong) = check_name(name) {
            problems.push(wrong.at(raw.origin.clone(), key));
            continue;
        }
        if let Some(other) = folded.insert(name.to_lowercase(), name) {
            let wrong = Wrong::new(format!("differs from the preset {other:?} in capitals only"))
                .hint("a folder on many shares could mean either");
            problems.push(wrong.at(raw.origin.clone(), key));
            continue;
        }
        match preset(&key, raw, limits) {
            Ok(spec) => {
                built.insert(name.clone(), spec);
            }
            Err(wrong) => problems.extend(wrong),
        }
    }
    built
}

/// A preset's name is also a folder's, on whatever share the inbox lies.
fn check_name(name: &str) -> Result<(), Wrong> {
    const HINT: &str = "a name is also a sub-folder of the inbox: letters, digits, '-', '_' and inner spaces, \
                        at most 64 characters";
    let allowed = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | ' ');
    if name.is_empty() || name.chars().count() > 64 || !name.chars().all(allowed) || name.trim() != name {
        return Err(Wrong::new(format!("{name:?} is no name for a preset")).hint(HINT));
    }
    if RESERVED.contains(&name.to_lowercase().as_str()) {
        return Err(Wrong::new(format!("{name:?} is a folder of the inbox's own")).hint("choose another name"));
    }
    Ok(())
}

fn preset(key: &str, raw: &RawPreset, limits: ParamLimits) -> Result<JobSpec, Vec<Problem>> {
    let place = |name: &str| match raw.keys.get(name) {
        Some(given) => (given.origin.clone(), format!("{key}.{name}")),
        None => (raw.origin.clone(), key.to_owned()),
    };
    let refuse = |name: &str, wrong: Wrong| {
        let (origin, key) = place(name);
        wrong.at(origin, key)
    };
    let mut problems = Vec::new();
    let mut whole = Map::new();
    for (name, given) in &raw.keys {
        match json(name, given).and_then(|value| one(name, &value).map(|()| value)) {
            Ok(value) => {
                whole.insert(name.clone(), value);
            }
            Err(wrong) => problems.push(refuse(name, wrong)),
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let spec = JobSpec::from_value(Json::Object(whole))
        .map_err(|error| vec![refuse("", Wrong::new(error.message).hint(error.hint))])?;
    let Some(kind) = spec.kind else {
        return Err(vec![refuse("", Wrong::new("a preset needs a kind").hint("for example kind = \"upscale\""))]);
    };
    let mut params = spec.params.clone();
    // The prompt may come with the job.
    if params.prompt.is_none() && kind.needs_prompt() {
        params.prompt = Some("x".to_owned());
    }
    params.validate(kind, limits).map_err(|error| vec![refuse(error.name, Wrong::new(error.message))])?;
    Ok(spec)
}

/// Reads one key by itself, so that what is wrong with it is told at its own line.
fn one(name: &str, value: &Json) -> Result<(), Wrong> {
    if name == "preset" {
        return Err(Wrong::new("a preset does not build on another").hint("write out its kind and parameters"));
    }
    let alone = Map::from_iter([(name.to_owned(), value.clone())]);
    JobSpec::from_value(Json::Object(alone)).map(drop).map_err(|error| Wrong::new(error.message).hint(error.hint))
}

fn json(name: &str, given: &Given) -> Result<Json, Wrong> {
    if given.bare && TEXTS.contains(&name) {
        return given.text().map(Json::String);
    }
    let value = given.typed();
    if let Value::Float(number) = value
        && !number.is_finite()
    {
        return Err(Wrong::new(format!("{number} is no number to compute with")));
    }
    serde_json::to_value(value).map_err(|error| Wrong::new(error.to_string()))
}

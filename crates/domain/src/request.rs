//! What somebody asks for: the common part of an HTTP request, a sidecar file and a preset.

use serde_json::{Map, Value};

use crate::{ErrorCode, ErrorInfo, JobKind, Params};

/// A wish as it was typed; [`JobSpec::over`] layers a sidecar over a preset.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct JobSpec {
    pub kind: Option<JobKind>,
    pub model: Option<String>,
    pub preset: Option<String>,
    /// −100 to 100.
    pub priority: Option<i32>,
    /// What the job shall be called.
    pub name: Option<String>,
    pub params: Params,
}

const KEYS: [&str; 6] = ["kind", "model", "preset", "priority", "name", "params"];

impl JobSpec {
    /// Reads `{"kind":…, "model":…, "preset":…, "priority":…, "name":…, "params":{…}}`; parameters may also stand
    /// at the top, which is how people write sidecars: `{"scale": 4}`.
    ///
    /// # Errors
    /// A name that is not known (with the nearest one that is), or a value of the wrong type or out of bounds.
    pub fn from_value(value: Value) -> Result<Self, ErrorInfo> {
        let invalid = |message: String| ErrorInfo::new(ErrorCode::InvalidRequest, message);
        let Value::Object(mut map) = value else {
            return Err(invalid("a job is an object of keys and values".into())
                .with_hint("for example {\"kind\":\"upscale\",\"params\":{\"scale\":2}}"));
        };
        let kind = match take_text(&mut map, "kind")? {
            None => None,
            Some(name) => Some(JobKind::parse(&name).ok_or_else(|| {
                let known = JobKind::ALL.map(JobKind::as_str);
                ErrorInfo::new(ErrorCode::UnknownKind, format!("kind {name:?} is not known"))
                    .with_hint(format!("one of {}", known.join(", ")))
            })?),
        };
        let priority = match map.remove("priority") {
            None | Some(Value::Null) => None,
            Some(value) => Some(
                value
                    .as_i64()
                    .and_then(|p| i32::try_from(p).ok())
                    .filter(|p| (-100..=100).contains(p))
                    .ok_or_else(|| invalid(format!("priority {value} is not a whole number from -100 to 100")))?,
            ),
        };
        let spec = Self {
            kind,
            model: take_text(&mut map, "model")?,
            preset: take_text(&mut map, "preset")?,
            priority,
            name: take_text(&mut map, "name")?,
            params: Params::default(),
        };
        let mut params = match map.remove("params") {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(params)) => params,
            Some(_) => return Err(invalid("params is an object of names and values".into())),
        };
        for (name, value) in map {
            if !Params::NAMES.contains(&name.as_str()) {
                return Err(unknown(&name, KEYS.iter().chain(&Params::NAMES)));
            }
            if params.insert(name.clone(), value).is_some() {
                return Err(invalid(format!("{name} is given twice, in params and beside it")));
            }
        }
        if let Some(name) = params.keys().find(|name| !Params::NAMES.contains(&name.as_str())) {
            return Err(unknown(name, Params::NAMES.iter()));
        }
        let params = serde_json::from_value(Value::Object(params))
            .map_err(|error| ErrorInfo::new(ErrorCode::InvalidParams, format!("params: {error}")))?;
        Ok(Self { params, ..spec })
    }

    /// This wish where it says something, `weaker` for the rest.
    #[must_use]
    pub fn over(self, weaker: Self) -> Self {
        Self {
            kind: self.kind.or(weaker.kind),
            model: self.model.or(weaker.model),
            preset: self.preset.or(weaker.preset),
            priority: self.priority.or(weaker.priority),
            name: self.name.or(weaker.name),
            params: self.params.over(weaker.params),
        }
    }
}

fn take_text(map: &mut Map<String, Value>, key: &str) -> Result<Option<String>, ErrorInfo> {
    match map.remove(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(ErrorInfo::new(ErrorCode::InvalidRequest, format!("{key} is text, not {other}"))),
    }
}

fn unknown<'a>(name: &str, known: impl Iterator<Item = &'a &'a str>) -> ErrorInfo {
    let error = ErrorInfo::new(ErrorCode::InvalidRequest, format!("{name:?} is not known here"));
    match nearest(name, known.copied()) {
        Some(near) => error.with_hint(format!("did you mean {near:?}?")),
        None => error,
    }
}

/// The known name that `name` most likely misspells.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().max(3) / 3)
        .min()
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn parameters_may_stand_in_params_or_at_the_top() {
        let nested = JobSpec::from_value(json!({"kind": "upscale", "params": {"scale": 4}})).expect("nested");
        let flat = JobSpec::from_value(json!({"kind": "upscale", "scale": 4})).expect("flat");
        assert_eq!(nested, flat);
        assert_eq!(flat.params.scale, Some(4));
        let twice = JobSpec::from_value(json!({"scale": 4, "params": {"scale": 2}})).expect_err("twice");
        assert!(twice.message.contains("twice"), "{twice}");
    }

    #[test]
    fn a_misspelt_name_is_refused_with_the_nearest_one() {
        let error = JobSpec::from_value(json!({"params": {"negativ_prompt": "x"}})).expect_err("misspelt");
        assert_eq!(error.hint, "did you mean \"negative_prompt\"?");
        let error = JobSpec::from_value(json!({"knd": "upscale"})).expect_err("misspelt");
        assert_eq!(error.hint, "did you mean \"kind\"?");
        let error = JobSpec::from_value(json!({"zzzzzzzz": 1})).expect_err("unknown");
        assert_eq!(error.hint, "");
    }

    #[test]
    fn wrong_types_and_bounds_are_refused() {
        for (value, code) in [
            (json!([]), ErrorCode::InvalidRequest),
            (json!({"kind": "paint"}), ErrorCode::UnknownKind),
            (json!({"priority": 101}), ErrorCode::InvalidRequest),
            (json!({"priority": 1.5}), ErrorCode::InvalidRequest),
            (json!({"model": 7}), ErrorCode::InvalidRequest),
            (json!({"params": []}), ErrorCode::InvalidRequest),
            (json!({"params": {"seed": -1}}), ErrorCode::InvalidParams),
        ] {
            assert_eq!(JobSpec::from_value(value.clone()).expect_err("refused").code, code, "{value}");
        }
    }
}

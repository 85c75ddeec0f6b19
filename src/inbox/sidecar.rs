//! Sidecar files: parameters beside a picture, or a job by themselves.
//!
//! Reads text, gives a wish or an error that names the file, the line and the key. Whether the wish can be fulfilled is
//! for admission to say.

use std::ffi::OsStr;

use atelier_domain::{ErrorCode, ErrorInfo, JobSpec, Params};
use serde_json::{Map, Value};

use super::names::{self, NameKind};

/// More is no sidecar.
pub const MAX_BYTES: u64 = 64 << 10;

/// Reads one sidecar; its name decides the format.
///
/// # Errors
/// `sidecar_invalid`, with line and key where there are any.
pub fn parse(name: &OsStr, bytes: &[u8]) -> Result<JobSpec, ErrorInfo> {
    let shown = name.to_string_lossy();
    if bytes.len() as u64 > MAX_BYTES {
        return Err(invalid(&shown, None, None, &format!("larger than {} KiB", MAX_BYTES >> 10), ""));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let line = line_at(bytes, error.valid_up_to());
        invalid(&shown, Some(line), None, "is not UTF-8", "save it as UTF-8")
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if names::kind_of(std::os::unix::ffi::OsStrExt::as_bytes(name)) == NameKind::Prompt {
        let prompt = text.trim();
        if prompt.is_empty() {
            return Err(invalid(&shown, None, None, "is empty", "write the prompt into it, or remove it"));
        }
        let params = Params { prompt: Some(prompt.to_owned()), ..Params::default() };
        return Ok(JobSpec { params, ..JobSpec::default() });
    }
    let value = if shown.ends_with(".json") {
        serde_json::from_str(text)
            .map_err(|error| invalid(&shown, Some(error.line()), None, &message_of(&error), "mend its JSON"))?
    } else {
        toml::from_str::<Value>(text).map_err(|error| {
            let line = error.span().map(|span| line_at(text.as_bytes(), span.start));
            invalid(&shown, line, None, error.message().trim(), "mend its TOML")
        })?
    };
    JobSpec::from_value(value.clone()).map_err(|error| {
        let key = blame(&value);
        let line = key.as_deref().and_then(|key| line_of_key(text, key));
        invalid(&shown, line, key.as_deref(), &error.message, &error.hint)
    })
}

/// Whether an error is about what was written, not about what is installed or what the picture is like.
pub fn is_about_form(code: ErrorCode) -> bool {
    use ErrorCode as E;
    matches!(code, E::InvalidRequest | E::InvalidParams | E::UnknownKind | E::UnknownPreset)
}

/// Turns an admission's refusal of a sidecar's wish into one that names file, line and key, where the key is known.
pub fn refused(name: &OsStr, bytes: &[u8], error: &ErrorInfo) -> ErrorInfo {
    if !is_about_form(error.code) {
        return error.clone();
    }
    let key = error.message.strip_prefix("params.").and_then(|rest| rest.split(':').next());
    let text = String::from_utf8_lossy(bytes);
    let line = key.and_then(|key| line_of_key(&text, key));
    invalid(&name.to_string_lossy(), line, key, &error.message, &error.hint)
}

fn invalid(name: &str, line: Option<usize>, key: Option<&str>, what: &str, hint: &str) -> ErrorInfo {
    let line = line.map(|line| format!(" line {line}:")).unwrap_or_default();
    let key = key.filter(|key| !what.contains(key)).map(|key| format!(" {key}:")).unwrap_or_default();
    ErrorInfo::new(ErrorCode::SidecarInvalid, format!("{name}:{line}{key} {what}")).with_hint(hint)
}

/// serde_json says "at line L column C" at the end; the line is said in front.
fn message_of(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or_else(|| text.clone(), |(message, _)| message.to_owned())
}

fn line_at(bytes: &[u8], offset: usize) -> usize {
    1 + bytes.iter().take(offset).filter(|b| **b == b'\n').count()
}

/// The key that is refused even when it stands alone.
fn blame(value: &Value) -> Option<String> {
    let map = value.as_object()?;
    let alone = |key: &String, value: &Value| Value::Object(Map::from_iter([(key.clone(), value.clone())]));
    for (key, value) in map {
        if JobSpec::from_value(alone(key, value)).is_ok() {
            continue;
        }
        let refused = |(name, value): &(&String, &Value)| {
            JobSpec::from_value(serde_json::json!({ "params": alone(name, value) })).is_err()
        };
        let params = value.as_object().filter(|_| key == "params");
        let inner = params.and_then(|params| params.iter().find(refused)).map(|(name, _)| name);
        return Some(inner.unwrap_or(key).clone());
    }
    // Each is fine alone, so one of them stands twice.
    let params = map.get("params")?.as_object()?;
    params.keys().find(|key| map.contains_key(*key)).cloned()
}

/// The first line in which `key` is set: `key = …`, `"key": …` or `[key]`.
fn line_of_key(text: &str, key: &str) -> Option<usize> {
    let sets = |line: &str| {
        line.match_indices(key).any(|(at, _)| {
            let before = line[..at].chars().next_back();
            let after = line[at + key.len()..].trim_start_matches(['"', '\'']).trim_start();
            before.is_none_or(|c| " \t\"'{,.[".contains(c)) && after.starts_with(['=', ':', ']'])
        })
    };
    text.lines().position(sets).map(|index| index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, text: &str) -> Result<JobSpec, ErrorInfo> {
        parse(OsStr::new(name), text.as_bytes())
    }

    fn error(name: &str, text: &str) -> String {
        let error = read(name, text).expect_err(text);
        assert_eq!(error.code, ErrorCode::SidecarInvalid);
        assert!(error.message.starts_with(name), "{error}");
        error.message
    }

    #[test]
    fn the_three_formats_say_the_same() {
        let toml = read("a.jpg.toml", "kind = \"edit\"\n[params]\nprompt = \"warm\"\n").expect("TOML");
        let json = read("a.json", "\u{feff}{\"kind\":\"edit\",\"prompt\":\"warm\"}").expect("JSON");
        assert_eq!(toml, json);
        let text = read("a.txt", "  warm\n").expect("a prompt");
        assert_eq!(text.params, toml.params);
        assert_eq!(text.kind, None);
    }

    #[test]
    fn errors_name_file_line_and_key() {
        let message = error("p.toml", "scale = 2\n\nnegativ_prompt = \"x\"\n");
        assert!(message.contains("line 3") && message.contains("negativ_prompt"), "{message}");
        let message = error("p.toml", "kind = \"upscale\"\n[params]\nscale = 2\ndenoise = 9\n");
        assert!(message.contains("line 4") && message.contains("denoise"), "{message}");
        let message = error("p.json", "{\n \"kind\": \"upscale\",\n \"params\": {\"seed\": -1}}");
        assert!(message.contains("line 3") && message.contains("seed"), "{message}");
        let message = error("p.json", "{\n \"scale\": 2,\n}");
        assert!(message.contains("line 3"), "{message}");
        let message = error("p.toml", "scale = 2\nscale = \n");
        assert!(message.contains("line 2"), "{message}");
        let message = error("p.toml", "scale = 2\n[params]\nscale = 4\n");
        assert!(message.contains("scale") && message.contains("twice"), "{message}");
        let message = error("p.json", "[1]");
        assert!(message.contains("keys and values"), "{message}");
    }

    #[test]
    fn text_that_is_none_is_refused() {
        let bytes = error_of(b"a = 1\nb = \"\xff\"");
        assert!(bytes.contains("line 2"), "{bytes}");
        assert!(error_of(&vec![b' '; 70_000]).contains("64 KiB"));
        error("p.txt", " \n ");
    }

    fn error_of(bytes: &[u8]) -> String {
        parse(OsStr::new("p.toml"), bytes).expect_err("refused").message
    }

    #[test]
    fn a_refusal_by_admission_is_traced_to_its_line() {
        let error = ErrorInfo::new(ErrorCode::InvalidParams, "params.scale: 3 is not one of 2 and 4");
        let traced = refused(OsStr::new("p.toml"), b"kind = \"upscale\"\nscale = 3\n", &error);
        assert_eq!(traced.message, "p.toml: line 2: params.scale: 3 is not one of 2 and 4");
        assert_eq!(traced.code, ErrorCode::SidecarInvalid);
    }

    #[test]
    fn a_key_inside_another_word_is_not_taken_for_it() {
        assert_eq!(line_of_key("guidance_scale = 2\nscale = 3", "scale"), Some(2));
        assert_eq!(line_of_key("prompt = \"scale\"\n", "scale"), None);
        assert_eq!(line_of_key("{\"params\": {\"scale\" : 3}}", "scale"), Some(1));
    }
}

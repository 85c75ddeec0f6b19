//! The configuration that counts, as a file that says where each value comes from.

use std::{collections::BTreeMap, fmt::Write as _};

use super::{
    Loaded, Origin,
    keys::{KEYS, flat},
    text,
};

impl Loaded {
    /// Every value as it would stand in a file, by its dotted key.
    pub fn values(&self) -> BTreeMap<String, serde_json::Value> {
        let settings =
            flat(&self.config).into_iter().filter_map(|(key, value)| Some((key, serde_json::to_value(value).ok()?)));
        let presets = self.config.presets.iter().flat_map(|(name, spec)| {
            text::preset(spec).into_iter().map(move |(key, value)| (format!("presets.{name}.{key}"), value))
        });
        settings.chain(presets).collect()
    }

    /// TOML that loads to this very configuration, each value with its origin as a comment.
    ///
    /// Names of files with secrets stand in it, never the secrets.
    pub fn show(&self) -> String {
        let values = flat(&self.config);
        let origin = |key: &str| self.origins.get(key).unwrap_or(&Origin::Default);
        let mut out = String::new();
        let mut section = "";
        for key in KEYS {
            let Some(((of, name), value)) = key.name.split_once('.').zip(values.get(key.name)) else { continue };
            if of != section {
                section = of;
                let gap = if out.is_empty() { "" } else { "\n" };
                let _ = writeln!(out, "{gap}[{section}]");
            }
            let _ = writeln!(out, "{:<40} # {}", format!("{name} = {value}"), origin(key.name));
        }
        for (name, spec) in &self.config.presets {
            let _ = writeln!(out, "\n[presets.{}]", toml_key(name));
            for (key, value) in text::preset(spec) {
                let Ok(value) = toml::Value::try_from(value) else { continue };
                let place = format!("presets.{name}.{key}");
                let _ = writeln!(out, "{:<40} # {}", format!("{key} = {value}"), origin(&place));
            }
        }
        out
    }
}

/// A name as a key: bare where TOML allows it.
fn toml_key(name: &str) -> String {
    if name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')) {
        return name.to_owned();
    }
    toml::Value::String(name.to_owned()).to_string()
}

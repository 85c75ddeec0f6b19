//! Configuration values as text, the way they stand in a file.

use std::{collections::BTreeMap, ffi::OsString, path::PathBuf, time::Duration};

use atelier_domain::JobSpec;
use serde::{Serialize, Serializer};
use serde_json::Value;

use super::{
    types::{HfCache, MemoryBudget},
    value::FOREVER,
};

const UNITS: [(u64, &str); 4] = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];

/// `104857600` as `100MiB`; exact, so what is no whole multiple stays in smaller units.
pub fn size(bytes: u64) -> String {
    UNITS
        .iter()
        .find(|(unit, _)| bytes != 0 && bytes.is_multiple_of(*unit))
        .map_or_else(|| bytes.to_string(), |(unit, name)| format!("{}{name}", bytes / unit))
}

pub(super) fn duration<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_duration(*value))
}

pub(super) fn retention<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    if *value == FOREVER { serializer.serialize_str("forever") } else { duration(value, serializer) }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
pub(super) fn bytes<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&size(*value))
}

#[expect(clippy::ref_option, reason = "serde passes a reference")]
pub(super) fn optional_bytes<S: Serializer>(value: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&value.map_or_else(|| "none".to_owned(), size))
}

impl Serialize for MemoryBudget {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Bytes(bytes) => serializer.serialize_str(&size(*bytes)),
        }
    }
}

impl Serialize for HfCache {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto(_) => serializer.serialize_str("auto"),
            Self::Off => serializer.serialize_str("off"),
            Self::Dir(dir) => serializer.collect_str(&dir.display()),
        }
    }
}

#[expect(clippy::ptr_arg, reason = "serde passes a reference to the field's own type")]
pub(super) fn path<S: Serializer>(value: &PathBuf, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&value.display())
}

#[expect(clippy::ref_option, reason = "serde passes a reference")]
pub(super) fn optional_path<S: Serializer>(value: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => path(value, serializer),
        None => serializer.serialize_str(""),
    }
}

pub(super) fn paths<S: Serializer>(values: &[PathBuf], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(values.iter().map(|value| value.display().to_string()))
}

pub(super) fn words<S: Serializer>(values: &[OsString], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(values.iter().map(|value| value.to_string_lossy()))
}

pub(super) fn presets<S: Serializer>(values: &BTreeMap<String, JobSpec>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(values.iter().map(|(name, spec)| (name, preset(spec))))
}

/// A preset's keys and values, parameters beside the rest.
pub(super) fn preset(spec: &JobSpec) -> BTreeMap<String, Value> {
    // Named one by one, so that a new field of a job cannot be forgotten here.
    let JobSpec { kind, model, preset, priority, name, params } = spec;
    let mut map = BTreeMap::new();
    let mut put = |key: &str, value: Option<Value>| value.map(|value| map.insert(key.to_owned(), value));
    put("kind", kind.map(|kind| kind.as_str().into()));
    put("model", model.clone().map(Into::into));
    put("preset", preset.clone().map(Into::into));
    put("priority", priority.map(Into::into));
    put("name", name.clone().map(Into::into));
    if let Ok(Value::Object(params)) = serde_json::to_value(params) {
        map.extend(params);
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_written_in_the_largest_unit_that_is_exact() {
        for (bytes, text) in [
            (0, "0"),
            (1, "1"),
            (1023, "1023"),
            (1024, "1KiB"),
            (1536, "1536"),
            (100 << 20, "100MiB"),
            (3 << 40, "3TiB"),
            (100_000_000, "100000000"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }
}

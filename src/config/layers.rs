//! Gathers what each layer says, the stronger over the weaker: the defaults, a file, the environment, flags.
//!
//! Here it is decided which names there are; what their values mean is for [`super::build`].

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use atelier_domain::request::nearest;
use serde::Deserialize as _;
use toml::{
    Spanned, Value,
    de::{DeTable, DeValue, ValueDeserializer},
};

use super::{
    error::{Origin, Problem, Wrong},
    keys::{KEYS, keys_of, sections},
    value::Given,
};

/// The keys and values of one preset, parameters beside the rest.
#[derive(Clone, Debug)]
pub(super) struct RawPreset {
    /// Where it is mentioned first; names the place of a preset that says nothing.
    pub(super) origin: Origin,
    pub(super) keys: BTreeMap<String, Given>,
}

/// What one layer says, or several on top of each other.
#[derive(Clone, Debug, Default)]
pub(super) struct Layer {
    /// By dotted key; each is one of [`KEYS`].
    pub(super) values: BTreeMap<String, Given>,
    pub(super) presets: BTreeMap<String, RawPreset>,
}

impl Layer {
    /// `stronger` where it says something, this one for the rest.
    pub(super) fn under(mut self, stronger: Self) -> Self {
        self.values.extend(stronger.values);
        for (name, preset) in stronger.presets {
            match self.presets.get_mut(&name) {
                // Parameters of another kind of job mean nothing to this one.
                Some(weaker) if !changes_kind(weaker, &preset) => weaker.keys.extend(preset.keys),
                _ => {
                    self.presets.insert(name, preset);
                }
            }
        }
        self
    }

    fn put_preset(&mut self, name: &str, key: &str, given: Given) -> Result<(), Problem> {
        let key = key.strip_prefix("params.").unwrap_or(key);
        let preset = self
            .presets
            .entry(name.to_owned())
            .or_insert_with(|| RawPreset { origin: given.origin.clone(), keys: BTreeMap::new() });
        if preset.keys.contains_key(key) {
            let wrong = Wrong::new("is given twice, under params and beside it");
            return Err(wrong.at(given.origin, format!("presets.{name}.{key}")));
        }
        preset.keys.insert(key.to_owned(), given);
        Ok(())
    }
}

fn changes_kind(weaker: &RawPreset, stronger: &RawPreset) -> bool {
    let kind = |preset: &RawPreset| preset.keys.get("kind").and_then(|given| given.text().ok());
    kind(stronger).is_some_and(|new| kind(weaker).is_some_and(|old| old != new))
}

/// A TOML document; `path` is `None` for the defaults.
pub(super) fn from_toml(text: &str, path: Option<&Path>, problems: &mut Vec<Problem>) -> Layer {
    let document = Document { text, path };
    let (table, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        problems.extend(errors.iter().map(|error| {
            let start = error.span().map_or(0, |span| span.start);
            Wrong::new(error.message().lines().collect::<Vec<_>>().join(" ")).at(document.origin(start), "")
        }));
        return Layer::default();
    }
    let mut layer = Layer::default();
    for (name, value) in table.into_inner() {
        document.section(&mut layer, &name, value, problems);
    }
    layer
}

#[derive(Clone, Copy)]
struct Document<'a> {
    text: &'a str,
    path: Option<&'a Path>,
}

type Name<'a> = Spanned<std::borrow::Cow<'a, str>>;

impl Document<'_> {
    fn origin(self, offset: usize) -> Origin {
        let Some(path) = self.path else { return Origin::Default };
        let before = self.text.as_bytes().get(..offset).unwrap_or(self.text.as_bytes());
        let line = before.split(|byte| *byte == b'\n').count();
        Origin::File { path: path.to_owned(), line }
    }

    fn section(self, layer: &mut Layer, name: &Name<'_>, value: Spanned<DeValue<'_>>, problems: &mut Vec<Problem>) {
        let section = name.get_ref().as_ref();
        let origin = self.origin(name.span().start);
        if !sections().any(|known| known == section) {
            problems.push(unknown_section(section).at(origin, section));
            return;
        }
        let DeValue::Table(table) = value.into_inner() else {
            problems.push(not_a_section(section).at(origin, section));
            return;
        };
        for (name, value) in table {
            if section == "presets" {
                self.preset(layer, &name, value, problems);
                continue;
            }
            let key = format!("{section}.{}", name.get_ref());
            match check_key(section, name.get_ref()).map(|()| self.given(&name, value)) {
                Ok(given) => {
                    layer.values.insert(key, given);
                }
                Err(wrong) => problems.push(wrong.at(self.origin(name.span().start), key)),
            }
        }
    }

    fn preset(self, layer: &mut Layer, name: &Name<'_>, value: Spanned<DeValue<'_>>, problems: &mut Vec<Problem>) {
        let preset = name.get_ref().as_ref();
        let origin = self.origin(name.span().start);
        let DeValue::Table(table) = value.into_inner() else {
            let wrong = Wrong::new("a preset is a table").hint(format!("write [presets.{preset}] above its keys"));
            problems.push(wrong.at(origin, format!("presets.{preset}")));
            return;
        };
        layer.presets.insert(preset.to_owned(), RawPreset { origin, keys: BTreeMap::new() });
        for (key, value) in table {
            if key.get_ref() == "params" && matches!(value.get_ref(), DeValue::Table(_)) {
                if let DeValue::Table(params) = value.into_inner() {
                    for (key, value) in params {
                        let given = self.given(&key, value);
                        problems.extend(layer.put_preset(preset, &format!("params.{}", key.get_ref()), given).err());
                    }
                }
            } else {
                let given = self.given(&key, value);
                problems.extend(layer.put_preset(preset, key.get_ref(), given).err());
            }
        }
    }

    fn given(self, name: &Name<'_>, value: Spanned<DeValue<'_>>) -> Given {
        let origin = self.origin(name.span().start);
        // A number beyond 64 bits does not become a value; as text it is refused by its key's type.
        let text = self.text.get(value.span()).unwrap_or_default().to_owned();
        let value = Value::deserialize(ValueDeserializer::from(value)).unwrap_or(Value::String(text));
        Given { value, bare: false, origin }
    }
}

/// Variables named `ATELIER__SECTION__KEY` or `ATELIER__PRESETS__NAME__KEY`; `presets` are the names there are.
pub(super) fn from_env(
    variables: &[(String, String)],
    presets: &BTreeMap<String, RawPreset>,
    problems: &mut Vec<Problem>,
) -> Layer {
    let mut layer = Layer::default();
    for (variable, text) in variables {
        let Some(name) = variable.strip_prefix(ENV_PREFIX) else { continue };
        let name = name.to_lowercase();
        let mut parts = name.split("__");
        let (Some(section), Some(key)) = (parts.next(), parts.next()) else {
            let wrong = Wrong::new("a variable names a section and a key").hint("for example ATELIER__SERVER__LISTEN");
            problems.push(wrong.at(Origin::Env(variable.clone()), name.replace("__", ".")));
            continue;
        };
        let rest: Vec<&str> = parts.collect();
        let key = if section == "presets" {
            // A shell's variable has no dashes.
            let plain = |name: &str| name.to_lowercase().replace(['-', ' '], "_");
            presets.keys().find(|known| plain(known) == plain(key)).map_or(key, String::as_str)
        } else {
            key
        };
        let dotted = std::iter::once(section).chain([key]).chain(rest).collect::<Vec<_>>().join(".");
        put_bare(&mut layer, &dotted, text, &Origin::Env(variable.clone()), problems);
    }
    layer
}

pub(super) const ENV_PREFIX: &str = "ATELIER__";

/// Dotted keys with their values.
pub(super) fn from_flags(flags: &[(String, String)], problems: &mut Vec<Problem>) -> Layer {
    let mut layer = Layer::default();
    for (key, text) in flags {
        // The last of several counts.
        let mut one = Layer::default();
        put_bare(&mut one, key, text, &Origin::Flag, problems);
        layer = layer.under(one);
    }
    layer
}

fn put_bare(layer: &mut Layer, dotted: &str, text: &str, origin: &Origin, problems: &mut Vec<Problem>) {
    let given = Given { value: Value::String(text.to_owned()), bare: true, origin: origin.clone() };
    let checked = match dotted.split_once('.') {
        None => Err(unknown_section(dotted)),
        Some(("presets", rest)) => match rest.split_once('.') {
            Some((name, key)) => {
                problems.extend(layer.put_preset(name, key, given).err());
                return;
            }
            None => Err(Wrong::new("names a preset, and none of its keys").hint(format!("{dotted}.KEY"))),
        },
        Some((section, _)) if !sections().any(|known| known == section) => Err(unknown_section(section)),
        Some((section, key)) => check_key(section, key),
    };
    match checked {
        Ok(()) => {
            layer.values.insert(dotted.to_owned(), given);
        }
        Err(wrong) => problems.push(wrong.at(origin.clone(), dotted)),
    }
}

fn check_key(section: &str, key: &str) -> Result<(), Wrong> {
    if keys_of(section).any(|known| known == key) {
        return Ok(());
    }
    let unknown = Wrong::new(format!("there is no key {key:?} in [{section}]"));
    Err(if let Some(elsewhere) = section_with(key) {
        unknown.hint(format!("it belongs in [{elsewhere}]"))
    } else if let Some(near) = nearest(key, keys_of(section)) {
        unknown.hint(format!("did you mean {near:?}?"))
    } else {
        unknown.hint(format!("its keys are {}", keys_of(section).collect::<Vec<_>>().join(", ")))
    })
}

fn section_with(key: &str) -> Option<&'static str> {
    KEYS.iter()
        .filter_map(|known| known.name.split_once('.'))
        .find(|(_, name)| *name == key)
        .map(|(section, _)| section)
}

fn unknown_section(section: &str) -> Wrong {
    let unknown = Wrong::new(format!("there is no section {section:?}"));
    if let Some(near) = nearest(section, sections()) {
        unknown.hint(format!("did you mean {near:?}?"))
    } else if let Some(of) = section_with(section) {
        unknown.hint(format!("write {section} under [{of}]"))
    } else {
        unknown.hint(format!("the sections are {}", sections().collect::<Vec<_>>().join(", ")))
    }
}

fn not_a_section(section: &str) -> Wrong {
    Wrong::new("is a section, not a value").hint(format!("write [{section}] on a line of its own, its keys below"))
}

/// Reads a file, or says why it cannot be read.
pub(super) fn read(path: &Path) -> Result<(PathBuf, String), Problem> {
    let problem = |message: String, hint: &str| Problem {
        origin: Origin::File { path: path.to_owned(), line: 1 },
        key: String::new(),
        message,
        hint: hint.to_owned(),
    };
    let bytes = std::fs::read(path)
        .map_err(|error| problem(format!("cannot be read: {error}"), "--config names a TOML file"))?;
    let text = String::from_utf8(bytes).map_err(|_| problem("is not UTF-8 text".into(), "save it as UTF-8"))?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    Ok((folder, text))
}

//! The names that the code a transformer was published with gives its tensors, and those that diffusers gives them.
//!
//! Single files keep the former. There, modules that see the same input are one, whose rows lie one after the other: they
//! are cut without being touched. Where diffusers has changed the order of what a module makes, so is it here.
//! Source: diffusers 0.42.1, `loaders/single_file_utils.py`.

mod aura_flow;
pub(crate) mod flux;
pub(crate) mod sd3;

use std::collections::BTreeMap;

use atelier_gguf::Architecture;

use super::shards::{Entry, Named};

/// What is before all names where the file was a whole pipeline's.
const PREFIX: &str = "model.diffusion_model.";

/// What diffusers calls the modules of an original.
type Modules = &'static [(&'static str, &'static [&'static str])];

/// Blocks that are numbered.
struct BlockNames {
    original: &'static str,
    diffusers: &'static str,
    /// Within a block, the original's modules, and diffusers' that make each, in their order. All but the last are as
    /// high as they are wide.
    modules: Modules,
}

/// A module of the original, and diffusers' that make it, one after the other.
type Made = (String, Vec<String>);

impl BlockNames {
    fn numbered(&self, number: u32) -> Vec<Made> {
        let part = |part: &&str| format!("{}.{number}.{part}", self.diffusers);
        let made = |(name, parts): &(&str, &[&str])| {
            (format!("{}.{number}.{name}", self.original), parts.iter().map(part).collect())
        };
        self.modules.iter().map(made).collect()
    }
}

/// The names of a network.
pub(crate) struct Names {
    /// Of tensors, whole.
    tensors: &'static [(&'static str, &'static str)],
    /// Outside of the blocks.
    modules: &'static [(&'static str, &'static str)],
    blocks: &'static [BlockNames],
}

/// diffusers' names of modules that may make a shift and a scale.
const SHIFT_FIRST: [&str; 2] = ["norm_out.linear", "norm1_context.linear"];

/// Whether the module of diffusers', with so many rows and columns, makes a shift and a scale, in this order in the
/// original and in the other one in diffusers. What else is called so makes more than two numbers for each of its inputs'.
pub(crate) fn is_shift_first(module: &str, rows: i64, columns: i64) -> bool {
    rows == 2 * columns && SHIFT_FIRST.iter().any(|name| module.ends_with(name))
}

/// A module's tensor in a file that is not by diffusers' names.
struct Found<'a> {
    module: &'a str,
    /// The end of the tensor's name.
    leaf: &'a str,
    /// How wide the module's matrix is.
    width: i64,
}

/// The entries with diffusers' names; with their own where they are no original's.
pub(super) fn renamed(entries: Vec<Entry>, architecture: Architecture) -> Vec<Named> {
    let names = match architecture {
        Architecture::Flux => &flux::NAMES,
        Architecture::StableDiffusion3 => &sd3::NAMES,
        Architecture::AuraFlow => &aura_flow::NAMES,
        // Its names have always been diffusers'.
        Architecture::QwenImage => &Names { tensors: &[], modules: &[], blocks: &[] },
    };
    let widths: BTreeMap<String, i64> = entries.iter().filter_map(width).collect();
    let renamed = |entry: Entry| {
        let key = without_prefix(&entry.key);
        if let Some((_, name)) = names.tensors.iter().find(|(original, _)| *original == key) {
            return vec![((*name).to_owned(), entry)];
        }
        let found = key.rsplit_once('.').and_then(|(module, leaf)| {
            let found = Found { module, leaf, width: widths.get(module).copied().unwrap_or(0) };
            names.find(&found, &entry)
        });
        found.unwrap_or_else(|| vec![(key.to_owned(), entry.clone())])
    };
    entries.into_iter().flat_map(renamed).collect()
}

fn without_prefix(key: &str) -> &str {
    key.strip_prefix(PREFIX).unwrap_or(key)
}

/// The module of a matrix, and how wide that is.
fn width(entry: &Entry) -> Option<(String, i64)> {
    let [_, width] = entry.shape[..] else { return None };
    Some((without_prefix(&entry.key).strip_suffix(".weight")?.to_owned(), width))
}

impl Names {
    /// The tensors of which the entry is made, by diffusers' names; none where it is no tensor of the original's, or
    /// cannot be cut so.
    fn find(&self, found: &Found<'_>, entry: &Entry) -> Option<Vec<Named>> {
        // Norms have a scale there, and here, as everything, a weight.
        let leaf = if found.leaf == "scale" { "weight" } else { found.leaf };
        let modules = self.modules_of(found.module)?;
        let named = |module: &String| format!("{module}.{leaf}");
        if let [module] = &modules[..] {
            let swapped = entry.shape.first().is_some_and(|rows| is_shift_first(module, *rows, found.width));
            return Some(vec![(named(module), Entry { swapped, ..entry.clone() })]);
        }
        if entry.shape.iter().product::<i64>() == 1 {
            // A scale for the whole matrix.
            return Some(modules.iter().map(|module| (named(module), entry.clone())).collect());
        }
        let rows = *entry.shape.first()?;
        let mut start = 0;
        let parts = modules.iter().enumerate().map(|(index, module)| {
            let end = if index + 1 == modules.len() { rows } else { start + found.width };
            let part = entry.rows(start..end)?;
            start = end;
            Some((named(module), part))
        });
        parts.collect()
    }

    /// All modules of the original, as far as there are blocks. `has`: whether the network has a module of diffusers'.
    pub(crate) fn all(&self, has: impl Fn(&str) -> bool) -> Vec<Made> {
        let outside = self.modules.iter().map(|(name, module)| ((*name).to_owned(), vec![(*module).to_owned()]));
        let mut all: Vec<Made> = outside.collect();
        for block in self.blocks {
            let numbered = (0..).map(|number| block.numbered(number));
            let is_there = |modules: &Vec<Made>| modules.iter().flat_map(|(_, parts)| parts).any(|part| has(part));
            all.extend(numbered.take_while(is_there).flatten());
        }
        all
    }

    /// diffusers' modules that make the original's.
    fn modules_of(&self, original: &str) -> Option<Vec<String>> {
        if let Some((_, module)) = self.modules.iter().find(|(name, _)| *name == original) {
            return Some(vec![(*module).to_owned()]);
        }
        self.blocks.iter().find_map(|block| {
            let rest = original.strip_prefix(block.original)?.strip_prefix('.')?;
            let (number, rest) = rest.split_once('.')?;
            let number: u32 = number.parse().ok()?;
            let (_, modules) = block.modules.iter().find(|(name, _)| *name == rest)?;
            Some(modules.iter().map(|module| format!("{}.{number}.{module}", block.diffusers)).collect())
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use tch::Kind;

    use super::*;

    /// Bytes of a row of one element.
    const ROW: usize = 4;

    /// The entries of a file with these tensors, one after the other.
    fn originals(shapes: &Value) -> Vec<Entry> {
        let mut end = 0;
        let entry = |(name, shape): (&String, &Value)| {
            let shape: Vec<i64> = serde_json::from_value(shape.clone()).expect("a shape");
            let start = end;
            end += ROW * usize::try_from(shape.iter().product::<i64>()).expect("a few");
            Entry::plain(format!("{PREFIX}{name}"), shape, Kind::Float, 0, start..end)
        };
        shapes.as_object().expect("tensors").iter().map(entry).collect()
    }

    /// The original's name, and stretches of its rows, as the reference tells it.
    fn made_of(entry: &Entry, originals: &[Entry]) -> Value {
        let original = originals.iter().find(|original| original.key == entry.key).expect("one of them");
        let bytes = original.bytes / usize::try_from(original.shape[0]).expect("a few");
        let (start, end) =
            ((entry.offset - original.offset) / bytes, (entry.offset + entry.bytes - original.offset) / bytes);
        let half = start.midpoint(end);
        let name = without_prefix(&entry.key);
        if entry.swapped { (name, (half, end), (start, half)).into_value() } else { (name, (start, end)).into_value() }
    }

    trait IntoValue: serde::Serialize + Sized {
        fn into_value(self) -> Value {
            serde_json::to_value(self).expect("JSON")
        }
    }

    impl<T: serde::Serialize> IntoValue for T {}

    /// `tools/fixtures/worker_gguf.py` has let diffusers convert tensors whose rows are numbered.
    #[test]
    fn diffusers_tensors_are_made_of_the_rows_that_diffusers_takes() {
        let told: Value = serde_json::from_str(include_str!("../../../tests/fixtures/gguf/names.json")).expect("JSON");
        for architecture in [Architecture::Flux, Architecture::StableDiffusion3, Architecture::AuraFlow] {
            let told = &told[architecture.as_str()];
            let originals = originals(&told["originals"]);
            let mut renamed: BTreeMap<String, Value> = BTreeMap::new();
            for (name, entry) in super::renamed(originals.clone(), architecture) {
                assert!(renamed.insert(name.clone(), made_of(&entry, &originals)).is_none(), "{name} twice");
            }
            let expected: BTreeMap<String, Value> = serde_json::from_value(told["made_of"].clone()).expect("a list");
            assert!(expected.len() > 40, "{}", expected.len());
            assert_eq!(renamed.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
            for (name, made_of) in expected {
                assert_eq!(renamed[&name], made_of, "{name}");
            }
        }
    }

    #[test]
    fn what_has_diffusers_names_keeps_them() {
        let shapes =
            serde_json::json!({ "transformer_blocks.0.attn.to_q.weight": [8, 8], "norm_out.linear.weight": [16, 8] });
        for architecture in Architecture::ALL {
            for (name, entry) in super::renamed(originals(&shapes), architecture) {
                assert!(shapes.get(&name).is_some() && !entry.swapped, "{name}");
            }
        }
    }
}

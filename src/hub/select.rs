//! Which files of a repository a family needs: of each part its configuration and one set of weights as safetensors.
//!
//! What else lies there (the same weights for other frameworks, checkpoints of everything in one file, pictures) stays
//! where it is.

use std::{collections::BTreeSet, path::Path};

use atelier_domain::model::{Component, ComponentFiles, Family, LORA_FILE};
use serde_json::Value;

use super::{HubError, listing::Listing};

/// Files to fetch, and those among them that name further ones.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Selection {
    pub(super) files: BTreeSet<String>,
    /// Of weights in parts; see [`parts_of`].
    pub(super) indexes: BTreeSet<String>,
}

/// The file that says what the repository is: its class, or that it is LoRA weights.
pub(super) fn describing(listing: &Listing) -> Option<&'static str> {
    ["model_index.json", "config.json", LORA_FILE].into_iter().find(|name| listing.has(name))
}

/// The family that a repository's own description names.
pub(super) fn family(id: &str, file: &str, text: &[u8]) -> Result<Family, HubError> {
    if file == LORA_FILE {
        return Ok(Family::Lora);
    }
    let value: Value = serde_json::from_slice(text)
        .map_err(|error| HubError::Answer { what: format!("{id}/{file}"), why: error.to_string() })?;
    let class = Family::class_in(&value);
    class.and_then(Family::from_class_name).ok_or_else(|| HubError::Unsupported {
        what: match class {
            Some(class) => format!("{id} is a {class}, which this version does not run"),
            None => format!("{id} is no model that this version runs: its {file} names no class"),
        },
        hint: "docs/MODELS.md lists what is run".to_owned(),
    })
}

/// What `family` needs of `listing`. `half`: weights in half precision where there are such.
pub(super) fn needed(id: &str, family: Family, listing: &Listing, half: bool) -> Result<Selection, HubError> {
    let mut selection = Selection::default();
    if family == Family::Lora {
        selection.files.insert(LORA_FILE.to_owned());
    }
    for file in family.required_files() {
        require(id, listing, file, &mut selection)?;
    }
    if let Some(stem) = family.own_weights() {
        weights(id, listing, "", stem, half, &mut selection)?;
    }
    if family.has_own_tokenizer() {
        own_texts(id, listing, &mut selection)?;
    }
    for part in family.components() {
        component(id, listing, part, half, &mut selection)?;
    }
    // A card of ours, where somebody has published one, and the terms that the model comes under.
    let beside = ["atelier.json", "LICENSE", "NOTICE"];
    let beside = listing.files.keys().filter(|path| beside.iter().any(|begin| path.starts_with(begin)));
    selection.files.extend(beside.cloned());
    Ok(selection)
}

/// The small files at the top: configurations, the tokenizer in whatever layout, how to speak to the model.
fn own_texts(id: &str, listing: &Listing, selection: &mut Selection) -> Result<(), HubError> {
    let is_text = |path: &&String| {
        let ends = [".json", ".txt", ".model", ".jinja"].iter().any(|end| path.ends_with(end));
        // Of weights in other kinds of files.
        ends && !path.contains('/') && !path.contains(".index.")
    };
    selection.files.extend(listing.files.keys().filter(is_text).cloned());
    if !["tokenizer.json", "vocab.json"].iter().any(|file| listing.has(file)) {
        return Err(lacks(id, "tokenizer.json"));
    }
    if !["preprocessor_config.json", "processor_config.json"].iter().any(|file| listing.has(file)) {
        return Err(lacks(id, "preprocessor_config.json"));
    }
    Ok(())
}

fn require(id: &str, listing: &Listing, file: &str, selection: &mut Selection) -> Result<(), HubError> {
    if !listing.has(file) {
        return Err(lacks(id, file));
    }
    selection.files.insert(file.to_owned());
    Ok(())
}

fn lacks(id: &str, file: &str) -> HubError {
    HubError::Unsupported {
        what: format!("{id} has no {file}"),
        hint: "another revision (--revision) or another repository of the same model may be whole".to_owned(),
    }
}

fn component(
    id: &str,
    listing: &Listing,
    part: &Component,
    half: bool,
    selection: &mut Selection,
) -> Result<(), HubError> {
    let folder = format!("{}/", part.name);
    if part.optional && !listing.files.keys().any(|path| path.starts_with(&folder)) {
        return Ok(());
    }
    match part.files {
        ComponentFiles::Scheduler => require(id, listing, &format!("{folder}scheduler_config.json"), selection),
        ComponentFiles::Tokenizer | ComponentFiles::Processor => {
            // All small, and which of them counts is the worker's choice.
            let texts = listing.files.keys().filter(|path| {
                path.strip_prefix(&folder).is_some_and(|rest| {
                    !rest.contains('/') && [".json", ".txt", ".model"].iter().any(|end| rest.ends_with(end))
                })
            });
            let before = selection.files.len();
            selection.files.extend(texts.cloned());
            if selection.files.len() == before { Err(lacks(id, &format!("{folder}tokenizer.json"))) } else { Ok(()) }
        }
        ComponentFiles::Weights { stem } => {
            require(id, listing, &format!("{folder}config.json"), selection)?;
            weights(id, listing, &folder, stem, half, selection)
        }
    }
}

/// One set of weights: a file, or parts with their index.
fn weights(
    id: &str,
    listing: &Listing,
    folder: &str,
    stem: &str,
    half: bool,
    selection: &mut Selection,
) -> Result<(), HubError> {
    let full = [format!("{stem}.safetensors"), format!("{stem}.safetensors.index.json")];
    let small = [format!("{stem}.fp16.safetensors"), format!("{stem}.safetensors.index.fp16.json")];
    let order = if half { [small, full] } else { [full, small] };
    let found = order.iter().flatten().map(|name| format!("{folder}{name}")).find(|path| listing.has(path));
    if let Some(path) = found {
        if path.contains(".safetensors.index.") {
            selection.indexes.insert(path.clone());
        }
        selection.files.insert(path);
        return Ok(());
    }
    let pickled = |path: &&String| {
        let rest = path.strip_prefix(folder).filter(|rest| !rest.contains('/'));
        rest.is_some_and(|rest| Path::new(rest).extension().is_some_and(|extension| extension == "bin"))
    };
    Err(match listing.files.keys().find(pickled) {
        Some(path) => HubError::Unsupported {
            what: format!(
                "{id} has {folder}{stem} only as {path}, a kind of file that can run any program when it is read"
            ),
            hint: "look for a revision (--revision) or a repository that has it as safetensors".to_owned(),
        },
        None => lacks(id, &format!("{folder}{stem}.safetensors")),
    })
}

/// The files that an index of weights names, as paths in the repository.
pub(super) fn parts_of(id: &str, listing: &Listing, index: &str, text: &[u8]) -> Result<BTreeSet<String>, HubError> {
    let wrong = |why: &str| HubError::Answer { what: format!("{id}/{index}"), why: why.to_owned() };
    let value: Value = serde_json::from_slice(text).map_err(|error| wrong(&error.to_string()))?;
    let map = value.get("weight_map").and_then(Value::as_object).ok_or_else(|| wrong("it has no weight_map"))?;
    let folder = index.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
    let names: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
    if names.is_empty() {
        return Err(wrong("its weight_map is empty"));
    }
    names
        .into_iter()
        .map(|name| {
            let path = format!("{folder}{name}");
            if listing.has(&path) { Ok(path) } else { Err(lacks(id, &path)) }
        })
        .collect()
}

/// The paths that match one of `patterns`, in which `*` stands for anything, also for slashes, and `?` for one
/// character.
///
/// # Errors
/// A pattern that matches nothing.
pub(super) fn matching(id: &str, listing: &Listing, patterns: &[String]) -> Result<BTreeSet<String>, HubError> {
    let mut found = BTreeSet::new();
    for pattern in patterns {
        let before: Vec<_> = listing.files.keys().filter(|path| matches(pattern.as_bytes(), path.as_bytes())).collect();
        if before.is_empty() {
            return Err(HubError::NotFound { what: format!("a file like {pattern:?} of {id}") });
        }
        found.extend(before.into_iter().cloned());
    }
    Ok(found)
}

fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where the last star stood, and how much of the text it has taken.
    let mut star = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(byte) if *byte == b'?' || text.get(t) == Some(byte) => (p, t) = (p + 1, t + 1),
            _ => {
                let Some((at, taken)) = star else { return false };
                star = Some((at, taken + 1));
                (p, t) = (at + 1, taken + 1);
            }
        }
    }
    pattern.iter().skip(p).all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::{
        super::listing::{Entry, Hash},
        *,
    };

    fn listing(paths: &[&str]) -> Listing {
        let entry = Entry { bytes: 1, hash: Hash::Sha256("a".repeat(64)) };
        let files = paths.iter().map(|path| ((*path).to_owned(), entry.clone())).collect();
        Listing { commit: "0".repeat(40), files }
    }

    /// A Stable Diffusion repository as they are: everything several times.
    const CROWDED: &[&str] = &[
        "atelier.json",
        "LICENSE.md",
        "README.md",
        "model_index.json",
        "v1-5-pruned.safetensors",
        "v1-5-pruned-emaonly.ckpt",
        "safety_checker/config.json",
        "safety_checker/model.safetensors",
        "feature_extractor/preprocessor_config.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "text_encoder/model.fp16.safetensors",
        "text_encoder/pytorch_model.bin",
        "text_encoder/flax_model.msgpack",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors.index.json",
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "unet/model.onnx",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_flax_model.msgpack",
    ];

    fn chosen(half: bool) -> Selection {
        needed("a/b", Family::StableDiffusion, &listing(CROWDED), half).expect("there")
    }

    #[test]
    fn of_everything_several_times_one_set_is_chosen() {
        let full = chosen(false);
        let expected = [
            "LICENSE.md",
            "atelier.json",
            "model_index.json",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "text_encoder/model.safetensors",
            "tokenizer/merges.txt",
            "tokenizer/special_tokens_map.json",
            "tokenizer/tokenizer_config.json",
            "tokenizer/vocab.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors.index.json",
            "vae/config.json",
            "vae/diffusion_pytorch_model.safetensors",
        ];
        assert_eq!(full.files.iter().map(String::as_str).collect::<Vec<_>>(), expected);
        assert_eq!(full.indexes.len(), 1);
        let half = chosen(true);
        for path in ["text_encoder/model.fp16.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"] {
            assert!(half.files.contains(path), "{path}");
        }
        assert!(half.indexes.is_empty() && !half.files.contains("text_encoder/model.safetensors"));
    }

    /// A captioning model's repository, as the hub has them.
    const SPOKEN: &[&str] = &[
        "README.md",
        "added_tokens.json",
        "chat_template.json",
        "config.json",
        "generation_config.json",
        "images/sample.png",
        "merges.txt",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "original/params.json",
        "preprocessor_config.json",
        "pytorch_model-00001-of-00002.bin",
        "pytorch_model.bin.index.json",
        "tokenizer_config.json",
        "vocab.json",
    ];

    #[test]
    fn a_model_of_transformers_is_known_by_its_architecture_and_comes_with_its_tokenizer() {
        for (class, known) in [
            ("LlavaNextForConditionalGeneration", Family::LlavaNext),
            ("Blip2ForConditionalGeneration", Family::Blip2),
            ("Qwen2VLForConditionalGeneration", Family::Qwen2Vl),
            ("Qwen2_5_VLForConditionalGeneration", Family::Qwen25Vl),
        ] {
            let config = format!(r#"{{"model_type":"x","architectures":["{class}"]}}"#);
            assert_eq!(family("a/b", "config.json", config.as_bytes()).expect("known"), known);
        }
        let selection = needed("a/b", Family::LlavaNext, &listing(SPOKEN), false).expect("there");
        let expected = [
            "added_tokens.json",
            "chat_template.json",
            "config.json",
            "generation_config.json",
            "merges.txt",
            "model.safetensors.index.json",
            "preprocessor_config.json",
            "tokenizer_config.json",
            "vocab.json",
        ];
        assert_eq!(selection.files.iter().map(String::as_str).collect::<Vec<_>>(), expected);
        assert_eq!(selection.indexes.iter().map(String::as_str).collect::<Vec<_>>(), ["model.safetensors.index.json"]);
        for gone in ["vocab.json", "preprocessor_config.json", "model.safetensors.index.json"] {
            let paths: Vec<&str> = SPOKEN.iter().copied().filter(|path| *path != gone).collect();
            needed("a/b", Family::LlavaNext, &listing(&paths), false).expect_err(gone);
        }
    }

    #[test]
    fn an_index_names_its_parts_and_all_are_on_the_hub() {
        let index = "unet/diffusion_pytorch_model.safetensors.index.json";
        let text = br#"{"weight_map":{"a":"diffusion_pytorch_model-00001-of-00002.safetensors",
            "b":"diffusion_pytorch_model-00002-of-00002.safetensors"}}"#;
        let parts = parts_of("a/b", &listing(CROWDED), index, text).expect("named");
        assert_eq!(parts.len(), 2);
        let error =
            parts_of("a/b", &listing(CROWDED), index, br#"{"weight_map":{"a":"../../x"}}"#).expect_err("no way");
        assert!(error.to_string().contains("has no unet/../../x"), "{error}");
        parts_of("a/b", &listing(CROWDED), index, b"{}").expect_err("no map");
    }

    #[test]
    fn what_is_missing_or_only_pickled_is_said() {
        let without = |gone: &str| {
            let paths: Vec<&str> = CROWDED.iter().copied().filter(|path| !path.contains(gone)).collect();
            needed("a/b", Family::StableDiffusion, &listing(&paths), false).expect_err(gone).to_string()
        };
        assert_eq!(without("scheduler/"), "a/b has no scheduler/scheduler_config.json");
        assert_eq!(without("tokenizer/"), "a/b has no tokenizer/tokenizer.json");
        assert!(without("vae/diffusion_pytorch").contains("vae/diffusion_pytorch_model.safetensors"));
        let pickled = without("text_encoder/model");
        assert!(pickled.contains("text_encoder/pytorch_model.bin"), "{pickled}");
    }

    #[test]
    fn a_repository_may_do_without_a_part_that_is_not_needed() {
        let paths = |parts: &[&str]| -> Vec<String> {
            let of = |part: &&str| {
                let files =
                    ["config.json", "model.safetensors", "diffusion_pytorch_model.safetensors", "tokenizer.json"];
                files.map(|file| format!("{part}/{file}"))
            };
            let beside = ["model_index.json", "scheduler/scheduler_config.json"].map(str::to_owned);
            parts.iter().flat_map(of).chain(beside).collect()
        };
        let chosen = |parts: &[&str]| {
            let paths = paths(parts);
            let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
            needed("a/b", Family::StableDiffusion3, &listing(&paths), false)
        };
        let clips = ["text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "transformer", "vae"];
        let has_t5 = |selection: &Selection| selection.files.contains("text_encoder_3/model.safetensors");
        assert!(!has_t5(&chosen(&clips).expect("without T5")));
        assert!(has_t5(&chosen(&[&clips[..], &["text_encoder_3", "tokenizer_3"]].concat()).expect("with T5")));
        chosen(&clips[1..]).expect_err("a CLIP is needed");
    }

    #[test]
    fn the_family_is_what_the_repository_says_it_is() {
        let class = br#"{"_class_name":"StableDiffusionXLPipeline"}"#;
        assert_eq!(family("a/b", "model_index.json", class).expect("known"), Family::StableDiffusionXl);
        assert_eq!(family("a/b", LORA_FILE, b"").expect("known"), Family::Lora);
        let error = family("a/b", "config.json", br#"{"_class_name":"Other"}"#).expect_err("unknown");
        assert!(error.to_string().contains("is a Other"), "{error}");
        family("a/b", "config.json", b"{}").expect_err("none");
        family("a/b", "config.json", b"<html>").expect_err("no JSON");
    }

    #[test]
    fn patterns_are_those_of_shells_and_pass_over_slashes() {
        for (pattern, text, is_match) in [
            ("*.json", "a/b.json", true),
            ("unet/*", "unet/x", true),
            ("unet/*", "vae/x", false),
            ("*fp16*", "a.fp16.safetensors", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*a*b", "xaxbxb", true),
            ("", "x", false),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), is_match, "{pattern} {text}");
        }
        let all = listing(CROWDED);
        assert_eq!(matching("a/b", &all, &["vae/*.json".to_owned()]).expect("one").len(), 1);
        matching("a/b", &all, &["*.gguf".to_owned()]).expect_err("none");
    }
}

//! The lists of tensors of the real transformers and captioning models, without their weights: what diffusers and
//! transformers build of their configurations (`tools/fixtures/transformer_keys.py`).

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use atelier_worker::{
    caption::{
        blip2::{
            config::{Blip2Config, TextConfig},
            network::Blip2,
        },
        llava_next::{
            config::LlavaNextConfig,
            network::{ALIASES, LlavaNext},
        },
    },
    nn::config::ConfigReader,
    text_encoder::Activation,
    transformer::{AuraFlowConfig, AuraFlowTransformer, Sd3Config, Sd3Transformer},
    vision_language::qwen2_vl::{Qwen2Vl, Qwen2VlConfig, Use},
    weights::{Alias, Weights},
};
use serde_json::Value;

type Shapes = BTreeMap<String, Vec<i64>>;

fn shapes(config: Value) -> Shapes {
    let class = config["_class_name"].as_str().or_else(|| config["architectures"][0].as_str()).unwrap().to_owned();
    let reader = ConfigReader::from_value(Path::new("config.json"), config).unwrap();
    let weights = Weights::recording();
    match class.as_str() {
        "SD3Transformer2DModel" => drop(Sd3Transformer::load(&weights, &Sd3Config::read(reader).unwrap()).unwrap()),
        "AuraFlowTransformer2DModel" => {
            drop(AuraFlowTransformer::load(&weights, &AuraFlowConfig::read(reader).unwrap()).unwrap());
        }
        "LlavaNextForConditionalGeneration" => {
            drop(LlavaNext::load(&weights, &LlavaNextConfig::take(reader).unwrap()).unwrap());
        }
        "Blip2ForConditionalGeneration" => {
            drop(Blip2::load(&weights, &Blip2Config::take(reader).unwrap()).unwrap());
        }
        "Qwen2_5_VLForConditionalGeneration" => {
            drop(Qwen2Vl::load(&weights, &Qwen2VlConfig::read(reader).unwrap(), Use::Answers).unwrap());
        }
        class => panic!("{class} is not this test's"),
    }
    weights.recorded()
}

/// The name before the first number that is a part of its own, the number, and the rest.
fn numbered(name: &str) -> Option<(&str, u32, &str)> {
    let mut start = 0;
    for part in name.split('.') {
        if let Ok(number) = part.parse() {
            return Some((&name[..start], number, &name[start + part.len()..]));
        }
        start += part.len() + 1;
    }
    None
}

fn ranges(numbers: &[u32]) -> String {
    let mut spans: Vec<[u32; 2]> = Vec::new();
    for &number in numbers {
        match spans.last_mut() {
            Some([_, last]) if *last + 1 == number => *last = number,
            Some(_) | None => spans.push([number, number]),
        }
    }
    let spans =
        spans.iter().map(|[first, last]| if first == last { format!("{first}") } else { format!("{first}-{last}") });
    spans.collect::<Vec<_>>().join(",")
}

/// A line for each tensor; where only the first number in the names differs, one for all of them.
fn lines(shapes: &Shapes) -> Vec<String> {
    let mut alike: BTreeMap<(&str, &str, String), Vec<u32>> = BTreeMap::new();
    let mut lines = Vec::new();
    for (name, shape) in shapes {
        match numbered(name) {
            Some((before, number, after)) => {
                alike.entry((before, after, format!("{shape:?}"))).or_default().push(number);
            }
            None => lines.push(format!("{name} {shape:?}")),
        }
    }
    for ((before, after, shape), mut numbers) in alike {
        numbers.sort_unstable();
        lines.push(format!("{before}{{{}}}{after} {shape}", ranges(&numbers)));
    }
    lines.sort();
    lines
}

/// A name of the hub's as a model asks for it.
fn read_as(name: &str, aliases: &[Alias]) -> String {
    aliases.iter().fold(name.to_owned(), |name, alias| match alias {
        Alias::Prefix { found, canonical } if name.starts_with(found) => name.replacen(found, canonical, 1),
        Alias::Prefix { .. } | Alias::Part { .. } => name,
    })
}

#[test]
fn the_real_models_have_the_tensors_that_the_reference_gives_them() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/keys");
    let mut configs: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    configs.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    configs.sort();
    assert!(configs.len() >= 10, "{configs:?}");
    for path in configs {
        let config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let aliases = if config["model_type"] == "llava_next" { ALIASES } else { &[] };
        let wanted = fs::read_to_string(path.with_extension("txt")).unwrap();
        let mut wanted: Vec<String> = wanted.lines().map(|line| read_as(line, aliases)).collect();
        wanted.sort();
        let got = lines(&shapes(config));
        assert!(wanted.len() > 20, "{}", path.display());
        assert_eq!(got, wanted, "{}", path.display());
    }
}

/// What the hub's configurations leave to transformers, and what they have of their own.
#[test]
fn the_real_captioning_models_begin_and_end_texts_as_transformers_does() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/keys");
    let read = |name: &str| Blip2Config::take(ConfigReader::open(&folder.join(name)).unwrap()).unwrap();
    let opt = read("blip2-opt-2.7b.json");
    // The beginning is OPT's own: the file names only the end, which is a line's.
    assert_eq!((opt.start_token, opt.text.usual_end()), (2, 2));
    let t5 = read("blip2-flan-t5-xl.json");
    assert_eq!((t5.start_token, t5.text.usual_end()), (1, 1));
    let TextConfig::T5(text) = t5.text else { panic!("{:?}", t5.text) };
    assert_eq!((text.encoder.activation, text.encoder.is_gated, text.scales_output), (Activation::Gelu, true, false));
}

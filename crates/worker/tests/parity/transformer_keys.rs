//! The lists of tensors of the real transformers, without their weights: what diffusers builds of their configurations
//! (`tools/fixtures/transformer_keys.py`).

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use atelier_worker::{
    nn::config::ConfigReader,
    transformer::{AuraFlowConfig, AuraFlowTransformer, Sd3Config, Sd3Transformer},
    weights::Weights,
};
use serde_json::Value;

type Shapes = BTreeMap<String, Vec<i64>>;

fn shapes(config: Value) -> Shapes {
    let class = config["_class_name"].as_str().unwrap().to_owned();
    let reader = ConfigReader::from_value(Path::new("config.json"), config).unwrap();
    let weights = Weights::recording();
    match class.as_str() {
        "SD3Transformer2DModel" => drop(Sd3Transformer::load(&weights, &Sd3Config::read(reader).unwrap()).unwrap()),
        "AuraFlowTransformer2DModel" => {
            drop(AuraFlowTransformer::load(&weights, &AuraFlowConfig::read(reader).unwrap()).unwrap());
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

#[test]
fn the_real_transformers_have_the_tensors_that_diffusers_gives_them() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/keys");
    let mut configs: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    configs.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    configs.sort();
    assert!(configs.len() >= 5, "{configs:?}");
    for path in configs {
        let config = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let wanted = fs::read_to_string(path.with_extension("txt")).unwrap();
        let (wanted, got): (Vec<&str>, _) = (wanted.lines().collect(), lines(&shapes(config)));
        assert!(wanted.len() > 20, "{}", path.display());
        assert_eq!(got, wanted, "{}", path.display());
    }
}

//! Transformers in GGUF files: stopped and resumed, with little memory, with LoRAs, and folders that do not fit.

use std::{fs, path::Path};

use atelier_domain::{
    JobKind,
    model::Family,
    protocol::{ModelRef, Offload, Run},
};
use atelier_worker::weights::{LoadOptions, Weights};
use serde_json::{Value, json};
use tch::Tensor;

use crate::{
    refusals::{edit_json, refuses},
    resume::survives_every_stop,
    support::{Bench, Ended, finish, merge, outputs, with_budget},
};

const MODELS: [&str; 2] = ["flux_gguf", "qwenimage_gguf"];
const STEM: &str = "diffusion_pytorch_model";

fn generate(bench: &Bench, model: ModelRef, params: &Value) -> Run {
    let mut all = json!({ "prompt": "a lighthouse above the sea", "seed": 3, "width": 32, "height": 32, "steps": 2 });
    merge(&mut all, params);
    bench.job(JobKind::Generate, model, &all)
}

fn weights(transformer: &Path) -> Weights {
    Weights::open_folder(transformer, STEM, &LoadOptions::cpu()).unwrap()
}

/// The only GGUF file of a model's transformer.
fn file(model: &ModelRef) -> std::path::PathBuf {
    let paths = fs::read_dir(model.path.as_path().join("transformer")).unwrap().map(|entry| entry.unwrap().path());
    let mut paths = paths.filter(|path| path.extension().is_some_and(|end| end == "gguf"));
    paths.next().unwrap()
}

/// A copy of the model whose transformer's weights were unpacked before, into safetensors by diffusers' names.
fn unpacked(bench: &Bench, model: &ModelRef) -> ModelRef {
    let copy = bench.copy_of(model);
    let transformer = copy.path.as_path().join("transformer");
    let weights = weights(&transformer);
    let tensors: Vec<(String, Tensor)> = weights
        .shapes()
        .into_iter()
        .map(|(name, shape)| (name.clone(), weights.take(&name, &shape).unwrap()))
        .collect();
    Tensor::write_safetensors(&tensors, transformer.join(format!("{STEM}.safetensors"))).unwrap();
    fs::remove_file(file(&copy)).unwrap();
    copy
}

#[test]
fn a_packed_transformer_goes_on_bit_for_bit() {
    let bench = Bench::new();
    for model in MODELS {
        survives_every_stop(&bench, &generate(&bench, Bench::random(model), &json!({ "steps": 3 })), 3);
    }
}

#[test]
fn what_is_unpacked_at_its_use_makes_what_was_unpacked_before_makes() {
    let bench = Bench::new();
    for name in MODELS {
        let model = Bench::random(name);
        let run = generate(&bench, model.clone(), &json!({}));
        let packed = outputs(&run, &finish(&run));
        let whole = weights(&model.path.as_path().join("transformer")).bytes();
        assert!(whole > 2 * fs::metadata(file(&model)).unwrap().len(), "{name}: the file is the smaller one by far");
        let mut ways = vec![(u64::MAX, Offload::Block)];
        if name == "flux_gguf" {
            // The file would fit, and what becomes of it does not: it goes block by block. The other has but two blocks.
            ways.extend([(whole - 1, Offload::Auto), (whole * 3 / 4, Offload::Auto)]);
        }
        for (budget, offload) in ways {
            let again = Run { work_dir: bench.folder("job").into(), ..run.clone() };
            match with_budget(&again, None, budget, offload) {
                Ok(Ended::Finished(finished)) => assert!(outputs(&again, &finished) == packed, "{name} {offload:?}"),
                Ok(Ended::Stopped { .. }) => panic!("{name}: stopped"),
                Err(error) => panic!("{name} {offload:?} in {budget} bytes: {error}"),
            }
        }
        let again = generate(&bench, unpacked(&bench, &model), &json!({}));
        assert!(outputs(&again, &finish(&again)) == packed, "{name}: other bytes from what was unpacked before");
    }
}

/// Changes some modules of a FLUX transformer, one of which was fused with others in the file.
fn lora(path: &Path) {
    let values = |rows: i64, columns: i64| {
        let numbers = Tensor::arange(rows * columns, (tch::Kind::Float, tch::Device::Cpu));
        (numbers.sin() * 0.2).reshape([rows, columns])
    };
    let mut tensors = Vec::new();
    for (module, rows, columns) in
        [("single_transformer_blocks.1.attn.to_k", 32, 32), ("transformer_blocks.0.ff.net.0.proj", 128, 32)]
    {
        tensors.push((format!("transformer.{module}.lora_A.weight"), values(4, columns)));
        tensors.push((format!("transformer.{module}.lora_B.weight"), values(rows, 4)));
    }
    Tensor::write_safetensors(&tensors, path).unwrap();
}

#[test]
fn a_lora_works_upon_a_packed_transformer() {
    let bench = Bench::new();
    let model = Bench::random("flux_gguf");
    let path = bench.root.path().join("waves.safetensors");
    lora(&path);
    let run_of = |model: ModelRef| {
        let mut run = generate(&bench, model, &json!({ "loras": [{ "name": "waves", "weight": 1.0 }] }));
        run.parts = vec![ModelRef { id: "waves".into(), family: Family::Lora, path: path.clone().into() }];
        run
    };
    let run = run_of(model.clone());
    let changed = outputs(&run, &finish(&run));
    let plain = generate(&bench, model.clone(), &json!({}));
    assert!(outputs(&plain, &finish(&plain)) != changed, "the LoRA changes nothing");
    let before = run_of(unpacked(&bench, &model));
    assert!(outputs(&before, &finish(&before)) == changed);
    let again = Run { work_dir: bench.folder("job").into(), ..run };
    let Ok(Ended::Finished(finished)) = with_budget(&again, None, u64::MAX, Offload::Block) else { panic!("by block") };
    assert!(outputs(&again, &finished) == changed, "by block");
}

#[test]
fn a_folder_whose_file_does_not_fit_is_refused_before_anything_is_loaded() {
    type Change = Box<dyn Fn(&ModelRef)>;
    let other_class = |class: &'static str| -> Change {
        Box::new(move |model| {
            let config = model.path.as_path().join("transformer/config.json");
            edit_json(&config, |config| config["_class_name"] = json!(class));
        })
    };
    let cases: [(Change, &[&str]); 5] = [
        (
            Box::new(|model| drop(fs::copy(file(model), file(model).with_file_name("b.gguf")))),
            &["b.gguf, flux-mixed.gguf"],
        ),
        (
            Box::new(|model| fs::write(file(model).with_file_name(format!("{STEM}.safetensors")), "").unwrap()),
            &["flux-mixed.gguf and diffusion_pytorch_model.safetensors"],
        ),
        (
            Box::new(|model| {
                let bytes = fs::read(file(model)).unwrap();
                fs::write(file(model), &bytes[..bytes.len() - 4096]).unwrap();
            }),
            &["flux-mixed.gguf", "exceeds file size"],
        ),
        (other_class("SD3Transformer2DModel"), &["\"flux\"", "\"sd3\""]),
        (
            Box::new(|model| {
                let encoder = model.path.as_path().join("text_encoder_2");
                fs::rename(encoder.join("model.safetensors"), encoder.join("t5.gguf")).unwrap();
            }),
            &["text_encoder_2", "t5.gguf", "must be safetensors"],
        ),
    ];
    for (change, parts) in cases {
        let bench = Bench::new();
        let model = bench.copy_of(&Bench::random("flux_gguf"));
        change(&model);
        refuses(&generate(&bench, model, &json!({})), "model_incomplete", parts);
    }
}

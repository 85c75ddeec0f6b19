//! Captioning models against transformers: what goes in, hidden states on the way, the scores of every step, and the
//! tokens and texts that are written (`tools/fixtures/worker_captions.py`).

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use atelier_domain::{
    model::Family,
    protocol::{ModelRef, Offload},
};
use atelier_imaging::{Limits, decode};
use atelier_worker::{
    caption::{
        blip2::{config::Blip2Config, network::Blip2, qformer::QFormer, vision::Vision},
        captioner::{self, Captioner, Inputs},
        generate::{CausalLm, Choice, End, generate},
        llava_next::{config::LlavaNextConfig, network::LlavaNext},
        stream::TextSoFar,
    },
    diffusion::pixels::Rgb,
    nn::config::ConfigReader,
    pipeline::{Size, stage::settle_blocks},
    torch::{InferenceMode, TorchError},
    vision_encoder::ClipVision,
    weights::Weights,
};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tch::{Device, Tensor};

use crate::fixture::Fixture;

#[derive(Deserialize)]
struct Said {
    ids: Vec<i64>,
    text: String,
}

/// One question about one picture, and what transformers says: the likeliest tokens, tokens that are drawn, and the
/// likeliest with a penalty for repetition.
#[derive(Deserialize)]
struct Asked {
    input: String,
    question: String,
    greedy: Said,
    drawn: Said,
    penalised: Said,
}

fn root(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/captions").join(name)
}

fn picture(path: &Path) -> Rgb {
    let picture = decode(path, &Limits { max_pixels: 1 << 20, max_bytes: 1 << 20 }).unwrap();
    Rgb::of(&picture, Size { width: picture.width.into(), height: picture.height.into() })
}

fn folder(name: &str, layout: &str, family: Family) -> Box<dyn Captioner> {
    let model = ModelRef { id: name.into(), family, path: root(name).join(layout).into() };
    captioner::read(&model).unwrap_or_else(|error| panic!("{name}/{layout}: {error}"))
}

/// Notes the scores of every step.
struct Listening<'a> {
    model: Box<dyn CausalLm + 'a>,
    scores: Vec<Tensor>,
}

impl CausalLm for Listening<'_> {
    fn prefill(&mut self) -> Result<Tensor, TorchError> {
        let scores = self.model.prefill()?;
        self.scores.push(scores.shallow_clone());
        Ok(scores)
    }

    fn step(&mut self, token: i64) -> Result<Tensor, TorchError> {
        let scores = self.model.step(token)?;
        self.scores.push(scores.shallow_clone());
        Ok(scores)
    }
}

fn choice(captioner: &dyn Captioner) -> Choice {
    Choice {
        max_tokens: 12,
        end: captioner.generation().end.clone(),
        temperature: 0.0,
        top_p: 1.0,
        seed: 11,
        repetition_penalty: 1.0,
    }
}

/// Holds every question of a fixture to what transformers made of it.
fn check(name: &str, layout: &str, family: Family, components: impl Fn(&Fixture, &str, &Inputs, &dyn Captioner)) {
    let _guard = InferenceMode::enter();
    let case = Fixture::read(&root(name));
    let asked: Vec<Asked> = serde_json::from_slice(&std::fs::read(root(name).join("cases.json")).unwrap()).unwrap();
    let captioner = folder(name, layout, family);
    let weights = captioner::open(&*captioner, Device::Cpu, None).unwrap();
    let speaker = captioner.load(&weights).unwrap();
    weights.finish().unwrap();
    for (number, asked) in asked.iter().enumerate() {
        let inputs = captioner.prepare(&picture(&root(name).join(&asked.input)), &asked.question).unwrap();
        components(&case, &number.to_string(), &inputs, &*captioner);
        let run = |choice: &Choice| {
            let mut model = Listening { model: speaker.begin(&inputs, 12).unwrap(), scores: Vec::new() };
            let (tokens, end) = generate(&mut model, choice, &inputs.said, &mut |_| true).unwrap();
            assert_eq!(end == End::Length, tokens.len() == 12);
            (tokens, model.scores)
        };
        let (tokens, scores) = run(&choice(&*captioner));
        for (step, scores) in scores.iter().enumerate() {
            case.check(&format!("{number}.scores.{step}"), &scores.unsqueeze(0));
        }
        assert!(!case.has(&format!("{number}.scores.{}", scores.len())), "{name}: transformers goes on");
        let drawing = Choice { temperature: 0.7, top_p: 0.9, ..choice(&*captioner) };
        let penalising = Choice { repetition_penalty: 1.5, ..choice(&*captioner) };
        for (what, tokens, wanted) in [
            ("greedy", tokens, &asked.greedy),
            ("drawn", run(&drawing).0, &asked.drawn),
            ("penalised", run(&penalising).0, &asked.penalised),
        ] {
            assert_eq!(tokens, wanted.ids, "{name} {number}: {what}");
            assert_eq!(captioner.tokenizer().decode(&tokens).unwrap().trim(), wanted.text, "{name} {number}: {what}");
        }
    }
}

fn ids(case: &Fixture, name: &str) -> Vec<i64> {
    Vec::try_from(case.tensor(name).reshape([-1])).unwrap()
}

fn llava(case: &Fixture, number: &str, inputs: &Inputs, _captioner: &dyn Captioner) {
    assert_eq!(inputs.ids, ids(case, &format!("{number}.in.input_ids")), "{}: the prompt", case.name);
    assert_eq!(inputs.size.to_vec(), ids(case, &format!("{number}.in.image_sizes")));
    case.check(&format!("{number}.in.pixel_values"), &inputs.pixels.unsqueeze(0));
}

#[test]
fn llava_says_what_transformers_says_in_both_layouts() {
    for (name, layout) in [("llava-mistral", "model"), ("llava-mistral", "hub"), ("llava-vicuna", "model")] {
        check(name, layout, Family::LlavaNext, llava);
    }
}

fn blip2(case: &Fixture, number: &str, inputs: &Inputs, _captioner: &dyn Captioner) {
    let name = format!("{number}.in.input_ids");
    if case.has(&name) {
        // transformers counts the picture's places among the tokens.
        assert_eq!(inputs.ids, ids(case, &name)[inputs.before..], "{}: the prompt", case.name);
    }
    case.check(&format!("{number}.in.pixel_values"), &inputs.pixels);
}

#[test]
fn blip2_says_what_transformers_says_in_both_layouts() {
    for (name, layout) in [("blip2-opt", "model"), ("blip2-opt", "hub"), ("blip2-t5", "model")] {
        check(name, layout, Family::Blip2, blip2);
    }
}

#[test]
fn qwen2_vl_says_what_transformers_says() {
    let _guard = InferenceMode::enter();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vision_language");
    for (name, family) in [("qwen2_vl", Family::Qwen2Vl), ("qwen2_5_vl", Family::Qwen25Vl)] {
        let case = Fixture::read(&root.join(name));
        let model = ModelRef { id: name.into(), family, path: root.join(name).into() };
        let captioner = captioner::read(&model).unwrap();
        // The picture of the recording's first question, as `tools/fixtures/qwen_vl` makes it.
        let (width, height) = (50, 31);
        let samples = (0..height * width * 3).map(|at| {
            let (y, x, c) = (at / 3 / width, at / 3 % width, at % 3);
            u8::try_from((3 * x * x + 7 * y * (c + 1) + x * y + 50 * c) % 256).unwrap()
        });
        let picture = Rgb { width, height, samples: samples.collect() };
        let inputs = captioner.prepare(&picture, "Describe the picture.").unwrap();
        let weights = captioner::open(&*captioner, Device::Cpu, None).unwrap();
        let speaker = captioner.load(&weights).unwrap();
        weights.finish().unwrap();
        let mut model = speaker.begin(&inputs, 12).unwrap();
        let choice = Choice { end: Vec::new(), ..choice(&*captioner) };
        let (tokens, end) = generate(&mut *model, &choice, &inputs.said, &mut |_| true).unwrap();
        assert_eq!((tokens, end), (ids(&case, "question.0.answer"), End::Length), "{name}");
    }
}

#[test]
fn the_vision_encoders_and_the_q_former_compute_what_transformers_computes() {
    let _guard = InferenceMode::enter();
    for name in ["llava-mistral", "llava-vicuna"] {
        let case = Fixture::read(&root(name));
        let weights = captioner::open(&*folder(name, "model", Family::LlavaNext), Device::Cpu, None).unwrap();
        let config = LlavaNextConfig::read(&root(name).join("model")).unwrap();
        let vision = ClipVision::load(&weights.root().at("vision_tower"), &config.vision).unwrap();
        let layers = usize::try_from(config.vision.num_hidden_layers).unwrap();
        let hidden = vision.hidden_states(&case.tensor("0.in.pixel_values").squeeze_dim(0), layers).unwrap();
        case.check("0.vision", &vision.pooled(&hidden).unwrap());
    }
    for name in ["blip2-opt", "blip2-t5"] {
        let case = Fixture::read(&root(name));
        let weights = captioner::open(&*folder(name, "model", Family::Blip2), Device::Cpu, None).unwrap();
        let config = Blip2Config::read(&root(name).join("model")).unwrap();
        let model = Blip2::load(&weights, &config).unwrap();
        case.check("0.projected", &model.encode_picture(&case.tensor("0.in.pixel_values")).unwrap());
        let weights = captioner::open(&*folder(name, "model", Family::Blip2), Device::Cpu, None).unwrap();
        let root = weights.root();
        let vision = Vision::load(&root.at("vision_model"), &config.vision).unwrap();
        let seen = vision.forward(&case.tensor("0.in.pixel_values")).unwrap();
        case.check("0.vision", &seen);
        let qformer = QFormer::load(&root, &config.qformer, config.num_query_tokens).unwrap();
        case.check("0.qformer", &qformer.forward(&seen).unwrap());
    }
}

#[test]
fn block_by_block_the_same_is_said() {
    let _guard = InferenceMode::enter();
    for (name, family) in
        [("llava-mistral", Family::LlavaNext), ("blip2-opt", Family::Blip2), ("blip2-t5", Family::Blip2)]
    {
        let asked: Vec<Asked> = serde_json::from_slice(&std::fs::read(root(name).join("cases.json")).unwrap()).unwrap();
        let captioner = folder(name, "model", family);
        let mut weights = captioner::open(&*captioner, Device::Cpu, None).unwrap();
        let load = |weights: &Weights| captioner.load(weights);
        let whole = weights.bytes();
        let held = settle_blocks(&mut weights, Offload::Block, u64::MAX, &load).unwrap();
        assert!(weights.streams() && held < whole, "{name}: {held} of {whole} bytes");
        let speaker = load(&weights).unwrap();
        weights.finish().unwrap();
        let inputs = captioner.prepare(&picture(&root(name).join(&asked[0].input)), &asked[0].question).unwrap();
        let mut model = speaker.begin(&inputs, 12).unwrap();
        let (tokens, _) = generate(&mut *model, &choice(&*captioner), &inputs.said, &mut |_| true).unwrap();
        assert_eq!(tokens, asked[0].greedy.ids, "{name}");
    }
}

#[test]
fn a_text_grows_and_is_never_taken_back() {
    for name in ["llava-mistral", "llava-vicuna"] {
        let captioner = folder(name, "model", Family::LlavaNext);
        let asked: Vec<Asked> = serde_json::from_slice(&std::fs::read(root(name).join("cases.json")).unwrap()).unwrap();
        let spoken = "a café on the 湖, and 🦊 behind it";
        let mut texts: Vec<Vec<i64>> = asked.iter().map(|asked| asked.drawn.ids.clone()).collect();
        texts.push(captioner.tokenizer().encode_plain(spoken).unwrap());
        for tokens in &texts {
            let mut so_far = TextSoFar::new(captioner.tokenizer());
            let mut last = String::new();
            for count in 1..=tokens.len() {
                so_far.take(&tokens[..count]).unwrap();
                assert!(so_far.text().starts_with(&last), "{:?} after {last:?}", so_far.text());
                last = so_far.text().to_owned();
            }
            let whole = captioner.tokenizer().decode(tokens).unwrap();
            assert!(whole.trim().starts_with(&last), "{last:?} of {whole:?}");
        }
        let mut so_far = TextSoFar::new(captioner.tokenizer());
        so_far.take(texts.last().unwrap()).unwrap();
        assert_eq!(so_far.text(), spoken);
    }
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_loaded() {
    let _guard = InferenceMode::enter();
    let captioner = folder("llava-mistral", "model", Family::LlavaNext);
    let photo = picture(&root("llava-mistral/input-0.png"));
    let error = captioner.prepare(&photo, "what is <image> in?").expect_err("a mark").info("cpu");
    assert!(error.message.contains("params.prompt") && error.message.contains("<image>"), "{error}");
    let line = Rgb { width: 900, height: 1, samples: vec![0; 2700] };
    let error = captioner.prepare(&line, "what?").expect_err("a line").info("cpu");
    assert!(error.message.contains("900 x 1"), "{error}");

    // A folder whose parts are of different models.
    let copy = tempfile::tempdir().unwrap();
    let damaged = |file: &str, from: &str, to: &str| {
        for entry in std::fs::read_dir(root("llava-mistral/model")).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
        }
        let path = copy.path().join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{file}: {from}");
        std::fs::write(&path, text.replace(from, to)).unwrap();
        let model = ModelRef { id: "x".into(), family: Family::LlavaNext, path: copy.path().into() };
        captioner::read(&model).err().unwrap_or_else(|| panic!("{file}: {to}")).to_string()
    };
    for (file, from, to, part) in [
        ("config.json", "\"image_token_index\": 380", "\"image_token_index\": 381", "image_token_index 381"),
        ("config.json", "\"vision_feature_layer\": -2", "\"vision_feature_layer\": -9", "vision_feature_layer is -9"),
        ("config.json", "\"default\"\n}", "\"full\"\n}", "vision_feature_select_strategy is \"full\""),
        ("config.json", "\"silu\"", "\"mish\"", "hidden_act is \"mish\""),
        ("config.json", "\"mistral\"", "\"mamba\"", "model_type is \"mamba\""),
        ("config.json", "\"rope_type\": \"default\"", "\"rope_type\": \"yarn\"", "rope_type is \"yarn\""),
        ("config.json", "\"num_channels\"", "\"num_dreams\"", "num_dreams is 3"),
        ("processor_config.json", "\"do_normalize\": true", "\"do_normalize\": false", "do_normalize is false"),
        ("generation_config.json", "\"eos_token_id\": 2", "\"repetition_penalty\": -1", "repetition_penalty is -1"),
    ] {
        let error = damaged(file, from, to);
        assert!(error.contains(part), "{error}");
    }
}

/// Names and shapes of all tensors that a network asks for: how many, of how many numbers, and a hash of the lines
/// `NAME [SHAPE]`.
fn summary(load: impl FnOnce(&Weights)) -> (usize, i64, String) {
    let weights = Weights::recording();
    load(&weights);
    let shapes = weights.recorded();
    let count = shapes.values().map(|shape| shape.iter().product::<i64>()).sum();
    let mut lines = String::new();
    for (name, shape) in &shapes {
        writeln!(lines, "{name} {shape:?}").unwrap();
    }
    (shapes.len(), count, format!("{:x}", Sha256::digest(lines)))
}

fn reader(value: Value) -> ConfigReader {
    ConfigReader::from_value(Path::new("config.json"), value).unwrap()
}

/// The configurations of the repositories on the hub. Counts and hashes come from transformers 5.23.0, on the meta
/// device, with the hub's names; without what a model holds twice (OPT's and T5's heads and embeddings).
#[test]
fn real_models_have_the_tensors_that_transformers_gives_them() {
    let clip = json!({
        "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "model_type": "clip_vision_model",
        "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768, "vocab_size": 32000,
    });
    let llava = |text: Value| {
        let config = json!({
            "architectures": ["LlavaNextForConditionalGeneration"], "ignore_index": -100, "image_token_index": 32000,
            "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
            "model_type": "llava_next", "projector_hidden_act": "gelu", "text_config": text,
            "tie_word_embeddings": false, "torch_dtype": "float16", "transformers_version": "4.39.0.dev0",
            "use_image_newline_parameter": true, "vision_config": clip, "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default", "vocab_size": 32064,
        });
        summary(|weights| drop(LlavaNext::load(weights, &LlavaNextConfig::take(reader(config)).unwrap()).unwrap()))
    };
    let mistral = json!({
        "_name_or_path": "mistralai/Mistral-7B-Instruct-v0.2", "architectures": ["MistralForCausalLM"],
        "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral",
        "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 1_000_000.0, "sliding_window": null,
        "torch_dtype": "bfloat16", "vocab_size": 32064,
    });
    let vicuna = json!({
        "_name_or_path": "lmsys/vicuna-7b-v1.5", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 4096,
        "model_type": "llama", "pad_token_id": 0, "rms_norm_eps": 1e-05, "torch_dtype": "float16", "vocab_size": 32064,
    });
    let blip2 = |text: Value| {
        let config = json!({
            "architectures": ["Blip2ForConditionalGeneration"], "initializer_factor": 1.0, "initializer_range": 0.02,
            "is_encoder_decoder": false, "model_type": "blip-2", "num_query_tokens": 32, "text_config": text,
            "qformer_config": { "classifier_dropout": null, "model_type": "blip_2_qformer", "vocab_size": 30523 },
            "tie_word_embeddings": false, "torch_dtype": "float32", "use_decoder_only_language_model": true,
            "vision_config": { "dropout": 0.0, "initializer_factor": 1.0, "model_type": "blip_2_vision_model",
                "num_channels": 3, "projection_dim": 512 },
        });
        summary(|weights| drop(Blip2::load(weights, &Blip2Config::take(reader(config)).unwrap()).unwrap()))
    };
    let opt = json!({
        "_name_or_path": "facebook/opt-2.7b", "_remove_final_layer_norm": false, "activation_dropout": 0.0,
        "activation_function": "relu", "architectures": ["OPTForCausalLM"], "attention_dropout": 0.0,
        "bos_token_id": 2, "do_layer_norm_before": true, "dropout": 0.1, "eos_token_id": 50118, "ffn_dim": 10240,
        "hidden_size": 2560, "layerdrop": 0.0, "max_position_embeddings": 2048, "model_type": "opt",
        "num_attention_heads": 32, "num_hidden_layers": 32, "pad_token_id": 1, "prefix": "</s>",
        "torch_dtype": "float16", "use_cache": true, "vocab_size": 50304, "word_embed_proj_dim": 2560,
    });
    let t5 = json!({
        "_name_or_path": "google/flan-t5-xl", "architectures": ["T5ForConditionalGeneration"], "bos_token_id": 1,
        "d_ff": 5120, "d_kv": 64, "d_model": 2048, "decoder_start_token_id": 0, "dense_act_fn": "gelu_new",
        "dropout_rate": 0.1, "eos_token_id": 1, "feed_forward_proj": "gated-gelu", "is_encoder_decoder": true,
        "is_gated_act": true, "layer_norm_epsilon": 1e-06, "model_type": "t5", "num_decoder_layers": 24,
        "num_heads": 32, "num_layers": 24, "output_past": true, "pad_token_id": 0,
        "relative_attention_max_distance": 128, "relative_attention_num_buckets": 32,
        "tie_word_embeddings": false, "torch_dtype": "float32", "use_cache": true, "vocab_size": 32128,
    });
    for (name, found, tensors, numbers, hash) in [
        (
            "llava-v1.6-mistral-7b",
            llava(mistral),
            687,
            7_566_747_648,
            "4ce6106d963e65c38bcfd35fdb9a5c9c831952099f88a33200b398dbd2f9db48",
        ),
        (
            "llava-v1.6-vicuna-7b",
            llava(vicuna),
            687,
            7_063_431_168,
            "54320abe883d53c174935630d710838ea3129afd7ae7558d500f8fde6446bf66",
        ),
        (
            "blip2-opt-2.7b",
            blip2(opt),
            1247,
            3_744_761_856,
            "70f6e0a414c20e93de54f79a1148a9b28497fb10ff0cc59b767fdd523af37347",
        ),
        (
            "blip2-flan-t5-xl",
            blip2(t5),
            1288,
            3_876_648_448,
            "a1d273b39c102ac7abcefd8ed3cad0508da4df8f123e60764318582a7894aa75",
        ),
    ] {
        assert_eq!((found.0, found.1), (tensors, numbers), "{name}: how many");
        assert_eq!(found.2, hash, "{name}: names or shapes");
    }
}

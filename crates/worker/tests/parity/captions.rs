//! Captioning models against transformers: what goes in, hidden states on the way, the scores of every step, and the
//! tokens and texts that are written (`tools/fixtures/worker_captions.py`).

use std::path::{Path, PathBuf};

use atelier_domain::{
    model::Family,
    protocol::{ModelRef, Offload},
};
use atelier_imaging::{Limits, decode};
use atelier_worker::{
    caption::{
        blip2::{
            config::{Blip2Config, TextConfig},
            network::Blip2,
            qformer::QFormer,
            vision::Vision,
        },
        captioner::{self, Captioner, Inputs},
        generate::{CausalLm, Choice, End, generate},
        llava_next::{config::LlavaNextConfig, network::LlavaNext},
        stream::TextSoFar,
    },
    diffusion::pixels::Rgb,
    language_model::T5Seq2Seq,
    pipeline::{Size, stage::settle_blocks},
    torch::{InferenceMode, TorchError},
    vision_encoder::ClipVision,
    weights::Weights,
};
use serde::Deserialize;
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

/// As transformers 5 saves a model, and as the hub's repositories have it.
const LAYOUTS: [&str; 2] = ["model", "hub"];

/// The recording that holds for both layouts of a model.
fn recording(name: &str, layout: &str) -> Fixture {
    Fixture::read(&root(name)).named(&format!("{name}/{layout}"))
}

fn asked(name: &str) -> Vec<Asked> {
    serde_json::from_slice(&std::fs::read(root(name).join("cases.json")).unwrap()).unwrap()
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
fn check(name: &str, layout: &str, family: Family, components: impl Fn(&Fixture, &str, &Inputs)) {
    let _guard = InferenceMode::enter();
    let case = recording(name, layout);
    let captioner = folder(name, layout, family);
    let weights = captioner::open(&*captioner, Device::Cpu, None).unwrap();
    let speaker = captioner.load(&weights).unwrap();
    weights.finish().unwrap();
    for (number, asked) in asked(name).iter().enumerate() {
        let inputs = captioner.prepare(&picture(&root(name).join(&asked.input)), &asked.question).unwrap();
        components(&case, &number.to_string(), &inputs);
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
            case.check_tokens(&format!("{number}.text.{what}"), &tokens, &wanted.ids);
            assert_eq!(captioner.tokenizer().decode(&tokens).unwrap().trim(), wanted.text, "{name} {number}: {what}");
        }
    }
}

fn ids(case: &Fixture, name: &str) -> Vec<i64> {
    Vec::try_from(case.tensor(name).reshape([-1])).unwrap()
}

fn llava(case: &Fixture, number: &str, inputs: &Inputs) {
    assert_eq!(inputs.ids, ids(case, &format!("{number}.in.input_ids")), "{}: the prompt", case.name);
    assert_eq!(inputs.size.to_vec(), ids(case, &format!("{number}.in.image_sizes")));
    case.check(&format!("{number}.in.pixel_values"), &inputs.pixels.unsqueeze(0));
}

#[test]
fn llava_says_what_transformers_says_in_both_layouts() {
    for name in ["llava-mistral", "llava-vicuna"] {
        for layout in LAYOUTS {
            check(name, layout, Family::LlavaNext, llava);
        }
    }
}

fn blip2(case: &Fixture, number: &str, inputs: &Inputs) {
    let name = format!("{number}.in.input_ids");
    if case.has(&name) {
        // transformers counts the picture's places among the tokens.
        assert_eq!(inputs.ids, ids(case, &name)[inputs.before..], "{}: the prompt", case.name);
    }
    case.check(&format!("{number}.in.pixel_values"), &inputs.pixels);
}

#[test]
fn blip2_says_what_transformers_says_in_both_layouts() {
    for name in ["blip2-opt", "blip2-t5"] {
        for layout in LAYOUTS {
            check(name, layout, Family::Blip2, blip2);
        }
    }
}

#[test]
fn qwen2_vl_says_what_transformers_says_in_both_layouts() {
    let _guard = InferenceMode::enter();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vision_language");
    for (name, family) in [
        ("qwen2_vl", Family::Qwen2Vl),
        ("qwen2_vl_hub", Family::Qwen2Vl),
        ("qwen2_5_vl", Family::Qwen25Vl),
        ("qwen2_5_vl_hub", Family::Qwen25Vl),
    ] {
        let case = Fixture::read(&root.join(name.trim_end_matches("_hub"))).named(name);
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
        case.check_tokens("question.0.answer", &tokens, &ids(&case, "question.0.answer"));
        assert_eq!(end, End::Length, "{name}");
    }
}

#[test]
fn llavas_components_compute_what_transformers_computes() {
    let _guard = InferenceMode::enter();
    for (name, layout) in
        ["llava-mistral", "llava-vicuna"].into_iter().flat_map(|name| LAYOUTS.map(|layout| (name, layout)))
    {
        let case = recording(name, layout);
        let captioner = folder(name, layout, Family::LlavaNext);
        let config = LlavaNextConfig::read(&root(name).join(layout)).unwrap();
        let weights = captioner::open(&*captioner, Device::Cpu, None).unwrap();
        let vision = ClipVision::load(&weights.root().at("vision_tower"), &config.vision).unwrap();
        let layers = usize::try_from(config.vision.num_hidden_layers).unwrap();
        let weights = captioner::open(&*captioner, Device::Cpu, None).unwrap();
        let model = LlavaNext::load(&weights, &config).unwrap();
        for (number, asked) in asked(name).iter().enumerate() {
            let pixels = case.tensor(&format!("{number}.in.pixel_values")).squeeze_dim(0);
            let hidden = vision.hidden_states(&pixels, layers).unwrap();
            case.check(&format!("{number}.vision"), &vision.pooled(&hidden).unwrap());
            case.check(&format!("{number}.projected"), &model.project(&pixels).unwrap());
            let inputs = captioner.prepare(&picture(&root(name).join(&asked.input)), &asked.question).unwrap();
            let hidden = model.decoding(&inputs, 1).unwrap().hidden_states().unwrap();
            case.check(&format!("{number}.hidden"), &hidden);
        }
    }
}

#[test]
fn blip2s_components_compute_what_transformers_computes() {
    let _guard = InferenceMode::enter();
    for (name, layout) in ["blip2-opt", "blip2-t5"].into_iter().flat_map(|name| LAYOUTS.map(|layout| (name, layout))) {
        let case = recording(name, layout);
        let captioner = folder(name, layout, Family::Blip2);
        let config = Blip2Config::read(&root(name).join(layout)).unwrap();
        let open = || captioner::open(&*captioner, Device::Cpu, None).unwrap();
        let model = Blip2::load(&open(), &config).unwrap();
        let pixels = case.tensor("0.in.pixel_values");
        let projected = model.encode_picture(&pixels).unwrap();
        case.check("0.projected", &projected);
        let weights = open();
        let scope = weights.root();
        let vision = Vision::load(&scope.at("vision_model"), &config.vision).unwrap();
        let seen = vision.forward(&pixels).unwrap();
        case.check("0.vision", &seen);
        let qformer = QFormer::load(&scope, &config.qformer, config.num_query_tokens).unwrap();
        case.check("0.qformer", &qformer.forward(&seen).unwrap());
        if let TextConfig::T5(text) = &config.text {
            let language = T5Seq2Seq::load(&scope.at("language_model"), text).unwrap();
            let inputs = captioner.prepare(&picture(&root(name).join(&asked(name)[0].input)), "").unwrap();
            let prompt = Tensor::cat(&[&projected, &language.embed(&inputs.ids).unwrap()], 1);
            case.check("0.encoder", &language.encode(&prompt).unwrap());
        }
    }
}

#[test]
fn block_by_block_the_same_is_said() {
    let _guard = InferenceMode::enter();
    for (name, family) in
        [("llava-mistral", Family::LlavaNext), ("blip2-opt", Family::Blip2), ("blip2-t5", Family::Blip2)]
    {
        let asked = asked(name);
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
        let asked = asked(name);
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

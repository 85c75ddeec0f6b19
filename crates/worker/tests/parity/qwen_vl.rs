//! Qwen2-VL and Qwen2.5-VL against transformers, on the tiny models of `tools/fixtures/qwen_vl`; and the lists of
//! tensors of the real ones.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use atelier_worker::{
    nn::config::ConfigReader,
    tokenizer::Tokenizer,
    torch::InferenceMode,
    vision_language::qwen2_vl::{
        ALIASES, Grid, IGNORED, ImageProcessor, Numbering, Patches, Qwen2Vl, Qwen2VlConfig, Use, chat,
    },
    weights::{LoadOptions, Weights, WeightsError},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::fixture::{Fixture, TOLERANCE};

#[derive(Deserialize)]
struct Question {
    text: String,
    sizes: Vec<(usize, usize)>,
    prompt: String,
}

#[derive(Deserialize)]
struct Case {
    questions: Vec<Question>,
    sizes: Vec<(usize, usize)>,
    tokens: usize,
}

/// Of the committed models, or of fresh ones: `tools/fixtures/qwen_vl --seed 42 fresh` and
/// `ATELIER_VISION_LANGUAGE_DIR=$PWD/fresh`.
fn folder(name: &str) -> PathBuf {
    let root = std::env::var_os("ATELIER_VISION_LANGUAGE_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vision_language"), PathBuf::from);
    root.join(name)
}

/// The recording that holds for a folder: the layouts of a model have one.
fn recording(name: &str) -> (Fixture, Case) {
    let folder = folder(name.strip_suffix("_hub").unwrap_or(name));
    let case = serde_json::from_slice(&std::fs::read(folder.join("case.json")).unwrap()).unwrap();
    (Fixture::read(&folder).named(name), case)
}

const FOLDERS: [&str; 4] = ["qwen2_vl", "qwen2_vl_hub", "qwen2_5_vl", "qwen2_5_vl_hub"];

fn open(folder: &Path, kind: Kind) -> Weights {
    let options = LoadOptions::new(Device::Cpu, kind).with_aliases(ALIASES).with_ignored(IGNORED);
    Weights::open_folder(folder, "model", &options).unwrap()
}

fn load(folder: &Path, usage: Use) -> Qwen2Vl {
    let weights = open(folder, Kind::Float);
    let model = Qwen2Vl::load(&weights, &Qwen2VlConfig::open(folder).unwrap(), usage).unwrap();
    weights.finish().unwrap();
    model
}

/// As `picture` in `tools/fixtures/qwen_vl`.
fn picture((width, height): (usize, usize)) -> Vec<u8> {
    let sample = |x: usize, y: usize, c: usize| (3 * x * x + 7 * y * (c + 1) + x * y + 50 * c) % 256;
    (0..height)
        .flat_map(|y| (0..width).flat_map(move |x| (0..3).map(move |c| u8::try_from(sample(x, y, c)).unwrap())))
        .collect()
}

fn patches(processor: &ImageProcessor, sizes: &[(usize, usize)]) -> Patches {
    let cut = |&size: &(usize, usize)| processor.patches(&picture(size), size.0, size.1).unwrap();
    Patches::join(&sizes.iter().map(cut).collect::<Vec<_>>()).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<i64> {
    Vec::try_from(tensor.to_kind(Kind::Int64).contiguous().view([-1])).unwrap()
}

fn grids(tensor: &Tensor) -> Vec<Grid> {
    numbers(tensor).chunks(3).map(|row| Grid { time: row[0], height: row[1], width: row[2] }).collect()
}

/// The prompt's tokens, as transformers' processor makes them.
fn ids(folder: &Path, config: &Qwen2VlConfig, prompt: &str, patches: &Patches) -> Vec<i64> {
    let plain = Tokenizer::open(folder).unwrap().encode(prompt).unwrap();
    let tokens: Vec<i64> = patches.grids.iter().map(|grid| grid.tokens(&config.vision)).collect();
    chat::spread(&plain, config.image_token_id, &tokens).unwrap()
}

fn token(logits: &Tensor) -> i64 {
    logits.argmax(-1, false).int64_value(&[])
}

#[test]
fn pictures_are_cut_as_transformers_cuts_them() {
    let (case, texts) = recording("qwen2_5_vl");
    for layout in ["qwen2_5_vl", "qwen2_5_vl_hub"] {
        let processor = ImageProcessor::open(&folder(layout)).unwrap();
        for (index, size) in texts.sizes.iter().enumerate() {
            let patches = patches(&processor, &[*size]);
            assert_eq!(patches.grids, grids(&case.tensor(&format!("sizes.{index}.grid"))), "{size:?}");
            let count = patches.grids[0].patches();
            let moments = patches.values.view([count, 3, 2, processor.patch_size * processor.patch_size]);
            let name = format!("sizes.{index}.pixels");
            case.check(&name, &moments.select(2, 0));
            assert_eq!(moments.select(2, 0), moments.select(2, 1), "a still is the same in both moments");
        }
    }
    for name in FOLDERS {
        let (case, texts) = recording(name);
        let processor = ImageProcessor::open(&folder(name)).unwrap();
        case.check("question.0.in.pixel_values", &patches(&processor, &texts.questions[0].sizes).values);
    }
}

#[test]
fn the_vision_towers_see_what_transformers_sees() {
    let _guard = InferenceMode::enter();
    for name in FOLDERS {
        let (case, texts) = recording(name);
        let model = load(&folder(name), Use::Pictures);
        let processor = ImageProcessor::open(&folder(name)).unwrap();
        assert!(processor.fits(&model.config().vision), "{name}");
        for (number, question) in texts.questions.iter().enumerate() {
            let seen = model.see(&patches(&processor, &question.sizes)).unwrap();
            case.check(&format!("question.{number}.visual.last_hidden"), &seen.last_hidden);
            case.check(&format!("question.{number}.visual.merged"), &seen.merged);
        }
    }
}

#[test]
fn questions_about_pictures_become_the_tokens_and_hidden_states_of_transformers() {
    let _guard = InferenceMode::enter();
    for name in FOLDERS {
        let (case, texts) = recording(name);
        let model = load(&folder(name), Use::Pictures);
        let processor = ImageProcessor::open(&folder(name)).unwrap();
        for (number, question) in texts.questions.iter().enumerate() {
            let prompt = chat::question(chat::SYSTEM, question.sizes.len(), &question.text);
            assert_eq!(prompt, question.prompt);
            let patches = patches(&processor, &question.sizes);
            let ids = Tensor::from_slice(&ids(&folder(name), model.config(), &prompt, &patches)).unsqueeze(0);
            assert_eq!(ids, case.tensor(&format!("question.{number}.in.input_ids")), "{name}");
            let states = |numbering| model.hidden_states(&ids, None, Some(&patches), numbering).unwrap();
            case.check(&format!("question.{number}.hidden"), &states(Numbering::Axes));
            let sequence = format!("question.{number}.hidden_in_sequence");
            if case.has(&sequence) {
                case.check(&sequence, &states(Numbering::Sequence));
            }
        }
    }
}

#[test]
fn texts_and_rows_with_padding_have_the_hidden_states_of_transformers() {
    let _guard = InferenceMode::enter();
    for name in FOLDERS {
        let (case, _) = recording(name);
        let folder = folder(name);
        let (ids, mask) = (case.tensor("texts.in.input_ids"), case.tensor("texts.in.attention_mask"));
        // Without its vision tower, the model reads texts all the same.
        for usage in [Use::Text, Use::Answers] {
            let hidden = load(&folder, usage).hidden_states(&ids, Some(&mask), None, Numbering::Axes).unwrap();
            check_shown(&case, "texts.hidden", &hidden, &mask);
        }
        let (ids, mask) = (case.tensor("rows.in.input_ids"), case.tensor("rows.in.attention_mask"));
        let patches = patches(&ImageProcessor::open(&folder).unwrap(), &[(28, 42), (50, 31)]);
        assert_eq!(patches.grids, grids(&case.tensor("rows.in.image_grid_thw")));
        let model = load(&folder, Use::Pictures);
        let hidden = model.hidden_states(&ids, Some(&mask), Some(&patches), Numbering::Axes).unwrap();
        check_shown(&case, "rows.hidden", &hidden, &mask);
    }
}

/// What stands where the mask is 0 is nothing that anyone reads.
fn check_shown(case: &Fixture, name: &str, got: &Tensor, mask: &Tensor) {
    assert!(mask.min().int64_value(&[]) == 0, "{name}: nothing is masked");
    let shown = mask.unsqueeze(-1);
    case.compare(name, &(got * &shown), &(case.tensor(name) * shown), TOLERANCE);
}

#[test]
fn answers_are_those_of_transformers_token_by_token() {
    let _guard = InferenceMode::enter();
    for name in FOLDERS {
        let (case, texts) = recording(name);
        let model = load(&folder(name), Use::Answers);
        let processor = ImageProcessor::open(&folder(name)).unwrap();
        for (number, question) in texts.questions.iter().enumerate() {
            let patches = patches(&processor, &question.sizes);
            let mut ids = numbers(&case.tensor(&format!("question.{number}.in.input_ids")));
            let wanted = numbers(&case.tensor(&format!("question.{number}.answer")));
            assert_eq!(wanted.len(), texts.tokens);
            let (mut decoding, logits) = model.begin(&ids, Some(&patches), wanted.len()).unwrap();
            case.check(&format!("question.{number}.logits"), &logits.unsqueeze(0));
            let mut all = vec![logits];
            let mut answer = vec![token(&all[0])];
            while answer.len() < wanted.len() {
                let logits = model.next(&mut decoding, *answer.last().unwrap()).unwrap();
                answer.push(token(&logits));
                all.push(logits);
            }
            case.check_tokens(&format!("question.{number}.answer"), &answer, &wanted);
            case.check(&format!("question.{number}.answer_logits"), &Tensor::stack(&all, 0));

            // After a restart: the prompt and the tokens so far at once.
            ids.extend_from_slice(&answer[..5]);
            let (mut decoding, logits) = model.begin(&ids, Some(&patches), wanted.len()).unwrap();
            assert_eq!(token(&logits), answer[5]);
            let logits = model.next(&mut decoding, answer[5]).unwrap();
            case.compare(&format!("question.{number} after a restart"), &logits, &all[6], TOLERANCE);
        }
    }
}

#[test]
fn both_networks_may_lie_in_model() {
    let _guard = InferenceMode::enter();
    let (case, texts) = recording("qwen2_5_vl");
    let source = folder("qwen2_5_vl");
    let target = tempfile::tempdir().unwrap();
    let tensors = Tensor::read_safetensors(source.join("model.safetensors")).unwrap();
    let renamed: Vec<(String, Tensor)> = tensors
        .into_iter()
        .map(|(name, tensor)| match name.strip_prefix("model.") {
            Some(rest) => (format!("model.language_model.{rest}"), tensor),
            None if name.starts_with("visual.") => (format!("model.{name}"), tensor),
            None => (name, tensor),
        })
        .collect();
    let written: Vec<(&str, &Tensor)> = renamed.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    Tensor::write_safetensors(&written, target.path().join("model.safetensors")).unwrap();
    std::fs::copy(source.join("config.json"), target.path().join("config.json")).unwrap();
    let model = load(target.path(), Use::Answers);
    let patches = patches(&ImageProcessor::open(&source).unwrap(), &texts.questions[0].sizes);
    let ids = case.tensor("question.0.in.input_ids");
    let hidden = model.hidden_states(&ids, None, Some(&patches), Numbering::Axes).unwrap();
    case.check("question.0.hidden", &hidden);
}

#[test]
fn half_of_the_bits_are_near_all_of_them() {
    let _guard = InferenceMode::enter();
    for name in ["qwen2_vl", "qwen2_5_vl"] {
        let (case, texts) = recording(name);
        let weights = open(&folder(name), Kind::BFloat16);
        let config = Qwen2VlConfig::open(&folder(name)).unwrap();
        let model = Qwen2Vl::load(&weights, &config, Use::Pictures).unwrap();
        weights.finish().unwrap();
        let patches = patches(&ImageProcessor::open(&folder(name)).unwrap(), &texts.questions[0].sizes);
        let seen = model.see(&patches).unwrap();
        assert_eq!(seen.merged.kind(), Kind::BFloat16);
        // 8 bits of mantissa, through a few layers.
        case.compare("merged in bf16", &seen.merged, &case.tensor("question.0.visual.merged"), 0.05);
        let ids = case.tensor("question.0.in.input_ids");
        let hidden = model.hidden_states(&ids, None, Some(&patches), Numbering::Axes).unwrap();
        assert_eq!(hidden.kind(), Kind::BFloat16);
    }
}

#[test]
fn what_does_not_fit_is_an_error_and_says_what() {
    let _guard = InferenceMode::enter();
    let (case, texts) = recording("qwen2_5_vl");
    let source = folder("qwen2_5_vl");
    let model = load(&source, Use::Pictures);
    let processor = ImageProcessor::open(&source).unwrap();
    let patches = patches(&processor, &texts.questions[0].sizes);
    let ids = case.tensor("question.0.in.input_ids");
    let short = ids.narrow(1, 0, 24);
    for (numbering, part) in [
        (Numbering::Axes, "4 places in a row for a picture of 8 tokens"),
        (Numbering::Sequence, "4 places for the pictures' 8 tokens"),
    ] {
        let error = model.hidden_states(&short, None, Some(&patches), numbering).expect_err(part).to_string();
        assert!(error.contains(part), "{error}");
    }
    let none = Tensor::from_slice(&[1_i64, 2]).unsqueeze(0);
    let none = model.hidden_states(&none, None, Some(&patches), Numbering::Axes).expect_err("no place");
    assert!(none.to_string().contains("0 places for the pictures' 8 tokens"), "{none}");
    let unknown = Tensor::from_slice(&[1_i64, 9999]).unsqueeze(0);
    let unknown = model.hidden_states(&unknown, None, None, Numbering::Axes).expect_err("an unknown token");
    assert!(unknown.to_string().contains("token 9999"), "{unknown}");
    let wrong = Patches { values: patches.values.shallow_clone(), grids: vec![Grid { time: 1, height: 2, width: 2 }] };
    let wrong = model.see(&wrong).expect_err("another grid");
    assert!(wrong.to_string().contains("patches are not the 4"), "{wrong}");
    let mute = model.begin(&[1, 2], None, 1).expect_err("no output layer");
    assert!(mute.to_string().contains("without its output layer"), "{mute}");
    let blind = load(&source, Use::Text).see(&patches).expect_err("no vision tower");
    assert!(blind.to_string().contains("without its vision tower"), "{blind}");

    // A file without the output layer is whole for an encoder, and not for a model that answers.
    let target = tempfile::tempdir().unwrap();
    let mut tensors = Tensor::read_safetensors(source.join("model.safetensors")).unwrap();
    tensors.retain(|(name, _)| name != "lm_head.weight");
    let written: Vec<(&str, &Tensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    Tensor::write_safetensors(&written, target.path().join("model.safetensors")).unwrap();
    std::fs::copy(source.join("config.json"), target.path().join("config.json")).unwrap();
    load(target.path(), Use::Pictures);
    let weights = open(target.path(), Kind::Float);
    Qwen2Vl::load(&weights, &Qwen2VlConfig::open(target.path()).unwrap(), Use::Answers).unwrap();
    let error = weights.finish().expect_err("no output layer");
    assert!(
        matches!(&error, WeightsError::Mismatch { mismatch, .. } if mismatch.missing == ["lm_head.weight"]),
        "{error}"
    );
}

type Shapes = BTreeMap<String, Vec<i64>>;
type Named = &'static [(&'static str, &'static [i64])];

fn tensors_of(config: Value, usage: Use) -> Shapes {
    let reader = ConfigReader::from_value(Path::new("config.json"), config).unwrap();
    let weights = Weights::recording();
    Qwen2Vl::load(&weights, &Qwen2VlConfig::read(reader).unwrap(), usage).unwrap();
    weights.recorded()
}

/// `text_encoder/config.json` of Qwen-Image and Qwen-Image-Edit, which is Qwen2.5-VL-7B-Instruct's, saved by
/// transformers 4.53.1.
fn qwen_image() -> Value {
    let text = json!({
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": 151_643,
        "eos_token_id": 151_645,
        "hidden_act": "silu",
        "hidden_size": 3584,
        "image_token_id": null,
        "initializer_range": 0.02,
        "intermediate_size": 18944,
        "layer_types": vec!["full_attention"; 28],
        "max_position_embeddings": 128_000,
        "max_window_layers": 28,
        "model_type": "qwen2_5_vl_text",
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"mrope_section": [16, 24, 24], "rope_type": "default", "type": "default"},
        "rope_theta": 1_000_000.0,
        "sliding_window": null,
        "torch_dtype": "float32",
        "use_cache": true,
        "use_sliding_window": false,
        "video_token_id": null,
        "vision_end_token_id": 151_653,
        "vision_start_token_id": 151_652,
        "vision_token_id": 151_654,
        "vocab_size": 152_064,
    });
    let vision = json!({
        "depth": 32,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "hidden_act": "silu",
        "hidden_size": 1280,
        "in_channels": 3,
        "in_chans": 3,
        "initializer_range": 0.02,
        "intermediate_size": 3420,
        "model_type": "qwen2_5_vl",
        "num_heads": 16,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
        "tokens_per_second": 2,
        "torch_dtype": "float32",
        "window_size": 112,
    });
    let mut whole = text.clone();
    let map = whole.as_object_mut().unwrap();
    map.remove("layer_types");
    map.extend([
        ("image_token_id".to_owned(), json!(151_655)),
        ("video_token_id".to_owned(), json!(151_656)),
        ("model_type".to_owned(), json!("qwen2_5_vl")),
        ("sliding_window".to_owned(), json!(32768)),
        ("tie_word_embeddings".to_owned(), json!(false)),
        ("torch_dtype".to_owned(), json!("bfloat16")),
        ("transformers_version".to_owned(), json!("4.53.1")),
        ("text_config".to_owned(), text),
        ("vision_config".to_owned(), vision),
    ]);
    whole
}

/// `config.json` of Qwen2-VL-2B-Instruct, as the notes and transformers' defaults have its numbers.
fn qwen2_vl_2b() -> Value {
    json!({
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": 151_643,
        "eos_token_id": 151_645,
        "vision_start_token_id": 151_652,
        "vision_end_token_id": 151_653,
        "vision_token_id": 151_654,
        "image_token_id": 151_655,
        "video_token_id": 151_656,
        "hidden_act": "silu",
        "hidden_size": 1536,
        "initializer_range": 0.02,
        "intermediate_size": 8960,
        "max_position_embeddings": 32768,
        "max_window_layers": 28,
        "model_type": "qwen2_vl",
        "num_attention_heads": 12,
        "num_hidden_layers": 28,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1_000_000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": true,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.2",
        "use_cache": true,
        "use_sliding_window": false,
        "vision_config": {
            "depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "in_chans": 3, "hidden_size": 1536,
            "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14, "temporal_patch_size": 2
        },
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vocab_size": 151_936,
    })
}

/// Names with their shapes: those of `count` blocks below `prefix`, then others.
fn expected(blocks: &[(&str, usize, Named)], others: Named) -> Shapes {
    let of_blocks = blocks.iter().flat_map(|(prefix, count, tensors)| {
        (0..*count).flat_map(move |index| {
            tensors.iter().map(move |(name, shape)| (format!("{prefix}.{index}.{name}"), shape.to_vec()))
        })
    });
    of_blocks.chain(others.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec()))).collect()
}

#[test]
fn the_text_encoder_of_qwen_image_has_these_tensors() {
    let layer: Named = &[
        ("input_layernorm.weight", &[3584]),
        ("mlp.down_proj.weight", &[3584, 18944]),
        ("mlp.gate_proj.weight", &[18944, 3584]),
        ("mlp.up_proj.weight", &[18944, 3584]),
        ("post_attention_layernorm.weight", &[3584]),
        ("self_attn.k_proj.bias", &[512]),
        ("self_attn.k_proj.weight", &[512, 3584]),
        ("self_attn.o_proj.weight", &[3584, 3584]),
        ("self_attn.q_proj.bias", &[3584]),
        ("self_attn.q_proj.weight", &[3584, 3584]),
        ("self_attn.v_proj.bias", &[512]),
        ("self_attn.v_proj.weight", &[512, 3584]),
    ];
    let block: Named = &[
        ("attn.proj.bias", &[1280]),
        ("attn.proj.weight", &[1280, 1280]),
        ("attn.qkv.bias", &[3840]),
        ("attn.qkv.weight", &[3840, 1280]),
        ("mlp.down_proj.bias", &[1280]),
        ("mlp.down_proj.weight", &[1280, 3420]),
        ("mlp.gate_proj.bias", &[3420]),
        ("mlp.gate_proj.weight", &[3420, 1280]),
        ("mlp.up_proj.bias", &[3420]),
        ("mlp.up_proj.weight", &[3420, 1280]),
        ("norm1.weight", &[1280]),
        ("norm2.weight", &[1280]),
    ];
    let others: Named = &[
        ("lm_head.weight", &[152_064, 3584]),
        ("model.embed_tokens.weight", &[152_064, 3584]),
        ("model.norm.weight", &[3584]),
        ("visual.merger.ln_q.weight", &[1280]),
        ("visual.merger.mlp.0.bias", &[5120]),
        ("visual.merger.mlp.0.weight", &[5120, 5120]),
        ("visual.merger.mlp.2.bias", &[3584]),
        ("visual.merger.mlp.2.weight", &[3584, 5120]),
        ("visual.patch_embed.proj.weight", &[1280, 3, 2, 14, 14]),
    ];
    let mut wanted = expected(&[("model.layers", 28, layer), ("visual.blocks", 32, block)], others);
    assert_eq!(tensors_of(qwen_image(), Use::Answers), wanted);
    let parameters: i64 = wanted.values().map(|shape| shape.iter().product::<i64>()).sum();
    // As model.safetensors.index.json says of the real one: 16 584 333 312 bytes in bfloat16.
    assert_eq!(2 * parameters, 16_584_333_312);
    wanted.remove("lm_head.weight");
    assert_eq!(tensors_of(qwen_image(), Use::Pictures), wanted);
    wanted.retain(|name, _| !name.starts_with("visual."));
    assert_eq!(tensors_of(qwen_image(), Use::Text), wanted);
}

#[test]
fn qwen2_vl_2b_has_these_tensors() {
    let layer: Named = &[
        ("input_layernorm.weight", &[1536]),
        ("mlp.down_proj.weight", &[1536, 8960]),
        ("mlp.gate_proj.weight", &[8960, 1536]),
        ("mlp.up_proj.weight", &[8960, 1536]),
        ("post_attention_layernorm.weight", &[1536]),
        ("self_attn.k_proj.bias", &[256]),
        ("self_attn.k_proj.weight", &[256, 1536]),
        ("self_attn.o_proj.weight", &[1536, 1536]),
        ("self_attn.q_proj.bias", &[1536]),
        ("self_attn.q_proj.weight", &[1536, 1536]),
        ("self_attn.v_proj.bias", &[256]),
        ("self_attn.v_proj.weight", &[256, 1536]),
    ];
    let block: Named = &[
        ("attn.proj.bias", &[1280]),
        ("attn.proj.weight", &[1280, 1280]),
        ("attn.qkv.bias", &[3840]),
        ("attn.qkv.weight", &[3840, 1280]),
        ("mlp.fc1.bias", &[5120]),
        ("mlp.fc1.weight", &[5120, 1280]),
        ("mlp.fc2.bias", &[1280]),
        ("mlp.fc2.weight", &[1280, 5120]),
        ("norm1.bias", &[1280]),
        ("norm1.weight", &[1280]),
        ("norm2.bias", &[1280]),
        ("norm2.weight", &[1280]),
    ];
    let others: Named = &[
        ("model.embed_tokens.weight", &[151_936, 1536]),
        ("model.norm.weight", &[1536]),
        ("visual.merger.ln_q.bias", &[1280]),
        ("visual.merger.ln_q.weight", &[1280]),
        ("visual.merger.mlp.0.bias", &[5120]),
        ("visual.merger.mlp.0.weight", &[5120, 5120]),
        ("visual.merger.mlp.2.bias", &[1536]),
        ("visual.merger.mlp.2.weight", &[1536, 5120]),
        ("visual.patch_embed.proj.weight", &[1280, 3, 2, 14, 14]),
    ];
    // The output layer is the embedding.
    let wanted = expected(&[("model.layers", 28, layer), ("visual.blocks", 32, block)], others);
    assert_eq!(tensors_of(qwen2_vl_2b(), Use::Answers), wanted);
    let parameters: i64 = wanted.values().map(|shape| shape.iter().product::<i64>()).sum();
    // As the model's page says of the real one.
    assert_eq!(parameters, 2_208_985_600);
}

//! Prompts in windows, with weights, through a text encoder.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

use atelier_worker::{
    prompt::{HiddenState, LongPrompt, PromptOptions, Windows, encode},
    text_encoder::{ClipText, ClipTextConfig, clip},
    tokenizer::Tokenizer,
    torch::InferenceMode,
    weights::{LoadOptions, Weights},
};
use tch::{Kind, Tensor};

const PLAIN: PromptOptions = PromptOptions { weighting: false, long: LongPrompt::Windows };
const WEIGHTED: PromptOptions = PromptOptions { weighting: true, long: LongPrompt::Windows };
const CUT: PromptOptions = PromptOptions { weighting: false, long: LongPrompt::Cut };

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn tokenizer() -> Tokenizer {
    Tokenizer::open(&fixtures().join("tokenizers/clip-files-pad-0")).unwrap()
}

/// What the windows say, without what stands around and after the text.
fn texts(tokenizer: &Tokenizer, windows: &Windows) -> Vec<Vec<String>> {
    let (start, end) = (tokenizer.prefix()[0], tokenizer.suffix()[0]);
    let text = |row: &Vec<i64>| {
        assert_eq!(row[0], start);
        let last = row.iter().position(|&id| id == end).expect("an end");
        assert!(row[last + 1..].iter().all(|&id| id == tokenizer.pad_id()));
        row[1..last].iter().map(|&id| tokenizer.token(id).unwrap()).collect()
    };
    windows.ids().iter().map(text).collect()
}

#[test]
fn a_prompt_that_fits_is_what_the_tokenizer_pads_and_nothing_else() {
    let tokenizer = tokenizer();
    for prompt in ["", "a painting of (a squirrel:1.5)", "black and white"] {
        let windows = Windows::of(&tokenizer, prompt, 40, PLAIN).unwrap();
        assert_eq!(windows.ids(), [tokenizer.encode_to(prompt, 40).unwrap().ids], "{prompt}");
        assert!(!windows.is_weighted() && windows.dropped() == 0);
    }
}

#[test]
fn a_long_prompt_fills_windows_that_end_at_commas_or_words() {
    let tokenizer = tokenizer();
    let prompt = "a painting of a squirrel, eating a burger, black and white, ".repeat(5);
    let whole = tokenizer.encode_plain(&prompt).unwrap();
    let windows = Windows::of(&tokenizer, &prompt, 32, PLAIN).unwrap();
    let texts = texts(&tokenizer, &windows);
    assert_eq!((windows.tokens(), windows.dropped()), (whole.len(), 0));
    assert!(windows.count() > 2 && windows.count() == texts.len());
    let all: Vec<String> = whole.iter().map(|&id| tokenizer.token(id).unwrap()).collect();
    assert_eq!(texts.concat(), all, "nothing is lost, doubled or out of order");
    for text in &texts {
        assert!(text.len() <= 30);
        assert_eq!(text.last().unwrap(), ",</w>");
    }

    let words = "painting squirrel burger ".repeat(12);
    for text in &self::texts(&tokenizer, &Windows::of(&tokenizer, &words, 12, PLAIN).unwrap()) {
        assert!(text.len() <= 10 && text.last().unwrap().ends_with("</w>"), "{text:?}");
    }
    let one_word = self::texts(&tokenizer, &Windows::of(&tokenizer, &"q".repeat(60), 42, PLAIN).unwrap());
    assert_eq!(one_word.iter().map(Vec::len).sum::<usize>(), 60);
    assert_eq!(one_word[0].len(), 40, "a word without end fills the window");
}

#[test]
fn a_prompt_that_is_cut_is_what_diffusers_makes_of_it_and_the_rest_is_counted() {
    let tokenizer = tokenizer();
    let prompt = "a painting of a squirrel eating a burger ".repeat(6);
    let encoded = tokenizer.encode_to(&prompt, 20).unwrap();
    let windows = Windows::of(&tokenizer, &prompt, 20, CUT).unwrap();
    assert_eq!((windows.ids(), windows.dropped()), (&[encoded.ids][..], encoded.dropped));
    assert_eq!(windows.dropped(), windows.tokens() - 18);
    assert!(Windows::of(&tokenizer, &prompt, 2, CUT).is_err());
}

#[test]
fn weights_stand_beside_their_tokens() {
    let tokenizer = tokenizer();
    let plain = Windows::of(&tokenizer, "a painting of a squirrel", 20, PLAIN).unwrap();
    let weighted = Windows::of(&tokenizer, "a (painting:1.5) of [a] squirrel", 20, WEIGHTED).unwrap();
    assert_eq!(weighted.ids(), plain.ids());
    assert!(weighted.is_weighted());
    let weights = &weighted.weights()[0];
    let painting = tokenizer.encode_plain("painting").unwrap().len();
    assert_eq!(weights[..2], [1.0, 1.0]);
    assert_eq!(weights[2..2 + painting], vec![1.5; painting]);
    assert_eq!(weights[2 + painting..4 + painting], [1.0, 0.909_090_94]);
    assert!(weights[4 + painting..].iter().all(|&weight| (weight - 1.0).abs() < f32::EPSILON));
    let escaped = Windows::of(&tokenizer, r"\(a\)", 20, WEIGHTED).unwrap();
    assert_eq!(escaped.ids(), Windows::of(&tokenizer, "(a)", 20, PLAIN).unwrap().ids());
    assert!(!escaped.is_weighted());
}

#[test]
fn empty_windows_make_up_for_a_shorter_negative_prompt() {
    let tokenizer = tokenizer();
    let mut windows = Windows::of(&tokenizer, "blurry", 12, PLAIN).unwrap();
    windows.pad_to(&tokenizer, 3);
    assert_eq!(windows.count(), 3);
    let empty = Windows::of(&tokenizer, "", 12, PLAIN).unwrap();
    assert_eq!(windows.ids()[1..], [empty.ids()[0].clone(), empty.ids()[0].clone()]);
    windows.pad_to(&tokenizer, 2);
    assert_eq!(windows.count(), 3);
}

fn encoder(name: &str) -> ClipText {
    let folder = fixtures().join("text_encoders").join(name).join("text_encoder");
    let options = LoadOptions::cpu().with_aliases(clip::ALIASES);
    let weights = Weights::open_folder(&folder, "model", &options).unwrap();
    let model =
        ClipText::load(&weights, &ClipTextConfig::read(&folder).unwrap(), name.ends_with("projection")).unwrap();
    weights.finish().unwrap();
    model
}

/// A tokenizer whose every token the tiny encoder has: 88 and 89 are its start and end.
fn small_tokenizer(folder: &Path) -> Tokenizer {
    let mut vocab: serde_json::Map<String, serde_json::Value> =
        ('a'..='z').zip(0..).map(|(letter, id)| (format!("{letter}</w>"), id.into())).collect();
    vocab.insert(",</w>".into(), 26.into());
    vocab.insert("<|startoftext|>".into(), 88.into());
    vocab.insert("<|endoftext|>".into(), 89.into());
    std::fs::write(folder.join("vocab.json"), serde_json::to_string(&vocab).unwrap()).unwrap();
    std::fs::write(folder.join("merges.txt"), "#version: 0.2\n").unwrap();
    Tokenizer::open(folder).unwrap()
}

fn difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a - b).abs().max().double_value(&[])
}

#[test]
fn a_prompts_windows_become_one_sequence_of_hidden_states() {
    let _guard = InferenceMode::enter();
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = small_tokenizer(folder.path());
    let encoder = encoder("clip-projection");
    let windows = Windows::of(&tokenizer, "a b c d, e f g h i j k l m n o p q r s t, u v w x y z", 20, PLAIN).unwrap();
    assert_eq!(windows.count(), 2);
    let embeds = encode(&encoder, &windows, HiddenState::Skip(1)).unwrap();
    assert_eq!(embeds.embeds.size(), [1, 40, 24]);
    let alone = |row: &[i64]| encoder.forward(&Tensor::from_slice(row).unsqueeze(0)).unwrap();
    for (at, row) in (0..).zip(windows.ids()) {
        let alone = alone(row);
        let penultimate = &alone.hidden[alone.hidden.len() - 2];
        assert!(difference(&embeds.embeds.narrow(1, at * 20, 20), penultimate) < 1e-5);
    }
    let first = alone(&windows.ids()[0]);
    assert!(difference(&embeds.pooled, &first.projected.unwrap()) < 1e-5);

    let last = encode(&encoder, &windows, HiddenState::Last).unwrap().embeds;
    assert!(difference(&last.narrow(1, 0, 20), &first.last_hidden) < 1e-5);
    let normed = encode(&encoder, &windows, HiddenState::SkipNormed(0)).unwrap().embeds;
    assert!(difference(&normed, &last) < 1e-6);
    assert!(encode(&encoder, &windows, HiddenState::Skip(3)).is_err());
}

#[test]
fn weights_scale_hidden_states_and_keep_their_mean() {
    let _guard = InferenceMode::enter();
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = small_tokenizer(folder.path());
    let encoder = encoder("clip");
    let embed = |prompt: &str, options| {
        let windows = Windows::of(&tokenizer, prompt, 20, options).unwrap();
        encode(&encoder, &windows, HiddenState::Last).unwrap().embeds
    };
    let plain = embed("a b c", PLAIN);
    assert_eq!(embed("a b c", WEIGHTED), plain);
    assert_eq!(embed("a (b:1.0) c", WEIGHTED), plain);
    let weighted = embed("a (b:1.5) c", WEIGHTED);
    let mean = |tensor: &Tensor| tensor.mean(Kind::Double).double_value(&[]);
    assert!((mean(&weighted) - mean(&plain)).abs() < 1e-6);
    // The word's states, by half more than the others'.
    let ratio = |position: i64| {
        (weighted.get(0).get(position) / plain.get(0).get(position)).mean(Kind::Double).double_value(&[])
    };
    assert!((ratio(2) / ratio(1) - 1.5).abs() < 1e-4, "{} {}", ratio(2), ratio(1));
    assert!((ratio(3) / ratio(1) - 1.0).abs() < 1e-4);
}

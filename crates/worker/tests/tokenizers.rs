//! Tokenizers against what transformers made of the same strings (`tools/fixtures/worker_tokenizers.py`).
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use atelier_worker::tokenizer::{Class, Encoded, MOST_CHARACTERS, Tokenizer, TokenizerError};
use serde::Deserialize;

#[derive(Deserialize)]
struct Expected {
    strings: Vec<String>,
    ids: BTreeMap<String, Ids>,
}

#[derive(Deserialize)]
struct Ids {
    whole: Vec<Vec<i64>>,
    padded_to_20: Vec<Vec<i64>>,
    mask_of_20: Vec<Vec<i64>>,
    pad_id: i64,
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizers").join(name)
}

fn expected() -> Expected {
    serde_json::from_slice(&fs::read(folder("expected.json")).unwrap()).unwrap()
}

fn open(name: &str) -> Tokenizer {
    Tokenizer::open(&folder(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// A copy of a tokenizer's folder, to be damaged.
fn copy(name: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for file in fs::read_dir(folder(name)).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
    }
    copy
}

#[test]
fn every_string_becomes_the_ids_that_transformers_gives() {
    let expected = expected();
    assert_eq!(expected.ids.len(), 8);
    assert!(expected.strings.len() > 50);
    for (name, ids) in &expected.ids {
        let tokenizer = open(name);
        for (text, whole) in expected.strings.iter().zip(&ids.whole) {
            assert_eq!(&tokenizer.encode(text).unwrap(), whole, "{name}: {text:?}");
        }
    }
}

#[test]
fn a_text_is_padded_and_cut_as_transformers_does_and_what_is_cut_is_counted() {
    let expected = expected();
    for (name, ids) in &expected.ids {
        let tokenizer = open(name);
        assert_eq!(tokenizer.pad_id(), ids.pad_id, "{name}");
        for (i, text) in expected.strings.iter().enumerate() {
            let Encoded { ids: got, mask, dropped } = tokenizer.encode_to(text, 20).unwrap();
            assert_eq!(got, ids.padded_to_20[i], "{name}: {text:?}");
            assert_eq!(mask, ids.mask_of_20[i], "{name}: {text:?}");
            assert_eq!(dropped, ids.whole[i].len().saturating_sub(20), "{name}: {text:?}");
        }
    }
}

#[test]
fn a_folder_says_what_stands_around_a_text_and_how_long_it_may_be() {
    let clip = open("clip-files");
    assert_eq!((clip.class(), clip.max_length()), (Class::Clip, Some(77)));
    assert_eq!(clip.prefix(), [clip.token_id("<|startoftext|>").unwrap()]);
    assert_eq!(clip.suffix(), [clip.token_id("<|endoftext|>").unwrap()]);
    let t5 = open("t5");
    assert_eq!((t5.class(), t5.max_length(), t5.prefix(), t5.suffix()), (Class::T5, Some(512), &[][..], &[1][..]));
    let qwen = open("qwen2-files");
    assert_eq!((qwen.class(), qwen.prefix(), qwen.suffix()), (Class::Qwen2, &[][..], &[][..]));
    let llama = open("llama");
    assert_eq!((llama.class(), llama.prefix(), llama.suffix()), (Class::Llama, &[][..], &[][..]));
    let right = open("llama-right");
    assert_eq!((right.class(), right.prefix(), right.suffix()), (Class::Llama, &[][..], &[2][..]));
}

#[test]
fn what_makes_no_tokenizer_is_named() {
    let check = |folder: &Path, parts: &[&str]| {
        let error = Tokenizer::open(folder).err().expect("no tokenizer").to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    };
    let empty = tempfile::tempdir().unwrap();
    check(empty.path(), &["tokenizer.json", "vocab.json", "merges.txt"]);
    fs::write(empty.path().join("spiece.model"), "x").unwrap();
    check(empty.path(), &["spiece.model alone"]);
    fs::write(empty.path().join("tokenizer.json"), "{\"version\":").unwrap();
    check(empty.path(), &["tokenizer.json: "]);
    fs::write(empty.path().join("tokenizer.json"), "{\"model\": 1}").unwrap();
    check(empty.path(), &["tokenizer.json: not a tokenizer"]);

    let files = copy("clip-files");
    fs::write(files.path().join("merges.txt"), "#version: 0.2\na b\na b c\n").unwrap();
    check(files.path(), &["merges.txt: line 3"]);
    fs::write(files.path().join("merges.txt"), "q zzz\n").unwrap();
    check(files.path(), &["vocab.json: not a tokenizer"]);
    fs::remove_file(files.path().join("merges.txt")).unwrap();
    check(files.path(), &["no tokenizer"]);

    let files = copy("clip-files");
    fs::write(files.path().join("vocab.json"), "{\"a\": 0}").unwrap();
    check(files.path(), &["vocab.json", "<|endoftext|>"]);

    let files = copy("qwen2-files");
    fs::remove_file(files.path().join("tokenizer_config.json")).unwrap();
    check(files.path(), &["tokenizer_config.json must say"]);
}

#[test]
fn a_text_without_end_is_refused() {
    let text = "a".repeat(MOST_CHARACTERS + 1);
    assert!(matches!(open("clip").encode(&text), Err(TokenizerError::TooLong { .. })));
    let spaces = " ".repeat(MOST_CHARACTERS - 1) + "x";
    let ids = open("qwen2").encode(&spaces).unwrap();
    assert!(!ids.is_empty(), "no limit of the pattern's engine has cut the text off");
    assert_eq!(ids.last(), open("qwen2").encode("x").unwrap().last());
}

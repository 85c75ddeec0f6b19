//! Weights in all the layouts that are about, and in all the ways in which they can be damaged.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{cell::RefCell, collections::HashMap, fs, ops::ControlFlow, path::Path, rc::Rc};

use atelier_worker::{
    nn::Blocks,
    torch::TorchError,
    weights::{Alias, Digests, LoadOptions, LoadProgress, Weights, WeightsError, compute_kind},
};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::json;
use tch::{Device, Kind, Tensor};

/// Writes tensors of bytes as they are.
fn write(path: &Path, tensors: &[(&str, Dtype, &[usize], &[u8])]) {
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, data)| ((*name).to_owned(), TensorView::new(*dtype, shape.to_vec(), data).unwrap()));
    let metadata = Some(HashMap::from([("format".to_owned(), "pt".to_owned())]));
    fs::write(path, safetensors::serialize(views, metadata).unwrap()).unwrap();
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    assert_eq!(tensor.kind(), Kind::Float);
    Vec::try_from(tensor.reshape([-1])).unwrap()
}

/// Two shards and their index.
fn shards(folder: &Path, variant: &str) {
    let (first, second) = (format!("model{variant}-00001-of-00002.safetensors"), "model-b.safetensors".to_owned());
    write(&folder.join(&first), &[("a.weight", Dtype::F32, &[2], &floats(&[1.0, 2.0]))]);
    write(
        &folder.join(&second),
        &[("b.weight", Dtype::F32, &[1], &floats(&[3.0])), ("b.bias", Dtype::F32, &[1], &floats(&[4.0]))],
    );
    let index = json!({"metadata": {}, "weight_map": {"a.weight": first, "b.weight": second, "b.bias": second}});
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

fn open(folder: &Path) -> Result<Weights, WeightsError> {
    Weights::open_folder(folder, "model", &LoadOptions::cpu())
}

fn error(folder: &Path) -> String {
    open(folder).err().expect("an error").to_string()
}

#[test]
fn every_floating_point_type_becomes_the_kind_that_is_computed_with() {
    let folder = tempfile::tempdir().unwrap();
    write(
        &folder.path().join("model.safetensors"),
        &[
            ("f16", Dtype::F16, &[2], &[0x00, 0x3e, 0x00, 0xc0]),
            ("bf16", Dtype::BF16, &[2], &[0xc0, 0x3f, 0x00, 0xc0]),
            ("f32", Dtype::F32, &[2], &floats(&[1.5, -2.0])),
            ("f64", Dtype::F64, &[2], &[1.5_f64, -2.0].map(f64::to_le_bytes).concat()),
            ("e4m3", Dtype::F8_E4M3, &[2], &[0x3c, 0xc0]),
            ("e5m2", Dtype::F8_E5M2, &[2], &[0x3e, 0xc0]),
        ],
    );
    let names = ["f16", "bf16", "f32", "f64", "e4m3", "e5m2"];
    let weights = open(folder.path()).unwrap();
    assert_eq!(weights.bytes(), 6 * 2 * 4);
    for name in names {
        assert_eq!(values(&weights.take(name, &[2]).unwrap()), [1.5, -2.0], "{name}");
    }
    weights.finish().unwrap();

    let options = LoadOptions::new(Device::Cpu, Kind::BFloat16);
    let weights = Weights::open_folder(folder.path(), "model", &options).unwrap();
    assert_eq!(weights.bytes(), 6 * 2 * 2);
    for name in names {
        let tensor = weights.root().take(name, &[2]).unwrap();
        assert_eq!(tensor.kind(), Kind::BFloat16, "{name}");
        assert_eq!(values(&tensor.to_kind(Kind::Float)), [1.5, -2.0], "{name}");
    }
    weights.finish().unwrap();
    assert_eq!(compute_kind(Device::Cpu, Kind::Half), Kind::Float);
    assert_eq!(compute_kind(Device::Cpu, Kind::BFloat16), Kind::BFloat16);
    assert_eq!(compute_kind(Device::Cuda(0), Kind::Half), Kind::Half);
}

#[test]
fn a_tensor_that_needs_no_cast_is_the_mapped_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write(&path, &[("a", Dtype::F32, &[2, 2], &floats(&[1.0, 2.0, 3.0, 4.0]))]);
    let weights = Weights::open(&path, Device::Cpu).unwrap();
    let tensor = weights.take("a", &[2, 2]).unwrap();
    weights.finish().unwrap();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let address = tensor.data_ptr().addr();
    let line = maps.lines().find(|line| line.ends_with(path.to_str().unwrap())).expect("still mapped");
    let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
    let range = usize::from_str_radix(from, 16).unwrap()..usize::from_str_radix(to, 16).unwrap();
    assert!(range.contains(&address), "{line}");
    drop(tensor);
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    assert!(!maps.contains(path.to_str().unwrap()), "the map goes with its last tensor");
}

#[test]
fn shards_are_one_component() {
    let folder = tempfile::tempdir().unwrap();
    shards(folder.path(), "");
    let weights = open(folder.path()).unwrap();
    assert_eq!(weights.files().count(), 2);
    let root = weights.root();
    assert_eq!(values(&root.at("a").take("weight", &[2]).unwrap()), [1.0, 2.0]);
    let b = root.at("b");
    assert!(b.has("bias") && !b.has("gain"));
    assert_eq!(values(&b.take("weight", &[1]).unwrap()), [3.0]);
    assert_eq!(values(&b.take_optional("bias", &[1]).unwrap().unwrap()), [4.0]);
    assert!(b.take_optional("gain", &[1]).unwrap().is_none());
    assert_eq!(b.full("bias"), "b.bias");
    weights.finish().unwrap();
}

#[test]
fn the_hash_is_of_all_files() {
    let folder = tempfile::tempdir().unwrap();
    shards(folder.path(), "");
    let before = open(folder.path()).unwrap().sha256();
    let mut digests = Digests::default();
    assert_eq!(digests.sha256(&open(folder.path()).unwrap()), before);
    assert_eq!(before.len(), 64);
    assert_eq!(open(folder.path()).unwrap().sha256(), before);
    write(
        &folder.path().join("model-b.safetensors"),
        &[("b.weight", Dtype::F32, &[1], &floats(&[3.0])), ("b.bias", Dtype::F32, &[1], &floats(&[5.0]))],
    );
    let after = open(folder.path()).unwrap().sha256();
    assert_ne!(after, before);
    assert_eq!(digests.sha256(&open(folder.path()).unwrap()), after);
}

#[test]
fn a_variant_is_taken_where_it_is_all_there_is_or_what_is_wanted() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("model.fp16.safetensors"), &[("a", Dtype::F16, &[1], &[0x00, 0x3e])]);
    let weights = open(folder.path()).unwrap();
    assert_eq!(values(&weights.take("a", &[1]).unwrap()), [1.5]);

    write(&folder.path().join("model.safetensors"), &[("a", Dtype::F32, &[1], &floats(&[2.5]))]);
    assert_eq!(values(&open(folder.path()).unwrap().take("a", &[1]).unwrap()), [2.5]);
    let options = LoadOptions::new(Device::Cpu, Kind::Half);
    let weights = Weights::open_folder(folder.path(), "model", &options).unwrap();
    assert!(weights.files().all(|file| file.ends_with("model.fp16.safetensors")));

    let folder = tempfile::tempdir().unwrap();
    shards(folder.path(), ".fp16");
    let index = folder.path().join("model.safetensors.index.json");
    for name in ["model.safetensors.index.fp16.json", "model.fp16.safetensors.index.json"] {
        fs::copy(&index, folder.path().join(name)).unwrap();
        fs::rename(folder.path().join(name), folder.path().join("kept")).unwrap();
        fs::remove_file(&index).unwrap();
        fs::rename(folder.path().join("kept"), folder.path().join(name)).unwrap();
        assert_eq!(open(folder.path()).unwrap().files().count(), 2, "{name}");
        fs::rename(folder.path().join(name), &index).unwrap();
    }
}

#[test]
fn names_of_either_age_are_found() {
    const ALIASES: &[Alias] = &[Alias::prefix("encoder.", "text_model.encoder."), Alias::part(".query.", ".to_q.")];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let one = floats(&[1.0]);
    let options = LoadOptions::cpu().with_aliases(ALIASES);
    for names in [["encoder.a", "x.query.b"], ["text_model.encoder.a", "x.to_q.b"]] {
        write(&path, &names.map(|name| (name, Dtype::F32, &[1][..], &one[..])));
        let weights = Weights::open_file(&path, &options).unwrap();
        drop(weights.root().at("text_model.encoder").take("a", &[1]).unwrap());
        drop(weights.root().at("x").at("to_q").take("b", &[1]).unwrap());
        weights.finish().unwrap();
    }
    write(&path, &["encoder.a", "text_model.encoder.a"].map(|name| (name, Dtype::F32, &[1][..], &one[..])));
    let error = Weights::open_file(&path, &options).err().expect("twice").to_string();
    assert!(error.contains("are the same tensor"), "{error}");
}

#[test]
fn loading_reports_its_progress_and_can_be_interrupted() {
    let folder = tempfile::tempdir().unwrap();
    shards(folder.path(), "");
    let seen: Rc<RefCell<Vec<LoadProgress>>> = Rc::default();
    let report = seen.clone();
    let options = LoadOptions::cpu().with_progress(Rc::new(move |progress| {
        report.borrow_mut().push(progress);
        if progress.done_bytes > 8 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }));
    let weights = Weights::open_folder(folder.path(), "model", &options).unwrap();
    drop(weights.take("a.weight", &[2]).unwrap());
    let error = weights.take("b.weight", &[1]).expect_err("interrupted");
    assert!(matches!(error, WeightsError::Interrupted { .. }), "{error}");
    let seen: Vec<_> = seen.borrow().iter().map(|seen| (seen.done_bytes, seen.total_bytes)).collect();
    assert_eq!(seen, [(8, 16), (12, 16)]);
}

#[test]
fn what_does_not_fit_is_listed_with_its_file() {
    let folder = tempfile::tempdir().unwrap();
    shards(folder.path(), "");
    write(
        &folder.path().join("model-b.safetensors"),
        &[
            ("b.weight", Dtype::F32, &[1], &floats(&[3.0])),
            ("b.bias", Dtype::I32, &[1], &floats(&[0.0])),
            ("text_model.embeddings.position_ids", Dtype::I64, &[1, 1], &[0; 8]),
            ("__index_timestep_zero__", Dtype::F32, &[0], &[]),
            ("c", Dtype::F32, &[1], &floats(&[0.0])),
        ],
    );
    let weights = open(folder.path()).unwrap();
    drop(weights.take("a.weight", &[3]).unwrap());
    drop(weights.take("b.bias", &[1]).unwrap());
    drop(weights.take("d", &[1]).unwrap());
    let error = weights.finish().expect_err("four faults");
    assert!(matches!(&error, WeightsError::Mismatch { mismatch, .. } if mismatch.missing == ["d"]));
    let text = error.to_string();
    for part in [
        "model.safetensors.index.json: missing: d; unexpected: b.weight (in model-b.safetensors), c (in model-b.safetensors)",
        "of another shape: a.weight (in model-00001-of-00002.safetensors) is [2], not [3]",
        "of another type: b.bias (in model-b.safetensors) is Int, not a floating-point type",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert!(!text.contains("position_ids") && !text.contains("timestep_zero"), "{text}");
}

#[test]
fn a_folder_without_weights_says_what_was_looked_for() {
    let folder = tempfile::tempdir().unwrap();
    let text = error(folder.path());
    for part in ["model.safetensors", "model.safetensors.index.json", "model.fp16.safetensors"] {
        assert!(text.contains(part), "{text}");
    }
    fs::write(folder.path().join("pytorch_model.bin"), "x").unwrap();
    assert!(error(folder.path()).contains("pytorch_model.bin can run code"), "{}", error(folder.path()));
}

#[test]
fn an_index_must_fit_its_files() {
    let folder = tempfile::tempdir().unwrap();
    shards(folder.path(), "");
    let index = folder.path().join("model.safetensors.index.json");
    for (text, part) in [
        ("{", "not an index"),
        ("{}", "weight_map"),
        (r#"{"weight_map": {}}"#, "no tensors"),
        (r#"{"weight_map": {"a.weight": "gone.safetensors"}}"#, "gone.safetensors, which the folder does not have"),
        (r#"{"weight_map": {"a.weight": "../model-b.safetensors"}}"#, "is not the name of a file"),
        (r#"{"weight_map": {"a.weight": "/etc/passwd"}}"#, "is not the name of a file"),
        (r#"{"weight_map": {"a.weight": ".."}}"#, "is not the name of a file"),
        (r#"{"weight_map": {"z": "model-b.safetensors"}}"#, "model-b.safetensors does not hold z"),
    ] {
        fs::write(&index, text).unwrap();
        let error = error(folder.path());
        assert!(error.contains("model.safetensors.index.json") && error.contains(part), "{error}");
    }
}

#[test]
fn a_damaged_shard_is_named_before_anything_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    shards(folder.path(), "");
    let path = folder.path().join("model-b.safetensors");
    let whole = fs::read(&path).unwrap();
    for length in [0, 7, 8, 20, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        let error = error(folder.path());
        assert!(error.contains("model-b.safetensors: not a safetensors file"), "{length}: {error}");
    }
    fs::write(&path, [&whole[..], &[0]].concat()).unwrap();
    assert!(error(folder.path()).contains("model-b.safetensors"));
    let mut huge = whole.clone();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    fs::write(&path, huge).unwrap();
    assert!(error(folder.path()).contains("model-b.safetensors"));
    write(&path, &[("b.weight", Dtype::F32, &[1], &floats(&[1.0])), ("b.bias", Dtype::C64, &[1], &[0; 8])]);
    assert!(error(folder.path()).contains("b.bias has the type C64"), "{}", error(folder.path()));
    write(&path, &["a.weight", "b.weight", "b.bias"].map(|name| (name, Dtype::F32, &[0][..], &[][..])));
    assert!(error(folder.path()).contains("are the same tensor"), "{}", error(folder.path()));
    fs::remove_file(&path).unwrap();
    assert!(error(folder.path()).contains("model-b.safetensors"));
}

/// A network of two tensors outside of three blocks, each of which has a bias but for the second.
struct Stack {
    first: Tensor,
    blocks: Blocks<(Tensor, Option<Tensor>)>,
}

impl Stack {
    fn load(weights: &Weights) -> Result<Self, WeightsError> {
        let root = weights.root();
        let blocks = Blocks::load(&root.at("blocks"), 3, |_, scope| {
            Ok((scope.take("weight", &[2])?, scope.take_optional("bias", &[2])?))
        })?;
        Ok(Self { first: root.take("first", &[1])?, blocks })
    }

    /// All numbers, in the order in which they are used.
    fn run(&self) -> Vec<f32> {
        let mut found = values(&self.first);
        self.blocks
            .each(|_, (weight, bias)| {
                found.extend(values(weight));
                found.extend(bias.iter().flat_map(values));
                Ok(())
            })
            .unwrap();
        found
    }
}

/// Numbers that count up from 1, in bfloat16.
fn stack(folder: &Path, leave_out: &str) {
    let names = ["first", "blocks.0.weight", "blocks.0.bias", "blocks.1.weight", "blocks.2.weight", "blocks.2.bias"];
    let mut next = 0_u8;
    let tensors: Vec<_> = names
        .into_iter()
        .map(|name| {
            let count = if name == "first" { 1 } else { 2 };
            let bytes: Vec<u8> = (0..count)
                .flat_map(|_| {
                    next += 1;
                    let [_, _, low, high] = f32::from(next).to_le_bytes();
                    [low, high]
                })
                .collect();
            (name, bytes)
        })
        .collect();
    let tensors: Vec<_> = tensors
        .iter()
        .filter(|(name, _)| *name != leave_out)
        .map(|(name, bytes)| (*name, Dtype::BF16, [bytes.len() / 2], bytes.as_slice()))
        .collect();
    let views: Vec<_> =
        tensors.iter().map(|(name, dtype, shape, data)| (*name, *dtype, shape.as_slice(), *data)).collect();
    write(&folder.join("model.safetensors"), &views);
}

#[test]
fn blocks_that_are_made_at_their_use_are_the_same_every_time() {
    let folder = tempfile::tempdir().unwrap();
    stack(folder.path(), "");
    let counted: Vec<f32> = (1_u8..=11).map(f32::from).collect();
    // None streamed; all of them; the first two stay.
    for (keep, shown) in [(None, "0 of them"), (Some(0), "3 of them"), (Some(24), "1 of them")] {
        let mut weights = open(folder.path()).unwrap();
        if let Some(bytes) = keep {
            weights.set_streaming(bytes);
        }
        let network = Stack::load(&weights).unwrap();
        weights.finish().unwrap();
        assert!(format!("{:?}", network.blocks).contains(shown), "{:?}", network.blocks);
        for _ in 0..3 {
            assert_eq!(network.run(), counted, "{keep:?}");
        }
    }
}

#[test]
fn a_rehearsal_says_what_blocks_need_and_all_that_is_wrong_before_anything_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    stack(folder.path(), "");
    let weights = open(folder.path()).unwrap();
    let needs = weights.rehearse(Stack::load).unwrap();
    assert_eq!((needs.resident_bytes, needs.largest_block_bytes, needs.least_bytes()), (4, 16, 36));
    assert_eq!(weights.bytes(), 44);
    assert_eq!(Stack::load(&weights).unwrap().run().len(), 11, "a rehearsal takes nothing");

    stack(folder.path(), "blocks.2.weight");
    let weights = open(folder.path()).unwrap();
    let message = weights.rehearse(Stack::load).err().unwrap().to_string();
    assert!(message.contains("missing: blocks.2.weight"), "{message}");
    let mut weights = weights;
    weights.set_streaming(0);
    Stack::load(&weights).unwrap();
    assert!(weights.finish().unwrap_err().to_string().contains("missing: blocks.2.weight"));
}

#[test]
fn a_run_that_fails_ends_the_blocks_and_the_next_one_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    stack(folder.path(), "");
    let mut weights = open(folder.path()).unwrap();
    weights.set_streaming(0);
    let network = Stack::load(&weights).unwrap();
    let mut seen = 0;
    let stopped = network.blocks.each(|index, _| {
        seen += 1;
        if index == 1 { Err(TorchError::OutOfMemory("as asked".into())) } else { Ok(()) }
    });
    assert_eq!((seen, stopped), (2, Err(TorchError::OutOfMemory("as asked".into()))));
    assert_eq!(network.run().len(), 11);
}

#[test]
fn eight_bit_weights_are_multiplied_with_the_scales_beside_them() {
    let folder = tempfile::tempdir().unwrap();
    // 1.5 and -2 in both types.
    let (e4m3, e5m2) = (&[0x3c, 0xc0, 0x3c, 0xc0][..], &[0x3e, 0xc0, 0x3e, 0xc0][..]);
    write(
        &folder.path().join("model.safetensors"),
        &[
            ("scaled_fp8", Dtype::F8_E4M3, &[0], &[]),
            ("plain.weight", Dtype::F8_E4M3, &[2, 2], e4m3),
            ("one.weight", Dtype::F8_E4M3, &[2, 2], e4m3),
            ("one.scale_weight", Dtype::F32, &[], &floats(&[2.0])),
            ("one.scale_input", Dtype::F32, &[], &floats(&[9.0])),
            ("rows.weight", Dtype::F8_E5M2, &[2, 2], e5m2),
            ("rows.weight_scale", Dtype::F32, &[2, 1], &floats(&[2.0, 4.0])),
            ("rows.comfy_quant", Dtype::U8, &[24], br#"{"format":"float8_e5m2"}"#),
            ("squares.weight", Dtype::F8_E4M3, &[2, 2], e4m3),
            ("squares.weight_scale_inv", Dtype::BF16, &[1, 1], &[0x00, 0x3f]),
        ],
    );
    let weights = open(folder.path()).unwrap();
    assert_eq!(weights.bytes(), 4 * 4 * 4);
    let found = ["plain", "one", "rows", "squares"]
        .map(|name| values(&weights.root().at(name).take("weight", &[2, 2]).unwrap()));
    assert_eq!(
        found,
        [[1.5, -2.0, 1.5, -2.0], [3.0, -4.0, 3.0, -4.0], [3.0, -4.0, 6.0, -8.0], [0.75, -1.0, 0.75, -1.0]]
    );
    weights.finish().unwrap();
}

#[test]
fn scales_that_make_no_sense_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let weight = ("a.weight", Dtype::F8_E4M3, &[2, 2][..], &[0x3c, 0xc0, 0x3c, 0xc0][..]);
    for (name, dtype, shape, data, part) in [
        ("a.weight_scale", Dtype::F32, &[3][..], &floats(&[1.0, 2.0, 3.0])[..], "is no scale for [2, 2]"),
        ("a.weight_scale", Dtype::I32, &[1], &[1, 0, 0, 0], "is no scale for [2, 2]"),
        ("a.comfy_quant", Dtype::U8, &[18], br#"{"format":"mxfp8"}"#, "stored as mxfp8"),
    ] {
        write(&folder.path().join("model.safetensors"), &[weight, (name, dtype, shape, data)]);
        let message = error(folder.path());
        assert!(message.contains(part) && message.contains(name) && message.contains("model.safetensors"), "{message}");
    }
}

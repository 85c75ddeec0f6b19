//! Weights in GGUF files: every type to the last bit, the names of the published code, and folders that do not fit.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{collections::BTreeMap, fs, path::Path, rc::Rc};

use atelier_testkit::gguf::{File, Tensor as Stored};
use atelier_worker::{
    nn::Blocks,
    torch::TorchError,
    weights::{Deltas, Digests, LoadOptions, Weights, WeightsError},
};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::Value;
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;

const STEM: &str = "diffusion_pytorch_model";
const QWEN: &str = "QwenImageTransformer2DModel";
const FLUX: &str = "FluxTransformer2DModel";
const Q8_0: u32 = 8;

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf").join(name)
}

/// A component's folder with a configuration of this class.
fn folder(class: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), format!("{{\"_class_name\":{class:?}}}")).unwrap();
    folder
}

fn with_file(class: &str, file: &File) -> TempDir {
    let folder = folder(class);
    fs::write(folder.path().join("model-Q8_0.gguf"), file.bytes()).unwrap();
    folder
}

/// The recorded file of all types.
fn types() -> TempDir {
    let folder = folder(QWEN);
    fs::copy(fixture("types.gguf"), folder.path().join("types.gguf")).unwrap();
    folder
}

fn open(folder: &Path, kind: Kind) -> Result<Weights, WeightsError> {
    Weights::open_folder(folder, STEM, &LoadOptions::new(Device::Cpu, kind))
}

fn error(folder: &Path) -> String {
    open(folder, Kind::Float).err().expect("an error").to_string()
}

/// Blocks of 32 numbers from -16 to 15, in steps of `step`.
fn rows(count: u16, step: [u8; 2]) -> Vec<u8> {
    (0..count).flat_map(|_| step.into_iter().chain((-16..16_i8).map(i8::cast_unsigned))).collect()
}

const ONE: [u8; 2] = [0x00, 0x3c];
const HALF: [u8; 2] = [0x00, 0x38];

fn ramp(step: f32) -> Tensor {
    Tensor::arange_start(-16, 16, (Kind::Float, Device::Cpu)) * f64::from(step)
}

#[test]
fn every_type_is_unpacked_to_the_last_bit() {
    let folder = types();
    let weights = open(folder.path(), Kind::Float).unwrap();
    let expected = Tensor::read_safetensors(fixture("types.safetensors")).unwrap();
    assert_eq!(expected.len(), 15);
    // As large as what becomes of it, not as the file.
    assert_eq!(weights.bytes(), 15 * 3 * 256 * 4);
    for (name, expected) in &expected {
        let tensor = weights.take(name, &[3, 256]).unwrap();
        assert!(tensor.equal(expected), "{name}: {:.3e}", (&tensor - expected).abs().max().double_value(&[]));
    }
    weights.finish().unwrap();

    let weights = open(folder.path(), Kind::BFloat16).unwrap();
    assert_eq!(weights.bytes(), 15 * 3 * 256 * 2);
    for (name, expected) in &expected {
        assert!(weights.take(name, &[3, 256]).unwrap().equal(&expected.to_kind(Kind::BFloat16)), "{name}");
    }
}

#[test]
fn what_is_too_large_for_one_piece_is_unpacked_piece_by_piece() {
    // A piece is 1 Mi elements.
    let count = 100_u16;
    let row: Vec<u8> =
        (0..512).flat_map(|block: u16| rows(1, if block.is_multiple_of(2) { ONE } else { HALF })).collect();
    let data: Vec<u8> = (0..count).flat_map(|_| row.clone()).collect();
    let shape = [i64::from(count), 512 * 32];
    let file = File::new("qwen_image", vec![Stored::new("a.weight", &[512 * 32, u64::from(count)], Q8_0, data)]);
    let folder = with_file(QWEN, &file);
    let tensor = open(folder.path(), Kind::BFloat16).unwrap().take("a.weight", &shape).unwrap();
    let row = Tensor::cat(&[ramp(1.0), ramp(0.5)], 0).repeat([256]).to_kind(Kind::BFloat16);
    assert!(tensor.equal(&row.expand(shape, false)));
}

#[test]
fn a_fused_module_is_cut_where_its_blocks_lie_and_a_shift_before_a_scale_changes_places() {
    let matrix = |name: &str, height: u16, steps: &[[u8; 2]]| {
        let data = steps.iter().flat_map(|&step| rows(height / u16::try_from(steps.len()).unwrap(), step)).collect();
        Stored::new(name, &[32, u64::from(height)], Q8_0, data)
    };
    let biases: Vec<f32> = (0..96_u8).map(f32::from).collect();
    let file = File::new(
        "flux",
        vec![
            matrix("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", 96, &[ONE, HALF, ONE]),
            Stored::floats("model.diffusion_model.double_blocks.0.img_attn.qkv.bias", &[96], &biases),
            Stored::floats("model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale", &[2], &[5.0, 6.0]),
            matrix("model.diffusion_model.final_layer.adaLN_modulation.1.weight", 64, &[ONE, HALF]),
            Stored::floats("model.diffusion_model.final_layer.adaLN_modulation.1.bias", &[64], &biases[..64]),
        ],
    );
    let folder = with_file(FLUX, &file);
    let weights = open(folder.path(), Kind::Float).unwrap();
    let attention = weights.root().at("transformer_blocks.0.attn");
    for (name, step, first) in [("to_q", 1.0, 0), ("to_k", 0.5, 32), ("to_v", 1.0, 64)] {
        let part = attention.at(name);
        assert!(part.take("weight", &[32, 32]).unwrap().equal(&ramp(step).expand([32, 32], false)), "{name}");
        let bias = Tensor::arange_start(first, first + 32, (Kind::Float, Device::Cpu));
        assert!(part.take("bias", &[32]).unwrap().equal(&bias), "{name}");
    }
    assert_eq!(attention.at("norm_k").take("weight", &[2]).unwrap(), Tensor::from_slice(&[5.0_f32, 6.0]));
    let last = weights.root().at("norm_out.linear");
    let halves = |step| ramp(step).expand([32, 32], false);
    assert!(last.take("weight", &[64, 32]).unwrap().equal(&Tensor::cat(&[halves(0.5), halves(1.0)], 0)));
    let bias = last.take("bias", &[64]).unwrap();
    assert_eq!((bias.double_value(&[0]), bias.double_value(&[32])), (32.0, 0.0));
    weights.finish().unwrap();
}

struct More(f64);

impl Deltas for More {
    fn apply(&self, _: &str, weight: Tensor) -> Result<Tensor, TorchError> {
        assert_eq!(weight.kind(), Kind::Float, "a LoRA is added in f32");
        Ok(weight.f_add_scalar(self.0)?)
    }

    fn touches(&self, name: &str) -> bool {
        name == "Q4_K"
    }
}

#[test]
fn a_lora_is_added_to_what_is_unpacked() {
    let folder = types();
    let expected = Tensor::read_safetensors(fixture("types.safetensors")).unwrap();
    let expected = |name: &str| expected.iter().find(|(found, _)| found == name).unwrap().1.shallow_clone();
    let mut weights = open(folder.path(), Kind::BFloat16).unwrap();
    weights.set_deltas(Rc::new(More(0.001)));
    let more = (expected("Q4_K") + 0.001).to_kind(Kind::BFloat16);
    assert!(weights.take("Q4_K", &[3, 256]).unwrap().equal(&more));
    assert!(weights.take("Q5_K", &[3, 256]).unwrap().equal(&expected("Q5_K").to_kind(Kind::BFloat16)));
}

#[test]
fn blocks_are_unpacked_at_their_use() {
    let tensors = (0..3).flat_map(|block| {
        let matrix = Stored::new(&format!("blocks.{block}.weight"), &[32, 4], Q8_0, rows(4, ONE));
        [matrix, Stored::floats(&format!("blocks.{block}.bias"), &[1], &[7.0])]
    });
    let folder = with_file(QWEN, &File::new("qwen_image", tensors.collect()));
    let load = |weights: &Weights| {
        Blocks::load(&weights.root().at("blocks"), 3, |_, scope| {
            Ok((scope.take("weight", &[4, 32])?, scope.take("bias", &[1])?))
        })
    };
    let needs = open(folder.path(), Kind::Float).unwrap().rehearse(load).unwrap();
    // A packed block is four rows of 34 bytes, and its bias.
    let packed = 4 * 34 + 4;
    assert_eq!((needs.resident_bytes, needs.largest_block_bytes), (0, 4 * 32 * 4 + 4));
    assert_eq!(needs.kept_bytes, 3 * packed);
    for (keep, places) in [(0, "3 of them streamed, 0 packed"), (3 * packed - 1, "1 of them streamed, 2 packed")] {
        let mut weights = open(folder.path(), Kind::Float).unwrap();
        weights.set_streaming(keep);
        let blocks = load(&weights).unwrap();
        weights.finish().unwrap();
        assert_eq!(format!("{blocks:?}"), format!("Blocks(3, {places})"));
        for _ in 0..2 {
            let mut seen = 0;
            blocks
                .each(|_, (matrix, bias)| {
                    seen += 1;
                    assert!(matrix.equal(&ramp(1.0).expand([4, 32], false)));
                    assert_eq!(bias, &Tensor::from_slice(&[7.0_f32]));
                    Ok(())
                })
                .unwrap();
            assert_eq!(seen, 3);
        }
    }
}

#[test]
fn another_file_has_another_hash() {
    let folder = types();
    let mut digests = Digests::default();
    let before = digests.sha256(&open(folder.path(), Kind::Float).unwrap());
    let path = folder.path().join("types.gguf");
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(folder.path().join("new"), bytes).unwrap();
    fs::rename(folder.path().join("new"), &path).unwrap();
    assert_ne!(digests.sha256(&open(folder.path(), Kind::Float).unwrap()), before);
}

#[test]
fn a_folder_that_does_not_say_which_file_is_meant_is_refused() {
    let folder = types();
    fs::copy(fixture("types.gguf"), folder.path().join("other.gguf")).unwrap();
    let told = error(folder.path());
    assert!(told.contains("other.gguf, types.gguf") && told.contains("leave that one"), "{told}");
    fs::remove_file(folder.path().join("other.gguf")).unwrap();
    fs::copy(fixture("types.safetensors"), folder.path().join(format!("{STEM}.safetensors"))).unwrap();
    let told = error(folder.path());
    assert!(told.contains("types.gguf and diffusion_pytorch_model.safetensors"), "{told}");
}

#[test]
fn a_file_for_another_part_or_another_network_is_refused() {
    let told = error(with_file("T5EncoderModel", &File::new("t5", Vec::new())).path());
    assert!(told.contains("model-Q8_0.gguf") && told.contains("must be safetensors"), "{told}");
    let without = tempfile::tempdir().unwrap();
    fs::copy(fixture("types.gguf"), without.path().join("types.gguf")).unwrap();
    assert!(error(without.path()).contains("must be safetensors"));
    let told = error(with_file(FLUX, &File::new("qwen_image", Vec::new())).path());
    assert!(told.contains("\"qwen_image\"") && told.contains(FLUX), "{told}");
    // The transformer's own safetensors are read as ever, whatever lies beside another part's.
    let encoder = with_file("CLIPTextModel", &File::new("t5", Vec::new()));
    fs::copy(fixture("types.safetensors"), encoder.path().join(format!("{STEM}.safetensors"))).unwrap();
    assert!(open(encoder.path(), Kind::Float).is_ok());
}

#[test]
fn a_file_that_is_damaged_is_named() {
    let folder = types();
    let path = folder.path().join("types.gguf");
    let bytes = fs::read(&path).unwrap();
    for length in [0, 3, 40, bytes.len() / 2, bytes.len() - 32] {
        fs::write(&path, &bytes[..length]).unwrap();
        assert!(error(folder.path()).contains("types.gguf"), "{length}: {}", error(folder.path()));
    }
    let twice = vec![Stored::floats("a", &[1], &[1.0]), Stored::floats("a", &[1], &[2.0])];
    let told = error(with_file(QWEN, &File::new("qwen_image", twice)).path());
    assert!(told.contains("are the same tensor"), "{told}");
    // Too narrow to be cut into three.
    let narrow = Stored::floats("double_blocks.0.img_attn.qkv.weight", &[4, 6], &[0.0; 24]);
    let folder = with_file(FLUX, &File::new("flux", vec![narrow]));
    let weights = open(folder.path(), Kind::Float).unwrap();
    let told = weights.finish().expect_err("nobody asks for it").to_string();
    assert!(told.contains("unexpected: double_blocks.0.img_attn.qkv.weight"), "{told}");
}

/// By diffusers' names, of which rows of the published code's tensors each is made.
fn made_of(architecture: &str) -> BTreeMap<String, Vec<Value>> {
    let told: Value = serde_json::from_slice(&fs::read(fixture("names.json")).unwrap()).unwrap();
    serde_json::from_value(told[architecture]["made_of"].clone()).unwrap()
}

/// The tensors of a transformer of the parity tests as the published code has them, in f16.
fn published(transformer: &Path, architecture: &str) -> BTreeMap<String, Tensor> {
    let tensors = Tensor::read_safetensors(transformer.join(format!("{STEM}.safetensors"))).unwrap();
    let made_of = made_of(architecture);
    let mut parts: BTreeMap<String, Vec<(u64, Tensor)>> = BTreeMap::new();
    for (name, tensor) in tensors {
        let [original, stretches @ ..] = &made_of[&name][..] else { panic!("{name}") };
        let firsts: Vec<u64> = stretches.iter().map(|stretch| stretch[0].as_u64().unwrap()).collect();
        let pieces = tensor.chunk(i64::try_from(firsts.len()).unwrap(), 0);
        parts.entry(original.as_str().unwrap().into()).or_default().extend(firsts.into_iter().zip(pieces));
    }
    let whole = |(name, mut parts): (String, Vec<(u64, Tensor)>)| {
        parts.sort_by_key(|(first, _)| *first);
        (name, Tensor::cat(&parts.iter().map(|(_, part)| part).collect::<Vec<_>>(), 0))
    };
    parts.into_iter().map(whole).collect()
}

#[test]
fn a_single_file_of_the_published_code_is_the_folders_transformer() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity/models");
    for (model, architecture) in [("flux", "flux"), ("sd3", "sd3"), ("aura_flow", "aura")] {
        let transformer = models.join(model).join("transformer");
        let published = published(&transformer, architecture);
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        for folder in &folders {
            fs::copy(transformer.join("config.json"), folder.path().join("config.json")).unwrap();
        }
        let stored = published.iter().map(|(name, tensor)| {
            let sides: Vec<u64> = tensor.size().iter().rev().map(|side| u64::try_from(*side).unwrap()).collect();
            Stored::floats(name, &sides, &Vec::try_from(tensor.to_kind(Kind::Float).reshape([-1])).unwrap())
        });
        fs::write(folders[0].path().join("model-F32.gguf"), File::new(architecture, stored.collect()).bytes()).unwrap();
        let tensors: Vec<(&str, &Tensor)> = published.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        Tensor::write_safetensors(&tensors, folders[1].path().join(format!("{STEM}.safetensors"))).unwrap();
        for folder in &folders {
            let (wanted, found) = (open(&transformer, Kind::Float).unwrap(), open(folder.path(), Kind::Float).unwrap());
            assert_eq!(found.shapes(), wanted.shapes(), "{model}");
            for (name, shape) in wanted.shapes() {
                let wanted = wanted.take(&name, &shape).unwrap();
                assert!(found.take(&name, &shape).unwrap().equal(&wanted), "{model}: {name}");
            }
        }
    }
}

#[test]
fn a_fused_module_in_8_bits_has_one_scale_for_all_of_its_parts() {
    let folder = folder(FLUX);
    // Ones in e4m3, and halves of them for the second third.
    let matrix = [[0x38_u8; 16], [0x30; 16], [0x38; 16]].concat();
    let view = |dtype, shape: &[usize], data| TensorView::new(dtype, shape.to_vec(), data).unwrap();
    let name = |end: &str| format!("double_blocks.0.txt_attn.qkv.{end}");
    let scale = 3.0_f32.to_le_bytes();
    let tensors = [
        (name("weight"), view(Dtype::F8_E4M3, &[12, 4], &matrix)),
        (name("scale_weight"), view(Dtype::F32, &[1], &scale)),
    ];
    fs::write(folder.path().join(format!("{STEM}.safetensors")), safetensors::serialize(tensors, None).unwrap())
        .unwrap();
    let weights = open(folder.path(), Kind::Float).unwrap();
    for (part, value) in [("q", 3.0), ("k", 1.5), ("v", 3.0)] {
        let part = weights.take(&format!("transformer_blocks.0.attn.add_{part}_proj.weight"), &[4, 4]).unwrap();
        assert!(part.equal(&Tensor::full([4, 4], value, (Kind::Float, Device::Cpu))), "{part:?}");
    }
    weights.finish().unwrap();
}

//! The networks against PyTorch, and a piece of a picture against the whole.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

use atelier_worker::{
    models::read_config,
    nn::{Config, Margins, Network},
    torch::{InferenceMode, TorchError},
    weights::{Weights, WeightsError},
};
use safetensors::SafeTensors;
use tch::{Device, Kind, Tensor};

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models")
}

fn network(pack: &str) -> (Config, Network) {
    let folder = models().join(pack);
    let config = read_config(&folder).expect(pack);
    let weights = Weights::open(&folder.join("model.safetensors"), Device::Cpu).expect(pack);
    let network = Network::load(&config, weights).expect(pack);
    (config, network)
}

fn fixture(name: &str) -> Tensor {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/networks.safetensors");
    let bytes = std::fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let view = tensors.tensor(name).expect(name);
    let shape: Vec<i64> = view.shape().iter().map(|&size| i64::try_from(size).unwrap()).collect();
    Tensor::f_from_data_size(view.data(), &shape, Kind::Float).unwrap()
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a - b).abs().max().double_value(&[])
}

/// A picture of the fixture's tiles, mirrored and dimmed so that none repeats: large enough for many tiles.
fn photo(height: i64, width: i64) -> Tensor {
    let tile = fixture("input");
    let row = Tensor::cat(&[&tile, &(tile.flip([3]) * 0.8), &(tile.flip([2]) * 0.9 + 0.05), &tile.flip([2, 3])], 3);
    let all = Tensor::cat(&[&row, &(row.flip([3]) * 0.7 + 0.2), &row.flip([2]), &(&row * 0.85)], 2);
    all.repeat([1, 1, 2, 2]).narrow(2, 0, height).narrow(3, 0, width).contiguous()
}

#[test]
fn each_network_computes_what_pytorch_computes() {
    let _guard = InferenceMode::enter();
    for pack in ["span-x2", "span-x2-ch52", "span-x4", "waifu2x-photo-denoise1"] {
        let output = network(pack).1.forward(&fixture("input"), Margins::default()).expect(pack);
        let difference = largest_difference(&output, &fixture(pack));
        assert!(difference <= 1e-5, "{pack}: {difference:e}");
    }
}

#[test]
fn a_piece_with_its_margins_equals_the_same_piece_of_the_whole_picture() -> Result<(), TorchError> {
    let _guard = InferenceMode::enter();
    let (height, width) = (80, 112);
    let picture = photo(height, width);
    for pack in ["span-x2", "span-x4", "waifu2x-photo"] {
        let (config, network) = network(pack);
        let (halo, scale) = (i64::from(config.halo()), i64::from(config.scale()));
        let whole = network.forward(&picture, Margins::default())?;
        // In the middle, in two corners, at one edge, nearly at another.
        for (x0, y0, x1, y1) in [(40, 30, 70, 50), (0, 0, 40, 40), (60, 50, 112, 80), (0, 30, 30, 50), (30, 5, 60, 40)]
        {
            let (left, top) = (x0.min(halo), y0.min(halo));
            let (right, bottom) = ((width - x1).min(halo), (height - y1).min(halo));
            let input = picture.narrow(3, x0 - left, x1 - x0 + left + right);
            let input = input.narrow(2, y0 - top, y1 - y0 + top + bottom);
            let margins = [left, top, right, bottom].map(|side| u32::try_from(side).unwrap());
            let [left, top, right, bottom] = margins;
            let piece = network.forward(&input, Margins { left, top, right, bottom })?;
            let expected = whole.narrow(3, x0 * scale, (x1 - x0) * scale).narrow(2, y0 * scale, (y1 - y0) * scale);
            let difference = largest_difference(&piece, &expected);
            assert!(difference <= 1e-6, "{pack} at {x0},{y0}: {difference:e}");
        }
    }
    Ok(())
}

#[test]
fn weights_that_are_not_the_networks_are_listed_with_the_files_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let whole = Tensor::read_safetensors(models().join("span-x2/model.safetensors")).unwrap();
    let mut changed: Vec<(String, Tensor)> = whole
        .into_iter()
        .filter(|(name, _)| name != "block_3.c2_r.weight")
        .map(|(name, tensor)| if name == "conv_1.bias" { (name, tensor.narrow(0, 0, 47)) } else { (name, tensor) })
        .collect();
    changed.push(("conv_9.bias".into(), Tensor::zeros([1], (Kind::Float, Device::Cpu))));
    Tensor::write_safetensors(&changed, &path).unwrap();

    let config = read_config(&models().join("span-x2")).unwrap();
    let error = Network::load(&config, Weights::open(&path, Device::Cpu).unwrap()).expect_err("three faults");
    assert!(matches!(error, WeightsError::Mismatch { .. }));
    let text = error.to_string();
    for part in [
        "model.safetensors",
        "missing: block_3.c2_r.weight",
        "unexpected: conv_9.bias",
        "of another shape: conv_1.bias is [47], not [48]",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn a_file_cut_short_is_no_weights_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let whole = std::fs::read(models().join("span-x2/model.safetensors")).unwrap();
    for length in [0, 4, 100, whole.len() - 1] {
        std::fs::write(&path, &whole[..length]).unwrap();
        let error = Weights::open(&path, Device::Cpu).err().expect("cut short").to_string();
        assert!(error.contains("model.safetensors"), "{error}");
    }
}

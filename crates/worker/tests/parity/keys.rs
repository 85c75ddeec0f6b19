//! The lists of tensors of the real models, without their weights.
//!
//! Counts and hashes come from diffusers 0.42.1, on the meta device: the models' `state_dict`, sorted by name, a line
//! `NAME [SHAPE]` for each tensor.

use std::{collections::BTreeMap, fmt::Write as _, path::Path};

use atelier_worker::{
    controlnet::{ControlNet, ControlNetConfig, ControlNetUnion, UnionConfig},
    nn::config::ConfigReader,
    unet::{UNet2DCondition, UNetConfig},
    vae::{Architecture as _, AutoencoderKl, VaeConfig},
    weights::Weights,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

type Shapes = BTreeMap<String, Vec<i64>>;

fn reader(value: Value) -> ConfigReader {
    ConfigReader::from_value(Path::new("config.json"), value).unwrap()
}

fn unet(value: Value) -> Shapes {
    let weights = Weights::recording();
    UNet2DCondition::load(&weights, &UNetConfig::read(reader(value)).unwrap()).unwrap();
    weights.recorded()
}

fn vae(value: Value) -> Shapes {
    let weights = Weights::recording();
    AutoencoderKl::load(&weights, &VaeConfig::read(reader(value)).unwrap()).unwrap();
    weights.recorded()
}

fn controlnet(value: Value) -> Shapes {
    let weights = Weights::recording();
    ControlNet::load(&weights, &ControlNetConfig::read(reader(value)).unwrap()).unwrap();
    weights.recorded()
}

fn union(value: Value) -> Shapes {
    let weights = Weights::recording();
    ControlNetUnion::load(&weights, &UnionConfig::read(reader(value)).unwrap()).unwrap();
    weights.recorded()
}

/// `value` with some keys replaced.
fn with(mut value: Value, changes: Value) -> Value {
    let (Value::Object(keys), Value::Object(changes)) = (&mut value, changes) else { panic!("not an object") };
    keys.extend(changes);
    value
}

/// As the hub's folder of Stable Diffusion 1.5 has it.
fn sd15() -> Value {
    json!({
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.6.0",
        "act_fn": "silu",
        "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280],
        "center_input_sample": false,
        "cross_attention_dim": 768,
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "downsample_padding": 1,
        "flip_sin_to_cos": true,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "out_channels": 4,
        "sample_size": 64,
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    })
}

/// As the hub's folder of Stable Diffusion XL has it.
fn sdxl() -> Value {
    let first = json!({
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.19.0.dev0",
        "act_fn": "silu",
        "addition_embed_type": "text_time",
        "addition_embed_type_num_heads": 64,
        "addition_time_embed_dim": 256,
        "attention_head_dim": [5, 10, 20],
        "block_out_channels": [320, 640, 1280],
        "center_input_sample": false,
        "class_embed_type": null,
        "class_embeddings_concat": false,
        "conv_in_kernel": 3,
        "conv_out_kernel": 3,
        "cross_attention_dim": 2048,
        "cross_attention_norm": null,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "downsample_padding": 1,
        "dual_cross_attention": false,
        "encoder_hid_dim": null,
        "encoder_hid_dim_type": null,
    });
    // The macro does not take as many keys at once.
    let second = json!({
        "flip_sin_to_cos": true,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": 2,
        "mid_block_only_cross_attention": null,
        "mid_block_scale_factor": 1,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "num_attention_heads": null,
        "num_class_embeds": null,
        "only_cross_attention": false,
        "out_channels": 4,
        "projection_class_embeddings_input_dim": 2816,
        "resnet_out_scale_factor": 1.0,
        "resnet_skip_time_act": false,
        "resnet_time_scale_shift": "default",
        "sample_size": 128,
        "time_cond_proj_dim": null,
        "time_embedding_act_fn": null,
        "time_embedding_dim": null,
        "time_embedding_type": "positional",
        "timestep_post_act": null,
        "transformer_layers_per_block": [1, 2, 10],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "upcast_attention": null,
        "use_linear_projection": true,
    });
    with(first, second)
}

fn sdxl_controlnet() -> Value {
    let Value::Object(mut keys) = sdxl() else { panic!("not an object") };
    // What `ControlNetModel.from_unet` does not hand on.
    keys.retain(|key, _| {
        let unets = ["out_channels", "up_block_types", "sample_size", "conv_in_kernel", "conv_out_kernel"];
        !unets.contains(&key.as_str()) && !key.starts_with("time_") && !key.starts_with("resnet_")
    });
    with(Value::Object(keys), json!({ "conditioning_embedding_out_channels": [16, 32, 96, 256] }))
}

fn sd_vae() -> Value {
    json!({
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": vec!["DownEncoderBlock2D"; 4],
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 512,
        "up_block_types": vec!["UpDecoderBlock2D"; 4],
    })
}

#[test]
fn real_models_have_the_tensors_that_diffusers_gives_them() {
    let ssd1b = json!({
        "transformer_layers_per_block": [[1, 1], [2, 2], [4, 4]],
        "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
        "mid_block_type": "UNetMidBlock2D",
    });
    let sd21 =
        json!({ "attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "use_linear_projection": true });
    let sd3_vae = json!({ "latent_channels": 16, "use_quant_conv": false, "use_post_quant_conv": false });
    let union_changes = json!({ "num_control_type": 6, "conditioning_embedding_out_channels": [48, 96, 192, 384] });
    let expected = [
        (
            "Stable Diffusion 1.5",
            unet(sd15()),
            686,
            859_520_964,
            "77ebc1df4e20916ac2e4cf489483e15661fccfe020d57eb554ab4671224d5de1",
        ),
        (
            "InstructPix2Pix",
            unet(with(sd15(), json!({ "in_channels": 8 }))),
            686,
            859_532_484,
            "10688825202fbf35b02b864af10849ae2c9a8522bf44697a25d873ce5ad3d1c4",
        ),
        (
            "SD 1.5 inpainting",
            unet(with(sd15(), json!({ "in_channels": 9 }))),
            686,
            859_535_364,
            "51e620e1613918f19cb3224ed53dd705f0d778222759bfea16e84bdf5e242016",
        ),
        (
            "Stable Diffusion 2.1",
            unet(with(sd15(), sd21)),
            686,
            865_910_724,
            "e1b6b20265b7d9d1d5860597d83fb88d34c545a8f97990087deb27c14c3a378e",
        ),
        (
            "Stable Diffusion XL",
            unet(sdxl()),
            1680,
            2_567_463_684,
            "93a876608bc1ee82195e34e1eb1667784c548cc1af6deaf04d79692e6d36926f",
        ),
        (
            "LCM SDXL",
            unet(with(sdxl(), json!({ "time_cond_proj_dim": 256 }))),
            1681,
            2_567_545_604,
            "b29320a0f604bc9c9f083b93eb110cd4e63b2654903e97e165e703ace64d734b",
        ),
        (
            "SSD-1B",
            unet(with(sdxl(), ssd1b)),
            944,
            1_331_334_404,
            "337bafddfb91a7d5d65cab1ef2a616f6960c24afd4e68c1283d1b2a81bb1a447",
        ),
        ("SD VAE", vae(sd_vae()), 248, 83_653_863, "5a0ba4e758a914142de788cfdc978a9e45274c037ef49e4aeac28723907be7c6"),
        (
            "SD 3 VAE",
            vae(with(sd_vae(), sd3_vae)),
            244,
            83_819_683,
            "428bb77a3f17f47c86fadf14c7d92d1b9512c2aac0e5320abd2109ad219c1e4f",
        ),
        (
            "ControlNet SD 1.5",
            controlnet(json!({ "cross_attention_dim": 768 })),
            340,
            361_279_120,
            "e98d096ae52c42224bf5e57a45cd2d0b0c0273ffb3ccbbff3bbe8f28b3cd0908",
        ),
        (
            "ControlNet SDXL",
            controlnet(sdxl_controlnet()),
            844,
            1_251_014_160,
            "1db431cae5cfc3edfd8483a05c8e9f751d6400cbfddfed1633108882ca251b06",
        ),
        (
            "ControlNet Union",
            union(with(sdxl_controlnet(), union_changes)),
            863,
            1_257_287_280,
            "865c3fb8adca04043a9610df1cd9e3994c2e04d2c4968ce059d7372844a0d303",
        ),
    ];
    for (name, shapes, tensors, parameters, hash) in expected {
        assert_eq!(shapes.len(), tensors, "{name}: tensors");
        assert_eq!(shapes.values().map(|shape| shape.iter().product::<i64>()).sum::<i64>(), parameters, "{name}");
        let mut lines = String::new();
        for (name, shape) in &shapes {
            writeln!(lines, "{name} {shape:?}").unwrap();
        }
        assert_eq!(format!("{:x}", Sha256::digest(lines)), hash, "{name}: names or shapes");
    }
}

#[test]
fn values_that_are_not_computed_are_refused_with_their_key() {
    let refused = [
        ("class_embed_type", json!("timestep")),
        ("num_class_embeds", json!(10)),
        ("addition_embed_type", json!("image")),
        ("encoder_hid_dim", json!(768)),
        ("encoder_hid_dim_type", json!("text_proj")),
        ("time_embedding_type", json!("fourier")),
        ("time_embedding_act_fn", json!("silu")),
        ("timestep_post_act", json!("silu")),
        ("act_fn", json!("gelu")),
        ("dual_cross_attention", json!(true)),
        ("class_embeddings_concat", json!(true)),
        ("cross_attention_norm", json!("layer_norm")),
        ("resnet_time_scale_shift", json!("scale_shift")),
        ("resnet_skip_time_act", json!(true)),
        ("resnet_out_scale_factor", json!(2.0)),
        ("mid_block_scale_factor", json!(1.5)),
        ("mid_block_type", json!("UNetMidBlock2DSimpleCrossAttn")),
        ("attention_type", json!("gated")),
        ("num_attention_heads", json!(8)),
        ("attention_head_dim", json!([5, 10])),
        ("attention_head_dim", json!([7, 7, 7, 7])),
        ("down_block_types", json!(["KDownBlock2D", "DownBlock2D", "DownBlock2D", "DownBlock2D"])),
        ("up_block_types", json!(["UpBlock2D"])),
        ("block_out_channels", json!([320, 640])),
        ("norm_num_groups", json!(24)),
        ("norm_num_groups", json!(0)),
        ("downsample_padding", json!(2)),
        ("conv_in_kernel", json!(4)),
        ("in_channels", json!("four")),
        ("transformer_layers_per_block", json!([1, 2])),
        ("sample_size", json!("large")),
        ("something_new", json!(3)),
    ];
    for (key, value) in refused {
        let error = UNetConfig::read(reader(with(sd15(), json!({ key: value.clone() })))).expect_err(key).to_string();
        assert!(error.starts_with(&format!("config.json: {key} is {value}, ")), "{error}");
    }
    let error =
        UNetConfig::read(reader(with(sd15(), json!({ "addition_embed_type": "text_time" })))).expect_err("sizes");
    assert_eq!(error.to_string(), "config.json: addition_time_embed_dim is missing");
    let vae_refused = [
        ("act_fn", json!("relu")),
        ("down_block_types", json!(["AttnDownEncoderBlock2D"])),
        ("scaling_factor", json!(0.0)),
        ("norm_num_groups", json!(48)),
        ("something_new", json!(true)),
    ];
    for (key, value) in vae_refused {
        let error = VaeConfig::read(reader(with(sd_vae(), json!({ key: value.clone() })))).expect_err(key).to_string();
        assert!(error.starts_with(&format!("config.json: {key} is {value}, ")), "{error}");
    }
    let error = ControlNetConfig::read(reader(json!({ "controlnet_conditioning_channel_order": "gbr" })));
    assert!(error.expect_err("an order").to_string().contains("controlnet_conditioning_channel_order is \"gbr\""));
    let error = UnionConfig::read(reader(with(sdxl_controlnet(), json!({ "num_trans_channel": 100 }))));
    assert!(error.expect_err("channels").to_string().contains("num_trans_channel is 100"));
}

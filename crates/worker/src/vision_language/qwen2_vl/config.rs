//! `config.json` of Qwen2-VL and Qwen2.5-VL, in every layout that is about.
//!
//! The first repositories are flat, with `rope_theta` and `rope_scaling`. Those that transformers 4.52 to 4.57 wrote,
//! among them Qwen-Image's text encoder, hold all of it twice: flat, and within `text_config`, which counts. Version 5
//! writes `text_config` alone, with `rope_parameters`.
//!
//! *Source*: transformers 5.23.0, `models/qwen2_5_vl/configuration_qwen2_5_vl.py`, `models/qwen2_vl/configuration_qwen2_vl.py`.

use std::path::Path;

use serde_json::{Map, Value};

use crate::{
    language_model::{DecoderConfig, decoder::activation},
    nn::config::{ConfigError, ConfigReader},
    text_encoder::Activation,
};

/// Which of the two it is. They differ in the vision tower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// LayerNorm, two layers in a block's feed-forward part, every patch sees the whole picture.
    Qwen2,
    /// RMSNorm, a gate in a block's feed-forward part, most blocks see a window of the picture.
    Qwen25,
}

/// What a block of the vision tower does after attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VisionMlp {
    /// `fc1`, the activation, `fc2`.
    Plain,
    /// `gate_proj` through the activation scales `up_proj`; then `down_proj`.
    Gated,
}

/// Which patches those of a block attend to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    Picture,
    /// Those of a window of this many pixels, but for some blocks, which see the picture.
    Window {
        pixels: i64,
        whole: Vec<i64>,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub struct VisionConfig {
    pub depth: i64,
    /// Features of a patch; `embed_dim` in Qwen2-VL, `hidden_size` in Qwen2.5-VL.
    pub features: i64,
    pub intermediate_size: i64,
    pub num_heads: i64,
    pub hidden_act: Activation,
    pub mlp: VisionMlp,
    pub reach: Reach,
    pub in_channels: i64,
    pub patch_size: i64,
    pub temporal_patch_size: i64,
    pub spatial_merge_size: i64,
    pub rope_theta: f64,
    /// Features of what the language model gets: `hidden_size` in Qwen2-VL, `out_hidden_size` in Qwen2.5-VL.
    pub out_features: i64,
}

impl VisionConfig {
    pub const fn head_size(&self) -> i64 {
        self.features / self.num_heads
    }

    /// Numbers that describe one patch.
    pub const fn patch_values(&self) -> i64 {
        self.in_channels * self.temporal_patch_size * self.patch_size * self.patch_size
    }

    /// Patches that become one token.
    pub const fn merge_unit(&self) -> i64 {
        self.spatial_merge_size * self.spatial_merge_size
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Qwen2VlConfig {
    pub generation: Generation,
    pub language: DecoderConfig,
    pub vision: VisionConfig,
    /// Where a picture's tokens go.
    pub image_token_id: i64,
    pub video_token_id: i64,
    pub vision_start_token_id: i64,
}

/// Keys that say nothing about the network's numbers, or that older versions wrote for others to read.
const IGNORED: &[&str] = &[
    "architectures",
    "attention_dropout",
    "bos_token_id",
    "dtype",
    "id2label",
    "initializer_range",
    "label2id",
    "max_window_layers",
    "pad_token_id",
    "sliding_window",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "vision_end_token_id",
    "vision_token_id",
];

/// Keys of the language model, where they are at the top of the file.
const LANGUAGE: &[&str] = &[
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "hidden_act",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "eos_token_id",
    "use_sliding_window",
    "layer_types",
];

impl Qwen2VlConfig {
    /// Reads `config.json` in `folder`.
    ///
    /// # Errors
    /// No such file, one that makes no sense, or one that asks for what this code does not compute.
    pub fn open(folder: &Path) -> Result<Self, ConfigError> {
        Self::read(ConfigReader::open(&folder.join("config.json"))?)
    }

    pub fn read(mut reader: ConfigReader) -> Result<Self, ConfigError> {
        let path = reader.path().to_owned();
        let generation = generation(&mut reader)?;
        let vision = reader.object("vision_config")?.ok_or_else(|| reader.missing("vision_config"))?;
        let vision = vision_config(vision, generation)?;
        let tied = reader.flag_or("tie_word_embeddings", false)?;
        let image_token_id = token(&mut reader, "image_token_id", 151_655)?;
        let video_token_id = token(&mut reader, "video_token_id", 151_656)?;
        let vision_start_token_id = token(&mut reader, "vision_start_token_id", 151_652)?;
        reader.ignore(IGNORED);
        let flat: Map<String, Value> = LANGUAGE.iter().map(|key| ((*key).to_owned(), reader.take(key))).collect();
        let text = reader.object("text_config")?;
        reader.finish()?;
        let mut language = language_config(match text {
            Some(text) => text,
            None => ConfigReader::from_value(&path, flat.into())?,
        })?;
        language.tie_word_embeddings |= tied;
        let config = Self { generation, language, vision, image_token_id, video_token_id, vision_start_token_id };
        config.check(&path)?;
        Ok(config)
    }

    /// What holds between the two networks, and within their sizes.
    fn check(&self, path: &Path) -> Result<(), ConfigError> {
        let (language, vision) = (&self.language, &self.vision);
        let wrong = |detail: &str| Err(ConfigError::Unreadable { path: path.into(), detail: detail.into() });
        if vision.features % vision.num_heads != 0 || vision.head_size() % 4 != 0 {
            return wrong("the vision tower's num_heads does not divide its width into heads of a multiple of 4");
        }
        if vision.out_features != language.hidden_size {
            return wrong("the vision tower does not give vectors of the language model's hidden_size");
        }
        if let Reach::Window { pixels, .. } = &vision.reach
            && pixels / vision.patch_size / vision.spatial_merge_size < 1
        {
            return wrong("window_size is smaller than one token's patches");
        }
        Ok(())
    }
}

fn generation(reader: &mut ConfigReader) -> Result<Generation, ConfigError> {
    let value = reader.take("model_type");
    match value.as_str() {
        Some("qwen2_vl") => Ok(Generation::Qwen2),
        Some("qwen2_5_vl") => Ok(Generation::Qwen25),
        None if value.is_null() => Err(reader.missing("model_type")),
        Some(_) | None => {
            Err(reader.unsupported("model_type", value, "and only \"qwen2_vl\" or \"qwen2_5_vl\" is supported"))
        }
    }
}

fn token(reader: &mut ConfigReader, key: &str, default: i64) -> Result<i64, ConfigError> {
    let value = reader.take(key);
    if value.is_null() {
        return Ok(default);
    }
    value.as_i64().filter(|id| *id >= 0).ok_or_else(|| reader.unsupported(key, value, "and not a token's number"))
}

fn required(reader: &mut ConfigReader, key: &str) -> Result<i64, ConfigError> {
    reader.size(key)?.ok_or_else(|| reader.missing(key))
}

/// The decoder's, with what the class of these models adds to it where the file is silent.
fn language_config(mut reader: ConfigReader) -> Result<DecoderConfig, ConfigError> {
    reader.ignore(&["model_type", "image_token_id", "video_token_id", "vision_start_token_id", "eos_token_id"]);
    reader.ignore(IGNORED);
    reader.only("use_sliding_window", &[false.into(), Value::Null])?;
    layer_types(&mut reader)?;
    reader.fill("model_type", "qwen2_vl_text".into());
    reader.fill("rope_theta", 1e6.into());
    let mut config = DecoderConfig::take(&mut reader)?;
    reader.ignore_transformers();
    let section = config.mrope_section.get_or_insert([16, 24, 24]);
    if section.iter().sum::<i64>() != config.head_dim / 2 {
        let value = section.to_vec().into();
        return Err(reader.unsupported("mrope_section", value, "and does not add up to half of a head's size"));
    }
    reader.finish()?;
    Ok(config)
}

fn layer_types(reader: &mut ConfigReader) -> Result<(), ConfigError> {
    let value = reader.take("layer_types");
    let is_full = |kind: &Value| kind.as_str() == Some("full_attention");
    if value.is_null() || value.as_array().is_some_and(|list| list.iter().all(is_full)) {
        return Ok(());
    }
    Err(reader.unsupported("layer_types", value, "and only \"full_attention\" is supported"))
}

fn vision_config(mut reader: ConfigReader, generation: Generation) -> Result<VisionConfig, ConfigError> {
    reader.ignore(&["model_type", "tokens_per_second"]);
    reader.ignore(IGNORED);
    let patch_size = reader.size_or("patch_size", 14)?;
    reader.only("spatial_patch_size", &[patch_size.into()])?;
    let in_channels = reader.size_or("in_channels", 3)?;
    reader.only("in_chans", &[in_channels.into()])?;
    let rope_theta = axial_rope(&mut reader)?;
    let hidden_size = required(&mut reader, "hidden_size")?;
    let (features, out_features, intermediate_size, act, mlp, reach) = match generation {
        Generation::Qwen2 => {
            let features = required(&mut reader, "embed_dim")?;
            let ratio = reader.size_or("mlp_ratio", 4)?;
            (features, hidden_size, features * ratio, Activation::QuickGelu, VisionMlp::Plain, Reach::Picture)
        }
        Generation::Qwen25 => {
            let out = reader.size_or("out_hidden_size", 3584)?;
            let intermediate_size = reader.size_or("intermediate_size", 3420)?;
            // Older files say in how many layers 32 of them are; nothing reads it.
            reader.ignore(&["num_hidden_layers"]);
            let pixels = reader.size_or("window_size", 112)?;
            let reach = Reach::Window { pixels, whole: blocks(&mut reader)? };
            (hidden_size, out, intermediate_size, Activation::Silu, VisionMlp::Gated, reach)
        }
    };
    let config = VisionConfig {
        depth: reader.size_or("depth", 32)?,
        features,
        intermediate_size,
        num_heads: reader.size_or("num_heads", 16)?,
        hidden_act: activation(&mut reader, "hidden_act", act)?,
        mlp,
        reach,
        in_channels,
        patch_size,
        temporal_patch_size: reader.size_or("temporal_patch_size", 2)?,
        spatial_merge_size: reader.size_or("spatial_merge_size", 2)?,
        rope_theta,
        out_features,
    };
    reader.finish()?;
    Ok(config)
}

/// The blocks that see the whole picture; counted from 0, so that not all are sizes.
fn blocks(reader: &mut ConfigReader) -> Result<Vec<i64>, ConfigError> {
    let value = reader.take("fullatt_block_indexes");
    if value.is_null() {
        return Ok(vec![7, 15, 23, 31]);
    }
    let list = value.as_array().and_then(|list| list.iter().map(Value::as_i64).collect());
    list.ok_or_else(|| reader.unsupported("fullatt_block_indexes", value, "and not a list of whole numbers"))
}

fn axial_rope(reader: &mut ConfigReader) -> Result<f64, ConfigError> {
    let Some(mut nested) = reader.object("rope_parameters")? else { return Ok(10_000.0) };
    for name in ["type", "rope_type"] {
        nested.only(name, &["axial".into(), "default".into()])?;
    }
    let theta = nested.float_or("rope_theta", 10_000.0)?;
    nested.finish()?;
    Ok(theta)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<Qwen2VlConfig, ConfigError> {
        Qwen2VlConfig::read(ConfigReader::from_value(Path::new("config.json"), value).expect("an object"))
    }

    /// A change of one value, at a path with slashes.
    fn with(mut value: Value, pointer: &str, new: Value) -> Value {
        let (parent, key) = pointer.rsplit_once('/').expect("a path");
        value.pointer_mut(parent).expect("the parent")[key] = new;
        value
    }

    fn flat() -> Value {
        json!({
            "architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl", "torch_dtype": "bfloat16",
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 99, "rope_theta": 1e6, "rms_norm_eps": 1e-6,
            "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}, "tie_word_embeddings": true,
            "vision_config": {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "in_chans": 3,
                "patch_size": 14, "spatial_patch_size": 14, "mlp_ratio": 2}
        })
    }

    #[test]
    fn all_layouts_say_the_same() {
        let first = read(flat()).expect("flat");
        assert_eq!(first.generation, Generation::Qwen2);
        assert!(first.language.tie_word_embeddings);
        assert_eq!((first.vision.intermediate_size, first.language.mrope_section), (64, Some([1, 1, 2])));

        // As version 5 has it.
        let mut nested = flat();
        let map = nested.as_object_mut().expect("an object");
        let mut text: serde_json::Map<_, _> =
            LANGUAGE.iter().filter_map(|key| Some(((*key).to_owned(), map.remove(*key)?))).collect();
        text.remove("rope_theta");
        text.remove("rope_scaling");
        text.insert(
            "rope_parameters".into(),
            json!({"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]}),
        );
        text.insert("model_type".into(), "qwen2_vl_text".into());
        text.insert("layer_types".into(), json!(["full_attention", "full_attention"]));
        text.insert("dtype".into(), "float32".into());
        map.insert("text_config".into(), text.into());
        map.insert("dtype".into(), "float32".into());
        let vision = map.get_mut("vision_config").expect("the vision tower's");
        vision["rope_parameters"] = json!({"rope_type": "axial", "rope_theta": 10000.0});
        vision["model_type"] = "qwen2_vl_vision".into();
        assert_eq!(read(nested.clone()).expect("nested"), first);

        // Both, where the outer values are not read.
        map_of(&mut nested).insert("hidden_size".into(), 7.into());
        map_of(&mut nested).insert("rope_scaling".into(), json!({"type": "default", "mrope_section": [1]}));
        assert_eq!(read(nested).expect("both"), first);
    }

    fn map_of(value: &mut Value) -> &mut serde_json::Map<String, Value> {
        value.as_object_mut().expect("an object")
    }

    #[test]
    fn what_is_not_computed_is_refused_with_its_key() {
        for (pointer, value, part) in [
            ("/model_type", json!("qwen3_vl"), "model_type is \"qwen3_vl\""),
            ("/use_sliding_window", json!(true), "use_sliding_window is true"),
            ("/rope_scaling/type", json!("yarn"), "type is \"yarn\""),
            ("/rope_scaling/mrope_section", json!([1, 1, 1]), "mrope_section is [1,1,1]"),
            ("/layer_types", json!(["sliding_attention"]), "layer_types"),
            ("/quantization_config", json!({"quant_method": "awq"}), "quantization_config"),
            ("/hidden_act", json!("mish"), "hidden_act is \"mish\""),
            ("/num_key_value_heads", json!(3), "num_key_value_heads is 3"),
            ("/vision_config/hidden_size", json!(16), "the language model's hidden_size"),
            ("/vision_config/deepstack_visual_indexes", json!([1]), "deepstack_visual_indexes"),
            ("/vision_config/spatial_patch_size", json!(16), "spatial_patch_size is 16"),
            ("/vision_config", json!(null), "vision_config is missing"),
        ] {
            let error = read(with(flat(), pointer, value)).expect_err(pointer).to_string();
            assert!(error.starts_with("config.json: ") && error.contains(part), "{pointer}: {error}");
        }
    }

    #[test]
    fn windows_are_those_of_the_second_generation() {
        let mut value = with(flat(), "/model_type", json!("qwen2_5_vl"));
        value["vision_config"] = json!({"depth": 4, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4,
            "out_hidden_size": 32, "window_size": 56, "fullatt_block_indexes": [0, 3], "tokens_per_second": 2});
        let config = read(value.clone()).expect("a configuration");
        assert_eq!(config.generation, Generation::Qwen25);
        assert_eq!(config.vision.reach, Reach::Window { pixels: 56, whole: vec![0, 3] });
        assert_eq!((config.vision.features, config.vision.out_features), (32, 32));
        let error = read(with(value, "/vision_config/window_size", json!(20))).expect_err("a small window");
        assert!(error.to_string().contains("window_size"), "{error}");
    }
}

//! `config.json` of a BLIP-2 folder.

use std::path::Path;

use serde_json::Value;

use crate::{
    language_model::{OptConfig, T5Seq2SeqConfig, decoder::activation},
    nn::config::{ConfigError, ConfigReader},
    text_encoder::Activation,
};

#[derive(Clone, Debug, PartialEq)]
pub struct Blip2Config {
    pub vision: VisionConfig,
    pub qformer: QFormerConfig,
    pub text: TextConfig,
    pub num_query_tokens: i64,
    /// What begins a text that nobody has begun.
    pub start_token: i64,
}

/// The language model.
#[derive(Clone, Debug, PartialEq)]
pub enum TextConfig {
    Opt(OptConfig),
    T5(T5Seq2SeqConfig),
}

#[derive(Clone, Debug, PartialEq)]
pub struct VisionConfig {
    pub hidden_size: i64,
    pub intermediate_size: i64,
    pub num_hidden_layers: i64,
    pub num_attention_heads: i64,
    pub image_size: i64,
    pub patch_size: i64,
    pub hidden_act: Activation,
    pub layer_norm_eps: f64,
    pub qkv_bias: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct QFormerConfig {
    pub hidden_size: i64,
    pub num_hidden_layers: i64,
    pub num_attention_heads: i64,
    pub intermediate_size: i64,
    pub hidden_act: Activation,
    pub layer_norm_eps: f64,
    pub cross_attention_frequency: usize,
    pub encoder_hidden_size: i64,
}

impl TextConfig {
    /// What ends a text where no file says it.
    pub const fn usual_end(&self) -> i64 {
        match self {
            Self::Opt(_) => 2,
            Self::T5(_) => 1,
        }
    }

    /// What begins a text where no file says it: OPT's own beginning, and for T5 what BLIP-2's makers chose.
    const fn usual_start(&self) -> i64 {
        match self {
            Self::Opt(_) => 2,
            Self::T5(_) => 1,
        }
    }

    pub const fn hidden_size(&self) -> i64 {
        match self {
            Self::Opt(config) => config.hidden_size,
            Self::T5(config) => config.encoder.d_model,
        }
    }
}

impl Blip2Config {
    /// # Errors
    /// No such file, or a value that is not computed here, with its key.
    pub fn read(folder: &Path) -> Result<Self, ConfigError> {
        Self::take(ConfigReader::open(&folder.join("config.json"))?)
    }

    pub fn take(mut reader: ConfigReader) -> Result<Self, ConfigError> {
        reader.only("model_type", &["blip-2".into()])?;
        let empty = |reader: &ConfigReader| reader.missing("text_config");
        let text = reader.object("text_config")?.ok_or_else(|| empty(&reader))?;
        let start_token = text.peek("bos_token_id").as_i64();
        let text = match text.peek("model_type").as_str() {
            None | Some("opt") => TextConfig::Opt(OptConfig::read(text)?),
            Some("t5") => TextConfig::T5(T5Seq2SeqConfig::read(&text)?),
            Some(_) => {
                let value = text.peek("model_type").clone();
                return Err(text.unsupported("model_type", value, "and only opt and t5 are supported"));
            }
        };
        let vision = VisionConfig::take(reader.object("vision_config")?)?;
        let qformer = QFormerConfig::take(reader.object("qformer_config")?, vision.hidden_size)?;
        let config = Self {
            vision,
            qformer,
            num_query_tokens: reader.size_or("num_query_tokens", 32)?,
            start_token: start_token.unwrap_or_else(|| text.usual_start()),
            text,
        };
        // What others of its parts, or its processor, need, and what follows from the language model.
        reader.ignore(&["image_token_index", "image_token_id", "image_text_hidden_size", "tie_word_embeddings"]);
        reader.ignore(&["use_decoder_only_language_model"]);
        reader.ignore_transformers();
        reader.finish()?;
        Ok(config)
    }
}

/// The keys of a part, of which all may be missing.
fn or_empty(reader: Option<ConfigReader>) -> Result<ConfigReader, ConfigError> {
    reader.map_or_else(|| ConfigReader::from_value(Path::new("config.json"), Value::Object(serde_json::Map::new())), Ok)
}

impl VisionConfig {
    fn take(reader: Option<ConfigReader>) -> Result<Self, ConfigError> {
        let mut reader = or_empty(reader)?;
        reader.only("model_type", &["blip_2_vision_model".into()])?;
        reader.only("num_channels", &[3.into()])?;
        let config = Self {
            hidden_size: reader.size_or("hidden_size", 1408)?,
            intermediate_size: reader.size_or("intermediate_size", 6144)?,
            num_hidden_layers: reader.size_or("num_hidden_layers", 39)?,
            num_attention_heads: reader.size_or("num_attention_heads", 16)?,
            image_size: reader.size_or("image_size", 224)?,
            patch_size: reader.size_or("patch_size", 14)?,
            hidden_act: activation(&mut reader, "hidden_act", Activation::Gelu)?,
            layer_norm_eps: reader.float_or("layer_norm_eps", 1e-6)?,
            qkv_bias: reader.flag_or("qkv_bias", true)?,
        };
        if config.hidden_size % config.num_attention_heads != 0 {
            let problem = "and does not divide hidden_size";
            return Err(reader.unsupported("num_attention_heads", config.num_attention_heads.into(), problem));
        }
        if config.image_size < config.patch_size {
            return Err(reader.unsupported("patch_size", config.patch_size.into(), "and larger than image_size"));
        }
        reader.ignore_transformers();
        reader.finish()?;
        Ok(config)
    }
}

impl QFormerConfig {
    fn take(reader: Option<ConfigReader>, encoder_hidden_size: i64) -> Result<Self, ConfigError> {
        let mut reader = or_empty(reader)?;
        reader.only("model_type", &["blip_2_qformer".into()])?;
        reader.only("use_qformer_text_input", &[false.into()])?;
        reader.only("position_embedding_type", &["absolute".into()])?;
        // transformers takes the vision encoder's own, whatever stands here.
        reader.ignore(&["encoder_hidden_size"]);
        let frequency = reader.size_or("cross_attention_frequency", 2)?;
        let config = Self {
            hidden_size: reader.size_or("hidden_size", 768)?,
            num_hidden_layers: reader.size_or("num_hidden_layers", 12)?,
            num_attention_heads: reader.size_or("num_attention_heads", 12)?,
            intermediate_size: reader.size_or("intermediate_size", 3072)?,
            hidden_act: activation(&mut reader, "hidden_act", Activation::Gelu)?,
            layer_norm_eps: reader.float_or("layer_norm_eps", 1e-12)?,
            cross_attention_frequency: usize::try_from(frequency).unwrap_or(usize::MAX),
            encoder_hidden_size,
        };
        if config.hidden_size % config.num_attention_heads != 0 {
            let problem = "and does not divide hidden_size";
            return Err(reader.unsupported("num_attention_heads", config.num_attention_heads.into(), problem));
        }
        // Of the texts that it can also read.
        reader.ignore(&[
            "vocab_size",
            "max_position_embeddings",
            "attention_probs_dropout_prob",
            "hidden_dropout_prob",
        ]);
        reader.ignore_transformers();
        reader.finish()?;
        Ok(config)
    }
}

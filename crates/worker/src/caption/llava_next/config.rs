//! `config.json` of a LLaVA-NeXT folder.

use std::path::Path;

use serde_json::Value;

use super::tiles::Sides;
use crate::{
    language_model::{DecoderConfig, decoder::activation},
    nn::config::{ConfigError, ConfigReader},
    text_encoder::Activation,
    vision_encoder::ClipVisionConfig,
};

/// Of the model's first release, for files that do not say.
const PINPOINTS: [Sides; 5] = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]];

#[derive(Clone, Debug, PartialEq)]
pub struct LlavaNextConfig {
    pub vision: ClipVisionConfig,
    pub text: DecoderConfig,
    /// `model_type` of the text's configuration, which tells how it is spoken to.
    pub text_type: String,
    pub image_token: i64,
    pub projector_act: Activation,
    pub projector_bias: bool,
    /// After how many of the encoder's layers its hidden states are looked at.
    pub feature_layers: Vec<usize>,
    pub image_grid_pinpoints: Vec<Sides>,
}

impl LlavaNextConfig {
    /// # Errors
    /// No such file, or a value that is not computed here, with its key.
    pub fn read(folder: &Path) -> Result<Self, ConfigError> {
        Self::take(ConfigReader::open(&folder.join("config.json"))?)
    }

    pub fn take(mut reader: ConfigReader) -> Result<Self, ConfigError> {
        reader.only("model_type", &["llava_next".into()])?;
        let mut vision = reader.object("vision_config")?.ok_or_else(|| reader.missing("vision_config"))?;
        vision.set_default("model_type", "clip_vision_model".into());
        let vision = ClipVisionConfig::read(vision)?;
        let mut text = reader.object("text_config")?.ok_or_else(|| reader.missing("text_config"))?;
        text.set_default("model_type", "llama".into());
        let text_type = text.peek("model_type").as_str().unwrap_or_default().to_owned();
        let text = DecoderConfig::read(text)?;
        let image_token = match reader.take("image_token_index").as_i64() {
            Some(token) => token,
            None => reader.take("image_token_id").as_i64().unwrap_or(32000),
        };
        // The tiles' features could not be laid out as a grid otherwise.
        reader.only("vision_feature_select_strategy", &["default".into()])?;
        let feature_layers = feature_layers(&mut reader, vision.num_hidden_layers)?;
        let image_grid_pinpoints = pinpoints(&mut reader, vision.image_size)?;
        let config = Self {
            projector_act: activation(&mut reader, "projector_hidden_act", Activation::Gelu)?,
            projector_bias: reader.flag_or("multimodal_projector_bias", true)?,
            vision,
            text,
            text_type,
            image_token,
            feature_layers,
            image_grid_pinpoints,
        };
        // What other keys repeat.
        reader.ignore(&["image_token_id", "image_seq_length", "ignore_index", "vocab_size", "tie_word_embeddings"]);
        reader.ignore(&["use_image_newline_parameter"]);
        reader.ignore_transformers();
        reader.finish()?;
        Ok(config)
    }
}

/// `vision_feature_layer` counts the hidden states, of which there is one more than layers; from the end where it is
/// below 0.
fn feature_layers(reader: &mut ConfigReader, layers: i64) -> Result<Vec<usize>, ConfigError> {
    let value = reader.take("vision_feature_layer");
    let given = match &value {
        Value::Null => Some(vec![-2]),
        Value::Number(number) => number.as_i64().map(|layer| vec![layer]),
        Value::Array(list) => list.iter().map(Value::as_i64).collect(),
        Value::Bool(_) | Value::String(_) | Value::Object(_) => None,
    };
    let from_start = |layer: &i64| {
        let layer = if *layer < 0 { layers + 1 + layer } else { *layer };
        usize::try_from(layer).ok().filter(|_| layer <= layers)
    };
    let found = given.and_then(|given| given.iter().map(from_start).collect::<Option<Vec<_>>>());
    let found = found.filter(|found| !found.is_empty());
    found.ok_or_else(|| reader.unsupported("vision_feature_layer", value, "and none of the encoder's layers"))
}

fn pinpoints(reader: &mut ConfigReader, tile: i64) -> Result<Vec<Sides>, ConfigError> {
    let value = reader.take("image_grid_pinpoints");
    if value.is_null() {
        return Ok(PINPOINTS.to_vec());
    }
    let given: Option<Vec<Sides>> = serde_json::from_value(value.clone()).ok();
    let tile = usize::try_from(tile).unwrap_or(usize::MAX);
    let fits = |sides: &Sides| sides.iter().all(|side| *side > 0 && side % tile == 0);
    let found = given.filter(|given| !given.is_empty() && given.iter().all(fits));
    found.ok_or_else(|| {
        reader.unsupported("image_grid_pinpoints", value, format!("and no list of sizes in tiles of {tile}"))
    })
}

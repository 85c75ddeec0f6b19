//! BLIP-2: a picture in a few vectors before OPT, or before what Flan-T5 reads.

pub mod config;
pub mod network;
pub mod qformer;
pub mod vision;

use std::path::PathBuf;

use self::{
    config::{Blip2Config, TextConfig},
    network::{Blip2, IGNORED},
};
use super::{
    captioner::{Captioner, Files, Generation, Inputs, Speaker, read_json, refuse_marks},
    preprocessor::Preprocessor,
};
use crate::{
    diffusion::pixels::Rgb,
    error::JobError,
    models::ModelError,
    tokenizer::Tokenizer,
    weights::{Weights, WeightsError},
};

/// What stands for the picture in the vocabularies of newer folders.
const MARK: &str = "<image>";

/// T5 knows no end of its positions; nobody waits for longer texts.
const T5_CONTEXT: i64 = 4096 + 512;

/// A BLIP-2 folder.
pub struct Folder {
    path: PathBuf,
    config: Blip2Config,
    preprocessor: Preprocessor,
    tokenizer: Tokenizer,
    generation: Generation,
}

impl Folder {
    /// # Errors
    /// A folder that is damaged, or asks for what is not computed here; with the file.
    pub fn read(folder: PathBuf) -> Result<Self, ModelError> {
        let config = Blip2Config::read(&folder)?;
        let preprocessor = Preprocessor::read(&folder)?;
        let tokenizer = Tokenizer::open(&folder)?;
        let file = read_json(&folder.join("config.json"))?.unwrap_or_default();
        let generation = Generation::read(&folder, &[&file["text_config"], &file], config.text.usual_end())?;
        let side = config.vision.image_size;
        if let Some(sides) = preprocessor.size.filter(|sides| *sides != [side; 2]) {
            let detail = format!("size is {sides:?}, and the vision encoder takes {side} x {side}");
            return Err(ModelError::Config { path: folder.join("preprocessor_config.json"), detail });
        }
        Ok(Self { path: folder, config, preprocessor, tokenizer, generation })
    }

    /// The tokens of what was asked: nothing but a beginning for a caption.
    fn tokens(&self, question: &str) -> Result<Vec<i64>, JobError> {
        if question.is_empty() {
            return Ok(vec![self.config.start_token]);
        }
        // As the models were taught to be asked.
        let prompt = if question.contains("Question:") || question.contains("Answer:") {
            question.to_owned()
        } else {
            format!("Question: {question} Answer:")
        };
        Ok(self.tokenizer.encode(&prompt).map_err(ModelError::from)?)
    }
}

impl Captioner for Folder {
    fn question(&self) -> &'static str {
        ""
    }

    fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    fn generation(&self) -> &Generation {
        &self.generation
    }

    fn context(&self) -> i64 {
        match &self.config.text {
            TextConfig::Opt(config) => config.max_position_embeddings,
            TextConfig::T5(_) => T5_CONTEXT,
        }
    }

    fn prepare(&self, picture: &Rgb, question: &str) -> Result<Inputs, JobError> {
        refuse_marks(question, &[MARK])?;
        let ids = self.tokens(question)?;
        let side = usize::try_from(self.config.vision.image_size).unwrap_or(1);
        let pixels = self.preprocessor.normalised(&self.preprocessor.resized(picture, [side, side]))?;
        let before = usize::try_from(self.config.num_query_tokens).unwrap_or(0);
        let said = match &self.config.text {
            TextConfig::Opt(_) => ids.clone(),
            // What it reads is not what it writes.
            TextConfig::T5(config) => vec![config.decoder_start_token_id],
        };
        Ok(Inputs { ids, said, before, pixels, size: [self.config.vision.image_size; 2] })
    }

    fn files(&self) -> Files<'_> {
        Files { folder: &self.path, aliases: &[], ignored: IGNORED }
    }

    fn load(&self, weights: &Weights) -> Result<Box<dyn Speaker>, WeightsError> {
        Ok(Box::new(Blip2::load(weights, &self.config)?))
    }
}

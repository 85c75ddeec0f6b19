//! Qwen2-VL and Qwen2.5-VL, which see a picture in its own shape.

use std::path::PathBuf;

use atelier_domain::ErrorCode;
use serde_json::Value;
use tch::Tensor;

use super::{
    captioner::{Captioner, Files, Generation, Inputs, Speaker, read_json, refuse_marks},
    generate::CausalLm,
};
use crate::{
    diffusion::pixels::Rgb,
    error::JobError,
    models::ModelError,
    tokenizer::Tokenizer,
    torch::TorchError,
    vision_language::qwen2_vl::{
        ALIASES, Decoding, Grid, IGNORED, ImageProcessor, Patches, PictureError, Qwen2Vl, Qwen2VlConfig, Use,
        chat::{self, IMAGE_PAD},
    },
    weights::{Weights, WeightsError},
};

/// A picture becomes no more than so many tokens, whatever the folder allows: 16,384 of them, as some do, would take
/// minutes and tens of gigabytes to say what half as sharp a picture says.
const MOST_TOKENS: i64 = 2048;

/// `<|im_end|>`, for folders that do not say how a text ends.
const END: i64 = 151_645;

/// A Qwen2-VL or Qwen2.5-VL folder.
pub struct Folder {
    path: PathBuf,
    config: Qwen2VlConfig,
    processor: ImageProcessor,
    tokenizer: Tokenizer,
    generation: Generation,
}

impl Folder {
    /// # Errors
    /// A folder that is damaged, or asks for what is not computed here; with the file.
    pub fn read(folder: PathBuf) -> Result<Self, ModelError> {
        let config = Qwen2VlConfig::open(&folder)?;
        let mut processor = ImageProcessor::open(&folder)?;
        if !processor.fits(&config.vision) {
            let path = folder.join("preprocessor_config.json");
            let detail = "its patches are not those of config.json's vision_config".into();
            return Err(ModelError::Config { path, detail });
        }
        let side = processor.patch_size * processor.merge_size;
        processor.max_pixels = processor.max_pixels.min(MOST_TOKENS * side * side).max(processor.min_pixels);
        let tokenizer = Tokenizer::open(&folder)?;
        let file = read_json(&folder.join("config.json"))?.unwrap_or(Value::Null);
        let generation = Generation::read(&folder, &[&file["text_config"], &file], END)?;
        if tokenizer.token_id(IMAGE_PAD) != Some(config.image_token_id) {
            let detail =
                format!("the tokenizer's {IMAGE_PAD} is not config.json's image_token_id {}", config.image_token_id);
            return Err(ModelError::Config { path: folder, detail });
        }
        Ok(Self { path: folder, config, processor, tokenizer, generation })
    }
}

impl Captioner for Folder {
    fn question(&self) -> &'static str {
        "Describe this image."
    }

    fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    fn generation(&self) -> &Generation {
        &self.generation
    }

    fn context(&self) -> i64 {
        self.config.language.max_position_embeddings
    }

    fn prepare(&self, picture: &Rgb, question: &str) -> Result<Inputs, JobError> {
        refuse_marks(question, &[IMAGE_PAD, "<|vision_start|>", "<|vision_end|>", "<|im_start|>", "<|im_end|>"])?;
        let patches = self.processor.patches(&picture.samples, picture.width, picture.height);
        let Patches { values, grids } = patches.map_err(|error| match error {
            PictureError::Ratio { .. } => {
                JobError::refused(ErrorCode::InvalidParams, error.to_string(), "Send a picture that is less of a line.")
            }
            PictureError::Torch(error) => error.into(),
        })?;
        let tokens: Vec<i64> = grids.iter().map(|grid| grid.tokens(&self.config.vision)).collect();
        let ids = self.tokenizer.encode(&chat::question(chat::SYSTEM, 1, question)).map_err(ModelError::from)?;
        let size = grids.first().map_or([0, 0], |grid| [grid.height, grid.width]);
        let ids = chat::spread(&ids, self.config.image_token_id, &tokens)
            .ok_or_else(|| TorchError::Other("the prompt has no place for the picture".into()))?;
        Ok(Inputs { said: ids.clone(), ids, before: 0, pixels: values, size })
    }

    fn files(&self) -> Files<'_> {
        Files { folder: &self.path, aliases: ALIASES, ignored: IGNORED }
    }

    fn load(&self, weights: &Weights) -> Result<Box<dyn Speaker>, WeightsError> {
        Ok(Box::new(Qwen2Vl::load(weights, &self.config, Use::Answers)?))
    }
}

impl Speaker for Qwen2Vl {
    fn begin<'a>(&'a self, inputs: &Inputs, max_tokens: usize) -> Result<Box<dyn CausalLm + 'a>, TorchError> {
        let [height, width] = inputs.size;
        let patches = Patches { values: inputs.pixels.shallow_clone(), grids: vec![Grid { time: 1, height, width }] };
        Ok(Box::new(Answer { model: self, ids: inputs.ids.clone(), patches, room: max_tokens, decoding: None }))
    }
}

struct Answer<'a> {
    model: &'a Qwen2Vl,
    ids: Vec<i64>,
    patches: Patches,
    room: usize,
    decoding: Option<Decoding>,
}

impl CausalLm for Answer<'_> {
    fn prefill(&mut self) -> Result<Tensor, TorchError> {
        let (decoding, scores) = self.model.begin(&self.ids, Some(&self.patches), self.room)?;
        self.decoding = Some(decoding);
        Ok(scores)
    }

    fn step(&mut self, token: i64) -> Result<Tensor, TorchError> {
        let decoding = self.decoding.as_mut();
        let decoding = decoding.ok_or_else(|| TorchError::Other("a step before the prompt was read".into()))?;
        self.model.next(decoding, token)
    }
}

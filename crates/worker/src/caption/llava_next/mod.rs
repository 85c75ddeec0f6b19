//! LLaVA 1.6 (LLaVA-NeXT): CLIP's eyes in tiles, and a Mistral, Vicuna or Yi that speaks.

pub mod config;
pub mod network;
pub mod tiles;

use std::path::PathBuf;

use atelier_domain::ErrorCode;
use tch::Tensor;

use self::{
    config::LlavaNextConfig,
    network::{ALIASES, LlavaNext},
    tiles::{best_resolution, tiles, without_margins},
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
    torch::TorchError,
    weights::{Weights, WeightsError},
};

/// What stands for the picture in a prompt.
const MARK: &str = "<image>";

/// `</s>` of Llama's and Mistral's vocabularies, for folders that do not say how a text ends.
const END: i64 = 2;

/// How the folder's language model is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Mistral,
    Vicuna,
    /// Of Yi and other models whose vocabulary has marks for turns.
    Turns,
}

impl Style {
    /// Source: the chat templates of llava-v1.6-mistral-7b, -vicuna-7b and -34b.
    fn prompt(self, question: &str) -> String {
        match self {
            Self::Mistral => format!("[INST] {MARK}\n{question} [/INST]"),
            Self::Vicuna => format!("USER: {MARK}\n{question} ASSISTANT:"),
            Self::Turns => format!(
                "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n{MARK}\n{question}<|im_end|>\
                 <|im_start|>assistant\n"
            ),
        }
    }
}

/// A LLaVA-NeXT folder.
pub struct Folder {
    path: PathBuf,
    config: LlavaNextConfig,
    preprocessor: Preprocessor,
    tokenizer: Tokenizer,
    generation: Generation,
    style: Style,
}

impl Folder {
    /// # Errors
    /// A folder that is damaged, or asks for what is not computed here; with the file.
    pub fn read(folder: PathBuf) -> Result<Self, ModelError> {
        let config = LlavaNextConfig::read(&folder)?;
        let preprocessor = Preprocessor::read(&folder)?;
        let tokenizer = Tokenizer::open(&folder)?;
        let file = read_json(&folder.join("config.json"))?.unwrap_or_default();
        let generation = Generation::read(&folder, &[&file, &file["text_config"]], END)?;
        let wrong = |detail: String| ModelError::Config { path: folder.join("preprocessor_config.json"), detail };
        let tile = config.vision.image_size;
        for (key, sides) in [("size", preprocessor.size), ("crop_size", preprocessor.crop)] {
            if let Some(sides) = sides.filter(|sides| *sides != [tile; 2]) {
                return Err(wrong(format!("{key} is {sides:?}, and the vision encoder takes {tile} x {tile}")));
            }
        }
        let pinpoints = preprocessor.image_grid_pinpoints.as_ref();
        let same = |given: &Vec<[i64; 2]>| {
            let sides = given.iter().map(|sides| sides.map(|side| usize::try_from(side).unwrap_or(0)));
            sides.eq(config.image_grid_pinpoints.iter().copied())
        };
        if pinpoints.is_some_and(|given| !same(given)) {
            return Err(wrong("image_grid_pinpoints are others than in config.json".into()));
        }
        if tokenizer.token_id(MARK) != Some(config.image_token) {
            let detail =
                format!("the tokenizer's {MARK} is not config.json's image_token_index {}", config.image_token);
            return Err(ModelError::Config { path: folder, detail });
        }
        let style = if tokenizer.token_id("<|im_start|>").is_some() {
            Style::Turns
        } else if config.text_type == "mistral" {
            Style::Mistral
        } else {
            Style::Vicuna
        };
        Ok(Self { path: folder, config, preprocessor, tokenizer, generation, style })
    }

    /// How many tokens a picture of this height and width takes.
    fn picture_tokens(&self, size: [usize; 2], resolution: [usize; 2]) -> usize {
        let whole = |side: i64| usize::try_from(side).unwrap_or(0);
        let (side, tile) = (whole(self.config.vision.side()), whole(self.config.vision.image_size));
        let grid = resolution.map(|length| length / tile * side);
        let [(_, rows), (_, columns)] = without_margins(size, grid);
        side * side + rows * (columns + 1)
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
        self.config.text.context()
    }

    fn prepare(&self, picture: &Rgb, question: &str) -> Result<Inputs, JobError> {
        refuse_marks(question, &[MARK])?;
        let size = [picture.height, picture.width];
        let narrow = |[rows, columns]: [(usize, usize); 2]| rows.1 == 0 || columns.1 == 0;
        let resolution = best_resolution(size, &self.config.image_grid_pinpoints)
            .filter(|resolution| !narrow(without_margins(size, *resolution)))
            .filter(|resolution| tiles::fitted(size, *resolution).iter().all(|side| *side > 0))
            .ok_or_else(|| {
                JobError::refused(
                    ErrorCode::InvalidParams,
                    format!("a picture of {} x {} is too narrow for this model", picture.width, picture.height),
                    "Send a picture that is less of a line.",
                )
            })?;
        let tile = usize::try_from(self.config.vision.image_size).unwrap_or(1);
        let pieces = tiles(picture, resolution, tile, &self.preprocessor);
        let pixels = pieces.iter().map(|piece| self.preprocessor.normalised(piece)).collect::<Result<Vec<_>, _>>()?;
        let pixels = Tensor::f_cat(&pixels, 0).map_err(TorchError::from)?;
        let ids = self.tokenizer.encode(&self.style.prompt(question)).map_err(ModelError::from)?;
        let count = self.picture_tokens(size, resolution);
        let places = |id: i64| if id == self.config.image_token { count } else { 1 };
        let ids: Vec<i64> = ids.into_iter().flat_map(|id| std::iter::repeat_n(id, places(id))).collect();
        let size = size.map(|side| i64::try_from(side).unwrap_or(i64::MAX));
        Ok(Inputs { said: ids.clone(), ids, before: 0, pixels, size })
    }

    fn files(&self) -> Files<'_> {
        Files { folder: &self.path, aliases: ALIASES, ignored: &[] }
    }

    fn load(&self, weights: &Weights) -> Result<Box<dyn Speaker>, WeightsError> {
        Ok(Box::new(LlavaNext::load(weights, &self.config)?))
    }
}

//! Prompts through the text encoders.

use tch::Tensor;

use super::{Stage, blueprint::TextBlueprint};
use crate::{
    error::JobError,
    models::ModelError,
    prompt::{self, HiddenState, PromptEmbeds, PromptOptions, Windows},
    text_encoder::ClipText,
};

/// What the denoiser attends to.
#[derive(Debug)]
pub struct Text {
    /// (1, L, D)
    pub embeds: Tensor,
    /// (1, P), of SDXL.
    pub pooled: Option<Tensor>,
    /// Where there is guidance: the same for the negative prompt, as long.
    pub negative: Option<Negative>,
}

#[derive(Debug)]
pub struct Negative {
    pub embeds: Tensor,
    pub pooled: Option<Tensor>,
}

impl Text {
    /// The prompt's rows before or after the negative's.
    pub fn negative_embeds(&self) -> &Tensor {
        self.negative.as_ref().map_or(&self.embeds, |negative| &negative.embeds)
    }
}

/// Which hidden states count. In diffusers `clip_skip` is the prompt's alone.
#[derive(Clone, Copy, Debug)]
pub struct Hidden {
    pub positive: HiddenState,
    pub negative: HiddenState,
}

/// The prompt and its negative through one encoder, in as many windows as the longer of them takes.
pub fn encode_pair(
    stage: &mut Stage<'_, '_>,
    blueprint: &TextBlueprint,
    negative: Option<&str>,
    hidden: Hidden,
) -> Result<(PromptEmbeds, Option<PromptEmbeds>), JobError> {
    let encoder = blueprint.load(stage)?;
    let task = stage.task;
    let options = PromptOptions { weighting: task.weighting, ..PromptOptions::default() };
    let mut positive = windows(blueprint, &task.prompt, options)?;
    let mut negative = negative.map(|text| windows(blueprint, text, options)).transpose()?;
    let count = negative.as_ref().map_or(0, Windows::count).max(positive.count());
    positive.pad_to(&blueprint.tokenizer, count);
    if count > 1 && blueprint.name == "text_encoder" {
        let (tokens, context) = (positive.tokens(), blueprint.context());
        stage.note(format!("The prompt has {tokens} tokens and was read in {count} windows of {context}."));
    }
    let one = |windows: &Windows, hidden| encode(&encoder, windows, hidden);
    let negative = match &mut negative {
        None => None,
        Some(windows) => {
            windows.pad_to(&blueprint.tokenizer, count);
            Some(one(windows, hidden.negative)?)
        }
    };
    Ok((one(&positive, hidden.positive)?, negative))
}

fn windows(blueprint: &TextBlueprint, text: &str, options: PromptOptions) -> Result<Windows, JobError> {
    let windows = Windows::of(&blueprint.tokenizer, text, blueprint.context(), options);
    Ok(windows.map_err(ModelError::from)?)
}

fn encode(encoder: &ClipText, windows: &Windows, hidden: HiddenState) -> Result<PromptEmbeds, JobError> {
    Ok(prompt::encode(encoder, windows, hidden)?)
}

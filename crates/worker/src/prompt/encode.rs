//! Windows to the hidden states that the denoiser attends to.

use tch::{Kind, Tensor};

use super::Windows;
use crate::{text_encoder::ClipText, torch::TorchError};

/// Which of the encoder's hidden states the denoiser was trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HiddenState {
    /// The last one, with the final norm: Stable Diffusion 1.x.
    Last,
    /// So many layers before the end, without the final norm: SDXL has 1.
    Skip(usize),
    /// So many layers before the end, with the final norm: `clip_skip` in Stable Diffusion 1.x.
    SkipNormed(usize),
}

#[derive(Debug)]
pub struct PromptEmbeds {
    /// (1, windows · L, D)
    pub embeds: Tensor,
    /// Of the first window: (1, P) where the encoder projects, otherwise (1, D).
    pub pooled: Tensor,
}

/// Encodes all windows of one prompt.
///
/// Weights scale the hidden states of their tokens; then all are scaled so that their mean is what it was, which keeps
/// the strength of the prompt as a whole.
///
/// # Errors
/// More layers skipped than there are, or a device's failure.
pub fn encode(encoder: &ClipText, windows: &Windows, hidden_state: HiddenState) -> Result<PromptEmbeds, TorchError> {
    let rows = windows.ids().iter().map(|row| Tensor::f_from_slice(row)).collect::<Result<Vec<_>, _>>()?;
    let ids = Tensor::f_stack(&rows, 0)?.f_to(encoder.device())?;
    let output = encoder.forward(&ids)?;
    let skipped = |layers: usize| {
        let index = output.hidden.len().checked_sub(layers + 1).filter(|&index| index > 0);
        index.map(|index| &output.hidden[index]).ok_or_else(|| {
            TorchError::Other(format!("{layers} layers cannot be skipped: the encoder has {}", output.hidden.len() - 1))
        })
    };
    let embeds = match hidden_state {
        HiddenState::Last => output.last_hidden.shallow_clone(),
        HiddenState::Skip(layers) => skipped(layers)?.shallow_clone(),
        HiddenState::SkipNormed(layers) => encoder.final_norm(skipped(layers)?)?,
    };
    let (count, length, width) = embeds.size3()?;
    let mut embeds = embeds.f_reshape([1, count * length, width])?;
    if windows.is_weighted() {
        embeds = weigh(&embeds, windows)?;
    }
    let pooled = output.projected.as_ref().unwrap_or(&output.pooled).f_narrow(0, 0, 1)?;
    Ok(PromptEmbeds { embeds, pooled })
}

fn weigh(embeds: &Tensor, windows: &Windows) -> Result<Tensor, TorchError> {
    let weights: Vec<f32> = windows.weights().iter().flatten().copied().collect();
    let weights = Tensor::f_from_slice(&weights)?.f_to(embeds.device())?.f_reshape([1, -1, 1])?;
    let wide = embeds.f_to_kind(Kind::Float)?;
    let before = wide.f_mean(Kind::Float)?;
    let weighed = wide.f_mul(&weights)?;
    let after = weighed.f_mean(Kind::Float)?;
    Ok(weighed.f_mul(&before.f_div(&after)?)?.f_to_kind(embeds.f_kind()?)?)
}

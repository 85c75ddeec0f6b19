//! `ControlNetUnionModel`: one network for several kinds of hints, which a small transformer weighs against each other.

use tch::Tensor;

use super::{ConditioningEmbedding, Taps, UnionConfig, pooled};
use crate::{
    nn::{Context, LayerNorm, Layout, Linear, Sinusoid, Slicing, TimestepEmbedding, attend},
    torch::TorchError,
    unet::{Conditions, ControlResiduals, Encoder, sinusoid},
    weights::{Scope, Weights, WeightsError},
};

const LAYER_NORM_EPS: f64 = 1e-5;

/// A control picture.
#[derive(Clone, Copy, Debug)]
pub struct UnionHint<'a> {
    /// (B or 1, 3, H, W) from 0 to 1, in the picture's size.
    pub picture: &'a Tensor,
    /// What it shows, as the network counts its kinds.
    pub kind: i64,
    /// How much it counts.
    pub scale: f64,
}

/// Attention among a picture's hints, and two layers after it.
#[derive(Debug)]
struct ResidualAttentionBlock {
    /// `attn.in_proj_weight`: queries, keys and values.
    in_proj: Linear,
    out_proj: Linear,
    ln_1: LayerNorm,
    c_fc: Linear,
    c_proj: Linear,
    ln_2: LayerNorm,
    heads: i64,
}

impl ResidualAttentionBlock {
    fn load(scope: &Scope<'_>, features: i64, heads: i64) -> Result<Self, WeightsError> {
        let attention = scope.at("attn");
        let in_proj = Linear::new(
            attention.take("in_proj_weight", &[3 * features, features])?,
            Some(attention.take("in_proj_bias", &[3 * features])?),
        );
        Ok(Self {
            in_proj,
            out_proj: Linear::load(&attention.at("out_proj"), features, features, true)?,
            ln_1: LayerNorm::load(&scope.at("ln_1"), features, LAYER_NORM_EPS)?,
            c_fc: Linear::load(&scope.at("mlp.c_fc"), features, 4 * features, true)?,
            c_proj: Linear::load(&scope.at("mlp.c_proj"), 4 * features, features, true)?,
            ln_2: LayerNorm::load(&scope.at("ln_2"), features, LAYER_NORM_EPS)?,
            heads,
        })
    }

    /// (B, N, features) → the same shape. Attention goes over the pictures of the batch, not over a picture's hints:
    /// the reference hands (B, N) to a layer that takes (N, B), and the weights were trained so. A picture that is
    /// denoised with its negative prompt in one batch may therefore differ from one that is not.
    fn forward(&self, hidden: &Tensor) -> Result<Tensor, TorchError> {
        let projected = self.in_proj.forward(&self.ln_1.forward(hidden)?)?.f_transpose(0, 1)?;
        let parts = projected.f_chunk(3, 2)?;
        let attended = attend(&parts[0], &parts[1], &parts[2], self.heads, Slicing::Whole)?;
        let hidden = self.out_proj.forward(&attended.f_transpose(0, 1)?)?.f_add(hidden)?;
        let inner = self.c_fc.forward(&self.ln_2.forward(&hidden)?)?;
        // QuickGELU
        let inner = inner.f_mul(&inner.f_mul_scalar(1.702)?.f_sigmoid_()?)?;
        Ok(self.c_proj.forward(&inner)?.f_add(&hidden)?)
    }
}

#[derive(Debug)]
pub struct ControlNetUnion {
    encoder: Encoder,
    controlnet_cond_embedding: ConditioningEmbedding,
    /// (kinds, features)
    task_embedding: Tensor,
    /// The checkpoints' own spelling.
    transformer_layes: Vec<ResidualAttentionBlock>,
    spatial_ch_projs: Linear,
    control_type_proj: Sinusoid,
    control_add_embedding: TimestepEmbedding,
    taps: Taps,
    kinds: i64,
    pools: bool,
    layout: Layout,
}

impl ControlNetUnion {
    /// # Errors
    /// No room. What is missing or does not fit is listed by [`Weights::finish`].
    pub fn load(weights: &Weights, config: &UnionConfig) -> Result<Self, WeightsError> {
        let root = weights.root();
        let (features, kinds) = (config.num_trans_channel, config.num_control_type);
        let layers = root.at("transformer_layes");
        Ok(Self {
            encoder: Encoder::load(&root, &config.encoder)?,
            controlnet_cond_embedding: ConditioningEmbedding::load(
                &root.at("controlnet_cond_embedding"),
                &config.hint,
                config.encoder.levels[0].channels,
            )?,
            task_embedding: root.take("task_embedding", &[kinds, features])?,
            transformer_layes: (0..config.num_trans_layer)
                .map(|i| ResidualAttentionBlock::load(&layers.at(i), features, config.num_trans_head))
                .collect::<Result<_, _>>()?,
            spatial_ch_projs: Linear::load(&root.at("spatial_ch_projs"), features, config.num_proj_channel, true)?,
            control_type_proj: sinusoid(&root, &config.encoder, config.control_type_dim)?,
            control_add_embedding: TimestepEmbedding::load(
                &root.at("control_add_embedding"),
                config.control_type_dim * kinds,
                config.encoder.time_embedding_dim,
                None,
            )?,
            taps: Taps::load(&root, &config.encoder)?,
            kinds,
            pools: config.global_pool_conditions,
            layout: Layout::of(root.device()),
        })
    }

    /// What to add to a UNet of the same sizes at this timestep.
    ///
    /// `sample` (B, in, h, w) and `conditions` are the UNet's own. Residuals in `conditions` are not looked at. The
    /// scale of a single hint is that of the residuals; of several, each one's is that of its share.
    ///
    /// # Errors
    /// No hint, two of a kind, a kind that the network does not know, shapes that do not fit, no memory, or a device's
    /// failure.
    pub fn forward(
        &self,
        sample: &Tensor,
        timestep: f64,
        conditions: &Conditions<'_>,
        hints: &[UnionHint<'_>],
    ) -> Result<ControlResiduals, TorchError> {
        let Conditions { encoder_hidden_states, added, timestep_cond, slicing, .. } = *conditions;
        self.encoder.check(sample, encoder_hidden_states)?;
        let kinds = self.kinds_of(hints, sample)?;
        let context = Context { encoder_hidden_states, slicing };
        let kinds = self.control_type_proj.forward(&kinds)?.f_reshape([1, -1])?.f_to_kind(sample.f_kind()?)?;
        let kinds = self.control_add_embedding.forward(&kinds, None)?;
        let mut time = self.encoder.embed(timestep, timestep_cond, added, sample)?.f_add(&kinds)?;
        let time = time.f_silu_()?;

        let hidden = self.encoder.conv_in.forward(&self.layout.of_tensor(sample)?)?;
        let hidden = self.fuse(hidden, hints)?;
        let (hidden, skips) = self.encoder.down(hidden, &time, context)?;
        let middle = self.encoder.middle(hidden, &time, context)?;
        let scale = if let [hint] = hints { hint.scale } else { 1.0 };
        let residuals = self.taps.forward(skips, &middle, scale)?;
        if self.pools { pooled(&residuals) } else { Ok(residuals) }
    }

    /// Which kinds there are, as numbers 0 and 1: (kinds) in f32
    fn kinds_of(&self, hints: &[UnionHint<'_>], sample: &Tensor) -> Result<Tensor, TorchError> {
        let mut present = vec![0.0_f32; usize::try_from(self.kinds).unwrap_or_default()];
        if hints.is_empty() {
            return Err(TorchError::Other("a ControlNet needs a control picture".into()));
        }
        for hint in hints {
            self.controlnet_cond_embedding.check(hint.picture, sample)?;
            let kind = usize::try_from(hint.kind).ok().and_then(|kind| present.get_mut(kind));
            match kind {
                Some(kind) if *kind == 0.0 => *kind = 1.0,
                Some(_) => return Err(TorchError::Other(format!("two control pictures of the kind {}", hint.kind))),
                None => {
                    let kinds = self.kinds;
                    return Err(TorchError::Other(format!("the kind {} of control picture of {kinds}", hint.kind)));
                }
            }
        }
        Ok(Tensor::f_from_slice(&present)?.f_to_device(sample.device())?)
    }

    /// `hidden` (B, C, h, w) after `conv_in`, with the hints added as the transformer weighs them.
    fn fuse(&self, mut hidden: Tensor, hints: &[UnionHint<'_>]) -> Result<Tensor, TorchError> {
        let mean = |tensor: &Tensor| -> Result<Tensor, TorchError> {
            Ok(tensor.f_mean_dim([2_i64, 3].as_slice(), false, None)?)
        };
        let batch = hidden.size4()?.0;
        // A single hint is scaled in the end.
        let scale_of = |hint: &UnionHint<'_>| if hints.len() == 1 { 1.0 } else { hint.scale };
        let (mut features, mut shares) = (Vec::new(), Vec::new());
        for hint in hints {
            let share = self.controlnet_cond_embedding.forward(&self.layout.of_tensor(hint.picture)?)?;
            let task = self.task_embedding.f_select(0, hint.kind)?;
            let feature = mean(&share)?.f_add(&task)?.f_mul_scalar(scale_of(hint))?;
            features.push(feature.f_expand([batch, -1], false)?);
            shares.push(share.f_mul_scalar(scale_of(hint))?);
        }
        features.push(mean(&hidden)?);
        let mut weighed = Tensor::f_stack(&features, 1)?;
        for layer in &self.transformer_layes {
            weighed = layer.forward(&weighed)?;
        }
        for ((share, hint), index) in shares.into_iter().zip(hints).zip(0..) {
            let alpha = self.spatial_ch_projs.forward(&weighed.f_select(1, index)?)?.f_mul_scalar(scale_of(hint))?;
            hidden = hidden.f_add(&share)?.f_add_(&alpha.f_unsqueeze(2)?.f_unsqueeze(3)?)?;
        }
        Ok(hidden)
    }
}

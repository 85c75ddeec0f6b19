//! The vision tower: patches of pictures to vectors that stand among the language model's tokens.
//!
//! *Source*: transformers 5.23.0, `models/qwen2_vl/modeling_qwen2_vl.py` and `models/qwen2_5_vl/modeling_qwen2_5_vl.py`.
//! Fields are named as the checkpoint's keys.

use tch::{Device, Tensor};

use super::{
    config::{Generation, Reach, VisionConfig, VisionMlp},
    image::{Grid, Patches},
    norm::RmsNorm,
    rope::{Rotation, patch_rope},
    windows::{Windows, pictures, places},
};
use crate::{
    nn::{Blocks, LayerNorm, Linear},
    text_encoder::Activation,
    torch::TorchError,
    weights::{Scope, WeightsError},
};

/// Of all norms in the tower; no configuration names it.
const EPS: f64 = 1e-6;

enum Norm {
    Layer(LayerNorm),
    Rms(RmsNorm),
}

impl Norm {
    fn load(scope: &Scope<'_>, features: i64, generation: Generation) -> Result<Self, WeightsError> {
        Ok(match generation {
            Generation::Qwen2 => Self::Layer(LayerNorm::load(scope, features, EPS)?),
            Generation::Qwen25 => Self::Rms(RmsNorm::load(scope, features, EPS)?),
        })
    }

    fn forward(&self, input: &Tensor) -> Result<Tensor, TorchError> {
        match self {
            Self::Layer(norm) => norm.forward(input),
            Self::Rms(norm) => norm.forward(input),
        }
    }
}

enum Mlp {
    Plain { fc1: Linear, fc2: Linear },
    Gated { gate_proj: Linear, up_proj: Linear, down_proj: Linear },
}

impl Mlp {
    fn load(scope: &Scope<'_>, config: &VisionConfig) -> Result<Self, WeightsError> {
        let (features, inner) = (config.features, config.intermediate_size);
        let into = |name: &str| Linear::load(&scope.at(name), features, inner, true);
        let out = |name: &str| Linear::load(&scope.at(name), inner, features, true);
        Ok(match config.mlp {
            VisionMlp::Plain => Self::Plain { fc1: into("fc1")?, fc2: out("fc2")? },
            VisionMlp::Gated => {
                Self::Gated { gate_proj: into("gate_proj")?, up_proj: into("up_proj")?, down_proj: out("down_proj")? }
            }
        })
    }

    fn forward(&self, input: &Tensor, activation: Activation) -> Result<Tensor, TorchError> {
        match self {
            Self::Plain { fc1, fc2 } => fc2.forward(&activation.apply(&fc1.forward(input)?)?),
            Self::Gated { gate_proj, up_proj, down_proj } => {
                let gate = activation.apply(&gate_proj.forward(input)?)?;
                down_proj.forward(&gate.f_mul(&up_proj.forward(input)?)?)
            }
        }
    }
}

struct Attention {
    qkv: Linear,
    proj: Linear,
    heads: i64,
}

impl Attention {
    fn load(scope: &Scope<'_>, config: &VisionConfig) -> Result<Self, WeightsError> {
        let features = config.features;
        Ok(Self {
            qkv: Linear::load(&scope.at("qkv"), features, 3 * features, true)?,
            proj: Linear::load(&scope.at("proj"), features, features, true)?,
            heads: config.num_heads,
        })
    }

    /// (N, D), of which runs of `lengths` attend to themselves → (N, D)
    fn forward(&self, input: &Tensor, lengths: &[i64], rotation: &Rotation) -> Result<Tensor, TorchError> {
        let (count, features) = input.size2()?;
        let size = features / self.heads;
        // (N, heads, size) each
        let parts = self.qkv.forward(input)?.f_view([count, 3, self.heads, size])?.f_unbind(1)?;
        let [query, key, value] = &parts[..] else { return Err(TorchError::Other("no three projections".into())) };
        let (query, key) = (rotation.apply(query)?, rotation.apply(key)?);
        let mut outputs = Vec::new();
        let mut start = 0;
        // Windows of the same size, one after the other, are a batch.
        for run in lengths.chunk_by(|first, second| first == second) {
            let (windows, length) = (wide(run.len()), run.first().copied().unwrap_or(0));
            let batch = |tensor: &Tensor| -> Result<Tensor, TorchError> {
                let run = tensor.f_narrow(0, start, windows * length)?;
                Ok(run.f_reshape([windows, length, self.heads, size])?.f_transpose(1, 2)?)
            };
            let (query, key, value) = (batch(&query)?, batch(&key)?, batch(value)?);
            let mask = None::<&Tensor>;
            let output = Tensor::f_scaled_dot_product_attention(&query, &key, &value, mask, 0.0, false, None, false)?;
            outputs.push(output.f_transpose(1, 2)?.f_reshape([windows * length, features])?);
            start += windows * length;
        }
        self.proj.forward(&Tensor::f_cat(&outputs, 0)?)
    }
}

struct Block {
    norm1: Norm,
    norm2: Norm,
    attn: Attention,
    mlp: Mlp,
}

impl Block {
    fn load(scope: &Scope<'_>, config: &VisionConfig, generation: Generation) -> Result<Self, WeightsError> {
        Ok(Self {
            norm1: Norm::load(&scope.at("norm1"), config.features, generation)?,
            norm2: Norm::load(&scope.at("norm2"), config.features, generation)?,
            attn: Attention::load(&scope.at("attn"), config)?,
            mlp: Mlp::load(&scope.at("mlp"), config)?,
        })
    }

    fn forward(
        &self,
        input: &Tensor,
        lengths: &[i64],
        rotation: &Rotation,
        activation: Activation,
    ) -> Result<Tensor, TorchError> {
        let attended = self.attn.forward(&self.norm1.forward(input)?, lengths, rotation)?.f_add(input)?;
        Ok(self.mlp.forward(&self.norm2.forward(&attended)?, activation)?.f_add(&attended)?)
    }
}

/// Patches that become one token, in one vector, through two layers.
struct PatchMerger {
    ln_q: Norm,
    /// `mlp.0` and `mlp.2`; the 1 is GELU.
    mlp: [Linear; 2],
    features: i64,
}

impl PatchMerger {
    fn load(scope: &Scope<'_>, config: &VisionConfig, generation: Generation) -> Result<Self, WeightsError> {
        let features = config.features * config.merge_unit();
        let mlp = scope.at("mlp");
        Ok(Self {
            ln_q: Norm::load(&scope.at("ln_q"), config.features, generation)?,
            mlp: [
                Linear::load(&mlp.at(0), features, features, true)?,
                Linear::load(&mlp.at(2), features, config.out_features, true)?,
            ],
            features,
        })
    }

    /// (N, D) → (N / merge², out)
    fn forward(&self, input: &Tensor) -> Result<Tensor, TorchError> {
        let joined = self.ln_q.forward(input)?.f_reshape([-1, self.features])?;
        let hidden = Activation::Gelu.apply(&self.mlp[0].forward(&joined)?)?;
        self.mlp[1].forward(&hidden)
    }
}

/// `Qwen2VisionTransformerPretrainedModel`, or `Qwen2_5_VisionTransformerPretrainedModel`.
pub struct VisionTower {
    /// `patch_embed.proj`, a convolution whose window is a whole patch.
    patch_embed: Linear,
    blocks: Blocks<Block>,
    merger: PatchMerger,
    config: VisionConfig,
    device: Device,
    kind: tch::Kind,
}

/// What the tower makes of pictures.
#[derive(Debug)]
pub struct VisionOutput {
    /// (patches, D), in the tower's order: window by window, where there are any.
    pub last_hidden: Tensor,
    /// (tokens, out), picture by picture, row by row.
    pub merged: Tensor,
}

impl VisionTower {
    pub fn load(scope: &Scope<'_>, config: &VisionConfig, generation: Generation) -> Result<Self, WeightsError> {
        let (patch, time) = (config.patch_size, config.temporal_patch_size);
        let shape = [config.features, config.in_channels, time, patch, patch];
        let weight = scope.at("patch_embed.proj").take("weight", &shape)?;
        // A tensor that is missing has no elements, and is listed when all weights are taken.
        let weight = if weight.defined() { weight.view([config.features, config.patch_values()]) } else { weight };
        let count = usize::try_from(config.depth).unwrap_or(0);
        let own = config.clone();
        let blocks = Blocks::load(&scope.at("blocks"), count, move |_, scope| Block::load(scope, &own, generation))?;
        Ok(Self {
            patch_embed: Linear::new(weight, None),
            blocks,
            merger: PatchMerger::load(&scope.at("merger"), config, generation)?,
            config: config.clone(),
            device: scope.device(),
            kind: scope.kind(),
        })
    }

    /// # Errors
    /// Patches that are not as many as their grids have, or a device's failure.
    pub fn forward(&self, patches: &Patches) -> Result<VisionOutput, TorchError> {
        let (count, _) = patches.values.size2()?;
        let grids = &patches.grids;
        check(count, grids, &self.config)?;
        let windows = Windows::of(grids, &self.config);
        let values = patches.values.f_to_device_(self.device, self.kind, false, false)?;
        let (rows, columns) = places(grids, self.config.spatial_merge_size);
        let on_device = |list: &[i64]| Ok::<_, TorchError>(Tensor::f_from_slice(list)?.f_to(self.device)?);
        let (mut rows, mut columns) = (on_device(&rows)?, on_device(&columns)?);
        let mut hidden = self.patch_embed.forward(&values)?;
        if let Some(windows) = &windows {
            let order = on_device(&windows.order)?;
            hidden = self.reordered(&hidden, &order)?;
            (rows, columns) = (self.reordered(&rows, &order)?, self.reordered(&columns, &order)?);
        }
        let rotation = patch_rope(self.config.rope_theta, self.config.head_size(), &rows, &columns)?;
        let whole = pictures(grids);
        self.blocks.each(|index, block| {
            let lengths = match (&windows, &self.config.reach) {
                (Some(windows), Reach::Window { whole, .. }) if !whole.contains(&wide(index)) => &windows.windows,
                (Some(_) | None, Reach::Window { .. } | Reach::Picture) => &whole,
            };
            hidden = block.forward(&hidden, lengths, &rotation, self.config.hidden_act)?;
            Ok(())
        })?;
        let mut merged = self.merger.forward(&hidden)?;
        if let Some(windows) = &windows {
            merged = merged.f_index_select(0, &on_device(&windows.places())?)?;
        }
        Ok(VisionOutput { last_hidden: hidden, merged })
    }

    /// (patches, …) with each token's patches where `order` has the token.
    fn reordered(&self, input: &Tensor, order: &Tensor) -> Result<Tensor, TorchError> {
        let sizes = input.size();
        let mut grouped = sizes.clone();
        grouped[0] = -1;
        grouped.insert(1, self.config.merge_unit());
        Ok(input.f_reshape(&grouped)?.f_index_select(0, order)?.f_reshape(&sizes)?)
    }
}

fn check(count: i64, grids: &[Grid], config: &VisionConfig) -> Result<(), TorchError> {
    let merge = config.spatial_merge_size;
    let is_whole = |grid: &Grid| grid.time > 0 && grid.height > 0 && grid.width > 0 && grid.height % merge == 0;
    if !grids.iter().all(|grid| is_whole(grid) && grid.width % merge == 0) {
        return Err(TorchError::Other(format!("a picture's sides are not multiples of {merge} patches")));
    }
    let wanted: i64 = grids.iter().map(|grid| grid.patches()).sum();
    if wanted != count || count == 0 {
        return Err(TorchError::Other(format!("{count} patches are not the {wanted} of the pictures")));
    }
    Ok(())
}

fn wide(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

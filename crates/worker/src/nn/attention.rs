//! Attention with several heads, through libtorch's own kernels.

use tch::Tensor;

use super::Linear;
use crate::{
    torch::TorchError,
    weights::{Scope, WeightsError},
};

/// How much memory attention may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Slicing {
    /// All queries at once. libtorch's kernels for the CPU and most of CUDA's hold no matrix of scores.
    #[default]
    Whole,
    /// This many queries at a time: bounds the scores of a kernel that holds them.
    Queries(i64),
}

/// softmax(q · kᵀ / √d) · v for each head.
///
/// `query` (B, L, heads · d), `key` and `value` (B, S, heads · d) → (B, L, heads · d)
pub fn attend(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    heads: i64,
    slicing: Slicing,
) -> Result<Tensor, TorchError> {
    let (batch, length, features) = query.size3()?;
    let split = |tensor: &Tensor| -> Result<Tensor, TorchError> {
        Ok(tensor.f_reshape([batch, -1, heads, features / heads])?.f_transpose(1, 2)?)
    };
    let (query, key, value) = (split(query)?, split(key)?, split(value)?);
    let some = |query: &Tensor| -> Result<Tensor, TorchError> {
        let mask = None::<&Tensor>;
        Ok(Tensor::f_scaled_dot_product_attention(query, &key, &value, mask, 0.0, false, None, false)?)
    };
    let output = match slicing {
        Slicing::Queries(count) if count < length => {
            let slices = query.f_split(count.max(1), 2)?;
            let outputs = slices.iter().map(some).collect::<Result<Vec<_>, _>>()?;
            Tensor::f_cat(&outputs, 2)?
        }
        Slicing::Whole | Slicing::Queries(_) => some(&query)?,
    };
    Ok(output.f_transpose(1, 2)?.f_reshape([batch, length, features])?)
}

/// The sizes of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionSizes {
    /// Features of the queries and of the output.
    pub query: i64,
    /// Features of what is attended to: those of the text, or the queries' own.
    pub context: i64,
    pub heads: i64,
    pub head: i64,
}

/// Projections, attention, a projection.
#[derive(Debug)]
pub struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    /// `to_out.0`; the 1 would be dropout.
    to_out: Linear,
    heads: i64,
}

impl Attention {
    /// `bias` is that of `to_q`, `to_k` and `to_v`; `to_out` has one in any case.
    pub fn load(scope: &Scope<'_>, sizes: AttentionSizes, bias: bool) -> Result<Self, WeightsError> {
        let inner = sizes.heads * sizes.head;
        Ok(Self {
            to_q: Linear::load(&scope.at("to_q"), sizes.query, inner, bias)?,
            to_k: Linear::load(&scope.at("to_k"), sizes.context, inner, bias)?,
            to_v: Linear::load(&scope.at("to_v"), sizes.context, inner, bias)?,
            to_out: Linear::load(&scope.at("to_out").at(0), inner, sizes.query, true)?,
            heads: sizes.heads,
        })
    }

    /// The same layer under the names that diffusers gave it before 0.17, as in the VAEs of Stable Diffusion 1 and 2:
    /// `query`, `key`, `value` and `proj_attn`, with a bias each.
    pub fn load_deprecated(scope: &Scope<'_>, sizes: AttentionSizes) -> Result<Self, WeightsError> {
        let inner = sizes.heads * sizes.head;
        Ok(Self {
            to_q: Linear::load(&scope.at("query"), sizes.query, inner, true)?,
            to_k: Linear::load(&scope.at("key"), sizes.context, inner, true)?,
            to_v: Linear::load(&scope.at("value"), sizes.context, inner, true)?,
            to_out: Linear::load(&scope.at("proj_attn"), inner, sizes.query, true)?,
            heads: sizes.heads,
        })
    }

    /// `hidden_states` (B, L, query), `context` (B, S, context) or none to attend to itself → (B, L, query)
    pub fn forward(
        &self,
        hidden_states: &Tensor,
        context: Option<&Tensor>,
        slicing: Slicing,
    ) -> Result<Tensor, TorchError> {
        let context = context.unwrap_or(hidden_states);
        let query = self.to_q.forward(hidden_states)?;
        let key = self.to_k.forward(context)?;
        let value = self.to_v.forward(context)?;
        let attended = attend(&query, &key, &value, self.heads, slicing)?;
        drop((query, key, value));
        self.to_out.forward(&attended)
    }
}

//! Attention over two sequences as one: each has projections of its own, and every token attends to all of both.

use tch::Tensor;

use super::{RmsNorm, Rope, modulation};
use crate::{
    nn::Linear,
    torch::TorchError,
    weights::{Scope, WeightsError},
};

/// What the checkpoint calls a stream's layers, below the attention.
#[derive(Clone, Copy, Debug)]
pub struct Names {
    pub query: &'static str,
    pub key: &'static str,
    pub value: &'static str,
    pub query_norm: &'static str,
    pub key_norm: &'static str,
    /// None where nothing is projected back.
    pub output: Option<&'static str>,
}

impl Names {
    /// The picture's.
    pub const OWN: Self = Self {
        query: "to_q",
        key: "to_k",
        value: "to_v",
        query_norm: "norm_q",
        key_norm: "norm_k",
        output: Some("to_out.0"),
    };
    /// The text's.
    pub const ADDED: Self = Self {
        query: "add_q_proj",
        key: "add_k_proj",
        value: "add_v_proj",
        query_norm: "norm_added_q",
        key_norm: "norm_added_k",
        output: Some("to_add_out"),
    };

    /// The same without the projection back.
    #[must_use]
    pub const fn without_output(self) -> Self {
        Self { output: None, ..self }
    }
}

/// What is done to each head's queries and keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HeadNorm {
    None,
    /// With a weight for each feature.
    Rms {
        eps: f64,
    },
    /// Layer norm in f32, without parameters.
    Layer {
        eps: f64,
    },
}

#[derive(Debug)]
enum Norm {
    None,
    Rms(RmsNorm),
    Layer { eps: f64 },
}

impl Norm {
    fn load(scope: &Scope<'_>, head: i64, norm: HeadNorm) -> Result<Self, WeightsError> {
        Ok(match norm {
            HeadNorm::None => Self::None,
            HeadNorm::Rms { eps } => Self::Rms(RmsNorm::load(scope, head, eps)?),
            HeadNorm::Layer { eps } => Self::Layer { eps },
        })
    }

    fn forward(&self, heads: Tensor) -> Result<Tensor, TorchError> {
        match self {
            Self::None => Ok(heads),
            Self::Rms(norm) => norm.forward(&heads),
            Self::Layer { eps } => {
                let wide = heads.f_to_kind(tch::Kind::Float)?;
                Ok(modulation::norm(&wide, *eps)?.f_to_kind(heads.f_kind()?)?)
            }
        }
    }
}

/// Sizes of a stream's projections.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProjectionSizes {
    /// Features of its tokens.
    pub width: i64,
    pub heads: i64,
    pub head: i64,
    pub norm: HeadNorm,
    /// Of the queries, keys and values.
    pub bias: bool,
    /// Of the projection back.
    pub output_bias: bool,
}

/// Queries, keys and values of a sequence, (B, L, H, head) each.
#[derive(Debug)]
pub struct Heads {
    pub query: Tensor,
    pub key: Tensor,
    pub value: Tensor,
}

impl Heads {
    /// `self`'s tokens, then `other`'s.
    pub fn then(&self, other: &Self) -> Result<Self, TorchError> {
        let both = |one: &Tensor, other: &Tensor| Ok::<_, TorchError>(Tensor::f_cat(&[one, other], 1)?);
        Ok(Self {
            query: both(&self.query, &other.query)?,
            key: both(&self.key, &other.key)?,
            value: both(&self.value, &other.value)?,
        })
    }

    /// With queries and keys turned by their positions.
    pub fn turned(self, rope: &Rope) -> Result<Self, TorchError> {
        Ok(Self { query: rope.apply(&self.query)?, key: rope.apply(&self.key)?, value: self.value })
    }

    /// softmax(q · kᵀ / √d) · v for each head → (B, L, H · head). `mask` (B, 1, 1, L): true for tokens that are seen.
    pub fn attend(&self, mask: Option<&Tensor>) -> Result<Tensor, TorchError> {
        let (batch, length, heads, head) = self.query.size4()?;
        let by_head = |tensor: &Tensor| tensor.f_transpose(1, 2);
        let (query, key, value) = (by_head(&self.query)?, by_head(&self.key)?, by_head(&self.value)?);
        let output = Tensor::f_scaled_dot_product_attention(&query, &key, &value, mask, 0.0, false, None, false)?;
        Ok(output.f_transpose(1, 2)?.f_reshape([batch, length, heads * head])?)
    }
}

/// A stream's way into the attention and back.
#[derive(Debug)]
pub struct Projections {
    query: Linear,
    key: Linear,
    value: Linear,
    query_norm: Norm,
    key_norm: Norm,
    output: Option<Linear>,
    sizes: ProjectionSizes,
}

impl Projections {
    pub fn load(scope: &Scope<'_>, names: Names, sizes: ProjectionSizes) -> Result<Self, WeightsError> {
        let inner = sizes.heads * sizes.head;
        let linear = |name: &str| Linear::load(&scope.at(name), sizes.width, inner, sizes.bias);
        let norm = |name: &str| Norm::load(&scope.at(name), sizes.head, sizes.norm);
        let output = names
            .output
            .map(|name| Linear::load(&scope.at(name), inner, sizes.width, sizes.output_bias))
            .transpose()?;
        Ok(Self {
            query: linear(names.query)?,
            key: linear(names.key)?,
            value: linear(names.value)?,
            query_norm: norm(names.query_norm)?,
            key_norm: norm(names.key_norm)?,
            output,
            sizes,
        })
    }

    /// `hidden` (B, L, width) → the heads, normed, not turned.
    pub fn heads(&self, hidden: &Tensor) -> Result<Heads, TorchError> {
        let (batch, length, _) = hidden.size3()?;
        let split = |layer: &Linear| -> Result<Tensor, TorchError> {
            Ok(layer.forward(hidden)?.f_view([batch, length, self.sizes.heads, self.sizes.head])?)
        };
        Ok(Heads {
            query: self.query_norm.forward(split(&self.query)?)?,
            key: self.key_norm.forward(split(&self.key)?)?,
            value: split(&self.value)?,
        })
    }

    /// `attended` (B, L, H · head) → (B, L, width); as it is where nothing is projected back.
    pub fn output(&self, attended: &Tensor) -> Result<Tensor, TorchError> {
        match &self.output {
            Some(layer) => layer.forward(attended),
            None => Ok(attended.shallow_clone()),
        }
    }
}

/// Two sequences attend to both of them; `rope` is for `first`'s tokens, then `second`'s.
///
/// `first` (B, L, width), `second` (B, M, width) → the same shapes, projected back.
pub fn attend(
    first: (&Projections, &Tensor),
    second: (&Projections, &Tensor),
    rope: Option<&Rope>,
) -> Result<(Tensor, Tensor), TorchError> {
    let (length, other) = (first.1.size3()?.1, second.1.size3()?.1);
    let heads = first.0.heads(first.1)?.then(&second.0.heads(second.1)?)?;
    let heads = match rope {
        Some(rope) => heads.turned(rope)?,
        None => heads,
    };
    let attended = heads.attend(None)?;
    drop(heads);
    let own = first.0.output(&attended.f_narrow(1, 0, length)?)?;
    let others = second.0.output(&attended.f_narrow(1, length, other)?)?;
    Ok((own, others))
}

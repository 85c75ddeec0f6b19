//! The two-layer network after attention.

use tch::Tensor;

use super::Linear;
use crate::{
    torch::{LinearActivation, TorchError},
    weights::{Scope, WeightsError},
};

/// What lies between the two layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedForwardKind {
    /// The Gaussian error linear unit, exact.
    Gelu,
    /// The same through tanh.
    GeluTanh,
    /// Half of the first layer's outputs, times the GELU of the other half (arXiv 2002.05202).
    GeGlu,
}

#[derive(Debug)]
enum Activation {
    Gelu {
        proj: Linear,
        activation: LinearActivation,
    },
    /// The two halves of `net.0.proj`. Two products need less memory than one product and its halves.
    GeGlu {
        hidden: Linear,
        gate: Linear,
    },
}

#[derive(Debug)]
pub struct FeedForward {
    /// `net.0`
    activation: Activation,
    /// `net.2`; the 1 would be dropout.
    output: Linear,
}

impl FeedForward {
    /// `inner` features between the layers; diffusers' default is 4 · `features`.
    pub fn load(scope: &Scope<'_>, features: i64, inner: i64, kind: FeedForwardKind) -> Result<Self, WeightsError> {
        let net = scope.at("net");
        let proj = net.at("0.proj");
        let activation = match kind {
            FeedForwardKind::Gelu => Activation::Gelu {
                proj: Linear::load(&proj, features, inner, true)?,
                activation: LinearActivation::Gelu,
            },
            FeedForwardKind::GeluTanh => Activation::Gelu {
                proj: Linear::load(&proj, features, inner, true)?,
                activation: LinearActivation::GeluTanh,
            },
            FeedForwardKind::GeGlu => {
                let (hidden, gate) = Linear::load_halves(&proj, features, inner)?;
                Activation::GeGlu { hidden, gate }
            }
        };
        Ok(Self { activation, output: Linear::load(&net.at(2), inner, features, true)? })
    }

    /// (…, features) → the same shape
    pub fn forward(&self, input: &Tensor) -> Result<Tensor, TorchError> {
        let inner = match &self.activation {
            Activation::Gelu { proj, activation } => proj.forward_then(input, *activation)?,
            Activation::GeGlu { hidden, gate } => {
                let gate = gate.forward_then(input, LinearActivation::Gelu)?;
                let mut hidden = hidden.forward(input)?;
                hidden.f_mul_(&gate)?
            }
        };
        self.output.forward(&inner)
    }
}

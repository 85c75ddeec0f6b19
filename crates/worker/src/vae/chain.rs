//! An encoder or a decoder as a chain of layers, each of which a picture passes whole or in pieces.

use std::ops::Range;

use tch::Tensor;

use super::frame::{FrameAttention, FrameDown, FrameNorm, FrameResnet, FrameUp};
use crate::{
    nn::{
        Attention, AttentionSizes, Conv2d, Downsample2D, GroupNorm, Layout, ResnetBlock2D, ResnetSizes, Slicing,
        Upsample2D, Window, picture_of, tokens_of,
    },
    torch::TorchError,
    weights::{Scope, WeightsError},
};

pub(super) const EPS: f64 = 1e-6;

#[derive(Debug)]
enum Kind {
    /// 1 x 1
    Point(Conv2d),
    /// 3 x 3
    Conv(Conv2d),
    Resnet(Box<ResnetBlock2D>),
    Attention {
        group_norm: GroupNorm,
        attention: Attention,
    },
    Down(Downsample2D),
    Up(Upsample2D),
    NormSilu(GroupNorm),
    FrameResnet(Box<FrameResnet>),
    FrameAttention(FrameAttention),
    FrameDown(FrameDown),
    FrameUp(FrameUp),
    FrameNormSilu(FrameNorm),
}

#[derive(Debug)]
pub(super) struct Layer {
    kind: Kind,
    /// The more of its input's and its output's.
    channels: i64,
}

impl Layer {
    /// (B, C, H, W) → (B, C', H', W')
    pub(super) fn forward(&self, input: Tensor) -> Result<Tensor, TorchError> {
        match &self.kind {
            Kind::Point(conv) | Kind::Conv(conv) => conv.forward(&input),
            Kind::Resnet(resnet) => resnet.forward(input, None),
            Kind::Attention { group_norm, attention } => {
                let (_, _, height, width) = input.size4()?;
                let tokens = tokens_of(&group_norm.forward(&input)?)?;
                let attended = attention.forward(&tokens, None, Slicing::Whole)?;
                Ok(picture_of(&attended, height, width)?.f_add(&input)?)
            }
            Kind::Down(down) => down.forward(&input),
            Kind::Up(up) => up.forward(input),
            Kind::NormSilu(norm) => norm.forward_silu(&input),
            Kind::FrameResnet(resnet) => resnet.forward(input),
            Kind::FrameAttention(attention) => attention.forward(&input),
            Kind::FrameDown(down) => down.forward(&input),
            Kind::FrameUp(up) => up.forward(input),
            Kind::FrameNormSilu(norm) => norm.forward_silu(&input),
        }
    }

    /// How many rows of its input around some rows are needed for what it makes of these; all of them for attention.
    pub(super) const fn reach(&self) -> i64 {
        match &self.kind {
            Kind::Point(_) | Kind::NormSilu(_) | Kind::FrameNormSilu(_) => 0,
            // Of a residual block's two convolutions each is a layer of its own, as norms lie between them.
            Kind::Conv(_) | Kind::Resnet(_) | Kind::Down(_) | Kind::FrameDown(_) | Kind::Up(_) | Kind::FrameUp(_) => 1,
            Kind::FrameResnet(_) => 2,
            Kind::Attention { .. } | Kind::FrameAttention(_) => i64::MAX,
        }
    }

    pub(super) const fn scale(&self) -> Scale {
        match &self.kind {
            Kind::Down(_) | Kind::FrameDown(_) => Scale::Half,
            Kind::Up(_) | Kind::FrameUp(_) => Scale::Double,
            Kind::Point(_)
            | Kind::Conv(_)
            | Kind::Resnet(_)
            | Kind::Attention { .. }
            | Kind::NormSilu(_)
            | Kind::FrameResnet(_)
            | Kind::FrameAttention(_)
            | Kind::FrameNormSilu(_) => Scale::Same,
        }
    }

    /// Whether as many channels come out as go in, of as large a picture.
    pub(super) const fn keeps_shape(&self) -> bool {
        match &self.kind {
            Kind::Point(_)
            | Kind::Attention { .. }
            | Kind::NormSilu(_)
            | Kind::FrameAttention(_)
            | Kind::FrameNormSilu(_) => true,
            Kind::FrameResnet(resnet) => resnet.keeps_shape(),
            Kind::Resnet(resnet) => resnet.keeps_shape(),
            Kind::Conv(_) | Kind::Down(_) | Kind::Up(_) | Kind::FrameDown(_) | Kind::FrameUp(_) => false,
        }
    }

    /// Elements of its larger tensor for a picture of these sides.
    pub(super) const fn elements(&self, [height, width]: [i64; 2]) -> i64 {
        let (before, after) = (height * width, self.scale().of(height) * self.scale().of(width));
        self.channels * if before > after { before } else { after }
    }

    /// The norms over a whole picture that it has, and what to compute around them.
    pub(super) fn across(&self) -> Across<'_> {
        match &self.kind {
            Kind::Resnet(resnet) => Across::Resnet(resnet),
            Kind::NormSilu(norm) => Across::Norm(norm),
            Kind::Point(_)
            | Kind::Conv(_)
            | Kind::Attention { .. }
            | Kind::Down(_)
            | Kind::Up(_)
            | Kind::FrameResnet(_)
            | Kind::FrameAttention(_)
            | Kind::FrameDown(_)
            | Kind::FrameUp(_)
            | Kind::FrameNormSilu(_) => Across::Nothing,
        }
    }
}

/// What of a layer must know the whole picture.
pub(super) enum Across<'a> {
    /// Nothing: each row follows from the rows around it.
    Nothing,
    Norm(&'a GroupNorm),
    /// Two norms.
    Resnet(&'a ResnetBlock2D),
}

/// What a layer does to a picture's sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scale {
    Same,
    /// Rounded down.
    Half,
    Double,
}

impl Scale {
    pub(super) const fn of(self, side: i64) -> i64 {
        match self {
            Self::Same => side,
            Self::Half => side / 2,
            Self::Double => 2 * side,
        }
    }
}

#[derive(Debug)]
pub(super) struct Chain {
    layers: Vec<Layer>,
    layout: Layout,
}

impl Chain {
    pub(super) fn len(&self) -> usize {
        self.layers.len()
    }

    pub(super) const fn layout(&self) -> Layout {
        self.layout
    }

    pub(super) fn layers(&self, range: Range<usize>) -> &[Layer] {
        &self.layers[range]
    }

    /// (B, C, H, W) → what the layers of `range` make of it. The memory of each input is free after its layer.
    pub(super) fn forward(&self, range: Range<usize>, input: Tensor) -> Result<Tensor, TorchError> {
        self.layers[range].iter().try_fold(input, |hidden, layer| layer.forward(hidden))
    }

    /// Elements of the largest tensor for a picture of these sides before the first layer.
    pub(super) fn most_elements(&self, sides: [i64; 2]) -> i64 {
        self.elements(sides).into_iter().max().unwrap_or_default()
    }

    /// The layers whose tensors hold more elements than `limit` for a picture of these sides before the first layer.
    /// Never attention, which sees the whole picture.
    pub(super) fn large(&self, sides: [i64; 2], limit: i64) -> Option<Range<usize>> {
        let elements = self.elements(sides);
        let is_large = |count: &i64| *count > limit;
        let start = elements.iter().position(is_large)?;
        let end = elements.iter().rposition(is_large)? + 1;
        let is_attention = |layer: &Layer| matches!(layer.kind, Kind::Attention { .. } | Kind::FrameAttention(_));
        let range = match self.layers[start..end].iter().position(is_attention) {
            None => start..end,
            Some(offset) if 2 * offset > end - start => start..start + offset,
            Some(offset) => start + offset + 1..end,
        };
        (!range.is_empty()).then_some(range)
    }

    /// Elements of each layer's larger tensor.
    fn elements(&self, mut sides: [i64; 2]) -> Vec<i64> {
        let mut elements = Vec::new();
        for layer in &self.layers {
            elements.push(layer.elements(sides));
            sides = sides.map(|side| layer.scale().of(side));
        }
        elements
    }
}

/// Makes a chain of the tensors below a scope.
pub(super) struct Builder {
    layers: Vec<Layer>,
    groups: i64,
    layout: Layout,
}

impl Builder {
    pub(super) const fn new(groups: i64, layout: Layout) -> Self {
        Self { layers: Vec::new(), groups, layout }
    }

    pub(super) fn build(self) -> Chain {
        Chain { layers: self.layers, layout: self.layout }
    }

    fn push(&mut self, kind: Kind, channels: i64) {
        self.layers.push(Layer { kind, channels });
    }

    pub(super) fn point(&mut self, scope: &Scope<'_>, channels: i64) -> Result<(), WeightsError> {
        self.push(Kind::Point(Conv2d::load(scope, channels, channels, Window::POINT)?), channels);
        Ok(())
    }

    pub(super) fn conv(&mut self, scope: &Scope<'_>, from: i64, to: i64) -> Result<(), WeightsError> {
        self.push(Kind::Conv(Conv2d::load(scope, from, to, Window::SAME)?), from.max(to));
        Ok(())
    }

    pub(super) fn resnet(&mut self, scope: &Scope<'_>, from: i64, to: i64) -> Result<(), WeightsError> {
        let sizes = ResnetSizes { channels_in: from, channels_out: to, time: None, groups: self.groups, eps: EPS };
        self.push(Kind::Resnet(Box::new(ResnetBlock2D::load(scope, sizes)?)), from.max(to));
        Ok(())
    }

    /// `mid_block`: two residual blocks, attention of one head between them.
    pub(super) fn middle(&mut self, scope: &Scope<'_>, channels: i64, attention: bool) -> Result<(), WeightsError> {
        self.resnet(&scope.at("resnets.0"), channels, channels)?;
        if attention {
            let scope = scope.at("attentions.0");
            let sizes = AttentionSizes { query: channels, context: channels, heads: 1, head: channels };
            let attention = if scope.has("query.weight") {
                Attention::load_deprecated(&scope, sizes)?
            } else {
                Attention::load(&scope, sizes, true)?
            };
            let group_norm = GroupNorm::load(&scope.at("group_norm"), self.groups, channels, EPS)?;
            self.push(Kind::Attention { group_norm, attention }, channels);
        }
        self.resnet(&scope.at("resnets.1"), channels, channels)
    }

    pub(super) fn down(&mut self, scope: &Scope<'_>, channels: i64) -> Result<(), WeightsError> {
        self.push(Kind::Down(Downsample2D::load(scope, channels, 0)?), channels);
        Ok(())
    }

    pub(super) fn up(&mut self, scope: &Scope<'_>, channels: i64) -> Result<(), WeightsError> {
        self.push(Kind::Up(Upsample2D::load(scope, channels)?), channels);
        Ok(())
    }

    pub(super) fn norm_silu(&mut self, scope: &Scope<'_>, channels: i64) -> Result<(), WeightsError> {
        self.push(Kind::NormSilu(GroupNorm::load(scope, self.groups, channels, EPS)?), channels);
        Ok(())
    }

    /// A convolution over time and space, of the kernel 3 x 3 x 3, on one frame.
    pub(super) fn frame_conv(&mut self, scope: &Scope<'_>, from: i64, to: i64) -> Result<(), WeightsError> {
        self.push(Kind::Conv(Conv2d::load_last_frame(scope, from, to, Window::SAME, 3)?), from.max(to));
        Ok(())
    }

    /// The same of 1 x 1 x 1.
    pub(super) fn frame_point(&mut self, scope: &Scope<'_>, channels: i64) -> Result<(), WeightsError> {
        let conv = Conv2d::load_last_frame(scope, channels, channels, Window::POINT, 1)?;
        self.push(Kind::Point(conv), channels);
        Ok(())
    }

    pub(super) fn frame_resnet(&mut self, scope: &Scope<'_>, from: i64, to: i64) -> Result<(), WeightsError> {
        self.push(Kind::FrameResnet(Box::new(FrameResnet::load(scope, from, to)?)), from.max(to));
        Ok(())
    }

    /// `mid_block`: two residual blocks, attention of one head between them.
    pub(super) fn frame_middle(&mut self, scope: &Scope<'_>, channels: i64) -> Result<(), WeightsError> {
        self.frame_resnet(&scope.at("resnets.0"), channels, channels)?;
        self.push(Kind::FrameAttention(FrameAttention::load(&scope.at("attentions.0"), channels)?), channels);
        self.frame_resnet(&scope.at("resnets.1"), channels, channels)
    }

    pub(super) fn frame_down(&mut self, scope: &Scope<'_>, channels: i64, in_time: bool) -> Result<(), WeightsError> {
        self.push(Kind::FrameDown(FrameDown::load(scope, channels, in_time)?), channels);
        Ok(())
    }

    /// Half as many channels come out.
    pub(super) fn frame_up(&mut self, scope: &Scope<'_>, channels: i64, in_time: bool) -> Result<(), WeightsError> {
        self.push(Kind::FrameUp(FrameUp::load(scope, channels, in_time)?), channels);
        Ok(())
    }

    pub(super) fn frame_norm_silu(&mut self, scope: &Scope<'_>, channels: i64) -> Result<(), WeightsError> {
        self.push(Kind::FrameNormSilu(FrameNorm::load(scope, channels, 4)?), channels);
        Ok(())
    }
}

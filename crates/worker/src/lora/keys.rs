//! What the names of a LoRA file's tensors say.

use std::fmt;

/// A part of a pipeline that LoRAs change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    /// The UNet, or the transformer.
    Denoiser,
    TextEncoder,
    TextEncoder2,
    TextEncoder3,
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Denoiser => "denoiser",
            Self::TextEncoder => "text_encoder",
            Self::TextEncoder2 => "text_encoder_2",
            Self::TextEncoder3 => "text_encoder_3",
        })
    }
}

/// How a file spells the module that it changes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Name {
    /// As the model does.
    Dotted(String),
    /// With underscores for the dots.
    Kohya(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The matrix that the input meets first.
    Down,
    Up,
    Alpha,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub component: Component,
    pub name: Name,
    pub part: Part,
}

/// Parts of names that only other methods have.
const OTHER_METHODS: &[(&str, &str)] = &[
    ("dora_scale", "DoRA"),
    ("lora_magnitude_vector", "DoRA"),
    ("lora_mid", "a Tucker decomposition"),
    (".hada_", "LoHa"),
    (".lokr_", "LoKr"),
    (".oft_", "OFT"),
    (".on_input", "IA3"),
    (".lora_B.bias", "a LoRA with biases"),
    (".lora_up.bias", "a LoRA with biases"),
];

const ENDS: &[(&str, Part)] = &[
    (".lora_down.weight", Part::Down),
    (".lora_up.weight", Part::Up),
    (".lora_A.weight", Part::Down),
    (".lora_B.weight", Part::Up),
    (".lora_A.default.weight", Part::Down),
    (".lora_B.default.weight", Part::Up),
    (".lora.down.weight", Part::Down),
    (".lora.up.weight", Part::Up),
    (".lora_linear_layer.down.weight", Part::Down),
    (".lora_linear_layer.up.weight", Part::Up),
    // diffusers' oldest: `….attn1.processor.to_q_lora.down.weight`.
    ("_lora.down.weight", Part::Down),
    ("_lora.up.weight", Part::Up),
    (".alpha", Part::Alpha),
];

const KOHYA: &[(&str, Component)] = &[
    ("lora_unet_", Component::Denoiser),
    ("lora_transformer_", Component::Denoiser),
    ("lora_te_", Component::TextEncoder),
    ("lora_te1_", Component::TextEncoder),
    ("lora_te2_", Component::TextEncoder2),
    ("lora_te3_", Component::TextEncoder3),
];

const DOTTED: &[(&str, Component)] = &[
    ("unet.", Component::Denoiser),
    ("transformer.", Component::Denoiser),
    ("diffusion_model.", Component::Denoiser),
    ("text_encoder.", Component::TextEncoder),
    ("text_encoder_2.", Component::TextEncoder2),
    ("text_encoder_3.", Component::TextEncoder3),
];

/// The method that the key belongs to, where that is none of ours.
pub(super) fn other_method(key: &str) -> Option<&'static str> {
    if [".diff", ".diff_b"].iter().any(|end| key.ends_with(end)) {
        return Some("a whole difference of weights");
    }
    OTHER_METHODS.iter().find(|(part, _)| key.contains(part)).map(|(_, method)| *method)
}

/// None where the key is no LoRA's.
pub(super) fn parse(key: &str) -> Option<Key> {
    let (end, part) = ENDS.iter().find(|(end, _)| key.ends_with(end))?;
    let module = &key[..key.len() - end.len()];
    if let Some((prefix, component)) = KOHYA.iter().find(|(prefix, _)| module.starts_with(prefix)) {
        return Some(Key { component: *component, name: Name::Kohya(module[prefix.len()..].into()), part: *part });
    }
    let module = module.strip_prefix("base_model.model.").unwrap_or(module);
    let (component, module) = match DOTTED.iter().find(|(prefix, _)| module.starts_with(prefix)) {
        Some((prefix, component)) => (*component, &module[prefix.len()..]),
        None => (Component::Denoiser, module),
    };
    if module.is_empty() {
        return None;
    }
    let name = if end.starts_with('_') { old_module(component, module)? } else { module.replace(".processor.", ".") };
    Some(Key { component, name: Name::Dotted(name), part: *part })
}

/// The oldest files name the attention's processor, and the text encoder's layers as the denoiser's.
fn old_module(component: Component, module: &str) -> Option<String> {
    let (attention, layer) = module.rsplit_once('.')?;
    let attention = attention.strip_suffix(".processor").unwrap_or(attention);
    let is_denoiser = component == Component::Denoiser;
    let layer = match layer {
        "to_q" if !is_denoiser => "q_proj",
        "to_k" if !is_denoiser => "k_proj",
        "to_v" if !is_denoiser => "v_proj",
        "to_out" if !is_denoiser => "out_proj",
        "to_out" => "to_out.0",
        layer => layer,
    };
    Some(format!("{attention}.{layer}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_of_naming_a_layer_is_understood() {
        let dotted = |name: &str| Name::Dotted(name.into());
        let kohya = |name: &str| Name::Kohya(name.into());
        for (key, component, name, part) in [
            ("lora_unet_mid_block_conv.lora_down.weight", Component::Denoiser, kohya("mid_block_conv"), Part::Down),
            ("lora_te_text_model_fc1.alpha", Component::TextEncoder, kohya("text_model_fc1"), Part::Alpha),
            ("lora_te2_text_model_fc1.lora_up.weight", Component::TextEncoder2, kohya("text_model_fc1"), Part::Up),
            ("unet.a.attn1.to_out.0.lora_A.weight", Component::Denoiser, dotted("a.attn1.to_out.0"), Part::Down),
            ("unet.a.attn1.processor.to_out_lora.up.weight", Component::Denoiser, dotted("a.attn1.to_out.0"), Part::Up),
            ("a.attn1.processor.to_q_lora.down.weight", Component::Denoiser, dotted("a.attn1.to_q"), Part::Down),
            ("unet.a.attn1.to_q.lora.down.weight", Component::Denoiser, dotted("a.attn1.to_q"), Part::Down),
            (
                "text_encoder.l.self_attn.to_out_lora.up.weight",
                Component::TextEncoder,
                dotted("l.self_attn.out_proj"),
                Part::Up,
            ),
            (
                "text_encoder_2.l.q_proj.lora_linear_layer.up.weight",
                Component::TextEncoder2,
                dotted("l.q_proj"),
                Part::Up,
            ),
            ("base_model.model.x.lora_B.default.weight", Component::Denoiser, dotted("x"), Part::Up),
            ("transformer.x.alpha", Component::Denoiser, dotted("x"), Part::Alpha),
        ] {
            assert_eq!(parse(key), Some(Key { component, name, part }), "{key}");
        }
        for key in ["unet.conv_in.weight", "unet..lora_A.bias", ".alpha", "unet..alpha"] {
            assert!(parse(key).is_none_or(|parsed| parsed.name == dotted("")), "{key}");
        }
    }

    #[test]
    fn other_methods_are_recognised() {
        for (key, method) in [
            ("lora_unet_x.dora_scale", Some("DoRA")),
            ("unet.x.lora_magnitude_vector", Some("DoRA")),
            ("lora_unet_x.hada_w1_a", Some("LoHa")),
            ("lora_unet_x.lokr_w1", Some("LoKr")),
            ("lora_unet_x.lora_mid.weight", Some("a Tucker decomposition")),
            ("lora_unet_x.diff_b", Some("a whole difference of weights")),
            ("lora_unet_x.lora_up.weight", None),
        ] {
            assert_eq!(other_method(key), method, "{key}");
        }
    }
}

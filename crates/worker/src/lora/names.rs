//! kohya's names for a model's modules.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use super::published_names::published_names;

/// A module of the model that a module of a LoRA changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub module: String,
    /// Which rows of the change are its; none where all are.
    pub rows: Option<Rows>,
}

/// Some of a matrix's rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rows {
    /// One after the other.
    pub parts: Vec<Range<i64>>,
    /// How many the whole matrix has.
    pub of: i64,
}

/// By what LoRAs call the modules of a model with tensors of these shapes, with underscores for all dots, the places
/// where their changes belong.
pub(super) fn places(shapes: &BTreeMap<String, Vec<i64>>) -> BTreeMap<String, Vec<Place>> {
    let whole = |module: String| vec![Place { module, rows: None }];
    let own = kohya_names(shapes.keys().map(String::as_str));
    let mut places: BTreeMap<String, Vec<Place>> =
        own.into_iter().map(|(name, module)| (name, whole(module))).collect();
    for (name, found) in published_names(shapes) {
        places.entry(name.replace('.', "_")).or_insert(found);
    }
    places
}

/// By what kohya's scripts call a module, what the model calls it. UNets go by two names: diffusers', with underscores
/// for the dots, and those of the original implementation, which the scripts for SDXL use.
fn kohya_names<'a>(tensors: impl Iterator<Item = &'a str>) -> BTreeMap<String, String> {
    let modules: BTreeSet<&str> = tensors.filter_map(|name| name.strip_suffix(".weight")).collect();
    let layers = modules.iter().filter_map(|module| first_block_resnet(module)).max().map_or(0, |last| last + 1);
    let original = |module: &str| (layers > 0).then(|| original_name(module, layers, &modules)).flatten();
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    for module in &modules {
        if let Some(original) = original(module) {
            names.insert(original.replace('.', "_"), (*module).into());
        }
        names.insert(module.replace('.', "_"), (*module).into());
    }
    names
}

/// The number of the ResNet in the first block down.
fn first_block_resnet(module: &str) -> Option<usize> {
    module.strip_prefix("down_blocks.0.resnets.")?.split('.').next()?.parse().ok()
}

/// What the original implementation calls the module, in a UNet with so many ResNets in a block down and one more in a
/// block up.
fn original_name(module: &str, layers: usize, modules: &BTreeSet<&str>) -> Option<String> {
    let fixed = match module {
        "conv_in" => Some("input_blocks.0.0"),
        "conv_out" => Some("out.2"),
        "conv_norm_out" => Some("out.0"),
        "time_embedding.linear_1" => Some("time_embed.0"),
        "time_embedding.linear_2" => Some("time_embed.2"),
        "add_embedding.linear_1" => Some("label_emb.0.0"),
        "add_embedding.linear_2" => Some("label_emb.0.2"),
        _ => None,
    };
    if let Some(fixed) = fixed {
        return Some(fixed.into());
    }
    let mut parts = module.splitn(5, '.');
    match parts.next()? {
        "mid_block" => {
            let (kind, index) = (parts.next()?, parts.next()?);
            let rest: Vec<&str> = parts.collect();
            let rest = rest.join(".");
            match (kind, index) {
                ("resnets", "0") => Some(format!("middle_block.0.{}", resnet_part(&rest)?)),
                ("attentions", "0") => Some(format!("middle_block.1.{rest}")),
                ("resnets", "1") => Some(format!("middle_block.2.{}", resnet_part(&rest)?)),
                _ => None,
            }
        }
        "down_blocks" => {
            let block: usize = parts.next()?.parse().ok()?;
            let (kind, index, rest) = (parts.next()?, parts.next()?.parse::<usize>().ok()?, parts.next()?);
            let first = 1 + block * (layers + 1);
            match kind {
                "resnets" => Some(format!("input_blocks.{}.0.{}", first + index, resnet_part(rest)?)),
                "attentions" => Some(format!("input_blocks.{}.1.{rest}", first + index)),
                "downsamplers" => Some(format!("input_blocks.{}.0.op", first + layers)),
                _ => None,
            }
        }
        "up_blocks" => {
            let block: usize = parts.next()?.parse().ok()?;
            let (kind, index, rest) = (parts.next()?, parts.next()?.parse::<usize>().ok()?, parts.next()?);
            let first = block * (layers + 1);
            match kind {
                "resnets" => Some(format!("output_blocks.{}.0.{}", first + index, resnet_part(rest)?)),
                "attentions" => Some(format!("output_blocks.{}.1.{rest}", first + index)),
                "upsamplers" => {
                    let attention = format!("up_blocks.{block}.attentions.");
                    let place = if modules.iter().any(|module| module.starts_with(&attention)) { 2 } else { 1 };
                    Some(format!("output_blocks.{}.{place}.{rest}", first + layers))
                }
                _ => None,
            }
        }
        _ => None,
    }
}

fn resnet_part(part: &str) -> Option<&'static str> {
    Some(match part {
        "norm1" => "in_layers.0",
        "conv1" => "in_layers.2",
        "norm2" => "out_layers.0",
        "conv2" => "out_layers.3",
        "time_emb_proj" => "emb_layers.1",
        "conv_shortcut" => "skip_connection",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unet_goes_by_both_names() {
        let modules = [
            "conv_in",
            "time_embedding.linear_2",
            "down_blocks.0.resnets.0.conv1",
            "down_blocks.0.resnets.1.conv2",
            "down_blocks.0.downsamplers.0.conv",
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0",
            "mid_block.attentions.0.proj_in",
            "mid_block.resnets.1.conv_shortcut",
            "up_blocks.0.attentions.2.transformer_blocks.1.ff.net.0.proj",
            "up_blocks.0.upsamplers.0.conv",
            "up_blocks.2.resnets.1.time_emb_proj",
            "up_blocks.2.upsamplers.0.conv",
        ];
        let tensors: Vec<String> = modules.iter().map(|module| format!("{module}.weight")).collect();
        let names = kohya_names(tensors.iter().map(String::as_str));
        for module in modules {
            assert_eq!(names.get(&module.replace('.', "_")).map(String::as_str), Some(module));
        }
        for (original, module) in [
            ("input_blocks_0_0", "conv_in"),
            ("time_embed_2", "time_embedding.linear_2"),
            ("input_blocks_1_0_in_layers_2", "down_blocks.0.resnets.0.conv1"),
            ("input_blocks_3_0_op", "down_blocks.0.downsamplers.0.conv"),
            ("input_blocks_4_1_transformer_blocks_0_attn1_to_out_0", modules[5]),
            ("middle_block_1_proj_in", "mid_block.attentions.0.proj_in"),
            ("middle_block_2_skip_connection", "mid_block.resnets.1.conv_shortcut"),
            ("output_blocks_2_1_transformer_blocks_1_ff_net_0_proj", modules[8]),
            ("output_blocks_2_2_conv", "up_blocks.0.upsamplers.0.conv"),
            ("output_blocks_7_0_emb_layers_1", "up_blocks.2.resnets.1.time_emb_proj"),
            ("output_blocks_8_1_conv", "up_blocks.2.upsamplers.0.conv"),
        ] {
            assert_eq!(names.get(original).map(String::as_str), Some(module), "{original}");
        }
    }
}

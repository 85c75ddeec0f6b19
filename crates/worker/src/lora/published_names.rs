//! What the code that FLUX.1 and Stable Diffusion 3 came with calls the modules of their transformers, as kohya's scripts
//! and others spell them in LoRAs: queries, keys and values are one module there. Single files have these names too.
//!
//! Source: diffusers 0.42.1, `loaders/lora_conversion_utils.py` and `loaders/single_file_utils.py`.

use std::collections::BTreeMap;

use super::names::{Place, Rows};
use crate::weights::original::{flux, is_shift_first, sd3};

/// The original names, with dots, of the modules of a transformer with these tensors; nothing of other networks.
pub(super) fn published_names(shapes: &BTreeMap<String, Vec<i64>>) -> BTreeMap<String, Vec<Place>> {
    let has = |module: &str| shapes.contains_key(&format!("{module}.weight"));
    let names = if has("single_transformer_blocks.0.attn.to_q") && has("x_embedder") {
        &flux::NAMES
    } else if has("transformer_blocks.0.attn.add_q_proj") && has("pos_embed.proj") {
        &sd3::NAMES
    } else {
        return BTreeMap::new();
    };
    let modules = names.all(has).into_iter();
    modules.filter_map(|(name, modules)| Some((name, places(shapes, modules)?))).collect()
}

/// The modules that make one of the original's, one after the other; none where one is not there.
fn places(shapes: &BTreeMap<String, Vec<i64>>, modules: Vec<String>) -> Option<Vec<Place>> {
    let shape = |module: &String| shapes.get(&format!("{module}.weight")).map(Vec::as_slice);
    let rows = modules.iter().map(|module| shape(module)?.first().copied()).collect::<Option<Vec<i64>>>()?;
    let of: i64 = rows.iter().sum();
    if let [module] = &modules[..] {
        let parts = match shape(module)? {
            &[rows, columns] if is_shift_first(module, rows, columns) => vec![columns..rows, 0..columns],
            _ => Vec::new(),
        };
        let rows = (!parts.is_empty()).then_some(Rows { parts, of });
        return Some(vec![Place { module: module.clone(), rows }]);
    }
    let mut start = 0;
    let place = |(module, rows)| {
        let range = start..start + rows;
        start += rows;
        Place { module, rows: Some(Rows { parts: vec![range], of }) }
    };
    Some(modules.into_iter().zip(rows).map(place).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fused_module_is_cut_where_its_parts_meet() {
        let mut shapes = BTreeMap::new();
        for name in
            ["transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_k", "transformer_blocks.0.attn.to_v"]
        {
            shapes.insert(format!("{name}.weight"), vec![8, 8]);
            shapes.insert(format!("single_{name}.weight"), vec![8, 8]);
        }
        shapes.insert("single_transformer_blocks.0.proj_mlp.weight".into(), vec![32, 8]);
        shapes.insert("norm_out.linear.weight".into(), vec![16, 8]);
        assert!(published_names(&shapes).is_empty(), "no FLUX without its embedder");
        shapes.insert("x_embedder.weight".into(), vec![8, 4]);
        let names = published_names(&shapes);
        let parts = |name: &str| -> Vec<(String, Option<Rows>)> {
            names[name].iter().map(|place| (place.module.clone(), place.rows.clone())).collect()
        };
        let rows =
            |parts: &[(i64, i64)], of| Some(Rows { parts: parts.iter().map(|&(start, end)| start..end).collect(), of });
        assert_eq!(parts("img_in"), [("x_embedder".into(), None)]);
        assert_eq!(
            parts("double_blocks.0.img_attn.qkv")[1],
            ("transformer_blocks.0.attn.to_k".into(), rows(&[(8, 16)], 24))
        );
        assert_eq!(
            parts("single_blocks.0.linear1")[3],
            ("single_transformer_blocks.0.proj_mlp".into(), rows(&[(24, 56)], 56))
        );
        assert_eq!(parts("final_layer.adaLN_modulation.1"), [("norm_out.linear".into(), rows(&[(8, 16), (0, 8)], 16))]);
        assert!(!names.contains_key("double_blocks.0.img_mlp.0"), "a module that is not there");
    }

    #[test]
    fn only_the_last_blocks_text_is_modulated_in_the_other_order() {
        let mut shapes = BTreeMap::new();
        let mut has = |module: &str, rows: i64| shapes.insert(format!("{module}.weight"), vec![rows, 8]);
        for block in 0..2 {
            for layer in ["to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"] {
                has(&format!("transformer_blocks.{block}.attn.{layer}"), 8);
            }
        }
        has("transformer_blocks.0.attn.to_add_out", 8);
        has("transformer_blocks.0.ff_context.net.2", 8);
        has("transformer_blocks.0.norm1_context.linear", 48);
        has("transformer_blocks.1.norm1_context.linear", 16);
        has("norm_out.linear", 16);
        assert!(published_names(&shapes).is_empty(), "Qwen-Image's blocks have such names too");
        shapes.insert("pos_embed.proj.weight".into(), vec![8, 16, 2, 2]);
        let names = published_names(&shapes);
        let place = |module: &str, parts: &[(i64, i64)], of| {
            let parts: Vec<_> = parts.iter().map(|&(start, end)| start..end).collect();
            let rows = if parts.is_empty() { None } else { Some(Rows { parts, of }) };
            Place { module: module.into(), rows }
        };
        assert_eq!(names["x_embedder.proj"], [place("pos_embed.proj", &[], 0)]);
        assert_eq!(
            names["joint_blocks.1.context_block.attn.qkv"][2],
            place("transformer_blocks.1.attn.add_v_proj", &[(16, 24)], 24)
        );
        assert_eq!(
            names["joint_blocks.0.context_block.adaLN_modulation.1"],
            [place("transformer_blocks.0.norm1_context.linear", &[], 0)]
        );
        for (name, module) in [
            ("joint_blocks.1.context_block.adaLN_modulation.1", "transformer_blocks.1.norm1_context.linear"),
            ("final_layer.adaLN_modulation.1", "norm_out.linear"),
        ] {
            assert_eq!(names[name], [place(module, &[(8, 16), (0, 8)], 16)]);
        }
        assert!(!names.contains_key("joint_blocks.1.context_block.attn.proj"), "a module that is not there");
        assert!(!names.contains_key("joint_blocks.0.x_block.attn2.qkv"), "nor that");
    }
}

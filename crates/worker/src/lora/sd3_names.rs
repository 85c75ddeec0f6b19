//! What the code that Stable Diffusion 3 came with calls the modules of its transformer, as kohya's scripts and others
//! spell them in LoRAs: queries, keys and values are one module there.
//!
//! Source: diffusers 0.42.1, `loaders/single_file_utils.py`, `convert_sd3_transformer_checkpoint_to_diffusers`.

use std::collections::BTreeMap;

use super::{
    flux_names::{places, swapped},
    names::Place,
};

/// Outside of the blocks, whose `context_embedder` has the same name in both.
const FIXED: &[(&str, &str)] = &[
    ("x_embedder.proj", "pos_embed.proj"),
    ("t_embedder.mlp.0", "time_text_embed.timestep_embedder.linear_1"),
    ("t_embedder.mlp.2", "time_text_embed.timestep_embedder.linear_2"),
    ("y_embedder.mlp.0", "time_text_embed.text_embedder.linear_1"),
    ("y_embedder.mlp.2", "time_text_embed.text_embedder.linear_2"),
    ("final_layer.linear", "proj_out"),
];

const BLOCK: &[(&str, &[&str])] = &[
    ("x_block.attn.qkv", &["attn.to_q", "attn.to_k", "attn.to_v"]),
    ("x_block.attn.proj", &["attn.to_out.0"]),
    // 3.5 medium has a second attention in its first blocks.
    ("x_block.attn2.qkv", &["attn2.to_q", "attn2.to_k", "attn2.to_v"]),
    ("x_block.attn2.proj", &["attn2.to_out.0"]),
    ("x_block.mlp.fc1", &["ff.net.0.proj"]),
    ("x_block.mlp.fc2", &["ff.net.2"]),
    ("x_block.adaLN_modulation.1", &["norm1.linear"]),
    ("context_block.attn.qkv", &["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"]),
    ("context_block.attn.proj", &["attn.to_add_out"]),
    ("context_block.mlp.fc1", &["ff_context.net.0.proj"]),
    ("context_block.mlp.fc2", &["ff_context.net.2"]),
];

/// The original names, with dots, of the modules of a Stable Diffusion 3 transformer with these tensors; nothing of other
/// networks.
pub(super) fn sd3_names(shapes: &BTreeMap<String, Vec<i64>>) -> BTreeMap<String, Vec<Place>> {
    let mut names = BTreeMap::new();
    let has = |module: &str| shapes.contains_key(&format!("{module}.weight"));
    if !has("transformer_blocks.0.attn.add_q_proj") || !has("pos_embed.proj") {
        return names;
    }
    let mut add = |name: String, places: Option<Vec<Place>>| {
        if let Some(places) = places {
            names.insert(name, places);
        }
    };
    for (name, module) in FIXED {
        add((*name).into(), places(shapes, vec![(*module).into()]));
    }
    let count = (0..shapes.len()).take_while(|index| has(&format!("transformer_blocks.{index}.attn.to_q"))).count();
    for index in 0..count {
        for (name, modules) in BLOCK {
            let modules = modules.iter().map(|module| format!("transformer_blocks.{index}.{module}")).collect();
            add(format!("joint_blocks.{index}.{name}"), places(shapes, modules));
        }
        let module = format!("transformer_blocks.{index}.norm1_context.linear");
        // The text of the last block goes no further than its attention: a shift and a scale, as after the blocks.
        let modulation = if has(&format!("transformer_blocks.{index}.ff_context.net.2")) {
            places(shapes, vec![module])
        } else {
            swapped(shapes, &module).map(|place| vec![place])
        };
        add(format!("joint_blocks.{index}.context_block.adaLN_modulation.1"), modulation);
    }
    add("final_layer.adaLN_modulation.1".into(), swapped(shapes, "norm_out.linear").map(|place| vec![place]));
    names
}

#[cfg(test)]
mod tests {
    use super::{super::names::Rows, *};

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
        assert!(sd3_names(&shapes).is_empty(), "Qwen-Image's blocks have such names too");
        shapes.insert("pos_embed.proj.weight".into(), vec![8, 16, 2, 2]);
        let names = sd3_names(&shapes);
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

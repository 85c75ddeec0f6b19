//! What the code that FLUX.1 came with calls the modules of its transformer, as kohya's scripts and others spell them in
//! LoRAs: queries, keys and values are one module there, and a single block's feed-forward is a part of it too.
//!
//! Source: diffusers 0.42.1, `loaders/lora_conversion_utils.py`.

use std::collections::BTreeMap;

use super::names::{Place, Rows};

/// Outside of the blocks.
const FIXED: &[(&str, &str)] = &[
    ("img_in", "x_embedder"),
    ("txt_in", "context_embedder"),
    ("time_in.in_layer", "time_text_embed.timestep_embedder.linear_1"),
    ("time_in.out_layer", "time_text_embed.timestep_embedder.linear_2"),
    ("guidance_in.in_layer", "time_text_embed.guidance_embedder.linear_1"),
    ("guidance_in.out_layer", "time_text_embed.guidance_embedder.linear_2"),
    ("vector_in.in_layer", "time_text_embed.text_embedder.linear_1"),
    ("vector_in.out_layer", "time_text_embed.text_embedder.linear_2"),
    ("final_layer.linear", "proj_out"),
];

const DOUBLE: &[(&str, &[&str])] = &[
    ("img_attn.qkv", &["attn.to_q", "attn.to_k", "attn.to_v"]),
    ("txt_attn.qkv", &["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"]),
    ("img_attn.proj", &["attn.to_out.0"]),
    ("txt_attn.proj", &["attn.to_add_out"]),
    ("img_mlp.0", &["ff.net.0.proj"]),
    ("img_mlp.2", &["ff.net.2"]),
    ("txt_mlp.0", &["ff_context.net.0.proj"]),
    ("txt_mlp.2", &["ff_context.net.2"]),
    ("img_mod.lin", &["norm1.linear"]),
    ("txt_mod.lin", &["norm1_context.linear"]),
];

const SINGLE: &[(&str, &[&str])] = &[
    ("linear1", &["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"]),
    ("linear2", &["proj_out"]),
    ("modulation.lin", &["norm.linear"]),
];

/// The original names, with dots, of the modules of a FLUX transformer with these tensors; nothing of other networks.
pub(super) fn flux_names(shapes: &BTreeMap<String, Vec<i64>>) -> BTreeMap<String, Vec<Place>> {
    let mut names = BTreeMap::new();
    if !shapes.contains_key("single_transformer_blocks.0.attn.to_q.weight") || !shapes.contains_key("x_embedder.weight")
    {
        return names;
    }
    let mut add = |name: String, modules: Vec<String>| {
        if let Some(places) = places(shapes, modules) {
            names.insert(name, places);
        }
    };
    for (name, module) in FIXED {
        add((*name).into(), vec![(*module).into()]);
    }
    for (ours, theirs, table) in
        [("transformer_blocks", "double_blocks", DOUBLE), ("single_transformer_blocks", "single_blocks", SINGLE)]
    {
        let count = (0..shapes.len())
            .take_while(|index| shapes.contains_key(&format!("{ours}.{index}.attn.to_q.weight")))
            .count();
        for index in 0..count {
            for (name, modules) in table {
                let modules = modules.iter().map(|module| format!("{ours}.{index}.{module}")).collect();
                add(format!("{theirs}.{index}.{name}"), modules);
            }
        }
    }
    if let Some(place) = swapped(shapes, "norm_out.linear") {
        names.insert("final_layer.adaLN_modulation.1".into(), vec![place]);
    }
    names
}

/// A modulation of a shift and a scale: there the shift comes first, here the scale.
pub(super) fn swapped(shapes: &BTreeMap<String, Vec<i64>>, module: &str) -> Option<Place> {
    let rows = rows(shapes, module)?;
    let half = rows / 2;
    Some(Place { module: module.into(), rows: Some(Rows { parts: vec![half..rows, 0..half], of: rows }) })
}

fn rows(shapes: &BTreeMap<String, Vec<i64>>, module: &str) -> Option<i64> {
    shapes.get(&format!("{module}.weight"))?.first().copied()
}

/// The modules that make one of the original's, one after the other; none where one is not there.
pub(super) fn places(shapes: &BTreeMap<String, Vec<i64>>, modules: Vec<String>) -> Option<Vec<Place>> {
    let rows = modules.iter().map(|module| rows(shapes, module)).collect::<Option<Vec<i64>>>()?;
    let of: i64 = rows.iter().sum();
    let is_whole = modules.len() == 1;
    let mut start = 0;
    let place = |(module, rows)| {
        let range = start..start + rows;
        start += rows;
        Place { module, rows: (!is_whole).then(|| Rows { parts: vec![range], of }) }
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
        assert!(flux_names(&shapes).is_empty(), "no FLUX without its embedder");
        shapes.insert("x_embedder.weight".into(), vec![8, 4]);
        let names = flux_names(&shapes);
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
}

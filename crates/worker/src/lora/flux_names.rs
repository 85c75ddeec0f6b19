//! What the code that FLUX.1 came with calls the modules of its transformer, as kohya's scripts and others spell them in
//! LoRAs.
//!
//! Source: diffusers 0.42.1, `loaders/lora_conversion_utils.py`.

use std::collections::BTreeMap;

use super::names::{Place, Rows};
use crate::weights::original::{BlockNames, flux};

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
    for (name, module) in flux::MODULES {
        add((*name).into(), vec![(*module).into()]);
    }
    for BlockNames { original: theirs, diffusers: ours, modules } in flux::BLOCKS {
        let count = (0..shapes.len())
            .take_while(|index| shapes.contains_key(&format!("{ours}.{index}.attn.to_q.weight")))
            .count();
        for index in 0..count {
            for (name, modules) in *modules {
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

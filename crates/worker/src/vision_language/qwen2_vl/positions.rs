//! Where each token stands in time, height and width.
//!
//! A text goes on in all three alike. A picture's tokens share a time, and have their row and column; the text goes on
//! after the larger of the two.
//!
//! *Source*: transformers 5.23.0, `get_rope_index` in `models/qwen2_5_vl/modeling_qwen2_5_vl.py`.

use tch::{Device, Tensor};

use super::{config::Qwen2VlConfig, image::Grid};
use crate::torch::TorchError;

/// How a row of tokens that holds pictures is numbered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Numbering {
    /// In three axes, as the models were trained.
    #[default]
    Axes,
    /// One after the other, pictures too. So do diffusers' Qwen-Image-Edit pipelines with transformers 5 up to 5.23:
    /// they do not hand on which tokens are a picture's (huggingface/diffusers, issue 14194). Only to compare with them.
    Sequence,
}

/// The numbers of one row of tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Positions {
    /// Time, height, width of each token.
    axes: [Vec<i64>; 3],
    /// That of the token which comes after the row.
    pub(super) next: i64,
}

impl Positions {
    /// Those of a row of `length` tokens that is numbered from 0.
    pub(super) fn sequence(length: usize) -> Self {
        let row: Vec<i64> = (0..).take(length).collect();
        Self { axes: [row.clone(), row.clone(), row], next: i64::try_from(length).unwrap_or(i64::MAX) }
    }

    /// That of one token.
    pub(super) fn single(position: i64) -> Self {
        Self { axes: [vec![position], vec![position], vec![position]], next: position + 1 }
    }

    /// Those of `ids`, whose pictures have the next of `grids`.
    ///
    /// # Errors
    /// The pictures' tokens are not as many as their grids have.
    pub(super) fn of(
        ids: &[i64],
        grids: &mut impl Iterator<Item = Grid>,
        config: &Qwen2VlConfig,
    ) -> Result<Self, TorchError> {
        let merge = config.vision.spatial_merge_size;
        let mut axes = [Vec::new(), Vec::new(), Vec::new()];
        let mut push = |position: [i64; 3]| axes.iter_mut().zip(position).for_each(|(axis, at)| axis.push(at));
        let mut next = 0;
        for run in ids.chunk_by(|first, second| is_place(*first, config) == is_place(*second, config)) {
            let length = wide(run.len());
            if !run.first().is_some_and(|id| is_place(*id, config)) {
                (next..next + length).for_each(|position| push([position; 3]));
                next += length;
                continue;
            }
            let grid = grids.next().ok_or_else(|| unfit("more places for pictures than pictures"))?;
            let (rows, columns) = (grid.height / merge, grid.width / merge);
            let tokens = grid.time * rows * columns;
            if length != tokens {
                return Err(unfit(&format!("{length} places in a row for a picture of {tokens} tokens")));
            }
            for token in 0..tokens {
                let (time, row, column) = (token / (rows * columns), token / columns % rows, token % columns);
                push([next + time, next + row, next + column]);
            }
            next += rows.max(columns);
        }
        // A picture of more moments than rows and columns would reach further; there is none of a still.
        let furthest = axes.iter().flatten().max();
        Ok(Self { next: furthest.map_or(0, |position| position + 1), axes })
    }

    /// (3, L)
    pub(super) fn tensor(&self, device: Device) -> Result<Tensor, TorchError> {
        let sizes = [3, wide(self.axes[0].len())];
        Ok(Tensor::f_from_slice(&self.axes.concat())?.f_view(sizes)?.f_to(device)?)
    }
}

fn is_place(id: i64, config: &Qwen2VlConfig) -> bool {
    id == config.image_token_id
}

fn wide(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

fn unfit(what: &str) -> TorchError {
    TorchError::Other(format!("the text has {what}"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::nn::config::ConfigReader;

    const IMAGE: i64 = 9;

    fn config() -> Qwen2VlConfig {
        let value = json!({
            "model_type": "qwen2_vl", "hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 12, "image_token_id": IMAGE,
            "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
            "vision_config": {"embed_dim": 16, "hidden_size": 16, "num_heads": 2}
        });
        let reader = ConfigReader::from_value(Path::new("config.json"), value).expect("an object");
        Qwen2VlConfig::read(reader).expect("a configuration")
    }

    fn of(ids: &[i64], grids: &[Grid]) -> Result<Positions, TorchError> {
        Positions::of(ids, &mut grids.iter().copied(), &config())
    }

    fn grid(height: i64, width: i64) -> Grid {
        Grid { time: 1, height, width }
    }

    #[test]
    fn a_text_goes_on_after_the_longer_side_of_a_picture() -> Result<(), TorchError> {
        // Two rows of three tokens.
        let ids = [1, 2, IMAGE, IMAGE, IMAGE, IMAGE, IMAGE, IMAGE, 3, 4];
        let positions = of(&ids, &[grid(4, 6)])?;
        assert_eq!(positions.axes[0], [0, 1, 2, 2, 2, 2, 2, 2, 5, 6]);
        assert_eq!(positions.axes[1], [0, 1, 2, 2, 2, 3, 3, 3, 5, 6]);
        assert_eq!(positions.axes[2], [0, 1, 2, 3, 4, 2, 3, 4, 5, 6]);
        assert_eq!(positions.next, 7);
        Ok(())
    }

    #[test]
    fn places_that_do_not_fit_the_pictures_are_errors() {
        for (ids, grids, part) in [
            (&[1, IMAGE, 2][..], &[][..], "more places for pictures than pictures"),
            (&[1, IMAGE, 2], &[grid(2, 4)], "1 places in a row for a picture of 2"),
            (&[1, IMAGE, IMAGE, 2], &[grid(2, 2)], "2 places in a row for a picture of 1"),
        ] {
            let error = of(ids, grids).expect_err(part).to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}

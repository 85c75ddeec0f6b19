//! Pictures as the vision tower takes them: resized to whole tokens as Pillow does it, normalised, cut into patches.
//!
//! *Source*: transformers 5.23.0, `models/qwen2_vl/image_processing_pil_qwen2_vl.py`. The class of the same name that
//! resizes with torchvision gives other last bits: it is off by up to one step of 8 bits in photographs, and by more
//! in noise.

use std::path::Path;

use atelier_imaging::resize::{Filter, resize_u8};
use serde_json::Value;
use tch::{Kind, Tensor};

use super::config::VisionConfig;
use crate::{
    nn::config::{ConfigError, ConfigReader},
    torch::{self, TorchError},
};

/// Sides that differ more are refused.
const MOST_RATIO: f64 = 200.0;

/// A picture's patches: how many moments, rows and columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    pub time: i64,
    pub height: i64,
    pub width: i64,
}

impl Grid {
    pub const fn patches(self) -> i64 {
        self.time * self.height * self.width
    }

    /// How many tokens the language model sees.
    pub const fn tokens(self, config: &VisionConfig) -> i64 {
        self.patches() / config.merge_unit()
    }
}

/// Pictures, one after the other.
#[derive(Debug)]
pub struct Patches {
    /// (patches, channels · temporal_patch_size · patch_size²) in f32 on the CPU. Patches that become one token are
    /// neighbours.
    pub values: Tensor,
    pub grids: Vec<Grid>,
}

impl Patches {
    /// These, then those.
    ///
    /// # Errors
    /// No memory.
    pub fn join(parts: &[Self]) -> Result<Self, TorchError> {
        let values: Vec<&Tensor> = parts.iter().map(|part| &part.values).collect();
        let grids = parts.iter().flat_map(|part| part.grids.iter().copied()).collect();
        Ok(Self { values: Tensor::f_cat(&values, 0)?, grids })
    }
}

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PictureError {
    #[error("the picture is {width}x{height}; one side may be at most {MOST_RATIO} times the other")]
    Ratio { width: usize, height: usize },
    #[error("{0}")]
    Torch(#[from] TorchError),
}

/// `preprocessor_config.json`, or the `image_processor` of `processor_config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageProcessor {
    /// Smaller pictures are enlarged.
    pub min_pixels: i64,
    /// Larger pictures are reduced.
    pub max_pixels: i64,
    pub patch_size: i64,
    pub temporal_patch_size: i64,
    pub merge_size: i64,
    pub image_mean: [f64; 3],
    pub image_std: [f64; 3],
}

impl Default for ImageProcessor {
    fn default() -> Self {
        Self {
            min_pixels: 56 * 56,
            max_pixels: 28 * 28 * 1280,
            patch_size: 14,
            temporal_patch_size: 2,
            merge_size: 2,
            image_mean: [0.481_454_66, 0.457_827_5, 0.408_210_73],
            image_std: [0.268_629_54, 0.261_302_58, 0.275_777_11],
        }
    }
}

impl ImageProcessor {
    /// Reads what `folder` holds: `preprocessor_config.json`, as repositories on the hub have it, or the
    /// `processor_config.json` of transformers 5.
    ///
    /// # Errors
    /// Neither of them, or settings that this code does not follow.
    pub fn open(folder: &Path) -> Result<Self, ConfigError> {
        let older = folder.join("preprocessor_config.json");
        if older.is_file() {
            return Self::read(ConfigReader::open(&older)?);
        }
        let newer = folder.join("processor_config.json");
        let mut reader = ConfigReader::open(&newer)?;
        let value = reader.take("image_processor");
        if value.is_null() {
            return Err(reader.missing("image_processor"));
        }
        Self::read(ConfigReader::from_value(&newer, value)?)
    }

    pub fn read(mut reader: ConfigReader) -> Result<Self, ConfigError> {
        reader.ignore(&["processor_class", "image_processor_type", "feature_extractor_type", "data_format"]);
        reader.ignore(&["device", "disable_grouping", "input_data_format", "return_tensors", "crop_size"]);
        for key in ["do_resize", "do_rescale", "do_normalize", "do_convert_rgb"] {
            reader.only(key, &[true.into(), Value::Null])?;
        }
        // Pillow's number of its bicubic filter.
        reader.only("resample", &[3.into(), Value::Null])?;
        let factor = reader.float_or("rescale_factor", 1.0 / 255.0)?;
        if (factor - 1.0 / 255.0).abs() > 1e-9 {
            return Err(reader.unsupported("rescale_factor", factor.into(), "and only 1/255 is supported"));
        }
        let usual = Self::default();
        let (shortest, longest) = edges(&mut reader)?;
        Ok(Self {
            min_pixels: reader.size("min_pixels")?.or(shortest).unwrap_or(usual.min_pixels),
            max_pixels: reader.size("max_pixels")?.or(longest).unwrap_or(usual.max_pixels),
            patch_size: reader.size_or("patch_size", usual.patch_size)?,
            temporal_patch_size: reader.size_or("temporal_patch_size", usual.temporal_patch_size)?,
            merge_size: reader.size_or("merge_size", usual.merge_size)?,
            image_mean: channels(&mut reader, "image_mean", usual.image_mean)?,
            image_std: channels(&mut reader, "image_std", usual.image_std)?,
        })
        .and_then(|processor| reader.finish().map(|()| processor))
    }

    /// Whether it cuts patches as the vision tower takes them.
    pub const fn fits(&self, config: &VisionConfig) -> bool {
        self.patch_size == config.patch_size
            && self.temporal_patch_size == config.temporal_patch_size
            && self.merge_size == config.spatial_merge_size
            && config.in_channels == 3
    }

    /// The width and height that a picture gets: whole tokens, about its ratio, as many pixels as are allowed.
    ///
    /// # Errors
    /// One side is more than 200 times the other.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "sides of pictures, rounded as the reference rounds them"
    )]
    pub fn size(&self, width: usize, height: usize) -> Result<(usize, usize), PictureError> {
        let (wide, high) = (width.max(1) as f64, height.max(1) as f64);
        if wide.max(high) / wide.min(high) > MOST_RATIO {
            return Err(PictureError::Ratio { width, height });
        }
        let factor = (self.patch_size * self.merge_size) as f64;
        let (least, most) = (self.min_pixels as f64, self.max_pixels as f64);
        let near = |side: f64| (side / factor).round_ties_even() * factor;
        let (mut to_width, mut to_height) = (near(wide), near(high));
        if to_width * to_height > most {
            let shrink = (wide * high / most).sqrt();
            let below = |side: f64| ((side / shrink / factor).floor() * factor).max(factor);
            (to_width, to_height) = (below(wide), below(high));
        } else if to_width * to_height < least {
            let grow = (least / (wide * high)).sqrt();
            let above = |side: f64| (side * grow / factor).ceil() * factor;
            (to_width, to_height) = (above(wide), above(high));
        }
        Ok((to_width as usize, to_height as usize))
    }

    /// The patches of a picture of interleaved 8-bit RGB.
    ///
    /// # Errors
    /// One side is more than 200 times the other, or there is no memory.
    ///
    /// # Panics
    /// When `samples` are not `height` · `width` · 3.
    pub fn patches(&self, samples: &[u8], width: usize, height: usize) -> Result<Patches, PictureError> {
        let (to_width, to_height) = self.size(width, height)?;
        let resized = resize_u8(samples, width, height, 3, to_width, to_height, Filter::Bicubic);
        Ok(self.cut(&self.normalised(&resized, side(to_height), side(to_width))?)?)
    }

    /// The patches of a picture (3, H, W) of whole tokens.
    fn cut(&self, values: &Tensor) -> Result<Patches, TorchError> {
        let (_, height, width) = values.size3()?;
        let (merge, patch) = (self.merge_size, self.patch_size);
        let (rows, columns) = (height / patch, width / patch);
        let blocks = [3, rows / merge, merge, patch, columns / merge, merge, patch];
        let patches = values.f_view(&blocks[..])?.f_permute([1, 4, 2, 5, 0, 3, 6])?.f_unsqueeze(5)?;
        // A still stands for as many moments as a patch has.
        let mut sizes = patches.size();
        sizes[5] = self.temporal_patch_size;
        let flat = [rows * columns, 3 * self.temporal_patch_size * patch * patch];
        let values = patches.f_expand(&sizes, false)?.f_reshape(flat)?;
        Ok(Patches { values, grids: vec![Grid { time: 1, height: rows, width: columns }] })
    }

    /// (3, H, W): less the mean, in units of the deviation.
    fn normalised(&self, samples: &[u8], height: i64, width: i64) -> Result<Tensor, TorchError> {
        // In f64 and then in f32, as NumPy does it.
        #[expect(clippy::cast_possible_truncation, reason = "a colour")]
        let unit: Vec<f32> = samples.iter().map(|&sample| (f64::from(sample) * (1.0 / 255.0)) as f32).collect();
        let unit = torch::from_vec(unit, &[height, width, 3])?;
        let channels = |values: &[f64; 3]| Ok::<_, TorchError>(Tensor::f_from_slice(values)?.f_to_kind(Kind::Float)?);
        let values = unit.f_sub(&channels(&self.image_mean)?)?.f_div(&channels(&self.image_std)?)?;
        Ok(values.f_permute([2, 0, 1])?.f_contiguous()?)
    }
}

/// `size`: least and most pixels, under names that once meant sides.
fn edges(reader: &mut ConfigReader) -> Result<(Option<i64>, Option<i64>), ConfigError> {
    let value = reader.take("size");
    if value.is_null() {
        return Ok((None, None));
    }
    let mut size = ConfigReader::from_value(reader.path(), value.clone())
        .map_err(|_| reader.unsupported("size", value, "and not a JSON object"))?;
    let mut either = |older: &str, newer: &str| {
        let (older, newer) = (size.size(older)?, size.size(newer)?);
        Ok::<_, ConfigError>(newer.or(older))
    };
    let found = (either("min_pixels", "shortest_edge")?, either("max_pixels", "longest_edge")?);
    size.finish()?;
    Ok(found)
}

fn channels(reader: &mut ConfigReader, key: &str, usual: [f64; 3]) -> Result<[f64; 3], ConfigError> {
    let Some(list) = reader.floats(key)? else { return Ok(usual) };
    <[f64; 3]>::try_from(list.as_slice())
        .map_err(|_| reader.unsupported(key, list.into(), "and not three numbers, one for each channel"))
}

fn side(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn processor(value: Value) -> Result<ImageProcessor, ConfigError> {
        ImageProcessor::read(ConfigReader::from_value(Path::new("preprocessor_config.json"), value).expect("an object"))
    }

    #[test]
    fn sides_become_whole_tokens_and_a_half_goes_to_the_even_one() {
        let processor = ImageProcessor::default();
        for ((width, height), expected) in [
            ((384, 384), (392, 392)),
            ((512, 288), (504, 280)),
            // 2.5 and 3.5 tokens.
            ((70, 98), (56, 112)),
            ((20, 20), (56, 56)),
            ((10, 1500), (28, 700)),
            ((4000, 3000), (1148, 840)),
        ] {
            assert_eq!(processor.size(width, height), Ok(expected), "{width}x{height}");
        }
        assert_eq!(processor.size(1, 201), Err(PictureError::Ratio { width: 1, height: 201 }));
    }

    #[test]
    fn both_layouts_of_the_limits_are_read() -> Result<(), ConfigError> {
        let usual = ImageProcessor::default();
        let hub = processor(json!({"min_pixels": 3136, "max_pixels": 1_003_520, "patch_size": 14, "resample": 3,
            "do_resize": true, "rescale_factor": 0.003_921_568_627_450_98, "processor_class": "Qwen2VLProcessor",
            "image_mean": [0.481_454_66, 0.457_827_5, 0.408_210_73]}))?;
        assert_eq!(hub, usual);
        let newer = processor(json!({"size": {"shortest_edge": 100, "longest_edge": 2000}}))?;
        assert_eq!((newer.min_pixels, newer.max_pixels), (100, 2000));
        let both = processor(json!({"size": {"shortest_edge": 100, "longest_edge": 2000}, "max_pixels": 999}))?;
        assert_eq!((both.min_pixels, both.max_pixels), (100, 999));
        Ok(())
    }

    #[test]
    fn what_it_does_not_do_is_refused() {
        for (value, part) in [
            (json!({"resample": 2}), "resample is 2"),
            (json!({"do_normalize": false}), "do_normalize is false"),
            (json!({"rescale_factor": 1.0}), "rescale_factor is 1.0"),
            (json!({"image_std": [1.0]}), "image_std is [1.0]"),
            (json!({"size": 224}), "size is 224"),
            (json!({"do_pad": true}), "do_pad is true"),
        ] {
            let error = processor(value).expect_err(part).to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}

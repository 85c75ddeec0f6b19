//! How a picture becomes numbers, as `preprocessor_config.json` says it (transformers 4) or `processor_config.json`
//! (transformers 5).

use std::path::Path;

use atelier_imaging::resize::{Filter, resize_u8};
use serde_json::Value;
use tch::Tensor;

use super::captioner::read_json;
use crate::{
    diffusion::pixels::Rgb,
    models::ModelError,
    torch::{self, TorchError},
};

/// Of CLIP's training, for files that do not say.
const MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const STD: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

#[derive(Clone, Debug, PartialEq)]
pub struct Preprocessor {
    pub mean: [f64; 3],
    pub std: [f64; 3],
    pub filter: Filter,
    /// `size`, as height and width; one number for both where it says `shortest_edge`.
    pub size: Option<[i64; 2]>,
    /// `crop_size`.
    pub crop: Option<[i64; 2]>,
    pub image_grid_pinpoints: Option<Vec<[i64; 2]>>,
}

impl Default for Preprocessor {
    fn default() -> Self {
        Self { mean: MEAN, std: STD, filter: Filter::Bicubic, size: None, crop: None, image_grid_pinpoints: None }
    }
}

impl Preprocessor {
    /// # Errors
    /// A file that is damaged, or asks for something else than is done here; with its path and the key.
    pub fn read(folder: &Path) -> Result<Self, ModelError> {
        let (old, new) = (folder.join("preprocessor_config.json"), folder.join("processor_config.json"));
        let (path, value) = match read_json(&old)? {
            Some(value) => (old, value),
            None => match read_json(&new)? {
                Some(mut value) => (new, value["image_processor"].take()),
                None => return Err(ModelError::Config { path: old, detail: "there is no such file".into() }),
            },
        };
        Self::from_value(&value).map_err(|detail| ModelError::Config { path, detail })
    }

    fn from_value(value: &Value) -> Result<Self, String> {
        for key in ["do_resize", "do_rescale", "do_normalize", "do_convert_rgb"] {
            if value[key] == Value::Bool(false) {
                return Err(format!("{key} is false, and only true is supported"));
            }
        }
        let factor = value["rescale_factor"].as_f64().unwrap_or(1.0 / 255.0);
        if (factor - 1.0 / 255.0).abs() > 1e-9 {
            return Err(format!("rescale_factor is {factor}, and only 1/255 is supported"));
        }
        let filter = match value["resample"].as_i64() {
            None | Some(3) => Filter::Bicubic,
            Some(2) => Filter::Bilinear,
            Some(1) => Filter::Lanczos,
            Some(other) => return Err(format!("resample is {other}, and only 1, 2 and 3 are supported")),
        };
        let std = three(value, "image_std", STD)?;
        if std.iter().any(|value| *value <= 0.0) {
            return Err(format!("image_std is {}, and not above 0", value["image_std"]));
        }
        let pinpoints = &value["image_grid_pinpoints"];
        let image_grid_pinpoints = if pinpoints.is_null() {
            None
        } else {
            let read = serde_json::from_value(pinpoints.clone());
            Some(read.map_err(|error| format!("image_grid_pinpoints: {error}"))?)
        };
        let mean = three(value, "image_mean", MEAN)?;
        Ok(Self {
            mean,
            std,
            filter,
            size: sides(value, "size")?,
            crop: sides(value, "crop_size")?,
            image_grid_pinpoints,
        })
    }

    /// The picture with these sides, height and width.
    pub fn resized(&self, picture: &Rgb, [height, width]: [usize; 2]) -> Rgb {
        if [picture.height, picture.width] == [height, width] {
            return picture.clone();
        }
        let samples = resize_u8(&picture.samples, picture.width, picture.height, 3, width, height, self.filter);
        Rgb { width, height, samples }
    }

    /// (1, 3, H, W), f32 on the CPU.
    pub fn normalised(&self, picture: &Rgb) -> Result<Tensor, TorchError> {
        #[expect(clippy::cast_possible_truncation, reason = "as accurate as f32 is")]
        let channels: Vec<(f32, f32)> =
            self.mean.iter().zip(self.std).map(|(mean, std)| (*mean as f32, std as f32)).collect();
        let (height, width) = (picture.height, picture.width);
        let mut values = Vec::with_capacity(picture.samples.len());
        for (channel, (mean, std)) in channels.into_iter().enumerate() {
            let plane = picture.samples.iter().skip(channel).step_by(3);
            values.extend(plane.map(|&sample| (f32::from(sample) / 255.0 - mean) / std));
        }
        let side = |side: usize| i64::try_from(side).map_err(|error| TorchError::Other(error.to_string()));
        torch::from_vec(values, &[1, 3, side(height)?, side(width)?])
    }
}

fn three(value: &Value, key: &str, default: [f64; 3]) -> Result<[f64; 3], String> {
    if value[key].is_null() {
        return Ok(default);
    }
    serde_json::from_value(value[key].clone()).map_err(|_| format!("{key} is {}, and not three numbers", value[key]))
}

/// A size in any of its spellings.
fn sides(value: &Value, key: &str) -> Result<Option<[i64; 2]>, String> {
    let size = &value[key];
    let both = |side: &Value| side.as_i64().map(|side| [side, side]);
    if size.is_null() {
        return Ok(None);
    }
    let found = if size.is_number() {
        both(size)
    } else if size["height"].is_number() {
        size["height"].as_i64().zip(size["width"].as_i64()).map(Into::into)
    } else {
        both(&size["shortest_edge"])
    };
    let found = found.filter(|sides| sides.iter().all(|side| (1..=4096).contains(side)));
    found.map(Some).ok_or_else(|| format!("{key} is {size}, and no size that is known here"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sizes_come_in_several_spellings() -> Result<(), String> {
        for (value, wanted) in [
            (json!({}), None),
            (json!({ "size": 224 }), Some([224, 224])),
            (json!({ "size": { "shortest_edge": 336 } }), Some([336, 336])),
            (json!({ "size": { "height": 20, "width": 30 } }), Some([20, 30])),
        ] {
            assert_eq!(Preprocessor::from_value(&value)?.size, wanted);
        }
        Ok(())
    }

    #[test]
    fn what_is_not_done_is_refused_with_its_key() {
        for (value, key) in [
            (json!({ "do_resize": false }), "do_resize"),
            (json!({ "resample": 0 }), "resample"),
            (json!({ "rescale_factor": 1.0 }), "rescale_factor"),
            (json!({ "image_mean": [0.5] }), "image_mean"),
            (json!({ "image_std": [0.5, 0.0, 0.5] }), "image_std"),
            (json!({ "size": { "longest_edge": 9 } }), "size"),
        ] {
            let error = Preprocessor::from_value(&value).expect_err(key);
            assert!(error.starts_with(key), "{error}");
        }
    }
}

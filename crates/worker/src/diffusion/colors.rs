//! What unfinished latents show, without the VAE: each colour as a weighted sum of the latents' channels.
//!
//! The weights are fitted where a picture and its latents are at hand, and known for the published VAEs; other models
//! have no previews.

use tch::{Device, Kind, Tensor};

use super::pixels::{Rgb, side};
use crate::{
    torch::TorchError,
    vae::{Scaling, qwen_image},
};

/// Weights for the latents of a published VAE, as denoisers have them.
struct Published {
    scaling: Scaling<'static>,
    /// Red, green and blue of each channel; the colours are -1 to 1.
    weights: &'static [[f32; 3]],
    added: [f32; 3],
}

/// The last three are ComfyUI's figures (comfy/latent_formats.py at 75399d7), whose previewer gives them latents that are
/// scaled by the same factors, shifts, means and deviations.
const KNOWN: [Published; 5] = [
    // Stable Diffusion 1.x.
    Published {
        scaling: Scaling::Whole { channels: 4, factor: 0.18215, shift: 0.0 },
        weights: &[[0.298, 0.207, 0.208], [0.187, 0.286, 0.173], [-0.158, 0.189, 0.264], [-0.184, -0.271, -0.473]],
        added: [0.0; 3],
    },
    // SDXL and AuraFlow.
    Published {
        scaling: Scaling::Whole { channels: 4, factor: 0.13025, shift: 0.0 },
        weights: &[[0.392, 0.405, 0.455], [-0.263, -0.020, 0.065], [0.057, 0.169, -0.076], [-0.311, -0.236, -0.208]],
        added: [0.0; 3],
    },
    // Stable Diffusion 3 and 3.5.
    Published {
        scaling: Scaling::Whole { channels: 16, factor: 1.5305, shift: 0.0609 },
        weights: &[
            [-0.0922, -0.0175, 0.0749],
            [0.0311, 0.0633, 0.0954],
            [0.1994, 0.0927, 0.0458],
            [0.0856, 0.0339, 0.0902],
            [0.0587, 0.0272, -0.0496],
            [-0.0006, 0.1104, 0.0309],
            [0.0978, 0.0306, 0.0427],
            [-0.0042, 0.1038, 0.1358],
            [-0.0194, 0.0020, 0.0669],
            [-0.0488, 0.0130, -0.0268],
            [0.0922, 0.0988, 0.0951],
            [-0.0278, 0.0524, -0.0542],
            [0.0332, 0.0456, 0.0895],
            [-0.0069, -0.0030, -0.0810],
            [-0.0596, -0.0465, -0.0293],
            [-0.1448, -0.1463, -0.1189],
        ],
        added: [0.2394, 0.2135, 0.1925],
    },
    // FLUX.1.
    Published {
        scaling: Scaling::Whole { channels: 16, factor: 0.3611, shift: 0.1159 },
        weights: &[
            [-0.0346, 0.0244, 0.0681],
            [0.0034, 0.0210, 0.0687],
            [0.0275, -0.0668, -0.0433],
            [-0.0174, 0.0160, 0.0617],
            [0.0859, 0.0721, 0.0329],
            [0.0004, 0.0383, 0.0115],
            [0.0405, 0.0861, 0.0915],
            [-0.0236, -0.0185, -0.0259],
            [-0.0245, 0.0250, 0.1180],
            [0.1008, 0.0755, -0.0421],
            [-0.0515, 0.0201, 0.0011],
            [0.0428, -0.0012, -0.0036],
            [0.0817, 0.0765, 0.0749],
            [-0.1264, -0.0522, -0.1103],
            [-0.0280, -0.0881, -0.0499],
            [-0.1262, -0.0982, -0.0778],
        ],
        added: [-0.0329, -0.0718, -0.0851],
    },
    // Qwen-Image, whose latents are Wan 2.1's.
    Published {
        scaling: Scaling::EachChannel { mean: &qwen_image::MEAN, std: &qwen_image::STD, factor: 1.0 },
        weights: &[
            [-0.1299, -0.1692, 0.2932],
            [0.0671, 0.0406, 0.0442],
            [0.3568, 0.2548, 0.1747],
            [0.0372, 0.2344, 0.1420],
            [0.0313, 0.0189, -0.0328],
            [0.0296, -0.0956, -0.0665],
            [-0.3477, -0.4059, -0.2925],
            [0.0166, 0.1902, 0.1975],
            [-0.0412, 0.0267, -0.1364],
            [-0.1293, 0.0740, 0.1636],
            [0.0680, 0.3019, 0.1128],
            [0.0032, 0.0581, 0.0639],
            [-0.1251, 0.0927, 0.1699],
            [0.0060, -0.0633, 0.0005],
            [0.3477, 0.2275, 0.2950],
            [0.1984, 0.0913, 0.1861],
        ],
        added: [-0.1835, -0.0868, -0.3360],
    },
];

impl Published {
    fn colors(&self) -> Option<Colors> {
        // From -1..1 to 0..1.
        let weights = self.weights.iter().flatten().map(|weight| weight / 2.0);
        let rows: Vec<f32> = weights.chain(self.added.map(|added| added / 2.0 + 0.5)).collect();
        let weights = Tensor::f_from_slice(&rows).and_then(|rows| rows.f_reshape([-1, 3])).ok()?;
        Some(Colors { weights })
    }
}

/// Weights for one model's latents.
pub struct Colors {
    /// (C + 1, 3): the last row is added.
    weights: Tensor,
}

impl Colors {
    /// Those of a published VAE, told by how its latents are brought to the denoiser's.
    pub fn known(latents: Scaling<'_>) -> Option<Self> {
        let near = |one: f64, other: f64| (one - other).abs() < 1e-6;
        KNOWN
            .iter()
            .find(|published| match (latents, published.scaling) {
                (Scaling::Whole { channels, factor, shift }, Scaling::Whole { channels: all, factor: f, shift: s }) => {
                    channels == all && near(factor, f) && near(shift, s)
                }
                (Scaling::EachChannel { mean, std, factor }, Scaling::EachChannel { mean: m, std: s, factor: f }) => {
                    let same =
                        |one: &[f64], other: &[f64]| one.iter().zip(other).all(|(one, other)| near(*one, *other));
                    mean.len() == m.len() && std.len() == s.len() && same(mean, m) && same(std, s) && near(factor, f)
                }
                (Scaling::Whole { .. }, Scaling::EachChannel { .. })
                | (Scaling::EachChannel { .. }, Scaling::Whole { .. }) => false,
            })?
            .colors()
    }

    /// The weights that make `picture` of its own latents (1, C, h, w), scaled as the denoiser's, best.
    pub fn fitted(latents: &Tensor, picture: &Rgb) -> Result<Self, TorchError> {
        let (_, _, height, width) = latents.size4()?;
        let small = picture.clone().resized(side(width), side(height));
        let colors = small.tensor()?.f_reshape([3, -1])?.f_transpose(0, 1)?;
        let rows = rows(latents)?;
        let square = rows.f_transpose(0, 1)?.f_matmul(&rows)?;
        // Channels that hardly differ must not blow up.
        let ridge = Tensor::f_eye(square.size()[0], (Kind::Float, Device::Cpu))?.f_mul_scalar(1e-3)?;
        let wanted = rows.f_transpose(0, 1)?.f_matmul(&colors)?;
        let weights = Tensor::f_linalg_solve(&square.f_add(&ridge)?, &wanted, true)?;
        Ok(Self { weights })
    }

    /// What latents (1, C, h, w) show.
    pub fn picture(&self, latents: &Tensor) -> Result<Rgb, TorchError> {
        let (_, _, height, width) = latents.size4()?;
        let colors = rows(latents)?.f_matmul(&self.weights)?.f_transpose(0, 1)?;
        Rgb::from_tensor(&colors.f_reshape([1, 3, height, width])?)
    }
}

/// (pixels, C + 1) on the CPU, the last column of ones.
fn rows(latents: &Tensor) -> Result<Tensor, TorchError> {
    let latents = latents.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?;
    let (_, channels, _, _) = latents.size4()?;
    let rows = latents.f_reshape([channels, -1])?.f_transpose(0, 1)?;
    let ones = Tensor::f_ones([rows.size()[0], 1], (Kind::Float, Device::Cpu))?;
    Ok(Tensor::f_cat(&[rows, ones], 1)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fitted_weights_show_the_picture_that_they_were_fitted_to() {
        let samples: Vec<u8> = (0..8 * 8 * 3).map(|n| u8::try_from(n * 7 % 200).expect("small")).collect();
        let picture = Rgb { width: 8, height: 8, samples };
        // Latents that are an affine mixture of the colours, and one channel that says nothing.
        let colors = picture.tensor().expect("a tensor");
        let [r, g, b] = [0, 1, 2].map(|c| colors.narrow(1, c, 1));
        let latents = Tensor::cat(&[&r * 2.0 - &g, &g + &b * 0.5 + 1.0, &b * -3.0, r.zeros_like()], 1);
        let shown = Colors::fitted(&latents, &picture).expect("fits").picture(&latents).expect("a picture");
        let worst = shown.samples.iter().zip(&picture.samples).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(worst <= Some(3), "{worst:?}");
    }

    fn whole(channels: i64, factor: f64, shift: f64) -> Option<Colors> {
        Colors::known(Scaling::Whole { channels, factor, shift })
    }

    fn qwen_image() -> Option<Colors> {
        Colors::known(Scaling::EachChannel { mean: &qwen_image::MEAN, std: &qwen_image::STD, factor: 1.0 })
    }

    /// What a VAE's latents show that are the denoiser's zeros.
    fn of_nothing(colors: Option<Colors>, channels: i64) -> [u8; 3] {
        let picture = colors.expect("known").picture(&Tensor::zeros([1, channels, 2, 3], (Kind::Float, Device::Cpu)));
        let picture = picture.expect("a picture");
        assert_eq!((picture.width, picture.height, picture.samples.len()), (3, 2, 18));
        let color = [picture.samples[0], picture.samples[1], picture.samples[2]];
        assert!(picture.samples.chunks(3).all(|other| other == color));
        color
    }

    #[test]
    fn published_vaes_are_told_by_their_channels_and_how_they_are_scaled() {
        assert!(whole(8, 0.18215, 0.0).is_none() && whole(4, 0.5, 0.0).is_none() && whole(16, 0.18215, 0.0).is_none());
        assert!(whole(4, 0.3611, 0.1159).is_none() && whole(16, 0.3611, 0.0).is_none());
        assert!(whole(16, 0.3611, 0.0609).is_none() && whole(16, 1.5305, 0.1159).is_none());
        let changed = |change: f64| {
            let mut std = qwen_image::STD;
            std[15] += change;
            Colors::known(Scaling::EachChannel { mean: &qwen_image::MEAN, std: &std, factor: 1.0 })
        };
        assert!(changed(0.0).is_some() && changed(0.1).is_none());
        let few = Scaling::EachChannel { mean: &qwen_image::MEAN[..4], std: &qwen_image::STD[..4], factor: 1.0 };
        assert!(Colors::known(few).is_none());
    }

    #[test]
    fn latents_of_nothing_are_about_grey() {
        assert_eq!(of_nothing(whole(4, 0.18215, 0.0), 4), [128; 3]);
        assert_eq!(of_nothing(whole(4, 0.13025, 0.0), 4), [128; 3]);
        for (colors, channels) in [(whole(16, 1.5305, 0.0609), 16), (whole(16, 0.3611, 0.1159), 16), (qwen_image(), 16)]
        {
            let color = of_nothing(colors, channels);
            let [red, green, blue] = color;
            let (least, most) = (red.min(green).min(blue), red.max(green).max(blue));
            assert!(most - least <= 32 && least >= 80 && most <= 160, "{color:?}");
        }
    }

    /// Others have fitted the same latents before, without adding anything: Stability's own code for Stable Diffusion 3
    /// (sd3_impls.py), and an older ComfyUI for FLUX.1. Both make nearly the same of whatever latents; rows, columns or
    /// signs in the wrong place, or latents of another scale, would show.
    #[test]
    fn two_fits_of_the_same_latents_show_the_same() {
        for (colors, other) in [(whole(16, 1.5305, 0.0609), STABILITY), (whole(16, 0.3611, 0.1159), OLDER)] {
            let ours = colors.expect("known").weights.narrow(0, 0, 16) * 2.0;
            let theirs = Tensor::from_slice(&other.concat()).reshape([16, 3]);
            let products = |one: &Tensor, two: &Tensor| {
                let sum = (one * two).sum_dim_intlist(0_i64, false, Kind::Double);
                Vec::<f64>::try_from(sum).expect("three numbers")
            };
            let (one, two, both) = (products(&ours, &ours), products(&theirs, &theirs), products(&ours, &theirs));
            for color in 0..3 {
                let alike = both[color] / (one[color] * two[color]).sqrt();
                let scale = (one[color] / two[color]).sqrt();
                assert!(alike > 0.95 && (scale - 1.0).abs() < 0.05, "colour {color}: {alike}, {scale} times");
            }
        }
    }

    const STABILITY: [[f32; 3]; 16] = [
        [-0.0645, 0.0177, 0.1052],
        [0.0028, 0.0312, 0.0650],
        [0.1848, 0.0762, 0.0360],
        [0.0944, 0.0360, 0.0889],
        [0.0897, 0.0506, -0.0364],
        [-0.0020, 0.1203, 0.0284],
        [0.0855, 0.0118, 0.0283],
        [-0.0539, 0.0658, 0.1047],
        [-0.0057, 0.0116, 0.0700],
        [-0.0412, 0.0281, -0.0039],
        [0.1106, 0.1171, 0.1220],
        [-0.0248, 0.0682, -0.0481],
        [0.0815, 0.0846, 0.1207],
        [-0.0120, -0.0055, -0.0867],
        [-0.0749, -0.0634, -0.0456],
        [-0.1418, -0.1457, -0.1259],
    ];
    const OLDER: [[f32; 3]; 16] = [
        [-0.0404, 0.0159, 0.0609],
        [0.0043, 0.0298, 0.0850],
        [0.0328, -0.0749, -0.0503],
        [-0.0245, 0.0085, 0.0549],
        [0.0966, 0.0894, 0.0530],
        [0.0035, 0.0399, 0.0123],
        [0.0583, 0.1184, 0.1262],
        [-0.0191, -0.0206, -0.0306],
        [-0.0324, 0.0055, 0.1001],
        [0.0955, 0.0659, -0.0545],
        [-0.0504, 0.0231, -0.0013],
        [0.0500, -0.0008, -0.0088],
        [0.0982, 0.0941, 0.0976],
        [-0.1233, -0.0280, -0.0897],
        [-0.0005, -0.0530, -0.0020],
        [-0.1273, -0.0932, -0.0680],
    ];
}

//! FLUX.1 Kontext: edits a picture by instruction. The source's patches follow those of the picture that is made, which
//! has the source's proportions.
//!
//! *Source*: Black Forest Labs, "FLUX.1 Kontext", arXiv 2506.15742, and diffusers 0.42.1,
//! `pipelines/flux/pipeline_flux_kontext.py`.

use std::{any::Any, rc::Rc};

use atelier_domain::{ErrorCode, Params};
use atelier_sampling::{Options, Sampler, SchedulerConfig};

use super::{
    Beginning, Blueprint, Defaults, Geometry, Mode, Pipeline, Size, Stage, Task, Text, Vae,
    flux::{Beside, FluxParts},
};
use crate::{diffusion::card::Card, error::JobError, noise::Noise, torch::TorchError};

/// Width and height of the pictures that the network was trained to look at; each is there the other way round too.
const PREFERRED: [(i64, i64); 17] = [
    (672, 1568),
    (688, 1504),
    (720, 1456),
    (752, 1392),
    (800, 1328),
    (832, 1248),
    (880, 1184),
    (944, 1104),
    (1024, 1024),
    (1104, 944),
    (1184, 880),
    (1248, 832),
    (1328, 800),
    (1392, 752),
    (1456, 720),
    (1504, 688),
    (1568, 672),
];
/// Side of the square among them.
const SIDE: i64 = 1024;

pub struct FluxKontext {
    parts: Rc<FluxParts>,
    /// What the network looks at is a picture of about this side squared.
    side: i64,
}

impl FluxKontext {
    /// # Errors
    /// See [`FluxParts::read`].
    pub fn read(blueprint: &Blueprint) -> Result<Self, JobError> {
        Ok(Self {
            parts: Rc::new(FluxParts::read(blueprint, |_| 0)?),
            side: blueprint.card.size.map_or(SIDE, i64::from),
        })
    }
}

/// The size in which the network looks at a source: of the preferred ones that whose proportions are nearest, the
/// narrowest of those that are equally near. `side` is that of the square among them, `unit` what sides are brought down
/// to multiples of.
fn looked_at(source: Size, side: i64, unit: i64) -> Size {
    let down = |length: i64| length / unit * unit;
    let of = |width: i64, height: i64| ratio(width.max(1), height.max(1));
    let wanted = of(down(source.width), down(source.height));
    let scaled = |length: i64| down(length * side / SIDE).max(unit);
    let sizes = PREFERRED.iter().map(|&(width, height)| Size { width: scaled(width), height: scaled(height) });
    let distance = |size: &Size| (of(size.width, size.height) - wanted).abs();
    let order = |one: &Size, other: &Size| {
        let sides = (one.width, one.height).cmp(&(other.width, other.height));
        distance(one).total_cmp(&distance(other)).then(sides)
    };
    sizes.min_by(order).unwrap_or(Size::square(side))
}

/// The size of what is made: the source's proportions, about `area` pixels, sides of whole units.
fn made(source: Size, area: i64, unit: i64) -> Size {
    let aspect = ratio(source.width, source.height);
    #[expect(clippy::cast_precision_loss, reason = "pixels of a picture")]
    let area = area as f64;
    #[expect(clippy::cast_possible_truncation, reason = "sides of pictures")]
    let side = |squared: f64| squared.sqrt().round_ties_even() as i64 / unit * unit;
    Size { width: side(area * aspect), height: side(area / aspect) }
}

#[expect(clippy::cast_precision_loss, reason = "sides of pictures")]
const fn ratio(width: i64, height: i64) -> f64 {
    width as f64 / height as f64
}

impl Pipeline for FluxKontext {
    fn defaults(&self) -> Defaults {
        Defaults { steps: 28, guidance_scale: 3.5, image_guidance_scale: 1.0, strength: 1.0 }
    }

    fn vae(&self) -> &dyn Vae {
        &self.parts.vae
    }

    fn geometry(&self, card: &Card) -> Geometry {
        self.parts.geometry(card)
    }

    fn has_true_cfg(&self) -> bool {
        true
    }

    fn has_step_cache(&self) -> bool {
        true
    }

    fn check(&self, blueprint: &Blueprint, mode: Mode, params: &Params) -> Result<(), JobError> {
        if mode != Mode::Instruct {
            return Err(JobError::refused(
                ErrorCode::KindNotSupported,
                format!("{} edits a picture by instruction", blueprint.model.id),
                "Ask for edit, or choose another model.",
            ));
        }
        self.parts.check(params)
    }

    fn size(&self, mode: Mode, sources: &[Size], params: &Params, card: &Card) -> Result<Size, JobError> {
        let geometry = self.geometry(card);
        match sources.last() {
            Some(&source) if params.width.is_none() && params.height.is_none() => {
                let size = made(source, geometry.native.area(), geometry.unit);
                geometry.check(size)?;
                Ok(size)
            }
            source => geometry.size(mode, source.copied(), params),
        }
    }

    fn reads_sources(&self) -> bool {
        true
    }

    fn sampling(&self, task: &Task, _scheduler: &SchedulerConfig, options: &mut Options) {
        self.parts.sampling(task, options);
    }

    fn load_all(&self, stage: &mut Stage<'_, '_>) -> Result<Vec<Rc<dyn Any>>, JobError> {
        self.parts.load_all(stage)
    }

    fn encode_text(&self, stage: &mut Stage<'_, '_>) -> Result<Text, JobError> {
        self.parts.encode_text(stage)
    }

    fn begin(
        &self,
        stage: &mut Stage<'_, '_>,
        text: &Text,
        sampler: &Sampler,
        noise: &mut Noise,
    ) -> Result<Beginning, JobError> {
        let Some(source) = stage.task.sources.last() else {
            return Err(TorchError::Other("an instruction without a picture".into()).into());
        };
        let unit = self.parts.geometry(&stage.blueprint.card).unit;
        let side = |length: usize| i64::try_from(length).unwrap_or(i64::MAX);
        let size = looked_at(Size { width: side(source.width), height: side(source.height) }, self.side, unit);
        let length = |side: i64| usize::try_from(side).unwrap_or_default();
        let source = source.clone().resized(length(size.width), length(size.height));
        let source = self.parts.vae.latents_of(stage, &source)?;
        let start = self.parts.space().normal(stage, noise)?;
        let start = start.f_mul_scalar(sampler.init_noise_sigma()).map_err(TorchError::from)?;
        Ok(self.parts.begin(stage, text, &start, Beside { source: Some(source), ..Beside::default() })?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn photos_are_looked_at_and_made_in_the_sizes_that_diffusers_chooses() {
        let size = |(width, height)| Size { width, height };
        // Of the photo, of what is looked at, of what is made.
        for (source, seen, output) in [
            ((1920, 1080), (1392, 752), (1360, 768)),
            ((3024, 4032), (880, 1184), (880, 1168)),
            ((4000, 3000), (1184, 880), (1168, 880)),
            ((500, 333), (1248, 832), (1248, 832)),
            ((1000, 1000), (1024, 1024), (1024, 1024)),
            ((3232, 320), (1568, 672), (3248, 320)),
            ((320, 3232), (672, 1568), (320, 3248)),
            ((1023, 769), (1184, 880), (1168, 880)),
            ((1104, 1024), (1024, 1024), (1056, 976)),
            ((17, 4000), (672, 1568), (64, 15696)),
            ((90, 50), (1328, 800), (1360, 752)),
        ] {
            assert_eq!(looked_at(size(source), SIDE, 16), size(seen), "{source:?}");
            assert_eq!(made(size(source), SIDE * SIDE, 16), size(output), "{source:?}");
        }
        // A picture of a few pixels is looked at all the same.
        assert_eq!(looked_at(size((3, 2)), SIDE, 16), size((1024, 1024)));
    }
}

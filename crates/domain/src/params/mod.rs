//! A job's parameters: what may be asked, within which bounds.
//!
//! Unknown names are refused, because a misspelt parameter that is silently ignored wastes minutes of GPU.

use serde::{Deserialize, Serialize};

use crate::JobKind;

mod choices;
mod loras;

pub use choices::{ControlMode, Denoise, Detail, Fit, OutputFormat, Preprocessor};
pub use loras::{LoraUse, Loras};

/// Parameters as they come in a request, a sidecar or a preset; everything is optional.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub negative_prompt: Option<String>,
    /// 0 is a seed like any other. Drawn and recorded where it is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance_scale: Option<f64>,
    /// Pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<u32>,
    /// Pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub height: Option<u32>,
    /// 0 (exclusive) to 1: how far an image-to-image job may leave its source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strength: Option<f64>,
    /// `upscale`: 2 or 4.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale: Option<u32>,
    /// `upscale`: `"auto"`, `"off"`, or a level from 0 to 3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub denoise: Option<Denoise>,
    /// 1 to 10.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_images: Option<u32>,
    /// Overrides `outbox.format`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<OutputFormat>,
    /// 1 to 100 for JPEG and WebP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quality: Option<u8>,
    /// `edit`, instruction models: how closely the result keeps to the source; below 1 turns guidance off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_guidance_scale: Option<f64>,
    /// Models whose guidance is distilled (FLUX.1): guidance by the negative prompt besides, above 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub true_cfg_scale: Option<f64>,
    /// Instead of the one that the model's folder asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampler: Option<String>,
    /// Layers of the text encoder that are left out at its end, 0 to 12.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_skip: Option<u32>,
    /// Whether `(word:1.2)` in a prompt weighs the word; off where nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_weighting: Option<bool>,
    /// A list of `{"name", "weight"}`, or a text such as `"film:0.8, grain"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loras: Option<Loras>,
    /// `edit`: whether the result's colours are carried to the photo's full resolution.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<Detail>,
    /// The size of what is made from a picture: the source's, or the model's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fit: Option<Fit>,
    /// `control`, Union models: what the picture shows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control_mode: Option<ControlMode>,
    /// `control`: 0 to 2, 1 where nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control_scale: Option<f64>,
    /// `control`: what is done to the picture before the model sees it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preprocessor: Option<Preprocessor>,
    /// `control`: the model that a bare ControlNet works with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_model: Option<String>,
    /// A small picture of how far it is after so many steps, 0 for none; 5 where nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preview_every: Option<u32>,
    /// Whether large pictures are decoded tile by tile; decided by size where nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tiling: Option<bool>,
    /// `caption`: 1 to 4096 tokens; 256 where nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// `caption`: 0 to 2; 0, the likeliest token each time, where nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// `caption`, with a temperature: 0 (exclusive) to 1, the share of the likeliest tokens among which one is drawn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    /// Transformers: the largest relative change of the first block's answer, 0 to 1, for which the other blocks' answers
    /// of the step before are taken. 0, and where nothing is said: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_cache: Option<f64>,
    /// Stable Diffusion 3: how far to guide away from what is made with three of the blocks left out, in the early steps;
    /// 0, and where nothing is said: not at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skip_layer_guidance: Option<f64>,
}

/// Bounds that the configuration may move.
#[derive(Clone, Copy, Debug)]
pub struct ParamLimits {
    pub prompt_chars: usize,
    pub negative_prompt_chars: usize,
}

impl Default for ParamLimits {
    fn default() -> Self {
        Self { prompt_chars: 2000, negative_prompt_chars: 1000 }
    }
}

/// A parameter out of bounds. Names the parameter, what was given and what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("params.{name}: {message}")]
pub struct ParamsError {
    pub name: &'static str,
    pub message: String,
}

impl Params {
    /// Names of all parameters, for "did you mean".
    pub const NAMES: [&'static str; 32] = [
        "prompt",
        "negative_prompt",
        "seed",
        "steps",
        "guidance_scale",
        "width",
        "height",
        "strength",
        "scale",
        "denoise",
        "num_images",
        "format",
        "quality",
        "image_guidance_scale",
        "true_cfg_scale",
        "sampler",
        "clip_skip",
        "prompt_weighting",
        "loras",
        "detail",
        "fit",
        "control_mode",
        "control_scale",
        "preprocessor",
        "base_model",
        "preview_every",
        "tiling",
        "max_tokens",
        "temperature",
        "top_p",
        "step_cache",
        "skip_layer_guidance",
    ];

    /// These parameters where they are given, `weaker` for the rest.
    #[must_use]
    pub fn over(self, weaker: Self) -> Self {
        Self {
            prompt: self.prompt.or(weaker.prompt),
            negative_prompt: self.negative_prompt.or(weaker.negative_prompt),
            seed: self.seed.or(weaker.seed),
            steps: self.steps.or(weaker.steps),
            guidance_scale: self.guidance_scale.or(weaker.guidance_scale),
            width: self.width.or(weaker.width),
            height: self.height.or(weaker.height),
            strength: self.strength.or(weaker.strength),
            scale: self.scale.or(weaker.scale),
            denoise: self.denoise.or(weaker.denoise),
            num_images: self.num_images.or(weaker.num_images),
            format: self.format.or(weaker.format),
            quality: self.quality.or(weaker.quality),
            image_guidance_scale: self.image_guidance_scale.or(weaker.image_guidance_scale),
            true_cfg_scale: self.true_cfg_scale.or(weaker.true_cfg_scale),
            sampler: self.sampler.or(weaker.sampler),
            clip_skip: self.clip_skip.or(weaker.clip_skip),
            prompt_weighting: self.prompt_weighting.or(weaker.prompt_weighting),
            loras: self.loras.or(weaker.loras),
            detail: self.detail.or(weaker.detail),
            fit: self.fit.or(weaker.fit),
            control_mode: self.control_mode.or(weaker.control_mode),
            control_scale: self.control_scale.or(weaker.control_scale),
            preprocessor: self.preprocessor.or(weaker.preprocessor),
            base_model: self.base_model.or(weaker.base_model),
            preview_every: self.preview_every.or(weaker.preview_every),
            tiling: self.tiling.or(weaker.tiling),
            max_tokens: self.max_tokens.or(weaker.max_tokens),
            temperature: self.temperature.or(weaker.temperature),
            top_p: self.top_p.or(weaker.top_p),
            step_cache: self.step_cache.or(weaker.step_cache),
            skip_layer_guidance: self.skip_layer_guidance.or(weaker.skip_layer_guidance),
        }
    }

    /// Checks every given parameter against its bounds, and that `kind` has what it needs.
    ///
    /// # Errors
    /// The first parameter that is out of bounds, missing, or of no use to `kind`.
    pub fn validate(&self, kind: JobKind, limits: ParamLimits) -> Result<(), ParamsError> {
        let err = |name, message: String| Err(ParamsError { name, message });
        let chars = |text: &Option<String>| text.as_ref().map_or(0, |t| t.chars().count());
        if kind.needs_prompt() && self.prompt.as_ref().is_none_or(|p| p.trim().is_empty()) {
            return err("prompt", format!("a job of kind {kind} needs a prompt"));
        }
        if chars(&self.prompt) > limits.prompt_chars {
            let n = chars(&self.prompt);
            return err("prompt", format!("{n} characters, at most {} are allowed", limits.prompt_chars));
        }
        if chars(&self.negative_prompt) > limits.negative_prompt_chars {
            let n = chars(&self.negative_prompt);
            return err(
                "negative_prompt",
                format!("{n} characters, at most {} are allowed", limits.negative_prompt_chars),
            );
        }
        for (name, text) in [("prompt", &self.prompt), ("negative_prompt", &self.negative_prompt)] {
            if text.as_ref().is_some_and(|t| t.contains('\0')) {
                return err(name, "holds a NUL character".into());
            }
        }
        if let Some(steps) = self.steps
            && !(1..=1000).contains(&steps)
        {
            return err("steps", format!("{steps} is not within 1 to 1000"));
        }
        if let Some(scale) = self.guidance_scale
            && !(0.0..=100.0).contains(&scale)
        {
            return err("guidance_scale", format!("{scale} is not within 0 to 100"));
        }
        for (name, side) in [("width", self.width), ("height", self.height)] {
            if let Some(side) = side
                && !(16..=16384).contains(&side)
            {
                return err(name, format!("{side} pixels is not within 16 to 16384"));
            }
        }
        if let Some(strength) = self.strength
            && !(strength > 0.0 && strength <= 1.0)
        {
            return err("strength", format!("{strength} is not above 0 and at most 1"));
        }
        if let Some(scale) = self.scale
            && ![2, 4].contains(&scale)
        {
            return err("scale", format!("{scale} is not one of 2 and 4"));
        }
        if let Some(n) = self.num_images
            && !(1..=10).contains(&n)
        {
            return err("num_images", format!("{n} is not within 1 to 10"));
        }
        if let Some(quality) = self.quality
            && !(1..=100).contains(&quality)
        {
            return err("quality", format!("{quality} is not within 1 to 100"));
        }
        if let Some(scale) = self.image_guidance_scale
            && !(0.0..=100.0).contains(&scale)
        {
            return err("image_guidance_scale", format!("{scale} is not within 0 to 100"));
        }
        if let Some(scale) = self.true_cfg_scale
            && !(0.0..=100.0).contains(&scale)
        {
            return err("true_cfg_scale", format!("{scale} is not within 0 to 100"));
        }
        if let Some(scale) = self.control_scale
            && !(0.0..=2.0).contains(&scale)
        {
            return err("control_scale", format!("{scale} is not within 0 to 2"));
        }
        if let Some(threshold) = self.step_cache
            && !(0.0..=1.0).contains(&threshold)
        {
            return err("step_cache", format!("{threshold} is not within 0 to 1"));
        }
        if let Some(scale) = self.skip_layer_guidance
            && !(0.0..=20.0).contains(&scale)
        {
            return err("skip_layer_guidance", format!("{scale} is not within 0 to 20"));
        }
        if let Some(layers) = self.clip_skip
            && layers > 12
        {
            return err("clip_skip", format!("{layers} layers is not within 0 to 12"));
        }
        if let Some(every) = self.preview_every
            && every > 1000
        {
            return err("preview_every", format!("{every} steps is not within 0 to 1000"));
        }
        if let Some(tokens) = self.max_tokens
            && !(1..=4096).contains(&tokens)
        {
            return err("max_tokens", format!("{tokens} is not within 1 to 4096"));
        }
        if let Some(temperature) = self.temperature
            && !(0.0..=2.0).contains(&temperature)
        {
            return err("temperature", format!("{temperature} is not within 0 to 2"));
        }
        if let Some(share) = self.top_p
            && !(share > 0.0 && share <= 1.0)
        {
            return err("top_p", format!("{share} is not above 0 and at most 1"));
        }
        if self.sampler.as_ref().is_some_and(|name| name.trim().is_empty() || name.len() > 64) {
            return err("sampler", "is no name of a sampler".into());
        }
        if let Some(loras) = &self.loras
            && let Err(message) = loras.check()
        {
            return err("loras", message);
        }
        match self.misplaced(kind) {
            Some((name, only)) => err(name, format!("is for {only}, this job is of kind {kind}")),
            None => Ok(()),
        }
    }

    /// A parameter that is given and that `kind` has no use for, and what it is for. One that were silently left out
    /// would be taken for one that works.
    fn misplaced(&self, kind: JobKind) -> Option<(&'static str, &'static str)> {
        let diffuses =
            matches!(kind, JobKind::Edit | JobKind::Generate | JobKind::Inpaint | JobKind::Control | JobKind::Video);
        let writes = kind == JobKind::Caption;
        let rules: [(&'static str, bool, bool, &'static str); 20] = [
            ("scale", self.scale.is_some(), kind == JobKind::Upscale, "upscale"),
            ("denoise", self.denoise.is_some(), kind == JobKind::Upscale, "upscale"),
            ("image_guidance_scale", self.image_guidance_scale.is_some(), kind == JobKind::Edit, "edit"),
            ("detail", self.detail.is_some(), kind == JobKind::Edit, "edit"),
            ("control_mode", self.control_mode.is_some(), kind == JobKind::Control, "control"),
            ("control_scale", self.control_scale.is_some(), kind == JobKind::Control, "control"),
            ("preprocessor", self.preprocessor.is_some(), kind == JobKind::Control, "control"),
            ("base_model", self.base_model.is_some(), kind == JobKind::Control, "control"),
            ("true_cfg_scale", self.true_cfg_scale.is_some(), diffuses, "edit, generate, inpaint, control and video"),
            ("fit", self.fit.is_some(), diffuses, "edit, generate, inpaint and control"),
            ("sampler", self.sampler.is_some(), diffuses, "edit, generate, inpaint, control and video"),
            ("clip_skip", self.clip_skip.is_some(), diffuses, "edit, generate, inpaint and control"),
            ("prompt_weighting", self.prompt_weighting.is_some(), diffuses, "edit, generate, inpaint and control"),
            ("loras", self.loras.is_some(), diffuses, "edit, generate, inpaint, control and video"),
            ("tiling", self.tiling.is_some(), diffuses, "edit, generate, inpaint, control and video"),
            ("max_tokens", self.max_tokens.is_some(), writes, "caption"),
            ("temperature", self.temperature.is_some(), writes, "caption"),
            ("top_p", self.top_p.is_some(), writes, "caption"),
            ("step_cache", self.step_cache.is_some(), diffuses, "edit, generate, inpaint, control and video"),
            ("skip_layer_guidance", self.skip_layer_guidance.is_some(), kind == JobKind::Generate, "generate"),
        ];
        rules.into_iter().find(|(_, given, fits, _)| *given && !fits).map(|(name, _, _, only)| (name, only))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Params, serde_json::Error> {
        serde_json::from_str(json)
    }

    #[test]
    fn an_unknown_parameter_is_refused_by_name() {
        let error = parse(r#"{"scael":2}"#).expect_err("misspelt").to_string();
        assert!(error.contains("scael"), "{error}");
    }

    #[test]
    fn denoise_takes_auto_off_and_four_levels() {
        for (json, expected) in [
            ("\"auto\"", Denoise::Auto),
            ("\"off\"", Denoise::Off),
            ("0", Denoise::Level(0)),
            ("3", Denoise::Level(3)),
            ("\"2\"", Denoise::Level(2)),
        ] {
            assert_eq!(serde_json::from_str::<Denoise>(json).expect(json), expected);
        }
        for json in ["4", "-1", "1.5", "\"high\"", "null", "[]"] {
            let error = serde_json::from_str::<Denoise>(json).expect_err(json).to_string();
            assert!(error.contains("level from 0 to 3"), "{error}");
        }
    }

    #[test]
    fn seed_zero_is_kept_and_a_seed_beyond_64_bits_is_refused() {
        assert_eq!(parse(r#"{"seed":0}"#).expect("0").seed, Some(0));
        assert_eq!(parse(r#"{"seed":18446744073709551615}"#).expect("max").seed, Some(u64::MAX));
        assert!(parse(r#"{"seed":18446744073709551616}"#).is_err());
        assert!(parse(r#"{"seed":-1}"#).is_err());
    }

    #[test]
    fn bounds_name_the_parameter_and_what_is_allowed() {
        let limits = ParamLimits::default();
        let cases = [
            (r#"{"scale":3}"#, "scale"),
            (r#"{"steps":0}"#, "steps"),
            (r#"{"strength":0}"#, "strength"),
            (r#"{"quality":0}"#, "quality"),
            (r#"{"width":15}"#, "width"),
            (r#"{"num_images":11}"#, "num_images"),
            (r#"{"guidance_scale":-1}"#, "guidance_scale"),
            (r#"{"image_guidance_scale":101}"#, "image_guidance_scale"),
            (r#"{"true_cfg_scale":-1}"#, "true_cfg_scale"),
            (r#"{"control_scale":2.5}"#, "control_scale"),
            (r#"{"clip_skip":13}"#, "clip_skip"),
            (r#"{"loras":"film:9"}"#, "loras"),
            (r#"{"preview_every":1001}"#, "preview_every"),
            (r#"{"max_tokens":0}"#, "max_tokens"),
            (r#"{"max_tokens":4097}"#, "max_tokens"),
            (r#"{"temperature":2.5}"#, "temperature"),
            (r#"{"top_p":0}"#, "top_p"),
            (r#"{"step_cache":1.5}"#, "step_cache"),
            (r#"{"skip_layer_guidance":-1}"#, "skip_layer_guidance"),
        ];
        for (json, name) in cases {
            let error = parse(json).expect(json).validate(JobKind::Upscale, limits).expect_err(json);
            assert_eq!(error.name, name);
        }
        let nan = Params { strength: Some(f64::NAN), ..Params::default() };
        assert_eq!(nan.validate(JobKind::Upscale, limits).expect_err("NaN").name, "strength");
        let nan = Params { guidance_scale: Some(f64::NAN), ..Params::default() };
        assert_eq!(nan.validate(JobKind::Upscale, limits).expect_err("NaN").name, "guidance_scale");
    }

    #[test]
    fn a_parameter_of_another_kind_is_refused_and_not_left_out() {
        let limits = ParamLimits::default();
        let prompt = || Params { prompt: Some("a cat".into()), ..Params::default() };
        let cases = [
            (Params { detail: Some(Detail::None), ..prompt() }, JobKind::Generate, "detail"),
            (Params { control_scale: Some(1.0), ..prompt() }, JobKind::Generate, "control_scale"),
            (Params { base_model: Some("x".into()), ..prompt() }, JobKind::Edit, "base_model"),
            (Params { sampler: Some("euler".into()), ..prompt() }, JobKind::Upscale, "sampler"),
            (Params { scale: Some(2), ..prompt() }, JobKind::Edit, "scale"),
            (Params { max_tokens: Some(9), ..prompt() }, JobKind::Edit, "max_tokens"),
            (Params { temperature: Some(0.5), ..prompt() }, JobKind::Generate, "temperature"),
            (Params { top_p: Some(0.5), ..prompt() }, JobKind::Upscale, "top_p"),
        ];
        for (params, kind, name) in cases {
            assert_eq!(params.validate(kind, limits).expect_err(name).name, name);
        }
        let fits = Params { sampler: Some("euler".into()), detail: Some(Detail::Auto), ..prompt() };
        assert!(fits.validate(JobKind::Edit, limits).is_ok());
    }

    #[test]
    fn prompts_are_counted_in_characters_not_bytes() {
        let limits = ParamLimits::default();
        let prompt = |n: usize| Params { prompt: Some("é".repeat(n)), ..Params::default() };
        assert!(prompt(2000).validate(JobKind::Edit, limits).is_ok());
        assert_eq!(prompt(2001).validate(JobKind::Edit, limits).expect_err("long").name, "prompt");
        assert_eq!(Params::default().validate(JobKind::Edit, limits).expect_err("none").name, "prompt");
    }

    #[test]
    fn the_list_of_names_is_what_serde_knows() {
        let error = parse(r#"{"no_such_name":1}"#).expect_err("unknown").to_string();
        for name in Params::NAMES {
            assert!(error.contains(&format!("`{name}`")), "{name} is missing in {error}");
        }
        assert_eq!(error.matches('`').count(), 2 * (Params::NAMES.len() + 1), "{error}");
    }
}

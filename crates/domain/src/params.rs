//! A job's parameters: what may be asked, within which bounds.
//!
//! Unknown names are refused, because a misspelt parameter that is silently ignored wastes minutes of GPU.

use serde::{Deserialize, Serialize};

use crate::JobKind;

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
}

/// How an upscale treats noise and compression artefacts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denoise {
    /// Measure the picture and decide.
    Auto,
    /// The plain upscaler.
    Off,
    /// waifu2x with this level, 0 to 3.
    Level(u8),
}

impl Serialize for Denoise {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Off => serializer.serialize_str("off"),
            Self::Level(level) => serializer.serialize_u8(*level),
        }
    }
}

impl<'de> Deserialize<'de> for Denoise {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Number(u64),
            Text(String),
        }
        let wrong = || serde::de::Error::custom("denoise is \"auto\", \"off\" or a level from 0 to 3");
        match Raw::deserialize(deserializer).map_err(|_| wrong())? {
            Raw::Number(level @ 0..=3) => Ok(Self::Level(u8::try_from(level).map_err(|_| wrong())?)),
            Raw::Number(_) => Err(wrong()),
            Raw::Text(text) => match text.as_str() {
                "auto" => Ok(Self::Auto),
                "off" => Ok(Self::Off),
                "0" => Ok(Self::Level(0)),
                "1" => Ok(Self::Level(1)),
                "2" => Ok(Self::Level(2)),
                "3" => Ok(Self::Level(3)),
                _ => Err(wrong()),
            },
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputFormat {
    Png,
    #[serde(alias = "jpg")]
    Jpeg,
    Webp,
}

impl OutputFormat {
    pub const fn extension(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpg",
            Self::Webp => "webp",
        }
    }

    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Jpeg => "image/jpeg",
            Self::Webp => "image/webp",
        }
    }
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
    pub const NAMES: [&'static str; 13] = [
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
        if kind != JobKind::Upscale {
            if self.scale.is_some() {
                return err("scale", format!("is for upscale, this job is of kind {kind}"));
            }
            if self.denoise.is_some() {
                return err("denoise", format!("is for upscale, this job is of kind {kind}"));
            }
        }
        Ok(())
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

//! What a file says about its making: where it comes from, in IPTC's words, and how it was made, in A1111's.
//!
//! IPTC's vocabulary of digital source types (newscodes/digitalsourcetype) is about the origin, so only as much is said
//! as is known. A picture made from noise is `trainedAlgorithmicMedia`. A picture of somebody's in which a generative
//! model has painted is `compositeWithTrainedAlgorithmicMedia`, unless it was wholly generated before, which it then
//! still is. An upscaled picture is neither: the networks that enlarge are trained to restore, add no subject, and the
//! vocabulary calls such a correction by algorithm, without generative tools, `algorithmicallyEnhanced`. That is said
//! only in the place of "a camera has taken this", or of nothing; what names another origin stays, above all one that
//! says that the source was generated.

use std::fmt::Write as _;

use atelier_domain::JobKind;

use crate::{Metadata, xmp};

/// IPTC's digital source types, as far as they are written here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DigitalSource {
    TrainedAlgorithmicMedia,
    CompositeWithTrainedAlgorithmicMedia,
    AlgorithmicallyEnhanced,
}

const SCHEME: &str = "http://cv.iptc.org/newscodes/digitalsourcetype/";

impl DigitalSource {
    /// The last part of its URI.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TrainedAlgorithmicMedia => "trainedAlgorithmicMedia",
            Self::CompositeWithTrainedAlgorithmicMedia => "compositeWithTrainedAlgorithmicMedia",
            Self::AlgorithmicallyEnhanced => "algorithmicallyEnhanced",
        }
    }

    pub fn uri(self) -> String {
        format!("{SCHEME}{}", self.as_str())
    }

    /// What is to be said of the output of a job of this kind, whose source says `before` of itself (a URI, or the last
    /// part of one). `None`: nothing is changed.
    pub fn of(kind: JobKind, before: Option<&str>) -> Option<Self> {
        let before = before.map(|uri| uri.trim().rsplit('/').next().unwrap_or_default());
        match kind {
            JobKind::Generate | JobKind::Video | JobKind::TalkingHead | JobKind::Speech => {
                Some(Self::TrainedAlgorithmicMedia)
            }
            JobKind::Edit | JobKind::Inpaint | JobKind::Control => {
                if before == Some(Self::TrainedAlgorithmicMedia.as_str()) {
                    Some(Self::TrainedAlgorithmicMedia)
                } else {
                    Some(Self::CompositeWithTrainedAlgorithmicMedia)
                }
            }
            JobKind::Upscale => {
                let is_plain =
                    before.is_none_or(|before| matches!(before, "" | "digitalCapture" | "computationalCapture"));
                is_plain.then_some(Self::AlgorithmicallyEnhanced)
            }
            JobKind::Caption => None,
        }
    }
}

/// How a picture was generated.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Generation<'a> {
    pub prompt: &'a str,
    pub negative_prompt: &'a str,
    pub steps: Option<u32>,
    pub sampler: Option<&'a str>,
    pub scheduler: Option<&'a str>,
    pub guidance_scale: Option<f64>,
    pub seed: Option<u64>,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    pub model: &'a str,
    /// Of the weights, in hexadecimal digits; its first ten are written.
    pub model_sha256: Option<&'a str>,
    /// How far an image-to-image job could leave its source.
    pub strength: Option<f64>,
}

impl Generation<'_> {
    /// The text `parameters` that A1111 writes and others read: the prompt, a line with the negative one, a line of
    /// names and values.
    pub fn parameters(&self) -> String {
        let mut text = self.prompt.to_owned();
        if !self.negative_prompt.is_empty() {
            let _ = write!(text, "\nNegative prompt: {}", self.negative_prompt);
        }
        let size = format!("{}x{}", self.width, self.height);
        let hash = self.model_sha256.map(|hash| hash.get(..10).unwrap_or(hash).to_owned());
        let number = |value: Option<f64>| value.map(|value| format!("{value:?}"));
        let pairs = [
            ("Steps", self.steps.map(|steps| steps.to_string())),
            ("Sampler", self.sampler.map(quoted)),
            ("Schedule type", self.scheduler.map(quoted)),
            ("CFG scale", number(self.guidance_scale)),
            ("Seed", self.seed.map(|seed| seed.to_string())),
            ("Size", Some(size)),
            ("Model hash", hash),
            ("Model", Some(quoted(self.model))),
            ("Denoising strength", number(self.strength)),
            ("Version", Some(concat!("Atelier ", env!("CARGO_PKG_VERSION")).to_owned())),
        ];
        let pairs = pairs.into_iter().filter_map(|(name, value)| Some(format!("{name}: {}", value?)));
        let _ = write!(text, "\n{}", pairs.collect::<Vec<_>>().join(", "));
        text
    }
}

/// A value that could be taken for the next name stands in quotes, as JSON has them.
fn quoted(value: &str) -> String {
    if !value.contains([',', ':', '\n', '"']) {
        return value.to_owned();
    }
    let mut text = String::from("\"");
    for c in value.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            '\n' => text.push_str("\\n"),
            c => text.push(c),
        }
    }
    text.push('"');
    text
}

impl Metadata {
    /// What the XMP says of the origin: a URI of IPTC's vocabulary, or what others have written in its place.
    pub fn digital_source(&self) -> Option<String> {
        xmp::digital_source(self.xmp.as_deref()?)
    }

    /// Says in an output's metadata how it was made; `parameters` where it was generated ([`Generation`]). To be called
    /// on what `for_output` gives, before `encode`. Returns notes for the job's record.
    pub fn mark(&mut self, kind: JobKind, parameters: Option<String>) -> Vec<String> {
        let mut notes = Vec::new();
        if let Some(source) = DigitalSource::of(kind, self.digital_source().as_deref()) {
            let (packet, is_new) = xmp::with_digital_source(self.xmp.as_deref(), &source.uri());
            if is_new && self.xmp.is_some() {
                notes.push("The XMP cannot be added to and was replaced.".to_owned());
            }
            self.xmp = Some(packet);
        }
        if parameters.is_some() {
            self.parameters = parameters;
        }
        notes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_known_is_said_of_the_origin() {
        use DigitalSource::{
            AlgorithmicallyEnhanced as Enhanced, CompositeWithTrainedAlgorithmicMedia as Composite,
            TrainedAlgorithmicMedia as Trained,
        };
        let uri = |name: &str| format!("{SCHEME}{name}");
        assert_eq!(DigitalSource::of(JobKind::Generate, None), Some(Trained));
        assert_eq!(DigitalSource::of(JobKind::Edit, None), Some(Composite));
        assert_eq!(DigitalSource::of(JobKind::Inpaint, Some(&uri("digitalCapture"))), Some(Composite));
        assert_eq!(DigitalSource::of(JobKind::Edit, Some(&uri("trainedAlgorithmicMedia"))), Some(Trained));
        assert_eq!(DigitalSource::of(JobKind::Upscale, None), Some(Enhanced));
        assert_eq!(DigitalSource::of(JobKind::Upscale, Some(&uri("digitalCapture"))), Some(Enhanced));
        for kept in ["trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia", "print", "compositeSynthetic"] {
            assert_eq!(DigitalSource::of(JobKind::Upscale, Some(&uri(kept))), None, "{kept}");
        }
        assert_eq!(DigitalSource::of(JobKind::Caption, None), None);
    }

    #[test]
    fn the_parameters_are_a1111s() {
        let generation = Generation {
            prompt: "a house\nby the sea",
            negative_prompt: "rain",
            steps: Some(20),
            sampler: Some("Euler a"),
            guidance_scale: Some(7.0),
            seed: Some(0),
            width: 640,
            height: 512,
            model: "a:b",
            model_sha256: Some("0123456789abcdef"),
            strength: Some(0.75),
            scheduler: None,
        };
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(
            generation.parameters(),
            format!(
                "a house\nby the sea\nNegative prompt: rain\nSteps: 20, Sampler: Euler a, CFG scale: 7.0, Seed: 0, \
                 Size: 640x512, Model hash: 0123456789, Model: \"a:b\", Denoising strength: 0.75, \
                 Version: Atelier {version}"
            )
        );
    }
}

//! What is said of a picture: by which program, from what, and in which way it was made.
//!
//! The words for the origin are those that the picture's XMP has already (`atelier_imaging::DigitalSource`); here they
//! become C2PA's actions. A picture that a job has changed was *opened*, with its source as the parent, and then edited
//! or resized. One that was made from noise was *created*; what it was shown on the way was input to it.

use atelier_domain::{JobKind, Timestamp};
use atelier_imaging::DigitalSource;
use serde_json::{Value, json};

/// The relation of a source to what was made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Relation {
    Parent,
    Input,
}

impl Relation {
    /// Of the source at `index`, in a job of this kind.
    pub(crate) const fn of(kind: JobKind, index: usize) -> Self {
        match kind {
            JobKind::Upscale | JobKind::Edit | JobKind::Inpaint if index == 0 => Self::Parent,
            JobKind::Upscale
            | JobKind::Edit
            | JobKind::Inpaint
            | JobKind::Generate
            | JobKind::Control
            | JobKind::Video
            | JobKind::TalkingHead
            | JobKind::Speech
            | JobKind::Caption => Self::Input,
        }
    }

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Parent => "parentOf",
            Self::Input => "inputTo",
        }
    }
}

/// By which an action names a source until the manifest gives it an address.
pub(crate) fn name_of(index: usize) -> String {
    format!("source-{index}")
}

/// A manifest for an output of `media_type`, whose XMP names `origin`, made of so many sources.
pub(crate) fn definition(
    kind: JobKind,
    media_type: &str,
    origin: Option<&str>,
    sources: usize,
    now: Timestamp,
) -> Value {
    let actions = actions(kind, origin, sources, now);
    json!({
        "claim_generator_info": [agent()],
        "format": media_type,
        // Nothing is shown that the picture itself does not show.
        "thumbnail": { "format": "none", "identifier": "" },
        "assertions": [{
            "label": "c2pa.actions.v2",
            "data": { "actions": actions, "allActionsIncluded": true },
            "created": true,
        }],
    })
}

fn agent() -> Value {
    json!({ "name": "Atelier", "version": env!("CARGO_PKG_VERSION") })
}

fn actions(kind: JobKind, origin: Option<&str>, sources: usize, now: Timestamp) -> Vec<Value> {
    let action = |name: &str, of: Vec<String>| {
        let mut action = json!({ "action": name, "when": now, "softwareAgent": agent() });
        if !of.is_empty() {
            action["parameters"] = json!({ "ingredientIds": of });
        }
        action
    };
    let (parents, inputs): (Vec<_>, Vec<_>) =
        (0..sources).partition(|index| Relation::of(kind, *index) == Relation::Parent);
    let names = |indices: Vec<usize>| indices.into_iter().map(name_of).collect::<Vec<_>>();
    let source_type = source_type(kind, origin);
    let (first, what) = if parents.is_empty() {
        (None, action("c2pa.created", names(inputs)))
    } else {
        let change = if kind == JobKind::Upscale { "c2pa.resized" } else { "c2pa.edited" };
        (Some(action("c2pa.opened", names(parents))), action(change, names(inputs)))
    };
    let mut what = what;
    if let Some(source_type) = source_type {
        what["digitalSourceType"] = source_type.uri().into();
    }
    first.into_iter().chain([what]).collect()
}

/// What the job has contributed. An upscaled picture keeps its source's origin; only where its XMP calls it enhanced is
/// that Atelier's doing.
fn source_type(kind: JobKind, origin: Option<&str>) -> Option<DigitalSource> {
    let before = match kind {
        JobKind::Upscale => {
            let is_enhanced = origin.is_some_and(|uri| uri.ends_with(DigitalSource::AlgorithmicallyEnhanced.as_str()));
            return is_enhanced.then_some(DigitalSource::AlgorithmicallyEnhanced);
        }
        JobKind::Edit
        | JobKind::Inpaint
        | JobKind::Generate
        | JobKind::Control
        | JobKind::Video
        | JobKind::TalkingHead
        | JobKind::Speech
        | JobKind::Caption => origin,
    };
    DigitalSource::of(kind, before)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(0);

    fn said(kind: JobKind, origin: Option<&str>, sources: usize) -> Vec<(String, Option<String>, usize)> {
        let text = |value: &Value| value.as_str().map(|text| text.rsplit('/').next().unwrap_or_default().to_owned());
        actions(kind, origin, sources, NOW)
            .iter()
            .map(|action| {
                let of = action["parameters"]["ingredientIds"].as_array().map_or(0, Vec::len);
                (text(&action["action"]).expect("named"), text(&action["digitalSourceType"]), of)
            })
            .collect()
    }

    fn one(name: &str, source_type: Option<&str>, of: usize) -> (String, Option<String>, usize) {
        (name.into(), source_type.map(Into::into), of)
    }

    #[test]
    fn what_was_made_from_noise_was_created() {
        let trained = Some("trainedAlgorithmicMedia");
        assert_eq!(said(JobKind::Generate, None, 0), [one("c2pa.created", trained, 0)]);
        assert_eq!(said(JobKind::Generate, None, 1), [one("c2pa.created", trained, 1)]);
        let composite = Some("compositeWithTrainedAlgorithmicMedia");
        assert_eq!(said(JobKind::Control, None, 1), [one("c2pa.created", composite, 1)]);
    }

    #[test]
    fn what_was_changed_was_opened_first() {
        let composite = Some("compositeWithTrainedAlgorithmicMedia");
        assert_eq!(said(JobKind::Edit, composite, 3), [one("c2pa.opened", None, 1), one("c2pa.edited", composite, 2)]);
        let trained = Some("trainedAlgorithmicMedia");
        assert_eq!(
            said(JobKind::Inpaint, trained, 1),
            [one("c2pa.opened", None, 1), one("c2pa.edited", trained, 0)],
            "what was generated before still is"
        );
    }

    #[test]
    fn an_upscaled_picture_keeps_its_origin() {
        let uri = DigitalSource::AlgorithmicallyEnhanced.uri();
        assert_eq!(
            said(JobKind::Upscale, Some(&uri), 1),
            [one("c2pa.opened", None, 1), one("c2pa.resized", Some("algorithmicallyEnhanced"), 0)]
        );
        assert_eq!(
            said(JobKind::Upscale, Some("trainedAlgorithmicMedia"), 1),
            [one("c2pa.opened", None, 1), one("c2pa.resized", None, 0)]
        );
    }
}

//! Which networks make the picture larger, from what was asked and what the picture is like.

use atelier_domain::{Denoise, ErrorCode, Params, protocol::ModelRef};
use atelier_imaging::Advice;

use crate::{error::JobError, nn::Config};

/// A model that may be chosen.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub model: ModelRef,
    pub config: Config,
}

/// What is done.
#[derive(Clone, Debug)]
pub struct Choice {
    /// One network after the other.
    pub stages: Vec<Candidate>,
    pub scale: u32,
    /// What was made of `denoise`: `Off` or a level.
    pub denoise: Denoise,
    pub notes: Vec<String>,
}

/// Whether the choice depends on the picture.
pub fn needs_advice(params: &Params, model_given: bool) -> bool {
    !model_given && matches!(params.denoise, None | Some(Denoise::Auto))
}

/// Chooses among `candidates`. `advice` is what the picture needs, where [`needs_advice`] says so.
///
/// A model that was asked for by name is taken. Else a clean picture gets SPAN, a compressed one waifu2x with denoise 1,
/// a noisy one with denoise 3. Four times is SPAN x4, or twice two times: after waifu2x the picture is clean, so SPAN
/// goes on where it is there, else the same network once more.
///
/// # Errors
/// What cannot go together, or no model that does it.
pub fn choose(
    candidates: &[Candidate],
    params: &Params,
    model_given: bool,
    advice: Advice,
) -> Result<Choice, JobError> {
    if model_given {
        return given(candidates, params);
    }
    let scale = params.scale.unwrap_or(2);
    let mut notes = Vec::new();
    let (level, must) = match params.denoise {
        Some(Denoise::Off) => (None, true),
        Some(Denoise::Level(level)) => (Some(level), true),
        None | Some(Denoise::Auto) => match advice {
            Advice::Clean => (None, false),
            Advice::Compressed => (Some(1), false),
            Advice::Noisy => (Some(3), false),
        },
    };
    let mut stages = chain(candidates, scale, level);
    if stages.is_none() && !must {
        // Better than no picture at all; somebody may have removed the models that are not needed daily.
        stages = chain(candidates, scale, None)
            .or_else(|| candidates.iter().find_map(|candidate| chain(candidates, scale, candidate.config.denoise())));
        notes.push("The model that suits this picture best is not installed; another one was used.".into());
    }
    let Some(stages) = stages else {
        let what = level.map_or("without denoising".into(), |level| format!("with denoise {level}"));
        return Err(JobError::refused(
            ErrorCode::KindNotSupported,
            format!("no installed model upscales {scale} times {what}"),
            "Leave denoise at \"auto\", or install a model that does it; `atelier models list` shows what is there.",
        ));
    };
    let denoise = stages[0].config.denoise().map_or(Denoise::Off, Denoise::Level);
    Ok(Choice { stages, scale, denoise, notes })
}

/// The networks for `scale` and a level of noise removed, `None` for none.
fn chain(candidates: &[Candidate], scale: u32, level: Option<u8>) -> Option<Vec<Candidate>> {
    let span = |scale| {
        let fitting = candidates.iter().filter(|c| matches!(c.config, Config::Span(_)) && c.config.scale() == scale);
        // The smallest: the others gain 0.05 dB and take half as long again.
        fitting.min_by_key(|c| (width(&c.config), c.model.id.clone())).cloned()
    };
    let waifu2x = || {
        let fitting =
            candidates.iter().filter(|c| matches!(c.config, Config::UpConv7(_)) && c.config.denoise() == level);
        fitting.min_by_key(|c| c.model.id.clone()).cloned()
    };
    if level.is_none()
        && let Some(one) = span(scale)
    {
        return Some(vec![one]);
    }
    let first = if level.is_none() { span(2).or_else(waifu2x) } else { waifu2x() }?;
    Some(match scale {
        4 => {
            let second = span(2).unwrap_or_else(|| first.clone());
            vec![first, second]
        }
        _ => vec![first],
    })
}

fn width(config: &Config) -> u32 {
    match config {
        Config::Span(config) => config.feature_channels,
        Config::UpConv7(_) => 0,
    }
}

/// The model that was asked for, if the parameters go with it.
fn given(candidates: &[Candidate], params: &Params) -> Result<Choice, JobError> {
    let Some(candidate) = candidates.first() else {
        return Err(JobError::refused(ErrorCode::UnknownModel, "no model was given", ""));
    };
    let id = &candidate.model.id;
    let native = candidate.config.scale();
    let scale = params.scale.unwrap_or(native);
    let stages = match (native, scale) {
        (2, 4) => vec![candidate.clone(); 2],
        (native, scale) if native == scale => vec![candidate.clone()],
        _ => {
            return Err(JobError::refused(
                ErrorCode::InvalidParams,
                format!("the model {id} upscales {native} times, not {scale}"),
                format!("Ask for scale = {native}, or leave out the model."),
            ));
        }
    };
    let removes = candidate.config.denoise();
    let fits = match params.denoise {
        None | Some(Denoise::Auto) => true,
        Some(Denoise::Off) => removes.is_none(),
        Some(Denoise::Level(level)) => removes == Some(level),
    };
    if !fits {
        let what = removes.map_or("does not denoise".into(), |level| format!("denoises with level {level} only"));
        return Err(JobError::refused(
            ErrorCode::InvalidParams,
            format!("the model {id} {what}"),
            "Leave out denoise to use this model, or leave out the model to have one chosen.",
        ));
    }
    let denoise = removes.map_or(Denoise::Off, Denoise::Level);
    Ok(Choice { stages, scale, denoise, notes: Vec::new() })
}

#[cfg(test)]
mod tests {
    use atelier_domain::model::Family;

    use super::*;
    use crate::nn::{SpanConfig, UpConv7Config};

    fn candidate(id: &str, config: Config) -> Candidate {
        Candidate { model: ModelRef { id: id.into(), family: Family::Span, path: id.into() }, config }
    }

    fn span(id: &str, upscale: u32, feature_channels: u32) -> Candidate {
        candidate(id, Config::Span(SpanConfig { upscale, feature_channels, rgb_mean: [0.0; 3], img_range: 255.0 }))
    }

    fn waifu2x(id: &str, denoise: Option<u8>) -> Candidate {
        candidate(id, Config::UpConv7(UpConv7Config { scale: 2, pad: 7, leaky: 0.1, denoise }))
    }

    fn embedded() -> Vec<Candidate> {
        vec![
            span("span-x2-ch52", 2, 52),
            span("span-x2", 2, 48),
            span("span-x4", 4, 48),
            span("span-x4-ch52", 4, 52),
            waifu2x("waifu2x-photo", None),
            waifu2x("waifu2x-photo-denoise0", Some(0)),
            waifu2x("waifu2x-photo-denoise1", Some(1)),
            waifu2x("waifu2x-photo-denoise2", Some(2)),
            waifu2x("waifu2x-photo-denoise3", Some(3)),
        ]
    }

    fn ids(choice: &Choice) -> Vec<&str> {
        choice.stages.iter().map(|stage| stage.model.id.as_str()).collect()
    }

    fn params(scale: Option<u32>, denoise: Option<Denoise>) -> Params {
        Params { scale, denoise, ..Params::default() }
    }

    #[test]
    fn the_picture_and_the_parameters_choose_the_networks() {
        use Advice::{Clean, Compressed, Noisy};
        use Denoise::{Auto, Level, Off};
        type Case<'a> = (Option<u32>, Option<Denoise>, Advice, &'a [&'a str], Denoise);
        let cases: &[Case<'_>] = &[
            (None, None, Clean, &["span-x2"], Off),
            (Some(2), Some(Auto), Compressed, &["waifu2x-photo-denoise1"], Level(1)),
            (Some(2), None, Noisy, &["waifu2x-photo-denoise3"], Level(3)),
            (Some(4), None, Clean, &["span-x4"], Off),
            (Some(4), None, Compressed, &["waifu2x-photo-denoise1", "span-x2"], Level(1)),
            (Some(2), Some(Off), Noisy, &["span-x2"], Off),
            (Some(2), Some(Level(0)), Clean, &["waifu2x-photo-denoise0"], Level(0)),
            (Some(4), Some(Level(2)), Clean, &["waifu2x-photo-denoise2", "span-x2"], Level(2)),
        ];
        for (scale, denoise, advice, expected, decided) in cases {
            let choice = choose(&embedded(), &params(*scale, *denoise), false, *advice).expect("a choice");
            assert_eq!(
                (ids(&choice), choice.denoise),
                (expected.to_vec(), *decided),
                "{scale:?} {denoise:?} {advice:?}"
            );
            assert_eq!(choice.scale, choice.stages.iter().map(|stage| stage.config.scale()).product::<u32>());
            assert!(choice.notes.is_empty());
        }
    }

    #[test]
    fn a_model_given_by_name_wins_and_what_contradicts_it_is_refused_with_a_hint() {
        let ok =
            |candidate: Candidate, scale, denoise| choose(&[candidate], &params(scale, denoise), true, Advice::Noisy);
        assert_eq!(ids(&ok(span("mine", 4, 48), None, None).expect("native scale")), ["mine"]);
        assert_eq!(ids(&ok(waifu2x("w", Some(1)), Some(4), None).expect("twice")), ["w", "w"]);
        assert_eq!(
            ok(waifu2x("w", Some(1)), None, Some(Denoise::Level(1))).expect("the same").denoise,
            Denoise::Level(1)
        );
        for (candidate, scale, denoise) in [
            (span("s", 4, 48), Some(2), None),
            (span("s", 2, 48), None, Some(Denoise::Level(1))),
            (waifu2x("w", Some(1)), None, Some(Denoise::Level(2))),
            (waifu2x("w", Some(1)), None, Some(Denoise::Off)),
        ] {
            let error = ok(candidate, scale, denoise).expect_err("a contradiction").info("cpu");
            assert_eq!(error.code, ErrorCode::InvalidParams);
            assert!(!error.hint.is_empty());
        }
    }

    #[test]
    fn what_is_not_installed_is_replaced_only_where_nobody_asked_for_it() {
        let only_span = [span("span-x2", 2, 48)];
        let choice = choose(&only_span, &params(None, None), false, Advice::Noisy).expect("SPAN instead");
        assert_eq!((ids(&choice), choice.notes.len()), (vec!["span-x2"], 1));
        let choice = choose(&only_span, &params(Some(4), None), false, Advice::Clean).expect("twice");
        assert_eq!(ids(&choice), ["span-x2", "span-x2"]);
        let only_noise = [waifu2x("w", Some(3))];
        let choice = choose(&only_noise, &params(None, None), false, Advice::Clean).expect("what is there");
        assert_eq!((ids(&choice), choice.denoise), (vec!["w"], Denoise::Level(3)));
        let error = choose(&only_span, &params(None, Some(Denoise::Level(1))), false, Advice::Clean).expect_err("none");
        assert_eq!(error.info("cpu").code, ErrorCode::KindNotSupported);
    }
}

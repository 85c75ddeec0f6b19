//! What the tests share: the recorded tensors, a model that is a formula, and steps on plain lists of numbers.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

use std::collections::BTreeMap;

use atelier_sampling::{Clamp, Inputs, Level, Sampler, SamplingError};

/// The f64 tensors of a safetensors file, flat.
pub(crate) struct Tensors(BTreeMap<String, Vec<f64>>);

impl Tensors {
    pub(crate) fn parse(file: &[u8]) -> Self {
        let (length, rest) = file.split_at(8);
        let length = usize::try_from(u64::from_le_bytes(length.try_into().unwrap())).unwrap();
        let (header, data) = rest.split_at(length);
        let header: BTreeMap<String, serde_json::Value> = serde_json::from_slice(header).unwrap();
        let tensors = header.into_iter().filter(|(name, _)| name != "__metadata__").map(|(name, entry)| {
            assert_eq!(entry["dtype"], "F64", "{name}");
            let [start, end]: [usize; 2] = serde_json::from_value(entry["data_offsets"].clone()).unwrap();
            let values = data[start..end].chunks_exact(8).map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap()));
            (name, values.collect())
        });
        Self(tensors.collect())
    }

    pub(crate) fn get(&self, name: &str) -> Option<&[f64]> {
        self.0.get(name).map(Vec::as_slice)
    }
}

/// What every fixture's model answers.
pub(crate) fn model(input: f64) -> f64 {
    0.3 * input + 0.1 * (7.0 * input).sin()
}

pub(crate) fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |largest, value| value.abs().max(largest))
}

/// The start of a run: noise alone, or noise on clean latents.
pub(crate) fn mix(level: Level, clean: &[f64], noise: &[f64]) -> Vec<f64> {
    clean.iter().zip(noise).map(|(clean, noise)| level.signal * clean + level.noise * noise).collect()
}

/// From where the sampler stands to its end: the latents before each step and after the last, with the histories.
/// `noises` are the draws of the whole run.
pub(crate) fn run(
    sampler: &mut Sampler,
    mut latents: Vec<f64>,
    mut history: Vec<Vec<f64>>,
    noises: &[Vec<f64>],
) -> Vec<(Vec<f64>, Vec<Vec<f64>>)> {
    let mut trajectory = vec![(latents.clone(), history.clone())];
    while let Some(step) = sampler.current() {
        assert_eq!(history.len(), sampler.history_len());
        let drawn = sampler.steps()[..sampler.position()].iter().filter(|step| step.noise).count();
        let output: Vec<f64> = latents.iter().map(|value| model(value * step.input_scale)).collect();
        let noise = step.noise.then(|| &noises[drawn]);
        let inputs = Inputs { sample: &latents, output: &output, noise, history: &history };
        (latents, history) = step.apply(&inputs, |terms, clamp| Ok::<_, SamplingError>(combine(terms, clamp))).unwrap();
        trajectory.push((latents.clone(), history.clone()));
        sampler.advance();
    }
    trajectory
}

fn combine(terms: &[(Vec<f64>, f64)], clamp: Option<Clamp>) -> Vec<f64> {
    let mut total = vec![0.0; terms[0].0.len()];
    for (tensor, weight) in terms {
        total.iter_mut().zip(tensor).for_each(|(total, value)| *total += weight * value);
    }
    match clamp {
        None => {}
        Some(Clamp::Range(range)) => total.iter_mut().for_each(|value| *value = value.clamp(-range, range)),
        Some(Clamp::Dynamic { ratio, most }) => {
            let bound = quantile(&total, ratio).max(1.0).min(most);
            for value in &mut total {
                *value = value.clamp(-bound, bound) / bound;
            }
        }
    }
    total
}

/// Of the absolute values, interpolated linearly, as `torch.quantile` does.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "few values")]
fn quantile(values: &[f64], ratio: f64) -> f64 {
    let mut sorted: Vec<f64> = values.iter().map(|value| value.abs()).collect();
    sorted.sort_by(f64::total_cmp);
    let at = ratio * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

//! Timesteps, sigmas, levels and whole trajectories against diffusers, as `tools/fixtures/schedulers.py` recorded them,
//! and the same trajectories resumed from every step.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod support;

use std::collections::BTreeMap;

use atelier_sampling::{Options, Sampler, SchedulerConfig, Shift, Start};
use serde::Deserialize;

use support::{Tensors, largest, mix, run};

/// Relative to the largest value of what is compared: a table, or the latents after one step.
const TOLERANCE: f64 = 1e-6;

#[derive(Deserialize)]
struct Case {
    /// The text of `scheduler_config.json`.
    config: String,
    runs: BTreeMap<usize, Run>,
    #[serde(default)]
    eta: f64,
    strength: Option<f64>,
}

#[derive(Deserialize)]
struct Run {
    sigmas: Option<Vec<f64>>,
    mu: Option<f64>,
    tokens: Option<usize>,
}

/// A recorded run: its sampler at the start, and how to find its tensors.
struct Recorded<'a> {
    tensors: &'a Tensors,
    name: String,
    sampler: Sampler,
    from_picture: bool,
}

impl Recorded<'_> {
    fn get(&self, what: &str) -> &[f64] {
        self.find(what).unwrap_or_else(|| panic!("{}.{what} was not recorded", self.name))
    }

    fn find(&self, what: &str) -> Option<&[f64]> {
        self.tensors.get(&format!("{}.{what}", self.name))
    }

    fn close(&self, what: &str, ours: &[f64], reference: &[f64], tolerance: f64) {
        assert_eq!(ours.len(), reference.len(), "{} {what}: {ours:?} and {reference:?}", self.name);
        let differences: Vec<f64> = ours.iter().zip(reference).map(|(ours, reference)| ours - reference).collect();
        let relative = largest(&differences) / largest(reference).max(f64::MIN_POSITIVE);
        assert!(relative <= tolerance, "{} {what}: {relative:.1e}\n{ours:?}\n{reference:?}", self.name);
    }

    fn start(&self) -> Vec<f64> {
        let (clean, noise) = (self.tensors.get("clean").unwrap(), self.tensors.get("normal").unwrap());
        if self.from_picture {
            return mix(self.sampler.steps()[0].level, clean, noise);
        }
        noise.iter().map(|noise| noise * self.sampler.init_noise_sigma()).collect()
    }

    fn noises(&self) -> Vec<Vec<f64>> {
        let size = self.tensors.get("normal").unwrap().len();
        self.find("noise").unwrap_or_default().chunks_exact(size).map(<[f64]>::to_vec).collect()
    }
}

fn for_each_run(mut check: impl FnMut(Recorded<'_>)) {
    let tensors = Tensors::parse(include_bytes!("fixtures/schedulers.safetensors"));
    let cases: BTreeMap<String, Case> = serde_json::from_str(include_str!("fixtures/schedulers.json")).unwrap();
    for (name, case) in cases {
        let config = SchedulerConfig::parse(case.config.as_bytes()).unwrap();
        for (steps, given) in case.runs {
            let options = Options {
                start: case.strength.map_or(Start::Noise, Start::Strength),
                eta: case.eta,
                sigmas: given.sigmas,
                shift: given.mu.map(Shift::Mu).or(given.tokens.map(Shift::SequenceLength)),
                ..Options::new(steps)
            };
            let name = format!("{name}.{steps}");
            let sampler = Sampler::new(&config, &options).unwrap_or_else(|error| panic!("{name}: {error}"));
            check(Recorded { tensors: &tensors, name, sampler, from_picture: case.strength.is_some() });
        }
    }
}

#[test]
fn schedules_are_those_of_the_reference() {
    for_each_run(|recorded| {
        let sampler = &recorded.sampler;
        recorded.close("timesteps", &sampler.timesteps(), recorded.get("timesteps"), TOLERANCE);
        if let Some(sigmas) = recorded.find("sigmas") {
            recorded.close("sigmas", sampler.sigmas(), sigmas, TOLERANCE);
            // Each for itself as well: the last are thousands of times smaller than the first. There the reference
            // takes 1 − ᾱ of an f32 near 1, and in `rescale_betas_zero_snr` a square root that is not correctly rounded
            // on every machine: a unit in the last place of ᾱ is up to 3e-6 of such a σ.
            for (ours, reference) in sampler.sigmas().iter().zip(sigmas) {
                recorded.close("sigma", &[*ours], &[*reference], 5.0 * TOLERANCE);
            }
        } else {
            assert!(sampler.sigmas().is_empty(), "{}", recorded.name);
        }
        recorded.close("start", &[sampler.init_noise_sigma()], recorded.get("init_noise_sigma"), TOLERANCE);
        for (step, level) in sampler.steps().iter().zip(recorded.get("levels").chunks_exact(2)) {
            recorded.close("level", &[step.level.signal, step.level.noise], level, TOLERANCE);
        }
    });
}

#[test]
fn trajectories_are_those_of_the_reference() {
    for_each_run(|mut recorded| {
        let (start, noises) = (recorded.start(), recorded.noises());
        assert_eq!(
            recorded.sampler.steps().iter().filter(|step| step.noise).count(),
            noises.len(),
            "{}",
            recorded.name
        );
        let trajectory = run(&mut recorded.sampler, start, Vec::new(), &noises);
        let reference: Vec<&[f64]> = recorded.get("trajectory").chunks_exact(trajectory[0].0.len()).collect();
        assert_eq!(trajectory.len(), reference.len(), "{}", recorded.name);
        for (index, ((ours, _), reference)) in trajectory.iter().zip(&reference).enumerate() {
            recorded.close(&format!("latents {index}"), ours, reference, TOLERANCE);
        }
        // No further from the reference's f32 than the reference itself is in f64.
        let (last, single) = (&trajectory[trajectory.len() - 1].0, recorded.get("single"));
        let own: Vec<f64> = reference[reference.len() - 1].iter().zip(single).map(|(a, b)| a - b).collect();
        recorded.close("f32", last, single, largest(&own) / largest(single) + TOLERANCE);
    });
}

#[test]
fn a_run_resumed_at_any_step_goes_on_with_the_same_bits() {
    for_each_run(|recorded| {
        if recorded.sampler.steps().len() > 20 {
            return;
        }
        let noises = recorded.noises();
        let mut sampler = recorded.sampler.clone();
        let whole = run(&mut sampler, recorded.start(), Vec::new(), &noises);
        let mut sampler = recorded.sampler.clone();
        for done in 0..whole.len() {
            let saved = serde_json::to_string(&sampler).unwrap();
            let mut resumed: Sampler = serde_json::from_str(&saved).unwrap();
            assert_eq!((&resumed, resumed.position()), (&sampler, done));
            let (latents, history) = whole[done].clone();
            let rest = run(&mut resumed, latents, history, &noises);
            assert_eq!(rest, whole[done..], "{} from step {done}", recorded.name);
            sampler.advance();
        }
    });
}

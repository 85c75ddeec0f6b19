//! What holds for any valid configuration and any number of steps.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

use atelier_sampling::{Inputs, Options, Sampler, SamplingError, SchedulerConfig, Shift, Start, Step};
use proptest::{prelude::*, sample::select};
use serde_json::{Value, json};

const CLASSES: [&str; 8] = [
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "LCMScheduler",
    "PNDMScheduler",
    "FlowMatchEulerDiscreteScheduler",
];

/// A valid configuration, as its file's object.
fn configurations() -> impl Strategy<Value = Value> {
    let betas = (
        select(vec!["linear", "scaled_linear", "squaredcos_cap_v2"]),
        1e-4..1e-3_f64,
        5e-3..3e-2_f64,
        any::<bool>(),
        select(vec!["epsilon", "v_prediction", "sample"]),
    );
    let schedule = (
        select(vec!["linspace", "leading", "trailing"]),
        0..2_usize,
        select(vec![None, Some("use_karras_sigmas"), Some("use_exponential_sigmas"), Some("use_beta_sigmas")]),
        select(vec!["zero", "sigma_min"]),
        any::<[bool; 4]>(),
    );
    let solver =
        (1..4_usize, select(vec!["midpoint", "heun", "bh1", "bh2"]), any::<bool>(), 0.5..6.0_f64, any::<bool>());
    (select(CLASSES.to_vec()), betas, schedule, solver).prop_map(|(class, betas, schedule, solver)| {
        let (betas, start, end, zero_snr, prediction) = betas;
        let (spacing, offset, spread, last, [first, second, third, fourth]) = schedule;
        let (order, solver, stochastic, shift, flow) = solver;
        let flow = flow && matches!(class, "DPMSolverMultistepScheduler" | "UniPCMultistepScheduler");
        let spread = spread.filter(|_| !flow);
        // What a class cannot honour would be refused; `tests/samplers.rs` asks for that.
        let prediction = match class {
            _ if flow => "flow_prediction",
            "EulerAncestralDiscreteScheduler" | "PNDMScheduler" if prediction == "sample" => "epsilon",
            "DDIMScheduler" | "LCMScheduler" if zero_snr => "v_prediction",
            _ => prediction,
        };
        let last = if flow && class == "DPMSolverMultistepScheduler" { "zero" } else { last };
        let mut config = json!({
            "_class_name": class, "beta_schedule": betas, "beta_start": start, "beta_end": end,
            "rescale_betas_zero_snr": zero_snr && class != "PNDMScheduler", "prediction_type": prediction,
            "timestep_spacing": spacing, "steps_offset": offset, "final_sigmas_type": last,
            "solver_order": if stochastic { order.min(2) } else { order }, "solver_type": solver,
            "algorithm_type": if stochastic { "sde-dpmsolver++" } else { "dpmsolver++" },
            "use_flow_sigmas": flow, "flow_shift": shift, "shift": shift,
            "lower_order_final": first, "euler_at_final": second, "set_alpha_to_one": third,
            "timestep_type": if fourth { "continuous" } else { "discrete" },
            "interpolation_type": if second { "log_linear" } else { "linear" },
            "clip_sample": false, "skip_prk_steps": true, "original_inference_steps": 1000,
            "use_dynamic_shifting": second, "shift_terminal": if flow && fourth { json!(0.02) } else { Value::Null },
            "stochastic_sampling": third && fourth,
        });
        if let Some(spread) = spread {
            config[spread] = json!(true);
        }
        config
    })
}

fn options() -> impl Strategy<Value = Options> {
    let steps = prop_oneof![4 => 1..60_usize, 1 => 1..1001_usize];
    let start = prop_oneof![Just(Start::Noise), (0.001..1.0_f64).prop_map(Start::Strength)];
    (steps, start, 0.0..1.0_f64, 0.1..2.0_f64).prop_map(|(steps, start, eta, mu)| Options {
        start,
        eta,
        shift: Some(Shift::Mu(mu)),
        ..Options::new(steps)
    })
}

/// A run's sampler; `None` where it is refused for a reason that these cases may have.
fn sampler(config: &Value, options: &Options) -> Option<Sampler> {
    let parsed = SchedulerConfig::parse(config.to_string().as_bytes()).unwrap();
    match Sampler::new(&parsed, options) {
        Ok(sampler) => Some(sampler),
        // Leading spacing of as many steps as there are timesteps, or nearly.
        Err(SamplingError::Steps { steps, .. }) if steps >= 999 => None,
        Err(SamplingError::StrengthLeavesNothing { strength, steps }) => {
            assert!(strength * f64::from(u32::try_from(steps).unwrap()) < 1.0);
            None
        }
        Err(error) => panic!("{error}: {config} {options:?}"),
    }
}

/// Calls of the model that a run should take.
fn expected_calls(config: &Value, options: &Options) -> usize {
    let steps = f64::from(u32::try_from(options.steps).unwrap());
    let run = match options.start {
        Start::Noise => steps,
        Start::Strength(strength) if config["_class_name"] == "FlowMatchEulerDiscreteScheduler" => {
            steps - (steps - steps * strength).floor()
        }
        Start::Strength(strength) => (steps * strength).floor(),
    };
    let twice = config["_class_name"] == "PNDMScheduler" && options.steps > 1;
    (0..=options.steps).find(|calls| (f64::from(u32::try_from(*calls).unwrap()) - run).abs() < 0.5).unwrap()
        + usize::from(twice)
}

/// One step of a model that knows the picture, a single number, so that what it says is always right.
fn knowing_step(step: &Step, latents: f64, history: &[f64], picture: f64) -> (f64, Vec<f64>) {
    let output = (picture - step.denoised.sample * latents) / step.denoised.output;
    let noise = step.noise.then_some(&0.83);
    let inputs = Inputs { sample: &latents, output: &output, noise, history };
    step.apply(&inputs, |terms, _| Ok::<f64, SamplingError>(terms.iter().map(|(value, weight)| value * weight).sum()))
        .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_schedule_has_its_steps_and_falls_to_the_end(config in configurations(), options in options()) {
        let Some(sampler) = sampler(&config, &options) else { return Ok(()) };
        prop_assert_eq!(sampler.steps().len(), expected_calls(&config, &options));
        prop_assert!(sampler.init_noise_sigma() > 0.0 && sampler.init_noise_sigma().is_finite());
        let sigmas = sampler.sigmas();
        prop_assert!(sigmas.is_empty() || sigmas.len() > sampler.steps().len());
        // Zero SNR sets the first to 4096, whatever the second is.
        let fixed = usize::from(config["rescale_betas_zero_snr"] == true && sigmas.first() > Some(&4000.0));
        prop_assert!(sigmas.windows(2).skip(fixed).all(|pair| pair[0] * (1.0 + 1e-6) >= pair[1] && pair[1] >= 0.0), "{:?}", sigmas);
        let timesteps = sampler.timesteps();
        prop_assert!(timesteps.windows(2).skip(fixed).all(|pair| pair[0] >= pair[1]), "{:?}", timesteps);
        // A flow's shift may round its 1 up.
        for step in sampler.steps() {
            prop_assert!(step.level.noise > 0.0 && step.level.signal >= -1e-6 && step.input_scale > 0.0, "{:?}", step);
        }
    }

    #[test]
    fn what_is_saved_at_any_step_is_read_back_bit_by_bit(
        config in configurations(), options in options(), done in 0..60_usize,
    ) {
        let Some(mut sampler) = sampler(&config, &options) else { return Ok(()) };
        (0..done).for_each(|_| sampler.advance());
        let saved = serde_json::to_string(&sampler).unwrap();
        let resumed: Sampler = serde_json::from_str(&saved).unwrap();
        // Equal as text too, which tells −0 from 0.
        prop_assert_eq!(serde_json::to_string(&resumed).unwrap(), saved);
        prop_assert_eq!(resumed, sampler);
    }

    #[test]
    fn a_model_that_knows_the_picture_gets_it_back(config in configurations(), options in options()) {
        let (mut config, mut options) = (config, options);
        config["final_sigmas_type"] = json!("zero");
        config["set_alpha_to_one"] = json!(true);
        config["interpolation_type"] = json!("linear");
        match config["_class_name"].as_str().unwrap() {
            // It keeps some of the sample.
            "LCMScheduler" => return Ok(()),
            // Their strides are whole numbers, which add up to the timesteps in this spacing only.
            "DDIMScheduler" | "PNDMScheduler" => {
                config["timestep_spacing"] = json!("leading");
                config["steps_offset"] = json!(0);
            }
            _ => {}
        }
        if config["_class_name"] == "PNDMScheduler" {
            // It adds up outputs of several timesteps, of which only ε stays the same; and it expects its second
            // timestep twice, which a strength cuts off.
            config["prediction_type"] = json!("epsilon");
            options.start = Start::Noise;
        }
        let Some(mut sampler) = sampler(&config, &options) else { return Ok(()) };
        let picture = 0.37;
        let first = sampler.steps()[0].level;
        let (mut latents, mut history) = (first.signal * picture - first.noise * 1.21, Vec::new());
        while let Some(step) = sampler.current() {
            (latents, history) = knowing_step(step, latents, &history, picture);
            sampler.advance();
        }
        prop_assert!(history.is_empty());
        prop_assert!((latents - picture).abs() < 1e-4, "{} {:?}", latents, config);
    }
}

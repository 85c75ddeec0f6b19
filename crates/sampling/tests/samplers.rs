//! Samplers by name, in place of the folder's own; and all that is refused, with what is said of it.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

use atelier_sampling::{Options, Sampler, SamplingError, SchedulerConfig, Shift, Start};
use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
struct Override {
    base: String,
    sampler: String,
    expected: String,
}

fn config(json: &serde_json::Value) -> SchedulerConfig {
    SchedulerConfig::parse(json.to_string().as_bytes()).unwrap()
}

fn euler() -> SchedulerConfig {
    config(&json!({"_class_name": "EulerDiscreteScheduler", "beta_schedule": "scaled_linear"}))
}

fn flow() -> SchedulerConfig {
    config(&json!({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}))
}

/// What a run of `steps` would be told.
fn refused(config: &SchedulerConfig, options: &Options) -> String {
    Sampler::new(config, options).unwrap_err().to_string()
}

#[test]
fn a_named_sampler_runs_as_diffusers_from_config_would() {
    let overrides: Vec<Override> = serde_json::from_str(include_str!("fixtures/samplers.json")).unwrap();
    assert!(overrides.len() > 10);
    for Override { base, sampler, expected } in overrides {
        let named = SchedulerConfig::parse(base.as_bytes()).unwrap().with_sampler(&sampler).unwrap();
        let expected = SchedulerConfig::parse(expected.as_bytes()).unwrap();
        assert_eq!(named.class_name(), expected.class_name(), "{sampler}");
        for options in [Options::new(7), Options { start: Start::Strength(0.5), ..Options::new(20) }] {
            let (ours, theirs) = (Sampler::new(&named, &options).unwrap(), Sampler::new(&expected, &options).unwrap());
            assert_eq!(ours, theirs, "{sampler} on {base}");
        }
    }
}

#[test]
fn every_listed_sampler_can_be_asked_for_by_name_and_by_label() {
    let names = SchedulerConfig::samplers();
    assert!(names.contains(&("dpmpp_2m_sde_karras".to_owned(), "DPM++ 2M SDE Karras".to_owned())));
    for (name, label) in names {
        let config = if name == "lightning" { flow() } else { euler() };
        let named = config.with_sampler(&name).unwrap();
        assert_eq!(named, config.with_sampler(&label).unwrap());
        Sampler::new(&named, &Options { shift: Some(Shift::SequenceLength(4096)), ..Options::new(12) }).unwrap();
    }
}

/// As the scheduler of Qwen-Image-Lightning's own script is set up.
#[test]
fn lightning_shifts_by_three_whatever_the_folder_says_and_the_size_is() {
    let published = config(&json!({
        "_class_name": "FlowMatchEulerDiscreteScheduler", "base_image_seq_len": 256, "base_shift": 3.0_f64.ln(),
        "invert_sigmas": false, "max_image_seq_len": 8192, "max_shift": 3.0_f64.ln(), "num_train_timesteps": 1000,
        "shift": 1.0, "shift_terminal": null, "stochastic_sampling": false, "time_shift_type": "exponential",
        "use_beta_sigmas": false, "use_dynamic_shifting": true, "use_exponential_sigmas": false,
        "use_karras_sigmas": false,
    }));
    let qwen_image = config(&json!({
        "_class_name": "FlowMatchEulerDiscreteScheduler", "base_image_seq_len": 256, "base_shift": 0.5,
        "max_image_seq_len": 8192, "max_shift": 0.9, "shift": 1.0, "shift_terminal": 0.02,
        "time_shift_type": "exponential", "use_dynamic_shifting": true,
    }));
    for tokens in [256, 4096, 9000] {
        let shift = Some(Shift::SequenceLength(tokens));
        // 3 s / (1 + 2 s) of 1, 3/4, 1/2 and 1/4; of 1, 7/8, 3/4 and so on.
        let four = [1000.0, 900.0, 750.0, 500.0];
        let eight = [1000.0, 21000.0 / 22.0, 900.0, 15000.0 / 18.0, 750.0, 9000.0 / 14.0, 500.0, 3000.0 / 10.0];
        for levels in [&four[..], &eight] {
            let options =
                Options { sigmas: Some(Options::flow_sigmas(levels.len())), shift, ..Options::new(levels.len()) };
            let named = Sampler::new(&qwen_image.with_sampler("lightning").unwrap(), &options).unwrap();
            assert_eq!(named, Sampler::new(&published, &options).unwrap());
            assert_eq!(named.steps().len(), levels.len());
            for (step, wanted) in named.steps().iter().zip(levels) {
                assert!((step.timestep - wanted).abs() < 1e-3, "{} stands for {wanted}", step.timestep);
            }
        }
    }
    let error = euler().with_sampler("lightning").unwrap_err().to_string();
    assert!(error.contains("`lightning`") && error.contains("flow"), "{error}");
}

#[test]
fn a_sampler_that_is_unknown_or_unfit_is_told_with_what_would_do() {
    let unknown = euler().with_sampler("heun").unwrap_err().to_string();
    assert!(unknown.contains("`heun`") && unknown.contains("euler_a, ddim"), "{unknown}");
    assert!(euler().with_sampler("ddim_karras").is_err());
    let unfit = flow().with_sampler("ddim").unwrap_err().to_string();
    assert!(unfit.contains("flow") && unfit.contains("euler, dpmpp_2m"), "{unfit}");
    // Its sigmas would not be those of a flow.
    let unfit = flow().with_sampler("dpmpp_2m_karras").unwrap_err().to_string();
    assert!(unfit.contains("use_flow_sigmas"), "{unfit}");
}

#[test]
fn an_unknown_class_is_named_and_can_be_overridden() {
    let heun = config(&json!({"_class_name": "HeunDiscreteScheduler", "beta_schedule": "scaled_linear"}));
    let error = heun.check().unwrap_err().to_string();
    assert!(error.contains("`HeunDiscreteScheduler`") && error.contains("UniPCMultistepScheduler"), "{error}");
    heun.with_sampler("unipc").unwrap().check().unwrap();
    assert_eq!(SchedulerConfig::parse(b"{}"), Err(SamplingError::NoClass));
    assert!(matches!(SchedulerConfig::parse(b"[1]"), Err(SamplingError::NotJson { .. })));
}

#[test]
fn a_key_that_cannot_be_honoured_is_named_with_its_value() {
    let cases = [
        ("EulerDiscreteScheduler", json!({"beta_schedule": "sigmoid"}), "`beta_schedule`", "\"sigmoid\""),
        ("EulerDiscreteScheduler", json!({"prediction_type": "flow_prediction"}), "`prediction_type`", "flow"),
        ("EulerDiscreteScheduler", json!({"timestep_spacing": 3}), "`timestep_spacing`", "3"),
        ("EulerDiscreteScheduler", json!({"use_karras_sigmas": "yes"}), "`use_karras_sigmas`", "yes"),
        ("EulerDiscreteScheduler", json!({"num_train_timesteps": 0}), "`num_train_timesteps`", "0"),
        ("EulerDiscreteScheduler", json!({"num_train_timesteps": 1e9}), "`num_train_timesteps`", "1000000000"),
        ("EulerDiscreteScheduler", json!({"beta_end": 1.5}), "`beta_end`", "1.5"),
        ("EulerDiscreteScheduler", json!({"trained_betas": []}), "`trained_betas`", "[]"),
        ("EulerDiscreteScheduler", json!({"sigma_min": 9, "sigma_max": 2}), "`sigma_min`", "9"),
        (
            "EulerDiscreteScheduler",
            json!({"use_karras_sigmas": true, "use_beta_sigmas": true}),
            "`use_beta_sigmas`",
            "only one",
        ),
        ("EulerAncestralDiscreteScheduler", json!({"prediction_type": "sample"}), "`prediction_type`", "sample"),
        ("DPMSolverMultistepScheduler", json!({"algorithm_type": "dpmsolver"}), "`algorithm_type`", "dpmsolver++"),
        ("DPMSolverMultistepScheduler", json!({"solver_order": 4}), "`solver_order`", "4"),
        (
            "DPMSolverMultistepScheduler",
            json!({"use_flow_sigmas": true, "final_sigmas_type": "sigma_min"}),
            "`final_sigmas_type`",
            "sigma_min",
        ),
        ("DPMSolverMultistepScheduler", json!({"variance_type": "learned"}), "`variance_type`", "learned"),
        ("UniPCMultistepScheduler", json!({"predict_x0": false}), "`predict_x0`", "false"),
        ("UniPCMultistepScheduler", json!({"prediction_type": "flow_prediction"}), "`prediction_type`", "use_flow"),
        ("PNDMScheduler", json!({}), "`skip_prk_steps`", "absent"),
        ("LCMScheduler", json!({"original_inference_steps": 0}), "`original_inference_steps`", "0"),
        ("FlowMatchEulerDiscreteScheduler", json!({"invert_sigmas": true}), "`invert_sigmas`", "true"),
        ("FlowMatchEulerDiscreteScheduler", json!({"shift": -1}), "`shift`", "-1"),
        ("FlowMatchEulerDiscreteScheduler", json!({"shift_terminal": 1}), "`shift_terminal`", "1"),
        ("FlowMatchEulerDiscreteScheduler", json!({"time_shift_type": "cubic"}), "`time_shift_type`", "cubic"),
    ];
    for (class, mut keys, key, value) in cases {
        keys["_class_name"] = json!(class);
        let error = config(&keys).check().unwrap_err().to_string();
        assert!(error.contains(key) && error.contains(value), "{class}: {error}");
        // A run says the same.
        assert_eq!(refused(&config(&keys), &Options::new(4)), error);
    }
}

#[test]
fn keys_of_other_classes_and_nulls_are_ignored() {
    let carried = json!({
        "_class_name": "EulerDiscreteScheduler", "_diffusers_version": "0.19.0", "beta_schedule": "scaled_linear",
        "skip_prk_steps": false, "algorithm_type": "dpmsolver", "trained_betas": null, "sigma_max": null,
        "use_karras_sigmas": null, "clip_sample": "no",
    });
    assert_eq!(Sampler::new(&config(&carried), &Options::new(4)), Sampler::new(&euler(), &Options::new(4)));
}

#[test]
fn a_request_that_cannot_run_is_refused_before_it_starts() {
    let options = Options::new(10);
    let strength = |strength| Options { start: Start::Strength(strength), ..options.clone() };
    assert!(refused(&euler(), &Options::new(0)).contains("steps is 0"));
    assert!(refused(&euler(), &Options::new(1001)).contains("1001"));
    for wrong in [0.0, -0.1, 1.01, f64::NAN] {
        assert!(refused(&euler(), &strength(wrong)).starts_with("strength is"), "{wrong}");
    }
    assert!(refused(&euler(), &strength(0.09)).contains("strength 0.09 of 10 steps leaves no step"));
    // A flow's pipelines run the fraction of a step.
    assert_eq!(Sampler::new(&flow(), &strength(0.09)).unwrap().steps().len(), 1);
    assert!(refused(&euler(), &Options { eta: 1.5, ..options.clone() }).contains("eta is 1.5"));
    let lcm = euler().with_sampler("lcm").unwrap();
    assert!(refused(&lcm, &Options::new(51)).contains("original_inference_steps"));
    let dynamic = config(&json!({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": true}));
    assert!(refused(&dynamic, &options).contains("use_dynamic_shifting"));
    let shift = Options { shift: Some(Shift::Mu(f64::INFINITY)), ..options.clone() };
    assert!(refused(&dynamic, &shift).contains("mu is inf"));
    let offset = json!({"_class_name": "DDIMScheduler", "steps_offset": 1});
    assert!(refused(&config(&offset), &Options::new(1000)).contains("`steps_offset`"));
    // Nothing but noise at the first timestep, of which ε says nothing.
    let blind = json!({
        "_class_name": "DDIMScheduler", "rescale_betas_zero_snr": true, "timestep_spacing": "trailing",
    });
    assert!(refused(&config(&blind), &options).contains("step 0 (timestep 999)"));
}

#[test]
fn sigmas_that_do_not_fit_are_refused() {
    let with = |sigmas: &[f64]| Options { sigmas: Some(sigmas.to_vec()), ..Options::new(2) };
    for wrong in [&[1.0][..], &[1.0, 0.5, 0.1], &[0.5, 0.5], &[1.5, 0.5], &[1.0, 0.0], &[f64::NAN, 0.5]] {
        assert!(refused(&flow(), &with(wrong)).starts_with("sigmas cannot be given"), "{wrong:?}");
    }
    for wrong in [&[9.0, 1.0][..], &[1.0, 9.0, 0.0], &[9.0, 1.0, 1.0], &[9.0, 1.0, -1.0]] {
        assert!(refused(&euler(), &with(wrong)).starts_with("sigmas cannot be given"), "{wrong:?}");
    }
    let ddim = euler().with_sampler("ddim").unwrap();
    assert!(refused(&ddim, &with(&[9.0, 1.0, 0.0])).contains("DDIMScheduler makes its own"));
}

#[test]
fn a_state_that_was_tampered_with_is_refused() {
    let whole = serde_json::to_value(Sampler::new(&euler(), &Options::new(3)).unwrap()).unwrap();
    let read = |value: serde_json::Value| serde_json::from_value::<Sampler>(value).unwrap_err().to_string();
    let mut beyond = whole.clone();
    beyond["position"] = json!(4);
    assert!(read(beyond).contains("step 4 of 3"));
    let mut dangling = whole.clone();
    dangling["steps"][1]["sums"][0]["terms"][0]["operand"] = json!({"History": 0});
    assert!(read(dangling).contains("step 1 uses a tensor that is not there"));
    let mut infinite = whole;
    infinite["steps"][2]["sums"][0]["terms"][0]["weight"] = json!(f64::INFINITY.to_bits());
    assert!(read(infinite).contains("no finite number"));
}

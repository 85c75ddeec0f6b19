//! Stopped after any step and started again, in another process as it were: the same bytes.

use atelier_domain::protocol::{Offload, Run};
use serde_json::{Value, json};

use crate::support::{Bench, Ended, execute, finish, outputs, with_budget};

/// Runs `run` undisturbed, then once for each step with a stop after it.
pub(crate) fn survives_every_stop(bench: &Bench, run: &Run, steps: usize) {
    let undisturbed = outputs(run, &finish(run));
    for stop in 1..steps {
        let again = Run { work_dir: bench.folder("stopped").into(), ..run.clone() };
        match execute(&again, Some(stop)).unwrap() {
            Ended::Stopped { step } => assert_eq!(step as usize, stop),
            Ended::Finished(_) => panic!("it was not stopped after step {stop}"),
        }
        let finished = finish(&again);
        assert!(outputs(&again, &finished) == undisturbed, "stopped after step {stop}, it gave other bytes");
        let left: Vec<_> =
            std::fs::read_dir(again.work_dir.as_path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left.len(), finished.outputs.len() + 1, "{left:?}");
    }
}

fn sampler_survives(name: &str, steps: usize) {
    let bench = Bench::new();
    let calls = if name == "pndm" { steps + 1 } else { steps };
    let run = bench.generate(&json!({ "sampler": name, "steps": steps, "preview_every": 2 }));
    survives_every_stop(&bench, &run, calls);
}

#[test]
fn a_sampler_without_memory_goes_on_bit_for_bit() {
    sampler_survives("euler", 4);
    sampler_survives("ddim", 4);
}

#[test]
fn a_sampler_with_memory_goes_on_bit_for_bit() {
    sampler_survives("dpmpp_2m_karras", 5);
    sampler_survives("unipc", 5);
    sampler_survives("pndm", 5);
}

#[test]
fn a_sampler_that_draws_noise_goes_on_bit_for_bit() {
    sampler_survives("euler_a", 4);
    sampler_survives("dpmpp_2m_sde", 4);
    sampler_survives("lcm", 4);
}

#[test]
fn several_pictures_go_on_bit_for_bit_within_and_between_them() {
    let bench = Bench::new();
    let run = bench.generate(&json!({ "sampler": "euler_a", "steps": 2, "num_images": 3 }));
    survives_every_stop(&bench, &run, 6);
}

#[test]
fn an_inpainting_goes_on_bit_for_bit() {
    let bench = Bench::new();
    let mut run = bench.generate(&json!({ "sampler": "euler_a", "steps": 4, "strength": 0.8 }));
    run.kind = atelier_domain::JobKind::Inpaint;
    run.inputs = vec![bench.picture("photo.png", 32, 32).into()];
    run.mask = Some(bench.picture("mask.png", 32, 32).into());
    survives_every_stop(&bench, &run, 3);
}

#[test]
fn an_edit_goes_on_bit_for_bit() {
    let bench = Bench::new();
    let mut run = bench.edit("make it night", 70, 50);
    run.params.steps = Some(3);
    survives_every_stop(&bench, &run, 3);
}

#[test]
fn a_checkpoint_of_other_parameters_weights_or_pictures_is_left_aside() {
    type Change = Box<dyn Fn(&mut Run)>;
    let bench = Bench::new();
    let model = bench.copy_of(&Bench::random("sd15"));
    let mut run = bench.generate(&json!({ "steps": 3 }));
    run.models = vec![model.clone()];
    let changes: [(&str, Change); 2] = [
        ("another prompt", Box::new(|run| run.params.prompt = Some("a fox in the snow".into()))),
        ("other weights", {
            let path = model.path.as_path().join("unet/diffusion_pytorch_model.safetensors");
            Box::new(move |_| {
                let mut bytes = std::fs::read(&path).unwrap();
                let end = bytes.len() - 1;
                bytes[end] ^= 0x01;
                std::fs::write(&path, bytes).unwrap();
            })
        }),
    ];
    for (what, change) in changes {
        run.work_dir = bench.folder("job").into();
        assert!(matches!(execute(&run, Some(2)).unwrap(), Ended::Stopped { step: 2 }));
        change(&mut run);
        let resumed = outputs(&run, &finish(&run));
        run.work_dir = bench.folder("job").into();
        assert!(resumed == outputs(&run, &finish(&run)), "{what}: it went on from what was not its own");
    }
}

#[test]
fn what_is_kept_on_the_device_does_not_change_the_picture() {
    let bench = Bench::new();
    let run = bench.generate(&json!({ "steps": 2 }));
    let expected = outputs(&run, &finish(&run));
    // The UNet alone fits, in f32, but not all parts together.
    let unet = 2 * weights_bytes(&run, "unet") + 1024;
    // Of the UNet, what is outside of its attentions' blocks fits, and a few of those.
    let few = unet - 60_000;
    let ways = [
        (u64::MAX, Offload::None),
        (u64::MAX, Offload::Phase),
        (u64::MAX, Offload::Block),
        (unet, Offload::Auto),
        (few, Offload::Auto),
    ];
    for (budget, offload) in ways {
        let again = Run { work_dir: bench.folder("job").into(), ..run.clone() };
        let Ok(Ended::Finished(finished)) = with_budget(&again, None, budget, offload) else { panic!("{offload:?}") };
        assert!(outputs(&again, &finished) == expected, "{offload:?} with {budget} bytes");
    }
    let again = Run { work_dir: bench.folder("job").into(), ..run.clone() };
    let Err(error) = with_budget(&again, None, 1000, Offload::Auto) else { panic!("nothing fits 1000 bytes") };
    assert_eq!(error.code.as_str(), "out_of_memory");
}

fn weights_bytes(run: &Run, part: &str) -> u64 {
    let file = run.models[0].path.as_path().join(part).join("diffusion_pytorch_model.safetensors");
    std::fs::metadata(file).unwrap().len()
}

#[test]
fn the_manifest_says_what_is_needed_to_make_it_again() {
    let bench = Bench::new();
    let run = bench.generate(&json!({ "steps": 2, "sampler": "euler" }));
    let manifest = finish(&run).manifest;
    let params = &manifest["params"];
    assert_eq!((&params["seed"], &params["steps"], &params["guidance_scale"]), (&json!(3), &json!(2), &json!(7.5)));
    assert_eq!(manifest["engine"], "diffusion");
    let weights = manifest["weights"].as_array().unwrap();
    assert_eq!(weights.len(), 3);
    assert!(weights.iter().all(|file| file["sha256"].as_str().is_some_and(|sha256| sha256.len() == 64)), "{weights:?}");
    assert_eq!(manifest["sampler"]["timesteps"].as_array().map(Vec::len), Some(2));
    assert_eq!(manifest["inputs"], Value::Array(Vec::new()));
}

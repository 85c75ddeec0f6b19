//! Whole jobs, through the very code that the worker runs: every step of the sampler, and the picture in the file.

use std::{
    cell::RefCell,
    fs,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
};

use atelier_domain::{
    JobId, JobKind, OutputFormat, Params,
    model::Family,
    protocol::{Device, Finished, GpsPolicy, ModelRef, Offload, OutputSpec, Run},
};
use atelier_worker::{
    context::{Context, Stepped},
    control::Control,
    diffusion,
    events::{Outbox, Reporter},
    models::Cache,
    torch::InferenceMode,
    transformer::patches,
};
use serde_json::Value;
use tch::Tensor;

use crate::fixture::Fixture;

/// What was recorded of one step.
struct Seen {
    image: u32,
    index: usize,
    timestep: f64,
    sample: Tensor,
    output: Tensor,
    next: Tensor,
}

fn class_of(folder: &Path) -> Family {
    let read = |name: &str| fs::read(folder.join(name)).ok();
    let text = read("model_index.json").or_else(|| read("config.json")).expect("a model's folder");
    let value: Value = serde_json::from_slice(&text).expect("JSON");
    Family::from_class_name(value["_class_name"].as_str().expect("a class")).expect("a class that is known")
}

fn model(id: &str, family: Family, path: PathBuf) -> ModelRef {
    ModelRef { id: id.into(), family, path: path.into() }
}

/// The job as the daemon would send it.
fn run_of(case: &Fixture, work_dir: &Path) -> Run {
    let job = case.job();
    let base = model("model", class_of(&case.model()), case.model());
    let mut parts: Vec<ModelRef> = job
        .loras
        .iter()
        .map(|(name, path)| model(name, Family::Lora, case.path(path).join("pytorch_lora_weights.safetensors")))
        .collect();
    let main = match &job.controlnet {
        None => base,
        Some(path) => {
            parts.push(base);
            let path = case.path(path);
            model("control", class_of(&path), path)
        }
    };
    let params: Params = serde_json::from_value(job.params.clone()).expect("parameters");
    let inputs = job.inputs.iter().map(|path| case.path(path).into()).collect();
    Run {
        job: JobId::from_ulid(1_u128.into()),
        attempt: 1,
        crashes: 0,
        kind: JobKind::parse(&job.kind).expect("a kind"),
        models: vec![main],
        model_given: true,
        parts,
        params,
        inputs,
        mask: job.mask.as_ref().map(|path| case.path(path).into()),
        work_dir: work_dir.into(),
        checkpoint_interval_ms: 3_600_000,
        output: OutputSpec { format: OutputFormat::Png, quality: 90, gps: GpsPolicy::Keep },
        max_pixels: 1_000_000,
    }
}

/// Runs it, and gives what came of it and all steps.
fn execute(run: &Run) -> (Finished, Vec<Seen>) {
    let _inference = InferenceMode::enter();
    let seen: Rc<RefCell<Vec<Seen>>> = Rc::default();
    let mut cache = Cache::new(tch::Device::Cpu, u64::MAX);
    let device = Device { name: "cpu".into(), threads: 1, ..Device::default() };
    let note = seen.clone();
    let mut context = Context {
        control: Arc::new(Control::default()),
        cache: &mut cache,
        reporter: Reporter::new(Arc::new(Outbox::new(std::io::sink())), run.job),
        device: &device,
        offload: Offload::Auto,
        on_step: Some(Box::new(move |stepped: &Stepped<'_>| {
            note.borrow_mut().push(Seen {
                image: stepped.image,
                index: stepped.index,
                timestep: stepped.step.timestep,
                sample: stepped.sample.shallow_clone(),
                output: stepped.output.shallow_clone(),
                next: stepped.next.shallow_clone(),
            });
        })),
    };
    let finished = diffusion::run(run, &mut context).unwrap_or_else(|error| panic!("{}", error.info("cpu")));
    drop(context);
    let seen = Rc::into_inner(seen).expect("the job has ended").into_inner();
    (finished, seen)
}

/// Holds one case to its recording.
fn check(case: &Fixture) {
    let folder = tempfile::tempdir().expect("a folder");
    let run = run_of(case, folder.path());
    let (finished, seen) = execute(&run);
    let images = i64::from(run.params.num_images.unwrap_or(1));
    assert_eq!(
        seen.len(),
        case.calls("step") * usize::try_from(images).expect("a few"),
        "{}: the number of steps",
        case.name
    );
    for step in &seen {
        let (index, image) = (step.index, i64::from(step.image));
        let recorded = |what: &str| case.tensor(&format!("step.{index}.{what}")).narrow(0, image, 1);
        let hold = |what: &str, got: &Tensor| {
            let want = recorded(what);
            // diffusers' pipelines of some transformers keep latents as patches.
            let got = if want.dim() == 3 { patches::pack(got).expect("whole patches") } else { got.shallow_clone() };
            case.compare(&format!("step.{index}.{what}"), &got, &want, crate::fixture::TOLERANCE);
        };
        let timestep = case.tensor(&format!("step.{index}.t")).double_value(&[]);
        assert!(
            (timestep - step.timestep).abs() < 1e-3,
            "{}: step {index} at {}, not {timestep}",
            case.name,
            step.timestep
        );
        hold("sample", &step.sample);
        hold("model_output", &step.output);
        hold("prev", &step.next);
    }
    assert_eq!(finished.outputs.len(), usize::try_from(images).expect("a few"));
    for (index, output) in finished.outputs.iter().enumerate() {
        let picture = image::open(folder.path().join(&output.file)).expect("a picture").into_rgb8();
        let index = i64::try_from(index).expect("a few");
        case.check_rgb8(index, picture.width(), picture.height(), picture.as_raw());
    }
}

/// All cases whose name begins so. Never none, so that a test without its fixture does not pass.
fn check_all(prefix: &str, but: &[&str]) {
    let cases = Fixture::all();
    let fitting: Vec<&Fixture> = cases
        .iter()
        .filter(|case| case.name.starts_with(prefix) && !but.iter().any(|but| case.name.contains(but)))
        .collect();
    assert!(!fitting.is_empty(), "no case begins with {prefix}");
    for case in fitting {
        check(case);
    }
}

#[test]
fn instruct_pix2pix_gives_diffusers_pictures() {
    check_all("ip2p", &[]);
}

#[test]
fn stable_diffusion_gives_diffusers_pictures() {
    check_all("sd15", &["img2img", "inpaint", "lora"]);
}

#[test]
fn stable_diffusion_gives_diffusers_pictures_from_pictures() {
    check_all("sd15_img2img", &[]);
    check_all("sd15_inpaint", &[]);
}

#[test]
fn stable_diffusion_with_loras_gives_diffusers_pictures() {
    check_all("sd15_lora", &[]);
}

#[test]
fn sdxl_gives_diffusers_pictures() {
    check_all("sdxl", &[]);
}

#[test]
fn controlnets_give_diffusers_pictures() {
    check_all("controlnet", &[]);
}

#[test]
fn stable_diffusion_3_gives_diffusers_pictures() {
    check_all("sd3", &["img2img", "inpaint"]);
}

#[test]
fn stable_diffusion_3_gives_diffusers_pictures_from_pictures() {
    check_all("sd3_img2img", &[]);
    check_all("sd3_inpaint", &[]);
}

#[test]
fn aura_flow_gives_diffusers_pictures() {
    check_all("aura_flow", &[]);
}

#[test]
fn flux_gives_diffusers_pictures() {
    check_all("flux", &["kontext", "lora", "img2img", "inpaint", "fill"]);
}

#[test]
fn flux_gives_diffusers_pictures_from_pictures() {
    check_all("flux_img2img", &[]);
    check_all("flux_inpaint", &[]);
    check_all("flux_fill", &[]);
}

#[test]
fn flux_with_loras_gives_diffusers_pictures() {
    check_all("flux_lora", &[]);
}

#[test]
fn flux_kontext_gives_diffusers_pictures_in_the_photos_proportions() {
    check_all("flux_kontext", &[]);
}

#[test]
fn qwen_image_gives_diffusers_pictures() {
    check_all("qwenimage", &["edit", "plus", "2511", "peft", "lightning", "img2img", "inpaint"]);
}

#[test]
fn qwen_image_gives_diffusers_pictures_from_pictures() {
    check_all("qwenimage_img2img", &[]);
    check_all("qwenimage_inpaint", &[]);
}

#[test]
fn qwen_image_edit_gives_diffusers_pictures() {
    check_all("qwenimageedit", &[]);
}

#[test]
fn qwen_image_edit_plus_gives_diffusers_pictures_of_one_to_three() {
    check_all("qwenimageplus", &["lightning"]);
    check_all("qwenimage2511", &[]);
}

#[test]
fn qwen_image_with_loras_gives_diffusers_pictures_in_few_steps() {
    check_all("qwenimageplus_lightning", &[]);
    check_all("qwenimage_lightning", &[]);
    check_all("qwenimage_peft", &[]);
}

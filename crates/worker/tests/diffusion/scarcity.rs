//! Too little memory: an allocation that fails, wherever in a job it does.

use std::path::Path;

use atelier_domain::{
    model::Family,
    protocol::{ModelRef, Offload, Run},
};
use atelier_worker::{
    models::{self, Cache},
    torch::FailedAllocation,
};
use serde_json::json;

use crate::support::{Bench, Ended, execute, finish, with_cache};

fn pixels(run: &Run, file: &str) -> Vec<u8> {
    image::open(run.work_dir.as_path().join(file)).unwrap().into_rgb8().into_raw()
}

/// The one picture of a job that has ended well.
fn picture(run: &Run, ended: &Ended) -> Vec<u8> {
    match ended {
        Ended::Finished(finished) => pixels(run, &finished.outputs[0].file),
        Ended::Stopped { step } => panic!("stopped at step {step}"),
    }
}

#[track_caller]
fn alike(got: &[u8], wanted: &[u8], what: &str) {
    assert!(got.iter().zip(wanted).all(|(a, b)| a.abs_diff(*b) <= 1), "{what}: another picture");
}

/// The first allocation that fails is the first of all, the next one 101 later, and so on until none is left to fail.
#[test]
fn whichever_allocation_fails_the_job_gives_its_picture_or_says_that_memory_is_out() {
    let bench = Bench::new();
    let run = bench.generate(&json!({ "steps": 2, "sampler": "euler" }));
    let wanted = pixels(&run, &finish(&run).outputs[0].file);
    let (mut finished, mut failed) = (0, 0);
    for after in (0..).step_by(101) {
        let again = Run { work_dir: bench.folder("job").into(), ..run.clone() };
        let failure = FailedAllocation::after(after);
        let result = execute(&again, None);
        let has_happened = failure.has_happened();
        drop(failure);
        match result {
            Ok(ended) => {
                finished += 1;
                alike(&picture(&again, &ended), &wanted, &format!("after {after} allocations"));
            }
            Err(error) => {
                failed += 1;
                assert!(has_happened, "after {after} allocations: {error}");
                assert_eq!(error.code.as_str(), "out_of_memory", "after {after} allocations: {error}");
                assert!(!error.hint.is_empty(), "{error}");
            }
        }
        if !has_happened {
            break;
        }
    }
    // A failure within a step or the decoder is made good; one in the text encoder is not.
    assert!(finished > 10 && failed > 0, "{finished} finished, {failed} failed");
}

/// An upscaler that an earlier job has left loaded.
fn with_upscaler(cache: &mut Cache) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/span-x2");
    let config = models::read_config(&folder).unwrap();
    let wanted = ModelRef { id: "span-x2".into(), family: Family::Span, path: folder.into() };
    models::upscaler(cache, &wanted, &config).unwrap();
}

fn ids(cache: &Cache) -> Vec<String> {
    cache.loaded().into_iter().map(|model| model.id).collect()
}

#[test]
fn what_no_job_uses_goes_when_memory_runs_out_and_it_is_tried_once_more() {
    let bench = Bench::new();
    let run = bench.generate(&json!({ "steps": 1, "sampler": "euler" }));
    let wanted = pixels(&run, &finish(&run).outputs[0].file);
    // The first allocations are of the text encoder's weights, far into it those of the steps.
    for (after, what) in [(3, "while loading"), (400, "later")] {
        let mut cache = Cache::new(tch::Device::Cpu, u64::MAX);
        with_upscaler(&mut cache);
        assert_eq!(ids(&cache), ["span-x2"]);
        let again = Run { work_dir: bench.folder("job").into(), ..run.clone() };
        let failure = FailedAllocation::after(after);
        let ended = with_cache(&again, None, &mut cache, Offload::Auto).unwrap();
        assert!(failure.has_happened(), "{what}: nothing failed");
        drop(failure);
        alike(&picture(&again, &ended), &wanted, what);
        assert_eq!(ids(&cache), ["sd15"], "{what}: the upscaler is still there");
    }
}

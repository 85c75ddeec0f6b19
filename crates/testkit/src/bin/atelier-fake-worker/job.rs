//! One job of the stand-in, from the request to its terminal event.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write as _},
    path::Path,
    time::{Duration, Instant},
};

use atelier_domain::{
    ErrorCode, ErrorInfo, JobId, JobKind,
    protocol::{Event, Finished, ModelRef, OutputFile, PROTOCOL_VERSION, Run, Stop},
};
use atelier_testkit::pictures;
use rustix::process::Signal;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tracing::{info, warn};

use crate::{
    Args,
    desk::Desk,
    folder::{Checkpoint, Folder},
    kill_myself, models,
    painting::{self, Input, sha256_hex},
    script::{Mishap, Script},
};

/// What a loaded model of the stand-in is said to hold.
const MODEL_BYTES: u64 = 1 << 20;

/// Runs `run` and gives the event that ends it.
pub(crate) fn run(run: &Run, args: &Args, desk: &Desk, loaded: &mut BTreeMap<String, u64>) -> Event {
    let job = run.job;
    info!(%job, attempt = run.attempt, crashes = run.crashes, "the job begins");
    match attempt(run, args, desk, loaded) {
        Ok(Ending::Finished(finished)) => Event::Finished(finished),
        Ok(Ending::Stopped { how, step }) => {
            info!(%job, step, "the job was stopped");
            Event::Stopped { job, how, step }
        }
        Err(error) => {
            warn!(%job, code = %error.code, "the job failed: {}", error.message);
            Event::Failed { job, error }
        }
    }
}

enum Ending {
    Finished(Box<Finished>),
    Stopped { how: Stop, step: u32 },
}

/// A model that may be used, and the checksum of what stands for its weights.
struct Model<'a> {
    id: &'a str,
    sha256: String,
}

fn attempt(run: &Run, args: &Args, desk: &Desk, loaded: &mut BTreeMap<String, u64>) -> Result<Ending, ErrorInfo> {
    let prompt = run.params.prompt.as_deref().unwrap_or_default();
    let mut script = Script::parse(prompt, run.attempt.saturating_add(run.crashes))
        .map_err(|message| ErrorInfo::new(ErrorCode::InvalidParams, message))?;
    let steps = run.params.steps.unwrap_or(args.steps);
    let report = Report { desk, job: run.job, steps, text: None };
    let model = choose_model(run)?;

    let input = match run.inputs.first() {
        Some(path) => {
            report.tell("decode", 0, 0.0);
            let input = painting::read(path.as_path(), run.max_pixels)?;
            report.tell("decode", 0, 0.02);
            Some(input)
        }
        None => None,
    };
    let folder = Folder::new(run.work_dir.as_path(), fingerprint(run, &model, input.as_ref(), steps)?);
    if let Some(finished) = folder.finished() {
        info!(job = %run.job, "the job was finished before");
        return Ok(Ending::Finished(Box::new(Finished { job: run.job, ..finished })));
    }
    let resumed = folder.checkpoint().filter(|checkpoint| checkpoint.step <= steps);
    desk.send(&Event::Started {
        job: run.job,
        model: model.id.into(),
        resumed_from_step: resumed.as_ref().map(|checkpoint| checkpoint.step),
    });
    let mut at = resumed.unwrap_or_else(|| Checkpoint { step: 0, state: seed_state(run, &script, input.as_ref()) });

    report.tell("load", at.step, 0.03);
    if loaded.insert(model.id.into(), MODEL_BYTES).is_none() {
        desk.send(&models(loaded));
    }
    report.tell("load", at.step, 0.05);

    let text = (run.kind == JobKind::Caption).then(|| caption(input.as_ref()));
    let report = Report { text: text.as_deref(), ..report };
    if let Some((how, step)) = run_steps(run, args, &mut script, &folder, &mut at, &report)? {
        return Ok(Ending::Stopped { how, step });
    }

    report.tell("encode", steps, 0.95);
    let (outputs, result) = match &text {
        Some(text) => (Vec::new(), Some(json!({ "text": text }))),
        None => (write_outputs(run, &script, input.as_ref(), &at.state, &folder)?, None),
    };
    let finished = Finished {
        job: run.job,
        model: model.id.into(),
        outputs,
        result,
        manifest: json!({
            "worker": "atelier-fake-worker", "worker_version": env!("CARGO_PKG_VERSION"), "device": "cpu",
            "model": model.id, "model_sha256": model.sha256, "steps": steps, "params": run.params,
        }),
    };
    folder.write_finished(&finished).map_err(|error| io_error(&error, run.work_dir.as_path()))?;
    report.tell("encode", steps, 1.0);
    Ok(Ending::Finished(Box::new(finished)))
}

/// The first model whose folder can be read; where one was asked for by name, that one or none.
fn choose_model(run: &Run) -> Result<Model<'_>, ErrorInfo> {
    let readable = |model: &ModelRef| fs::read(model.path.as_path().join("config.json"));
    let mut candidates = run.models.iter().take(if run.model_given { 1 } else { usize::MAX });
    let first = candidates.clone().next();
    candidates
        .find_map(|model| {
            Some(Model { id: &model.id, sha256: readable(model).ok().map(|config| sha256_hex(&config))? })
        })
        .ok_or_else(|| match first {
            Some(model) => ErrorInfo::new(
                ErrorCode::ModelIncomplete,
                format!("{} holds no config.json", model.path.as_path().display()),
            ),
            None => ErrorInfo::new(ErrorCode::UnknownModel, format!("no model is there for {}", run.kind)),
        })
}

/// What makes two jobs the same, as far as checkpoints and finished files go.
fn fingerprint(run: &Run, model: &Model<'_>, input: Option<&Input>, steps: u32) -> Result<String, ErrorInfo> {
    let mask = match &run.mask {
        Some(path) => Some(sha256_hex(&fs::read(path.as_path()).map_err(|e| io_error(&e, path.as_path()))?)),
        None => None,
    };
    let about = json!([
        PROTOCOL_VERSION,
        env!("CARGO_PKG_VERSION"),
        run.kind,
        model.id,
        model.sha256,
        run.params,
        run.output,
        steps,
        input.map(|input| &input.sha256),
        mask,
    ]);
    Ok(sha256_hex(about.to_string().as_bytes()))
}

/// The state before the first step.
fn seed_state(run: &Run, script: &Script, input: Option<&Input>) -> [u8; 32] {
    let mut params = run.params.clone();
    params.prompt = Some(script.text.clone());
    Sha256::digest(json!([run.kind, params, input.map(|input| &input.sha256)]).to_string()).into()
}

/// Steps to the end, or to where it was stopped.
fn run_steps(
    run: &Run,
    args: &Args,
    script: &mut Script,
    folder: &Folder<'_>,
    at: &mut Checkpoint,
    report: &Report<'_>,
) -> Result<Option<(Stop, u32)>, ErrorInfo> {
    let steps = report.steps;
    let step_time = script.step_time.unwrap_or(Duration::from_millis(args.step_ms));
    let interval = Duration::from_millis(run.checkpoint_interval_ms);
    let write = |at: &Checkpoint| folder.write_checkpoint(at).map_err(|e| io_error(&e, run.work_dir.as_path()));
    let mut written_at = Instant::now();
    report.tell("run", at.step, run_fraction(at.step, steps));
    loop {
        for mishap in script.due(at.step, steps) {
            if mishap == Mishap::Preview {
                show(run, &at.state, at.step, folder, report)?;
            } else {
                suffer(mishap, report)?;
            }
        }
        if at.step == steps {
            return Ok(None);
        }
        if let Some(how) = report.desk.stop_asked().filter(|_| !script.ignores_stop) {
            if how == Stop::Checkpoint {
                write(at)?;
                report.desk.send(&Event::Checkpointed { job: run.job, step: at.step });
            }
            return Ok(Some((how, at.step)));
        }
        std::thread::sleep(step_time);
        at.state = Sha256::digest(at.state).into();
        at.step += 1;
        report.tell("run", at.step, run_fraction(at.step, steps));
        if at.step < steps && written_at.elapsed() >= interval {
            write(at)?;
            report.desk.send(&Event::Checkpointed { job: run.job, step: at.step });
            written_at = Instant::now();
        }
    }
}

fn run_fraction(step: u32, steps: u32) -> f64 {
    0.05 + 0.9 * f64::from(step) / f64::from(steps)
}

/// A small picture of the state, as every step has another.
fn show(run: &Run, state: &[u8; 32], step: u32, folder: &Folder<'_>, report: &Report<'_>) -> Result<(), ErrorInfo> {
    let file = "preview.jpg";
    let picture = painting::pattern(16, 16, &sha256_hex(state), u64::from(step)).to_rgb8();
    let written = folder.write(file, &pictures::jpeg(&picture, 80));
    written.map_err(|error| io_error(&error, &run.work_dir.as_path().join(file)))?;
    report.desk.send(&Event::Preview { job: run.job, step, file: file.into() });
    Ok(())
}

fn suffer(mishap: Mishap, report: &Report<'_>) -> Result<(), ErrorInfo> {
    warn!(job = %report.job, "told to suffer {mishap:?}");
    match mishap {
        Mishap::Segv => kill_myself(Signal::SEGV),
        Mishap::Abort => std::process::abort(),
        Mishap::Kill => kill_myself(Signal::KILL),
        Mishap::Exit(code) => std::process::exit(code.into()),
        Mishap::Hang => loop {
            std::thread::park();
        },
        Mishap::Garbage => report.desk.send_bytes(b"\xFF\xFF\xFF\xFFwhat a driver says to the wrong descriptor\n"),
        Mishap::Noise => {
            let rubbish = b"{\"level\":\"INFO\",\xC3\x28 not UTF-8\r\n\0\x1B[31m{}\n[]\n{\"message\":7}\n";
            // Nobody needs to listen.
            let _ = io::stdout().write_all(rubbish).and_then(|()| io::stdout().flush());
            let _ = io::stderr().write_all(&[rubbish, "x".repeat(100_000).as_bytes(), b"\n"].concat());
        }
        Mishap::Preview => {}
        Mishap::Fail(code) => return Err(ErrorInfo::new(code, "told to fail").with_hint("ask for something else")),
    }
    Ok(())
}

/// What a caption says: enough to tell pictures apart.
fn caption(input: Option<&Input>) -> String {
    input.map_or_else(
        || "nothing".into(),
        |input| format!("a picture of {} by {} pixels", input.picture.width(), input.picture.height()),
    )
}

/// As much of a caption as is written after so many steps.
fn so_far(text: &str, step: u32, steps: u32) -> String {
    let characters = text.chars().count() * step as usize / steps.max(1) as usize;
    text.chars().take(characters).collect()
}

fn write_outputs(
    run: &Run,
    script: &Script,
    input: Option<&Input>,
    state: &[u8; 32],
    folder: &Folder<'_>,
) -> Result<Vec<OutputFile>, ErrorInfo> {
    let spec = run.output;
    let mut outputs = Vec::new();
    for index in 0..run.params.num_images.unwrap_or(1) {
        let picture = if let Some(input) = input {
            painting::upscale(&input.picture, run.params.scale.unwrap_or(2))
        } else {
            let seed = run.params.seed.unwrap_or(0).wrapping_add(index.into());
            let side = |side: Option<u32>| side.unwrap_or(64);
            painting::pattern(side(run.params.width), side(run.params.height), &script.text, seed)
        };
        let state = Sha256::new_with_prefix(state).chain_update(index.to_le_bytes()).finalize().into();
        let bytes = painting::encode(&picture, spec, &state)?;
        let file = format!("output-{index}.{}", spec.format.extension());
        folder.write(&file, &bytes).map_err(|error| io_error(&error, &run.work_dir.as_path().join(&file)))?;
        outputs.push(OutputFile {
            file,
            media_type: spec.format.media_type().into(),
            extension: spec.format.extension().into(),
            bytes: bytes.len() as u64,
            width: picture.width(),
            height: picture.height(),
            sha256: sha256_hex(&bytes),
        });
    }
    Ok(outputs)
}

fn io_error(error: &io::Error, path: &Path) -> ErrorInfo {
    ErrorInfo::new(painting::io_code(error), format!("{}: {error}", path.display()))
}

/// Tells how far the job is, every step.
struct Report<'a> {
    desk: &'a Desk,
    job: JobId,
    steps: u32,
    /// Of a caption, all of it.
    text: Option<&'a str>,
}

impl Report<'_> {
    fn tell(&self, phase: &'static str, step: u32, fraction: f64) {
        let text = self.text.filter(|_| phase == "run").map(|text| so_far(text, step, self.steps));
        let phase = phase.into();
        self.desk.send(&Event::Progress { job: self.job, phase, step, steps: self.steps, fraction, text });
    }
}

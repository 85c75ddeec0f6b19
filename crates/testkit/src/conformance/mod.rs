//! What every worker must do, as black-box checks that panic: the stand-in and the real worker run the same list.
//!
//! Each behaviour is a function over a [`WorkerUnderTest`]; [`worker_conformance!`](crate::worker_conformance) makes
//! a test of each. A behaviour is written here only if the daemon relies on it.

#![expect(clippy::wildcard_enum_match_arm, reason = "a check looks for one event among all others")]

use std::{
    ffi::{OsStr, OsString},
    fs,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use atelier_domain::{
    JobId, JobKind, OutputFormat, Params,
    protocol::{
        Event, Finished, GpsPolicy, Hello, ModelRef, Offload, OutputSpec, PROTOCOL_VERSION, Ready, Request, Run, Stop,
    },
};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use ulid::Ulid;

use crate::{driver::Worker, pictures};

pub mod captions;
pub mod ends;
pub mod greeting;
pub mod inputs;
pub mod jobs;
pub mod resume;
pub mod stopping;

/// A worker program, and jobs that are good to test it with.
#[derive(Clone, Debug)]
pub struct WorkerUnderTest {
    pub program: PathBuf,
    pub args: Vec<OsString>,
    /// As in the configuration: `cpu`, `auto`, `cuda:N`.
    pub device: String,
    pub threads: u32,
    pub kind: JobKind,
    pub model: ModelRef,
    /// Ends within a second or so.
    pub short: Task,
    /// So long that there is time to stop it once a third of its steps are done; a checkpoint then must be of use.
    pub long: Task,
    /// Parameters that give another file for either picture, such as another level of denoising.
    pub other_params: Params,
    /// An output's side is the input's times this.
    pub scale: u32,
    /// How long anything may take before it is given up.
    pub patience: Duration,
}

/// What a job does.
#[derive(Clone, Debug)]
pub struct Task {
    pub params: Params,
    /// Size of the input picture.
    pub width: u32,
    pub height: u32,
}

/// Makes a test of every behaviour. The argument names a static of type
/// [`WorkerUnderTest`], or a `LazyLock` of one.
#[macro_export]
macro_rules! worker_conformance {
    ($worker:ident) => {
        $crate::worker_conformance! { @list $worker,
            greeting {
                it_answers_with_its_version_and_device
                another_version_of_the_protocol_ends_it_without_an_answer
                a_first_frame_that_is_no_greeting_ends_it
                a_parent_that_is_not_the_one_it_was_told_ends_it
            }
            jobs {
                a_job_starts_once_rises_and_ends_exactly_once
                outputs_are_whole_and_lie_in_the_jobs_folder
                two_jobs_in_a_row_give_the_same_bytes_for_the_same_work
                the_picture_of_a_job_does_not_depend_on_the_job_before
                every_output_format_is_what_it_says
                a_second_job_is_refused_while_one_runs
                unload_drops_the_model_and_says_so
                paths_need_not_be_utf_8
                a_model_that_is_not_there_fails_the_job_only
            }
            inputs {
                a_bad_picture_fails_its_job_and_the_worker_lives_on
                a_picture_of_too_many_pixels_is_refused
                an_oriented_picture_comes_out_upright
            }
            stopping {
                a_job_cancelled_at_once_never_gets_beyond_its_first_step
                a_job_cancelled_on_the_way_is_stopped_and_the_worker_lives_on
                a_stop_for_another_job_changes_nothing
                shutdown_waits_for_the_running_job
            }
            resume {
                a_job_stopped_with_a_checkpoint_goes_on_bit_for_bit
                a_killed_job_goes_on_bit_for_bit
                a_job_goes_on_twice_bit_for_bit
                a_checkpoint_of_other_parameters_is_left_aside
                a_checkpoint_of_another_picture_is_left_aside
                a_checkpoint_that_is_rubbish_is_left_aside
                finished_work_is_answered_at_once
                finished_work_of_other_parameters_is_done_anew
                finished_work_whose_file_was_damaged_is_done_anew
            }
            ends {
                the_end_of_the_stream_ends_an_idle_worker
                the_end_of_the_stream_ends_it_in_the_middle_of_a_job
                the_death_of_its_parent_ends_it
                rubbish_ends_it
                rubbish_in_the_middle_of_a_job_ends_it_without_an_output
            }
        }
    };
    (@list $worker:ident, $($group:ident { $($name:ident)* })*) => {
        $(mod $group {
            $(#[test]
            fn $name() {
                $crate::conformance::$group::$name(&super::$worker);
            })*
        })*

        /// For the suite's own test: everything that this macro runs.
        #[allow(dead_code, reason = "only one user looks at the list")]
        const BEHAVIOURS: &[(&str, &[&str])] = &[$((stringify!($group), &[$(stringify!($name)),*])),*];
    };
}

/// Makes a test of what a worker must do that writes texts. The argument is as for
/// [`worker_conformance!`](crate::worker_conformance).
#[macro_export]
macro_rules! caption_conformance {
    ($worker:ident) => {
        $crate::worker_conformance! { @list $worker,
            captions {
                a_text_grows_and_its_end_is_the_result
                two_texts_about_the_same_picture_are_the_same
                a_text_is_called_off_between_two_tokens
                a_text_that_was_interrupted_comes_out_the_same
            }
        }
    };
}

/// A place for one test: folders for jobs, and the worker it is about.
struct Bench<'a> {
    worker: &'a WorkerUnderTest,
    root: TempDir,
}

impl<'a> Bench<'a> {
    fn new(worker: &'a WorkerUnderTest) -> Self {
        Self { worker, root: tempfile::tempdir().expect("a temporary folder") }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.worker.program);
        command.args(&self.worker.args);
        command
    }

    /// A worker that has not been greeted.
    fn start(&self) -> Worker {
        Worker::spawn(self.command()).unwrap_or_else(|error| panic!("{}: {error}", self.worker.program.display()))
    }

    /// A worker that is ready.
    fn ready(&self) -> Worker {
        let mut worker = self.start();
        self.greet(&mut worker);
        worker
    }

    fn greet(&self, worker: &mut Worker) -> Ready {
        worker.greet(self.hello(), self.worker.patience).expect("the worker is ready")
    }

    fn hello(&self) -> Hello {
        Hello {
            protocol: PROTOCOL_VERSION,
            device: self.worker.device.clone(),
            threads: self.worker.threads,
            memory_budget: None,
            offload: Offload::Auto,
        }
    }

    fn short(&self, folder: impl AsRef<OsStr>) -> Run {
        self.run(&self.worker.short, folder.as_ref())
    }

    fn long(&self, folder: impl AsRef<OsStr>) -> Run {
        self.run(&self.worker.long, folder.as_ref())
    }

    /// A job with a new id, its own folder, and its input picture beside that.
    fn run(&self, task: &Task, folder: &OsStr) -> Run {
        let work_dir = self.root.path().join(folder);
        fs::create_dir(&work_dir).expect("a new folder");
        let picture = pictures::png(&pictures::photo_like(task.width, task.height, 1));
        let input = self.input(&[folder.as_bytes(), b".png"].concat(), &picture);
        Run {
            job: new_job(),
            attempt: 1,
            crashes: 0,
            kind: self.worker.kind,
            models: vec![self.worker.model.clone()],
            model_given: true,
            parts: Vec::new(),
            params: task.params.clone(),
            inputs: vec![input.into()],
            mask: None,
            work_dir: work_dir.into(),
            checkpoint_interval_ms: 3_600_000,
            output: OutputSpec { format: OutputFormat::Png, quality: 90, gps: GpsPolicy::Keep },
            max_pixels: 179_000_000,
        }
    }

    /// Writes a file beside the jobs' folders.
    fn input(&self, name: &[u8], bytes: &[u8]) -> PathBuf {
        let path = self.root.path().join(OsStr::from_bytes(name));
        fs::write(&path, bytes).expect("a file in the temporary folder");
        path
    }

    /// Runs the job to its end on `worker`, and checks what holds for every job.
    fn events(&self, worker: &mut Worker, run: &Run) -> Vec<Event> {
        let events = worker.run(run, self.worker.patience).expect("events up to the terminal one");
        check_events(run, &events);
        events
    }

    fn finish(&self, worker: &mut Worker, run: &Run) -> Finished {
        finished(self.events(worker, run))
    }

    /// What `task` gives when nothing comes in between.
    fn undisturbed(&self, task: &Task) -> Vec<u8> {
        let run = self.run(task, OsStr::new("undisturbed"));
        let finished = self.finish(&mut self.ready(), &run);
        output_bytes(&run, &finished)
    }

    /// Starts the job and waits until its first step, at least, is done. Gives the step.
    fn run_into_the_middle(&self, worker: &mut Worker, run: &Run) -> u32 {
        self.run_until(worker, run, |step, _| step > 0)
    }

    /// Starts the job and waits until `reached` accepts a step out of all steps.
    fn run_until(&self, worker: &mut Worker, run: &Run, reached: impl Fn(u32, u32) -> bool) -> u32 {
        worker.send(&Request::Run(Box::new(run.clone()))).expect("the worker takes requests");
        let events = worker.receive_until(self.worker.patience, |event| {
            assert_ne!(crate::driver::ended_job(event), Some(run.job), "the job is too short to be stopped");
            matches!(event, Event::Progress { phase, step, steps, .. } if phase == "run" && reached(*step, *steps))
        });
        events.expect("a step").last().and_then(step_done).expect("the last one is a step")
    }

    /// Stops the job on its way with a checkpoint. Gives the step of that, which may lie before the step it has come
    /// to: a worker may keep whole rows of tiles only.
    fn stop_with_checkpoint(&self, worker: &mut Worker, run: &Run) -> u32 {
        self.run_until(worker, run, |step, steps| step * 3 >= steps);
        worker.stop(run.job, Stop::Checkpoint).expect("the worker takes requests");
        let events = worker.receive_to_end(run.job, self.worker.patience).expect("a terminal event");
        let told = events.iter().rev().find_map(|event| match event {
            Event::Checkpointed { job, step } if *job == run.job => Some(*step),
            _ => None,
        });
        let told = told.unwrap_or_else(|| panic!("it told no checkpoint: {events:?}"));
        match events.last() {
            Some(Event::Stopped { job, how: Stop::Checkpoint, step }) if *job == run.job => {
                assert!((1..=*step).contains(&told), "a checkpoint of step {told}, stopped at step {step}");
                told
            }
            other => panic!("stopped with a checkpoint, it answered {other:?}"),
        }
    }
}

/// The same job, as the daemon sends it again after an interruption.
fn again(run: &Run) -> Run {
    Run { crashes: run.crashes + 1, ..run.clone() }
}

/// Ids that differ, whatever the clock does.
fn new_job() -> JobId {
    static COUNT: AtomicU64 = AtomicU64::new(1);
    JobId::from_ulid(Ulid::from_parts(1_700_000_000_000, COUNT.fetch_add(1, Ordering::Relaxed).into()))
}

/// The step that an event of the phase `run` tells.
fn step_done(event: &Event) -> Option<u32> {
    match event {
        Event::Progress { phase, step, .. } if phase == "run" => Some(*step),
        _ => None,
    }
}

/// What holds for the events of every job, whatever its end.
#[track_caller]
fn check_events(run: &Run, events: &[Event]) {
    let (mut started, mut last_fraction, mut last_step, mut last_checkpoint) = (0, 0.0, 0, 0);
    let (terminal, before) = events.split_last().expect("at least the terminal event");
    assert_eq!(crate::driver::ended_job(terminal), Some(run.job));
    for event in before {
        match event {
            Event::Started { job, model, .. } => {
                assert_eq!(*job, run.job);
                assert!(run.models.iter().any(|candidate| candidate.id == *model), "{model} was not to choose from");
                started += 1;
            }
            Event::Progress { job, phase, step, steps, fraction, .. } => {
                assert_eq!(*job, run.job);
                assert!(["decode", "load", "run", "encode"].contains(&phase.as_str()), "a phase {phase:?}");
                assert!(phase == "decode" || started == 1, "{phase} before it has started");
                assert!((last_fraction..=1.0).contains(fraction), "{fraction} after {last_fraction}");
                if phase == "run" {
                    assert!((last_step..=*steps).contains(step), "step {step} of {steps} after {last_step}");
                    last_step = *step;
                }
                last_fraction = *fraction;
            }
            Event::Checkpointed { job, step } => {
                assert_eq!(*job, run.job);
                assert!(*step >= last_checkpoint, "a checkpoint of step {step} after one of {last_checkpoint}");
                last_checkpoint = *step;
            }
            Event::Models { .. } | Event::Preview { .. } => {}
            Event::Ready(_) | Event::Finished(_) | Event::Failed { .. } | Event::Stopped { .. } => {
                panic!("{event:?} while job {} runs", run.job);
            }
        }
    }
    assert!(started <= 1, "it started {started} times");
}

#[track_caller]
fn finished(mut events: Vec<Event>) -> Finished {
    match events.pop() {
        Some(Event::Finished(finished)) => *finished,
        other => panic!("it should have finished: {other:?}"),
    }
}

/// Where the job went on from, as it said when it started.
#[track_caller]
fn resumed_from(events: &[Event]) -> Option<u32> {
    events
        .iter()
        .find_map(|event| match event {
            Event::Started { resumed_from_step, .. } => Some(*resumed_from_step),
            _ => None,
        })
        .expect("it has started")
}

/// Checks every output against what was said of it, and gives the first's bytes.
#[track_caller]
fn output_bytes(run: &Run, finished: &Finished) -> Vec<u8> {
    let work_dir = run.work_dir.as_path();
    let mut files = Vec::new();
    for output in &finished.outputs {
        let name = Path::new(&output.file);
        assert_eq!(name.file_name(), Some(name.as_os_str()), "{} is no plain file name", output.file);
        assert_eq!(name.extension(), Some(OsStr::new(&output.extension)));
        assert_eq!(output.extension, run.output.format.extension());
        assert_eq!(output.media_type, run.output.format.media_type());
        let path = work_dir.join(name);
        assert!(fs::symlink_metadata(&path).expect("the output is there").is_file());
        let bytes = fs::read(path).expect("the output can be read");
        assert_eq!(bytes.len() as u64, output.bytes);
        assert_eq!(format!("{:x}", Sha256::digest(&bytes)), output.sha256);
        let picture = image::load_from_memory(&bytes).expect("the output is a picture");
        assert_eq!((picture.width(), picture.height()), (output.width, output.height));
        files.push(bytes);
    }
    files.into_iter().next().expect("at least one output")
}

/// Names of all files in the job's folder that look like an output, partly written ones too.
fn output_like(run: &Run) -> Vec<OsString> {
    names(run).into_iter().filter(|name| name.as_bytes().starts_with(b"output")).collect()
}

fn names(run: &Run) -> Vec<OsString> {
    let mut names: Vec<_> = fs::read_dir(run.work_dir.as_path())
        .expect("the job's folder is there")
        .map(|entry| entry.expect("readable").file_name())
        .collect();
    names.sort();
    names
}

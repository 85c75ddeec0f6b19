//! Events on their way to the daemon: written whole, and not more of them than a person can see.

use std::{
    cell::RefCell,
    fs,
    io::{self, Write},
    path::Path,
    rc::Rc,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use atelier_domain::{
    JobId,
    protocol::{self, Event},
};

/// Progress within a phase is told at most this often.
const EVERY: Duration = Duration::from_millis(100);

/// How often a file that is being written is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The way to the daemon.
pub struct Outbox {
    stream: Mutex<Box<dyn Write + Send>>,
}

impl Outbox {
    pub fn new(stream: impl Write + Send + 'static) -> Self {
        Self { stream: Mutex::new(Box::new(stream)) }
    }

    /// # Errors
    /// The daemon has gone.
    pub fn send(&self, event: &Event) -> io::Result<()> {
        let frame = protocol::encode(event).map_err(io::Error::other)?;
        self.stream.lock().unwrap_or_else(PoisonError::into_inner).write_all(&frame)
    }
}

/// A part of a job, and how much of the whole it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Decode,
    Load,
    Run,
    Encode,
}

impl Phase {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Load => "load",
            Self::Run => "run",
            Self::Encode => "encode",
        }
    }

    /// Where it begins and ends within the job, from 0 to 1.
    const fn span(self) -> (f64, f64) {
        match self {
            Self::Decode => (0.0, 0.02),
            Self::Load => (0.02, 0.04),
            Self::Run => (0.04, 0.95),
            Self::Encode => (0.95, 1.0),
        }
    }
}

/// Tells how one job comes along. Cloning gives another hand on the same job.
#[derive(Clone)]
pub struct Reporter {
    outbox: Arc<Outbox>,
    job: JobId,
    told: Rc<RefCell<Told>>,
}

#[derive(Default)]
struct Told {
    last: Option<(Phase, Instant)>,
    fraction: f64,
}

impl Reporter {
    pub fn new(outbox: Arc<Outbox>, job: JobId) -> Self {
        Self { outbox, job, told: Rc::default() }
    }

    pub fn started(&self, model: &str, resumed_from_step: Option<u32>) {
        self.send(&Event::Started { job: self.job, model: model.into(), resumed_from_step });
    }

    /// `step` of `steps` of the phase is done; 0 of 0 for a phase that has no steps and begins now. The first and the
    /// last of a phase are always told.
    pub fn progress(&self, phase: Phase, step: u32, steps: u32) {
        self.tell(phase, step, steps, None);
    }

    /// As [`Self::progress`], with the text so far of a job that writes one.
    pub fn progress_with(&self, phase: Phase, step: u32, steps: u32, text: &str) {
        self.tell(phase, step, steps, Some(text));
    }

    fn tell(&self, phase: Phase, step: u32, steps: u32, text: Option<&str>) {
        let mut told = self.told.borrow_mut();
        let now = Instant::now();
        let quiet = told.last.is_some_and(|(last, at)| last == phase && now.duration_since(at) < EVERY);
        if quiet && step < steps {
            return;
        }
        told.last = Some((phase, now));
        let (start, end) = phase.span();
        let done = if steps == 0 { 0.0 } else { f64::from(step) / f64::from(steps) };
        // A second try begins again, and what was told stays told.
        told.fraction = told.fraction.max(start + (end - start) * done);
        let phase = phase.as_str().into();
        let text = text.map(Into::into);
        self.send(&Event::Progress { job: self.job, phase, step, steps, fraction: told.fraction, text });
    }

    /// Runs `work`, which writes `file`, and tells how it grows towards `bytes`. A large picture takes minutes to
    /// encode, and a worker from which nothing is heard is taken for a hanging one.
    pub fn while_growing<T>(&self, file: &Path, bytes: u64, work: impl FnOnce() -> T) -> T {
        let (outbox, job, told) = (&*self.outbox, self.job, self.told.borrow().fraction);
        let (done, ended) = mpsc::channel::<()>();
        // `done` moves in, so that it goes away, and the thread with it, even if `work` panics.
        thread::scope(move |scope| {
            scope.spawn(move || {
                watch(&ended, LOOK_EVERY, file, |size| {
                    #[expect(clippy::cast_precision_loss, reason = "a share that a person looks at")]
                    let share = (size as f64 / bytes.max(1) as f64).min(1.0);
                    let fraction = told + (1.0 - told) * 0.99 * share;
                    let phase = Phase::Encode.as_str().into();
                    let event = Event::Progress { job, phase, step: 0, steps: 1, fraction, text: None };
                    if let Err(error) = outbox.send(&event) {
                        tracing::debug!(%job, %error, "an event was not sent");
                    }
                });
            });
            let result = work();
            drop(done);
            result
        })
    }

    pub fn checkpointed(&self, step: u32) {
        self.send(&Event::Checkpointed { job: self.job, step });
    }

    pub fn send(&self, event: &Event) {
        // Without a daemon the reading thread ends the process; there is nobody to tell.
        if let Err(error) = self.outbox.send(event) {
            tracing::debug!(job = %self.job, %error, "an event was not sent");
        }
    }
}

/// Tells the size of `file` whenever it has grown, until the other end of `ended` goes away.
fn watch(ended: &mpsc::Receiver<()>, every: Duration, file: &Path, mut tell: impl FnMut(u64)) {
    let mut seen = 0;
    while ended.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
        let size = fs::metadata(file).map_or(0, |meta| meta.len());
        if size > seen {
            seen = size;
            tell(size);
        }
    }
}

#[cfg(test)]
mod tests {
    use atelier_domain::protocol::Decoder;

    use super::*;

    #[derive(Clone, Default)]
    struct Pipe(Arc<Mutex<Vec<u8>>>);

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn progress_is_sparse_within_a_phase_tells_its_ends_and_never_goes_back() {
        let pipe = Pipe::default();
        let outbox = Arc::new(Outbox::new(pipe.clone()));
        let reporter = Reporter::new(outbox, JobId::from_ulid(1_u128.into()));
        reporter.progress(Phase::Decode, 0, 0);
        for step in 0..=1000 {
            reporter.progress(Phase::Run, step, 1000);
        }
        reporter.progress(Phase::Run, 0, 4000);
        reporter.progress(Phase::Encode, 0, 1);
        reporter.progress(Phase::Encode, 1, 1);

        let mut decoder = Decoder::default();
        decoder.push(&pipe.0.lock().expect("no panic"));
        let mut seen = Vec::new();
        while let Some(event) = decoder.next::<Event>().expect("frames") {
            let Event::Progress { phase, step, fraction, .. } = event else { panic!("{event:?}") };
            seen.push((phase, step, fraction));
        }
        assert!(seen.windows(2).all(|pair| pair[0].2 <= pair[1].2), "{seen:?}");
        assert_eq!(seen[0], ("decode".into(), 0, 0.0));
        assert!(seen.contains(&("run".into(), 0, 0.04)) && seen.contains(&("run".into(), 1000, 0.95)));
        assert_eq!(seen.last(), Some(&("encode".into(), 1, 1.0)));
        assert!(seen.len() < 100, "{} events", seen.len());
    }

    #[test]
    fn a_growing_file_is_told_of_and_a_resting_one_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("output.part");
        let (done, ended) = mpsc::channel();
        let (sizes, told) = mpsc::channel();
        thread::scope(|scope| {
            let watched = &file;
            scope.spawn(move || {
                watch(&ended, Duration::from_millis(1), watched, |size| sizes.send(size).expect("heard"));
            });
            let patience = Duration::from_mins(1);
            for size in [10, 20] {
                fs::write(folder.path().join("new"), vec![0; size]).expect("written");
                fs::rename(folder.path().join("new"), &file).expect("in place at once");
                assert_eq!(told.recv_timeout(patience), Ok(size as u64));
            }
            fs::write(folder.path().join("new"), [0; 5]).expect("written");
            fs::rename(folder.path().join("new"), &file).expect("in place at once");
            drop(done);
        });
        assert_eq!(told.try_recv(), Err(mpsc::TryRecvError::Disconnected));
    }
}

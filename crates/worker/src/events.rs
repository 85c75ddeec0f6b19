//! Events on their way to the daemon: written whole, and not more of them than a person can see.

use std::{
    io::{self, Write},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use atelier_domain::{
    JobId,
    protocol::{self, Event},
};

/// Progress within a phase is told at most this often.
const EVERY: Duration = Duration::from_millis(100);

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

/// Tells how one job comes along.
pub struct Reporter<'a> {
    outbox: &'a Outbox,
    job: JobId,
    last: Option<(Phase, Instant)>,
    fraction: f64,
}

impl<'a> Reporter<'a> {
    pub fn new(outbox: &'a Outbox, job: JobId) -> Self {
        Self { outbox, job, last: None, fraction: 0.0 }
    }

    pub fn started(&mut self, model: &str, resumed_from_step: Option<u32>) {
        self.send(&Event::Started { job: self.job, model: model.into(), resumed_from_step });
    }

    /// `step` of `steps` of the phase is done; 0 of 0 for a phase that has no steps and begins now. The first and the
    /// last of a phase are always told.
    pub fn progress(&mut self, phase: Phase, step: u32, steps: u32) {
        let now = Instant::now();
        let quiet = self.last.is_some_and(|(last, at)| last == phase && now.duration_since(at) < EVERY);
        if quiet && step < steps {
            return;
        }
        self.last = Some((phase, now));
        let (start, end) = phase.span();
        let done = if steps == 0 { 0.0 } else { f64::from(step) / f64::from(steps) };
        // A second try begins again, and what was told stays told.
        self.fraction = self.fraction.max(start + (end - start) * done);
        let phase = phase.as_str().into();
        self.send(&Event::Progress { job: self.job, phase, step, steps, fraction: self.fraction });
    }

    pub fn checkpointed(&mut self, step: u32) {
        self.send(&Event::Checkpointed { job: self.job, step });
    }

    pub fn send(&self, event: &Event) {
        // Without a daemon the reading thread ends the process; there is nobody to tell.
        if let Err(error) = self.outbox.send(event) {
            tracing::debug!(job = %self.job, %error, "an event was not sent");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

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
        let outbox = Outbox::new(pipe.clone());
        let mut reporter = Reporter::new(&outbox, JobId::from_ulid(1_u128.into()));
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
}

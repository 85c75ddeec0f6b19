//! The conversation with the daemon: one thread reads requests, the main one works.
//!
//! Only the main thread ever calls torch. The reading one can end the process at any moment, which is what it does when
//! the daemon has gone.

use std::{
    io::Read as _,
    os::unix::net::UnixStream,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{self, Receiver, Sender},
    },
    thread,
};

use atelier_domain::{
    ErrorCode, ErrorInfo, JobKind,
    protocol::{Decoder, Event, FrameError, Hello, Offload, PROTOCOL_VERSION, Ready, Request, Run},
};

use crate::{
    caption,
    context::Context,
    control::Control,
    device::{self, Chosen, DeviceError, Wish},
    diffusion,
    error::JobError,
    events::{Outbox, Reporter},
    models::Cache,
    sys, torch, upscale,
};

/// Why the conversation ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error(
        "the daemon speaks protocol {theirs} and this worker speaks {PROTOCOL_VERSION}: they are of different versions"
    )]
    Version { theirs: u32 },
    #[error("the first frame is not a greeting")]
    NoHello,
    #[error("what arrives on standard input is not the daemon's protocol: {0}")]
    Rubbish(#[from] FrameError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error("the socket: {0}")]
    Io(#[from] std::io::Error),
}

impl SessionError {
    /// 2 for what somebody else must set right, as for any wrong use.
    pub const fn exit_code(&self) -> i32 {
        match self {
            Self::Version { .. } | Self::NoHello | Self::Rubbish(_) | Self::Device(_) => 2,
            Self::Io(_) => 1,
        }
    }
}

/// What the reading thread passes on.
enum Order {
    Run(Box<Run>),
    Unload(Option<String>),
    Shutdown,
}

/// Serves the daemon at the other end of `stream` until it has no more work.
///
/// # Errors
/// No daemon of this version at the other end, or no such device.
pub fn serve(stream: UnixStream) -> Result<(), SessionError> {
    let mut reader = RequestReader { stream: stream.try_clone()?, decoder: Decoder::default() };
    let Some(first) = reader.next()? else { return Ok(()) };
    let Request::Hello(hello) = first else { return Err(SessionError::NoHello) };
    let chosen = greet(&hello)?;
    let outbox = Arc::new(Outbox::new(stream));
    outbox.send(&Event::Ready(Ready {
        protocol: PROTOCOL_VERSION,
        worker_version: env!("CARGO_PKG_VERSION").into(),
        libtorch: Some(torch::version()),
        device: chosen.facts.clone(),
    }))?;
    tracing::info!(device = chosen.facts.name, reason = chosen.facts.reason, threads = chosen.facts.threads, "ready");

    let control = Arc::new(Control::default());
    let (sender, orders) = mpsc::channel();
    thread::Builder::new().name("requests".into()).spawn({
        let (control, outbox) = (control.clone(), outbox.clone());
        move || read_requests(reader, &control, &outbox, &sender)
    })?;
    let budget = hello.memory_budget.unwrap_or_else(|| chosen.default_budget());
    work(&orders, &control, &outbox, &chosen, budget, hello.offload);
    Ok(())
}

/// Before any call of torch: CUDA is loaded now or never.
fn greet(hello: &Hello) -> Result<Chosen, SessionError> {
    if hello.protocol != PROTOCOL_VERSION {
        return Err(SessionError::Version { theirs: hello.protocol });
    }
    let wish: Wish = hello.device.parse()?;
    Ok(device::choose(wish, hello.threads)?)
}

struct RequestReader {
    stream: UnixStream,
    decoder: Decoder,
}

impl RequestReader {
    /// The next request, or `None` at the end of the stream.
    fn next(&mut self) -> Result<Option<Request>, SessionError> {
        let mut buffer = [0; 16 << 10];
        loop {
            if let Some(request) = self.decoder.next()? {
                return Ok(Some(request));
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(None),
                Ok(length) => self.decoder.push(&buffer[..length]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                // The daemon was killed with frames of ours unread.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The reading thread. Ends the process with the stream.
fn read_requests(mut reader: RequestReader, control: &Control, outbox: &Outbox, orders: &Sender<Order>) {
    loop {
        let order = match reader.next() {
            Ok(None) => {
                tracing::info!("the daemon has closed the socket");
                sys::exit_at_once(0);
            }
            Err(error) => {
                tracing::error!(%error, "the worker ends");
                sys::exit_at_once(error.exit_code());
            }
            Ok(Some(Request::Hello(_))) => {
                tracing::error!("a second greeting; the worker ends");
                sys::exit_at_once(2);
            }
            Ok(Some(Request::Run(run))) if control.begin(run.job) => Order::Run(run),
            Ok(Some(Request::Run(run))) => {
                let error = ErrorInfo::new(ErrorCode::Conflict, "the worker was given a job while it had one");
                if let Err(error) = outbox.send(&Event::Failed { job: run.job, error }) {
                    tracing::warn!(job = %run.job, %error, "an event was not sent");
                }
                continue;
            }
            Ok(Some(Request::Stop { job, how })) => {
                control.stop(job, how);
                continue;
            }
            Ok(Some(Request::Unload { .. })) if control.is_busy() => continue,
            Ok(Some(Request::Unload { model })) => Order::Unload(model),
            Ok(Some(Request::Shutdown)) => Order::Shutdown,
        };
        if orders.send(order).is_err() {
            // The main thread is on its way out.
            return;
        }
    }
}

/// The main thread. Returns on `Shutdown`.
fn work(
    orders: &Receiver<Order>,
    control: &Arc<Control>,
    outbox: &Arc<Outbox>,
    chosen: &Chosen,
    budget: u64,
    offload: Offload,
) {
    let _inference = torch::InferenceMode::enter();
    let mut cache = Cache::new(chosen.device, budget);
    for order in orders {
        let event = match order {
            Order::Shutdown => return,
            Order::Unload(model) => {
                cache.unload(model.as_deref());
                Event::Models { loaded: cache.loaded() }
            }
            Order::Run(run) => {
                let event = run_job(&run, control, outbox, chosen, &mut cache, offload);
                if let Err(error) = torch::trim() {
                    tracing::warn!(job = %run.job, %error, "memory could not be given back");
                }
                control.end();
                event
            }
        };
        if let Err(error) = outbox.send(&event) {
            tracing::warn!(%error, "an event was not sent");
        }
        if is_device_failure(&event) {
            // A CUDA context that has failed once fails for good.
            tracing::error!("the device has failed; the worker ends so that the next one starts afresh");
            sys::exit_at_once(1);
        }
    }
}

fn is_device_failure(event: &Event) -> bool {
    matches!(event, Event::Failed { error, .. } if error.code == ErrorCode::DeviceError)
}

/// Runs one job. Whatever happens in there, there is one last event.
fn run_job(
    run: &Run,
    control: &Arc<Control>,
    outbox: &Arc<Outbox>,
    chosen: &Chosen,
    cache: &mut Cache,
    offload: Offload,
) -> Event {
    let job = run.job;
    tracing::info!(%job, kind = run.kind.as_str(), attempt = run.attempt, "the job begins");
    let result = catch_unwind(AssertUnwindSafe(|| {
        let reporter = Reporter::new(outbox.clone(), job);
        let mut context =
            Context { control: control.clone(), cache, reporter, device: &chosen.facts, offload, on_step: None };
        torch::caught(|| match run.kind {
            JobKind::Upscale => upscale::run(run, &mut context),
            JobKind::Edit | JobKind::Generate | JobKind::Inpaint | JobKind::Control => {
                diffusion::run(run, &mut context)
            }
            JobKind::Caption => caption::run(run, &mut context),
            JobKind::Video | JobKind::TalkingHead | JobKind::Speech => Err(JobError::refused(
                ErrorCode::KindNotSupported,
                format!("this worker does not do {} yet", run.kind),
                "Ask for upscale, edit, generate, inpaint, control or caption.",
            )),
        })
    }));
    match result {
        Ok(Ok(finished)) => {
            tracing::info!(%job, model = finished.model, "the job is done");
            Event::Finished(Box::new(finished))
        }
        Ok(Err(JobError::Stopped { how, step })) => {
            tracing::info!(%job, ?how, step, "the job was stopped");
            Event::Stopped { job, how, step }
        }
        Ok(Err(error)) => {
            let error = error.info(&chosen.facts.name);
            tracing::warn!(%job, code = error.code.as_str(), error = error.message, "the job failed");
            Event::Failed { job, error }
        }
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref().copied());
            let text = text.unwrap_or("no message");
            tracing::error!(%job, error = text, "the job panicked; this is a bug in the worker");
            let error = ErrorInfo::new(ErrorCode::Internal, format!("the worker met a bug of its own: {text}"))
                .with_hint("Please report it, with the log.");
            Event::Failed { job, error }
        }
    }
}

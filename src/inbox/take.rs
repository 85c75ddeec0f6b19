//! Makes a job of a claimed file, or finds that it is a duplicate or wrong, and puts it where it then belongs.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use atelier_domain::{ErrorCode, ErrorInfo, Timestamp};

use super::{
    claim::{Claimed, Examined, Wish, examine, trouble},
    error_file::{DuplicateFile, Failure},
    intake::{Admitted, Intake, IntakeError, NewFile},
    names,
    place::{self, Here, Target},
    recent::Recent,
    settings::Settings,
    sidecar,
};
use crate::failpoint;

/// What the way to a job needs beside the file.
pub struct Context<I> {
    pub intake: Arc<I>,
    pub recent: Arc<Recent>,
    pub settings: Settings,
}

// Derived, it would ask for an intake that is `Clone`.
impl<I> Clone for Context<I> {
    fn clone(&self) -> Self {
        Self { intake: Arc::clone(&self.intake), recent: Arc::clone(&self.recent), settings: self.settings.clone() }
    }
}

/// How it went.
#[derive(Debug)]
pub enum Taken {
    /// A job, a duplicate, refused, or gone: nothing is left to do.
    Settled,
    /// Not now: again after a while.
    Later { claimed: Box<Claimed>, after: Duration, blocked: Option<Blocked> },
}

/// Why nothing more should be claimed for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocked {
    DiskFull,
    QueueFull,
    /// The database does not answer.
    Unavailable,
}

const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// One try. Safe to repeat, after an error as well as after a crash.
pub async fn take<I: Intake>(context: Context<I>, claimed: Claimed) -> Taken {
    let judge = Arc::clone(&context.intake);
    let now = Instant::now();
    let mut looked_at = claimed.clone();
    let examined = tokio::task::spawn_blocking(move || {
        let examined = examine(&*judge, &mut looked_at, now);
        (looked_at, examined)
    })
    .await;
    let (claimed, examined) = match examined {
        Ok(examined) => examined,
        Err(error) => {
            let error = ErrorInfo::new(ErrorCode::Internal, format!("reading it failed: {error}"));
            (claimed, Examined::Trouble(error))
        }
    };
    failpoint::hit("inbox.take.examined");
    match examined {
        Examined::Whole(wish) => admit(&context, claimed, *wish).await,
        Examined::StillWritten => later(claimed, context.settings.settle.max(Duration::from_millis(50)), None),
        Examined::Unfinished(error) => {
            let left = (claimed.since + context.settings.give_up).saturating_duration_since(now);
            if left.is_zero() {
                finish(&context, claimed, Target::Failed(Failure::refused(error, Timestamp::now()))).await
            } else {
                later(claimed, left.min(context.settings.settle.max(Duration::from_secs(1))), None)
            }
        }
        Examined::Failed(error) => {
            finish(&context, claimed, Target::Failed(Failure::refused(error, Timestamp::now()))).await
        }
        Examined::Trouble(error) => {
            let blocked = (error.code == ErrorCode::DiskFull).then_some(Blocked::DiskFull);
            in_trouble(claimed, &error.message, blocked)
        }
        Examined::Gone => {
            tracing::info!(job = %claimed.id, source = %shown(&claimed), "inbox: the file has gone; nothing to do");
            end_claim(&context, claimed).await
        }
        Examined::NotAFile => finish(&context, claimed, Target::Inbox).await,
    }
}

async fn admit<I: Intake>(context: &Context<I>, claimed: Claimed, wish: Wish) -> Taken {
    let route = names::route(&claimed.bundle.rel(), |name| context.intake.is_preset(name));
    let path = claimed.root.path.join(names::PROCESSING).join(names::processing(claimed.id, &claimed.bundle.name));
    let images = usize::from(wish.input.is_some());
    let file = NewFile {
        id: claimed.id,
        spec: wish.spec.clone(),
        rel_path: claimed.bundle.rel().into(),
        sidecars: claimed.bundle.rel_sidecars(),
        input: wish.input.clone().map(|input| (input, path)),
        output_dir: route.output_dir,
        output_stem: names::stem(&claimed.bundle.name).to_owned(),
    };
    match context.intake.admit(file).await {
        Ok(Admitted::New) => {
            failpoint::hit("inbox.take.admitted");
            context.recent.admitted(claimed.id);
            metrics::counter!("atelier_inbox_admitted_total").increment(1);
            metrics::histogram!("atelier_inbox_pickup_seconds").record(claimed.seen.elapsed().as_secs_f64());
            tracing::info!(job = %claimed.id, source = %shown(&claimed), "inbox: became a job");
            Taken::Settled
        }
        Ok(Admitted::DuplicateOf(job)) => {
            metrics::counter!("atelier_inbox_duplicates_total").increment(1);
            tracing::info!(source = %shown(&claimed), of = %job, "inbox: a duplicate; not run again");
            context.recent.admitted(claimed.id);
            finish(context, claimed, Target::Duplicate(DuplicateFile { job, found_at: Timestamp::now() })).await
        }
        Err(IntakeError::Refused(error)) => {
            let error = blame_sidecar(&*context.intake, &wish, images, error);
            finish(context, claimed, Target::Failed(Failure::refused(error, Timestamp::now()))).await
        }
        Err(IntakeError::QueueFull { retry_after }) => later(claimed, retry_after, Some(Blocked::QueueFull)),
        Err(IntakeError::DiskFull) => in_trouble(claimed, "the disk is full", Some(Blocked::DiskFull)),
        Err(IntakeError::Unavailable(why)) => in_trouble(claimed, &why, Some(Blocked::Unavailable)),
    }
}

/// Names the sidecar, its line and key, when a job fails only because of what a sidecar says.
fn blame_sidecar(judge: &impl Intake, wish: &Wish, images: usize, error: ErrorInfo) -> ErrorInfo {
    let Some((first, text)) = wish.sidecar_texts.first() else { return error };
    if !sidecar::is_about_form(error.code) || (images > 0 && judge.check(&wish.plain, images).is_err()) {
        return error;
    }
    let traced = wish.sidecar_texts.iter().map(|(name, text)| sidecar::refused(name, text, &error));
    let with_line = traced.into_iter().find(|error| error.message.contains(": line "));
    with_line.unwrap_or_else(|| sidecar::refused(first, text, &error))
}

/// Puts a claimed file where it belongs and forgets the claim.
async fn finish<I: Intake>(context: &Context<I>, claimed: Claimed, target: Target) -> Taken {
    if let Target::Failed(failure) = &target {
        tracing::warn!(source = %shown(&claimed), code = failure.code, "inbox: to failed/: {}", failure.message);
        metrics::counter!("atelier_inbox_failed_total").increment(1);
    }
    let recent = Arc::clone(&context.recent);
    let moving = claimed.clone();
    let placed = tokio::task::spawn_blocking(move || {
        let here = Here::Processing(moving.id);
        recent.ending(moving.id, &moving.bundle, |recalled| {
            let target = if recalled { &Target::Inbox } else { &target };
            place::place(&moving.root, &moving.bundle, &here, target)
        })
    })
    .await;
    failpoint::hit("inbox.take.placed");
    match placed {
        Ok(Ok(())) => {
            context.recent.admitted(claimed.id);
            end_claim(context, claimed).await
        }
        Ok(Err(error)) => {
            let info = trouble(error, &claimed.bundle.name);
            let blocked = (info.code == ErrorCode::DiskFull).then_some(Blocked::DiskFull);
            in_trouble(claimed, &info.message, blocked)
        }
        Err(error) => in_trouble(claimed, &error.to_string(), None),
    }
}

async fn end_claim<I: Intake>(context: &Context<I>, claimed: Claimed) -> Taken {
    match context.intake.claim_end(vec![claimed.id]).await {
        Ok(()) => Taken::Settled,
        Err(error) => in_trouble(claimed, &error.to_string(), Some(Blocked::Unavailable)),
    }
}

fn later(claimed: Claimed, after: Duration, blocked: Option<Blocked>) -> Taken {
    Taken::Later { claimed: Box::new(claimed), after, blocked }
}

fn in_trouble(mut claimed: Claimed, why: &str, blocked: Option<Blocked>) -> Taken {
    if claimed.troubles == 0 {
        tracing::warn!(job = %claimed.id, source = %shown(&claimed), "inbox: waits, and is tried again: {why}");
    }
    let after = pause(claimed.troubles);
    claimed.troubles += 1;
    later(claimed, after, blocked)
}

/// Longer each time, up to a minute.
pub fn pause(troubles: u32) -> Duration {
    Duration::from_secs(1 << troubles.min(10)).min(LONGEST_PAUSE)
}

fn shown(claimed: &Claimed) -> String {
    claimed.bundle.rel().to_string_lossy().into_owned()
}

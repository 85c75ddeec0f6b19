//! Tells clients what has become of their jobs: Standard Webhooks, at least once, in each job's order.
//!
//! Messages come from the store, where the change that they tell of has put them. A message is signed when it is sent,
//! so that a new secret holds for what still waits, and its time is the time of the try. Whoever does not take a
//! message is asked again, less and less often, until `webhooks.give_up`; the job's later messages wait behind it.

pub mod secret;

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use atelier_domain::Timestamp;
use reqwest::{StatusCode, header};
use tokio::{
    sync::watch,
    task::{Id, JoinSet},
};
use tokio_util::sync::CancellationToken;

use self::secret::Secrets;
use crate::{
    config::{Config, Webhooks},
    egress::{self, Egress, Reach},
    failpoint,
    store::{Store, StoreError, WebhookMessage},
};

/// Messages on their way at the same time.
const AT_ONCE: usize = 16;

/// When there is nothing to do, the outbox is looked at all the same.
const LOOK: Duration = Duration::from_secs(60);

/// After the database has refused.
const PAUSE: Duration = Duration::from_secs(5);

/// Sends what waits, until `shutdown`. A message that is on its way then is sent again at the next start.
pub async fn run(store: Store, config: watch::Receiver<Arc<Config>>, egress: Egress, shutdown: CancellationToken) {
    let mut sender = Sender { store, config, egress, sending: JoinSet::new(), on_the_way: HashMap::new() };
    loop {
        let pause = match sender.send_due().await {
            Ok(pause) => pause,
            Err(error) => {
                tracing::warn!(%error, "webhooks wait for the database");
                PAUSE
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = sender.store.webhook_waits() => {}
            Some(ended) = sender.sending.join_next_with_id() => sender.forget(ended),
            () = tokio::time::sleep(pause) => {}
        }
    }
    sender.sending.shutdown().await;
}

struct Sender {
    store: Store,
    config: watch::Receiver<Arc<Config>>,
    egress: Egress,
    sending: JoinSet<()>,
    on_the_way: HashMap<Id, i64>,
}

impl Sender {
    /// Starts what is due and has room; returns how long nothing else will be.
    async fn send_due(&mut self) -> Result<Duration, StoreError> {
        let now = Timestamp::now();
        let room = AT_ONCE.saturating_sub(self.on_the_way.len());
        // Those on the way are due as well, and come first.
        let due = self.store.webhooks_due(now, u32::try_from(AT_ONCE).unwrap_or(u32::MAX)).await?;
        let busy: HashSet<i64> = self.on_the_way.values().copied().collect();
        for message in due.into_iter().filter(|message| !busy.contains(&message.seq)).take(room) {
            let (seq, config) = (message.seq, self.config.borrow().clone());
            let task = self.sending.spawn(tell(self.store.clone(), self.egress.clone(), config, message));
            self.on_the_way.insert(task.id(), seq);
        }
        let next = self.store.webhook_next(now).await?;
        let millis = next.map_or(i64::MAX, |next| next.0 - now.0);
        Ok(Duration::from_millis(u64::try_from(millis).unwrap_or(0)).min(LOOK))
    }

    fn forget(&mut self, ended: Result<(Id, ()), tokio::task::JoinError>) {
        let id = match ended {
            Ok((id, ())) => id,
            Err(error) => {
                tracing::error!(%error, "a webhook could not be sent");
                error.id()
            }
        };
        self.on_the_way.remove(&id);
    }
}

/// Sends one message, and writes down what came of it.
async fn tell(store: Store, egress: Egress, config: Arc<Config>, message: WebhookMessage) {
    let settings = &config.webhooks;
    // A URL may hold a secret; its host does not.
    let host = reqwest::Url::parse(&message.url).ok().and_then(|url| url.host_str().map(str::to_owned));
    let host = host.unwrap_or_default();
    let sent = send(&egress, settings, config.paths.data.clone(), &message).await;
    failpoint::hit("webhook.after_send");
    let now = Timestamp::now();
    let age = Duration::from_millis(u64::try_from(now.0 - message.created_at.0).unwrap_or(0));
    let written = match sent {
        Ok(()) => {
            metrics::counter!("atelier_webhooks_total", "result" => "delivered").increment(1);
            tracing::info!(job = %message.job_id, webhook = message.id, host, "told");
            store.webhook_done(message.seq).await
        }
        Err(refused) if refused.for_good || age >= settings.give_up => {
            metrics::counter!("atelier_webhooks_total", "result" => "given_up").increment(1);
            tracing::warn!(job = %message.job_id, webhook = message.id, host, "given up: {}", refused.why);
            store.webhook_done(message.seq).await
        }
        Err(refused) => {
            metrics::counter!("atelier_webhooks_total", "result" => "failed").increment(1);
            let pause = refused.wait.unwrap_or_default().max(pause(message.attempts, settings));
            let pause = pause.min(settings.give_up.saturating_sub(age));
            tracing::info!(
                job = %message.job_id,
                webhook = message.id,
                host,
                tries = message.attempts + 1,
                again_in_s = pause.as_secs(),
                "not taken: {}",
                refused.why
            );
            let millis = i64::try_from(pause.as_millis()).unwrap_or(i64::MAX);
            store.webhook_put_off(message.seq, now.plus_millis(millis.max(1))).await
        }
    };
    if let Err(error) = written {
        tracing::warn!(%error, webhook = message.id, "it is sent again");
        // Not at once: the database is in trouble.
        tokio::time::sleep(PAUSE).await;
    }
}

/// Doubled from try to try, up to the longest; a tenth of it is by chance, so that what failed together does not come
/// back together.
fn pause(attempts: u32, settings: &Webhooks) -> Duration {
    let whole = settings.backoff.saturating_mul(1 << attempts.min(20)).min(settings.backoff_max);
    whole.mul_f64(0.9 + 0.1 * rand::random::<f64>())
}

/// Why a message was not taken.
struct Refused {
    why: String,
    /// Asking again is of no use.
    for_good: bool,
    /// As long as the receiver asks for.
    wait: Option<Duration>,
}

impl Refused {
    fn later(why: impl Into<String>) -> Self {
        Self { why: why.into(), for_good: false, wait: None }
    }
}

async fn send(egress: &Egress, settings: &Webhooks, data: PathBuf, message: &WebhookMessage) -> Result<(), Refused> {
    let reach = if settings.allow_private { Reach::Anywhere } else { Reach::Public };
    let url = egress::check(&message.url, reach).map_err(|error| Refused::later(error.to_string()))?;
    let file = settings.secret_file.clone();
    let secrets = tokio::task::spawn_blocking(move || Secrets::load(file.as_deref(), &data)).await;
    let secrets = secrets.map_err(|error| Refused::later(error.to_string()))?.map_err(|error| {
        tracing::error!(%error, "no webhook can be signed");
        Refused::later("there is no secret to sign with")
    })?;
    let timestamp = Timestamp::now().0.div_euclid(1000);
    let request = egress
        .client(reach)
        .post(url)
        .timeout(settings.timeout)
        .header(header::CONTENT_TYPE, "application/json")
        .header("webhook-id", &message.id)
        .header("webhook-timestamp", timestamp)
        .header("webhook-signature", secrets.sign(&message.id, timestamp, &message.body))
        .body(message.body.clone());
    let response = request.send().await.map_err(|error| Refused::later(egress::reason(&error)))?;
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    Err(Refused {
        why: format!("answered {}", status.as_u16()),
        for_good: status == StatusCode::GONE,
        wait: retry_after(&response),
    })
}

/// Seconds only: a date is nothing to rely on between two clocks.
fn retry_after(response: &reqwest::Response) -> Option<Duration> {
    let seconds = response.headers().get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_fill_a_day() {
        let settings = Config::defaults().webhooks;
        let mut day = Duration::ZERO;
        for attempt in 0..40 {
            let ceiling = settings.backoff.saturating_mul(1 << attempt.min(20)).min(settings.backoff_max);
            let pause = pause(attempt, &settings);
            assert!(pause <= ceiling && pause >= ceiling.mul_f64(0.89), "{attempt}: {pause:?} of {ceiling:?}");
            if day < settings.give_up {
                day += pause;
            }
            assert!(attempt < 8 || day > Duration::from_mins(15), "a day is not over soon");
        }
        assert!(day >= settings.give_up, "40 tries reach the end");
    }
}

//! Follows a job to its end: by events while they come, by asking where they do not.
//!
//! The daemon may go away and come back meanwhile; a job outlives that, so following it does too.

use std::time::{Duration, Instant};

use atelier_domain::{Job, JobId, Progress};
use reqwest::{Method, Response, StatusCode, header};
use serde::Deserialize;

use super::{
    client::Client,
    error::{CliError, Exit, Result},
    sse::{Event, Parser},
};

/// How patient following is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// For a daemon that has gone to come back.
    pub(super) unreachable: Duration,
    /// For a silent stream; the daemon says something every 15 s.
    pub(super) silent: Duration,
    /// Between two questions where events do not come.
    pub(super) poll: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { unreachable: Duration::from_mins(1), silent: Duration::from_secs(45), poll: Duration::from_secs(1) }
    }
}

/// What is told of jobs.
pub(super) enum News {
    Job(Box<Job>),
    Progress { id: JobId, progress: Progress },
    Removed(JobId),
}

/// Events of one path, over as many connections as it takes.
struct Feed<'a> {
    client: &'a Client,
    path: String,
    last_id: Option<String>,
    connection: Option<(Response, Parser)>,
    ready: std::collections::VecDeque<News>,
}

/// What became of a connection.
enum Next {
    News(News),
    /// It ended, or was silent for too long.
    Ended,
    /// Events do not come this way.
    Useless,
}

impl<'a> Feed<'a> {
    fn new(client: &'a Client, path: String) -> Self {
        Self { client, path, last_id: None, connection: None, ready: std::collections::VecDeque::new() }
    }

    /// Opens a connection that goes on where the last one ended. False: events do not come this way.
    async fn open(&mut self) -> Result<bool> {
        let mut request = self.client.api(Method::GET, &self.path).header(header::ACCEPT, "text/event-stream");
        if let Some(id) = &self.last_id {
            request = request.header("last-event-id", id);
        }
        let response = match self.client.send(request).await {
            Ok(response) => response,
            // Without what is asked for, or the right to it, asking again does not help.
            Err(error) if matches!(error.exit, Exit::NotFound | Exit::Unreachable | Exit::Usage) => return Err(error),
            Err(_) => return Ok(false),
        };
        let is_stream = response
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .is_some_and(|value| value.starts_with("text/event-stream"));
        if response.status() == StatusCode::NO_CONTENT || !is_stream {
            return Ok(false);
        }
        self.connection = Some((response, Parser::after(self.last_id.clone())));
        Ok(true)
    }

    async fn next(&mut self, silent: Duration) -> Next {
        loop {
            if let Some(news) = self.ready.pop_front() {
                return Next::News(news);
            }
            let Some((response, parser)) = &mut self.connection else { return Next::Ended };
            let bytes = match tokio::time::timeout(silent, response.chunk()).await {
                Ok(Ok(Some(bytes))) => bytes,
                // A proxy that holds events back is silent from the beginning.
                Err(_) if self.last_id.is_none() => {
                    self.connection = None;
                    return Next::Useless;
                }
                Ok(Ok(None) | Err(_)) | Err(_) => {
                    self.connection = None;
                    return Next::Ended;
                }
            };
            let events = parser.push(&bytes);
            self.last_id.clone_from(&parser.last_id);
            match events {
                Ok(events) => self.ready.extend(events.iter().filter_map(read)),
                Err(_) => return Next::Useless,
            }
        }
    }
}

/// An event that this version understands.
fn read(event: &Event) -> Option<News> {
    #[derive(Deserialize)]
    struct Moved {
        id: JobId,
        progress: Progress,
    }
    #[derive(Deserialize)]
    struct Gone {
        id: JobId,
    }
    match event.name.as_str() {
        "job.updated" => serde_json::from_str(&event.data).ok().map(News::Job),
        "job.progress" => {
            serde_json::from_str(&event.data).ok().map(|Moved { id, progress }| News::Progress { id, progress })
        }
        "job.removed" => serde_json::from_str(&event.data).ok().map(|Gone { id }| News::Removed(id)),
        _ => None,
    }
}

/// Follows `id` until it has ended; `tell` hears of every change, the first time of the job as it is.
///
/// # Errors
/// The job is not there (any more), or the daemon stays away.
pub(super) async fn job(client: &Client, id: JobId, patience: Patience, tell: &mut dyn FnMut(&Job)) -> Result<Job> {
    let path = format!("/jobs/{id}");
    let mut feed = Feed::new(client, format!("{path}/events"));
    let mut outage = Outage::new(patience);
    let mut poll = false;
    loop {
        let opened = if poll { Ok(false) } else { feed.open().await };
        let asked: Result<Job> = match opened {
            // Asked after the stream is open, so that nothing falls between the two.
            Ok(useful) => {
                poll = !useful;
                client.get(&path).await
            }
            Err(error) => Err(error),
        };
        let mut current = match asked {
            Ok(job) => job,
            Err(error) if error.exit == Exit::Unreachable => {
                outage.wait(&error, id).await?;
                continue;
            }
            Err(error) => return Err(error),
        };
        outage.over();
        tell(&current);
        if current.status.is_ended() {
            return Ok(current);
        }
        if poll {
            tokio::time::sleep(patience.poll).await;
            continue;
        }
        loop {
            let known = current.progress.updated_at;
            match feed.next(patience.silent).await {
                // A stream begins with what the database knows, which may be older than the answer was.
                Next::News(News::Job(job))
                    if job.id == id && (job.status.is_ended() || job.progress.updated_at >= known) =>
                {
                    current = *job;
                }
                Next::News(News::Progress { id: of, progress }) if of == id && progress.updated_at >= known => {
                    current.progress = progress;
                }
                Next::News(News::Removed(of)) if of == id => {
                    return Err(CliError::new(Exit::NotFound, format!("job {id} was removed")));
                }
                Next::News(_) => continue,
                Next::Ended => {
                    tokio::time::sleep(FIRST_PAUSE).await;
                    break;
                }
                Next::Useless => {
                    poll = true;
                    break;
                }
            }
            tell(&current);
            if current.status.is_ended() {
                return Ok(current);
            }
        }
    }
}

/// Follows all jobs until `tell` has had enough or the daemon stays away.
pub(super) async fn all(
    client: &Client,
    patience: Patience,
    tell: &mut dyn FnMut(News) -> Result,
) -> Result<std::convert::Infallible> {
    let mut feed = Feed::new(client, "/events".to_owned());
    let mut outage = Outage::new(patience);
    loop {
        match feed.open().await {
            Ok(true) => outage.over(),
            Ok(false) => return Err(CliError::failed(format!("{} sends no events", client.base()))),
            Err(error) if error.exit == Exit::Unreachable && feed.last_id.is_some() => {
                outage.wait(&error, "the jobs").await?;
                continue;
            }
            Err(error) => return Err(error),
        }
        while let Next::News(news) = feed.next(patience.silent).await {
            tell(news)?;
        }
        tokio::time::sleep(FIRST_PAUSE).await;
    }
}

/// Counts how long the daemon has been away.
struct Outage {
    patience: Patience,
    since: Option<Instant>,
    pause: Duration,
}

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

impl Outage {
    fn new(patience: Patience) -> Self {
        Self { patience, since: None, pause: FIRST_PAUSE }
    }

    fn over(&mut self) {
        self.since = None;
        self.pause = FIRST_PAUSE;
    }

    async fn wait(&mut self, error: &CliError, what: impl std::fmt::Display) -> Result {
        let since = *self.since.get_or_insert_with(Instant::now);
        if since.elapsed() > self.patience.unreachable {
            return Err(error.clone().hint(format!(
                "an accepted job is not lost: it goes on when the daemon does; then `atelier jobs watch` follows {what} again"
            )));
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Ok(())
    }
}

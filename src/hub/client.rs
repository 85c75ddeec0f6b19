//! Requests to a hub: redirects followed by hand, so that the token goes to the hub itself and to nobody else.

use std::time::Duration;

use reqwest::{Response, StatusCode, Url, header};

use super::{HubError, Patience, RepoId, listing::Listing};
use crate::config::HubAccess;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// As many as browsers follow, about.
const MAX_REDIRECTS: usize = 10;
/// A list of files is a few hundred kilobytes for the largest repositories.
const MAX_LISTING: usize = 32 << 20;
/// No pause is longer, whatever a server asks for.
const MAX_PAUSE: Duration = Duration::from_mins(10);
/// Where pauses stop growing by themselves.
const MAX_OWN_PAUSE: Duration = Duration::from_mins(1);

#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    endpoint: Url,
    access: HubAccess,
    pub(super) patience: Patience,
}

impl Client {
    pub(super) fn new(access: HubAccess, patience: Patience) -> Result<Self, HubError> {
        if access.offline {
            return Err(HubError::Offline);
        }
        let wrong = |why| HubError::Endpoint { endpoint: access.endpoint.clone(), why };
        let endpoint = Url::parse(&access.endpoint).map_err(|_| wrong("it is no address"))?;
        if !matches!(endpoint.scheme(), "http" | "https") {
            return Err(wrong("it begins with neither https:// nor http://"));
        }
        if endpoint.query().is_some() || endpoint.fragment().is_some() || !endpoint.username().is_empty() {
            return Err(wrong("it has more than a host and a path"));
        }
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent(concat!("atelier/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(HubError::transport)?;
        Ok(Self { http, endpoint, access, patience })
    }

    /// Scheme, host and port: what a manifest records as the source.
    pub(super) fn source(&self) -> String {
        self.endpoint.origin().ascii_serialization()
    }

    fn url(&self, parts: &[&str]) -> Url {
        let mut url = self.endpoint.clone();
        // A hub's address is http or https, which both have paths.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(parts);
        }
        url
    }

    pub(super) async fn list(&self, id: &RepoId, revision: &str) -> Result<Listing, HubError> {
        let mut url = self.url(&["api", "models", id.org(), id.name(), "revision", revision]);
        url.set_query(Some("blobs=true"));
        let what = format!("{id} at {revision}");
        let mut failures = 0;
        loop {
            match self.body(&url, &what).await {
                Ok(body) => return Listing::parse(&what, &body),
                Err(error) => {
                    failures += 1;
                    self.after_failure(&what, failures, error).await?;
                }
            }
        }
    }

    async fn body(&self, url: &Url, what: &str) -> Result<Vec<u8>, HubError> {
        let mut response = self.get(url.clone(), None, what).await?;
        let mut body = Vec::new();
        while let Some(bytes) = self.chunk(&mut response).await? {
            if body.len() + bytes.len() > MAX_LISTING {
                return Err(HubError::Answer { what: what.to_owned(), why: "it has no end".to_owned() });
            }
            body.extend_from_slice(&bytes);
        }
        Ok(body)
    }

    /// Where a file of a commit lies.
    pub(super) fn file_url(&self, id: &RepoId, commit: &str, path: &str) -> Url {
        let parts: Vec<&str> = [id.org(), id.name(), "resolve", commit].into_iter().chain(path.split('/')).collect();
        self.url(&parts)
    }

    /// A successful answer, after redirects. `range`: the first byte and the last.
    pub(super) async fn get(&self, url: Url, range: Option<(u64, u64)>, what: &str) -> Result<Response, HubError> {
        let mut url = url;
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.http.get(url.clone()).header(header::ACCEPT_ENCODING, "identity");
            if let Some((first, last)) = range {
                request = request.header(header::RANGE, format!("bytes={first}-{last}"));
            }
            if let Some(token) = &self.access.token
                && self.may_see_token(&url)
            {
                request = request.bearer_auth(token.secret());
            }
            let response = self.in_time(request.send()).await?.map_err(HubError::transport)?;
            if !response.status().is_redirection() {
                return if response.status().is_success() { Ok(response) } else { Err(refusal(&response, what)) };
            }
            url = follow(&url, &response, what)?;
        }
        Err(HubError::Answer { what: what.to_owned(), why: format!("it redirects more than {MAX_REDIRECTS} times") })
    }

    /// The hub itself, over a connection that nobody listens to.
    fn may_see_token(&self, url: &Url) -> bool {
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let is_here =
            host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
        let is_private = url.scheme() == "https" || is_here;
        is_private && url.origin() == self.endpoint.origin()
    }

    /// The next bytes of an answer; `None` at its end.
    pub(super) async fn chunk(&self, response: &mut Response) -> Result<Option<bytes::Bytes>, HubError> {
        self.in_time(response.chunk()).await?.map_err(HubError::transport)
    }

    async fn in_time<T>(&self, work: impl Future<Output = T>) -> Result<T, HubError> {
        let after = self.patience.stall;
        tokio::time::timeout(after, work).await.map_err(|_| HubError::Stalled { after })
    }

    /// Pauses before another try; the error comes back where there is to be none.
    pub(super) async fn after_failure(&self, what: &str, failures: u32, error: HubError) -> Result<(), HubError> {
        if !error.is_transient() {
            return Err(error);
        }
        if failures > self.patience.retries {
            return Err(HubError::GaveUp { what: what.to_owned(), tries: failures, last: Box::new(error) });
        }
        let own = self.patience.pause.saturating_mul(1 << (failures - 1).min(16)).min(MAX_OWN_PAUSE);
        let asked = if let HubError::Busy { retry_after, .. } = &error { *retry_after } else { None };
        let pause = asked.map_or(own, |asked| asked.max(own)).min(MAX_PAUSE);
        tracing::warn!(%error, ?pause, "{what}: trying again");
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

fn follow(from: &Url, response: &Response, what: &str) -> Result<Url, HubError> {
    let wrong = |why: &str| HubError::Answer { what: what.to_owned(), why: why.to_owned() };
    let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
    let to = from.join(location.ok_or_else(|| wrong("it redirects to nowhere"))?);
    let to = to.map_err(|_| wrong("it redirects to what is no address"))?;
    match (from.scheme(), to.scheme()) {
        (_, "https") | ("http", "http") => Ok(to),
        _ => Err(wrong("it redirects to where it may be changed on the way")),
    }
}

/// What an answer that is none means. `X-Error-Code` is the hub's own finer word.
fn refusal(response: &Response, what: &str) -> HubError {
    let status = response.status();
    let text = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
    let code = text("x-error-code").unwrap_or_default();
    let what = what.to_owned();
    match status {
        StatusCode::NOT_FOUND | StatusCode::GONE => HubError::NotFound { what },
        // What the hub says to strangers about what does not exist or is private.
        StatusCode::UNAUTHORIZED if code == "RepoNotFound" => HubError::NotFound { what },
        StatusCode::UNAUTHORIZED => {
            HubError::Refused { status: 401, what, why: "it asks who we are, or does not know the token".to_owned() }
        }
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            let retry_after = text("retry-after").and_then(|value| value.trim().parse().ok()).map(Duration::from_secs);
            HubError::Busy { status: status.as_u16(), retry_after }
        }
        StatusCode::REQUEST_TIMEOUT => HubError::Server { status: status.as_u16() },
        status if status.is_server_error() => HubError::Server { status: status.as_u16() },
        status => {
            let why = if code == "GatedRepo" { "it is gated" } else { "it is not for everybody" };
            HubError::Refused { status: status.as_u16(), what, why: why.to_owned() }
        }
    }
}

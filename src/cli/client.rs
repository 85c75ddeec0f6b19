//! Speaks with the daemon over its HTTP API.

use std::{io, net::SocketAddr, path::Path, time::Duration};

use reqwest::{Method, RequestBuilder, Response, StatusCode, header};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    args::Global,
    error::{CliError, Exit, Result},
};
use crate::{config::Config, daemon_note::DaemonNote};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For answers that need no work.
const ANSWER_TIMEOUT: Duration = Duration::from_mins(1);
const API: &str = "/api/v1";

pub(super) struct Client {
    http: reqwest::Client,
    /// Scheme, host and port.
    base: String,
    token: Option<String>,
}

/// The body of an error, as far as we need it.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Problem {
    title: String,
    detail: String,
    code: String,
    hint: String,
    request_id: String,
}

impl Client {
    /// The daemon that `--server` names, else the one that the configuration's data folder knows of, else the
    /// configured address.
    pub(super) fn new(global: &Global) -> Result<Self> {
        let token = explicit_token(global)?;
        if let Some(server) = &global.server {
            return Self::at(server, token);
        }
        Self::of_config(&global.load(&[])?.config, token)
    }

    /// The daemon of a configuration, on this machine.
    pub(super) fn of_config(config: &Config, token: Option<String>) -> Result<Self> {
        let address = match running(&config.paths.data) {
            Some(address) => address,
            None => reachable(config.server.listen).to_string(),
        };
        // Whoever may read the daemon's own tokens need not be told to name them.
        let token = token.or_else(|| {
            let text = std::fs::read_to_string(config.server.tokens_file.as_ref()?).ok()?;
            first_token(&text)
        });
        Self::at(&address, token)
    }

    pub(super) fn at(server: &str, token: Option<String>) -> Result<Self> {
        if server.starts_with("https://") {
            return Err(CliError::usage(format!("{server}: this program speaks plain HTTP only"))
                .hint("for a daemon elsewhere use a tunnel, such as ssh -L 8470:127.0.0.1:8470 HOST"));
        }
        let server = server.strip_suffix('/').filter(|rest| !rest.ends_with('/')).unwrap_or(server);
        let base = if server.contains("://") { server.to_owned() } else { format!("http://{server}") };
        let wrong = || {
            CliError::usage(format!("{server:?} is not the address of a daemon")).hint("such as http://127.0.0.1:8470")
        };
        let url = reqwest::Url::parse(&base).map_err(|_| wrong())?;
        if url.scheme() != "http" || url.host().is_none() || url.path() != "/" || url.query().is_some() {
            return Err(wrong());
        }
        if token.as_ref().is_some_and(|token| !token.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(CliError::usage("a token is made of visible ASCII characters, without spaces"));
        }
        let http = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent(concat!("atelier/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| CliError::failed(format!("the HTTP client: {error}")))?;
        Ok(Self { http, base, token })
    }

    pub(super) fn base(&self) -> &str {
        &self.base
    }

    /// A request to `path`, which begins with a slash and counts from the server's root.
    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    pub(super) fn api(&self, method: Method, path: &str) -> RequestBuilder {
        self.request(method, &format!("{API}{path}"))
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.answer(self.api(Method::GET, path).timeout(ANSWER_TIMEOUT)).await
    }

    pub(super) async fn post<T: DeserializeOwned>(&self, path: &str, body: Option<&Value>) -> Result<T> {
        let request = self.api(Method::POST, path);
        self.answer(match body {
            Some(body) => request.json(body),
            None => request,
        })
        .await
    }

    pub(super) async fn delete(&self, path: &str) -> Result {
        self.send(self.api(Method::DELETE, path).timeout(ANSWER_TIMEOUT)).await.map(drop)
    }

    /// Whether something answers there, and what `/healthz` says.
    pub(super) async fn health(&self) -> Result<Value> {
        let request = self.request(Method::GET, "/healthz").timeout(CONNECT_TIMEOUT);
        let response = self.send(request).await?;
        let text = response.text().await.map_err(|error| self.transport(&error))?;
        Ok(serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// Sends a request whose answer is JSON.
    pub(super) async fn answer<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T> {
        let response = self.send(request).await?;
        let body = response.bytes().await.map_err(|error| self.transport(&error))?;
        serde_json::from_slice(&body).map_err(|error| {
            CliError::failed(format!("{} answered what this version does not understand: {error}", self.base))
                .hint("compare `atelier --version` with the daemon's")
        })
    }

    /// Sends a request; an answer that is an error becomes one.
    pub(super) async fn send(&self, request: RequestBuilder) -> Result<Response> {
        let response = request.send().await.map_err(|error| self.transport(&error))?;
        if response.status().is_success() { Ok(response) } else { Err(refusal(response).await) }
    }

    /// The bytes of an output; `url` is the one that the job names.
    pub(super) async fn open(&self, url: &str) -> Result<Response> {
        if !url.starts_with('/') {
            return Err(CliError::failed(format!("the daemon names {url:?} as an output, which is no path")));
        }
        self.send(self.request(Method::GET, url)).await
    }

    pub(super) fn transport(&self, error: &reqwest::Error) -> CliError {
        let mut cause: &dyn std::error::Error = error;
        while let Some(source) = cause.source() {
            if let Some(io) = source.downcast_ref::<LocalFile>() {
                return CliError::usage(io.to_string());
            }
            cause = source;
        }
        let what = if error.is_connect() { "cannot be reached" } else { "does not answer as it should" };
        CliError::new(Exit::Unreachable, format!("the daemon at {} {what}: {cause}", self.base))
            .hint("`atelier serve` starts one; --server names another")
    }
}

/// A file of ours failed while it was being sent.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {error}")]
pub(super) struct LocalFile {
    pub(super) path: String,
    pub(super) error: io::Error,
}

async fn refusal(response: Response) -> CliError {
    let status = response.status();
    let retry_after = response
        .headers()
        .get(header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok())
        .map(|seconds| format!("try again in {seconds} s"));
    let body = response.bytes().await.unwrap_or_default();
    let problem: Problem = serde_json::from_slice(&body).unwrap_or_default();
    let message = [problem.detail, problem.title].into_iter().find(|text| !text.is_empty());
    let mut message = message.unwrap_or_else(|| format!("the daemon answered {status}"));
    if status.is_server_error() && !problem.request_id.is_empty() {
        message = format!("{message} (request {})", problem.request_id);
    }
    let hint = match problem.code.as_str() {
        "unauthorized" | "forbidden" if problem.hint.is_empty() => {
            "name a token with --token-file FILE or ATELIER_TOKEN".to_owned()
        }
        _ => [Some(problem.hint).filter(|hint| !hint.is_empty()), retry_after]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join("\n"),
    };
    CliError::new(exit_of(status, &problem.code), message).hint(hint)
}

/// What a refusal means for the exit code: a picture that cannot be used is a job that fails.
fn exit_of(status: StatusCode, code: &str) -> Exit {
    if status == StatusCode::NOT_FOUND {
        return Exit::NotFound;
    }
    if code.starts_with("image_") || code == "upload_too_large" {
        return Exit::Failed;
    }
    match status.as_u16() {
        400 | 401 | 403 | 405 | 413 | 415 | 422 => Exit::Usage,
        _ => Exit::Failed,
    }
}

/// The token of `--token-file`, else of `ATELIER_TOKEN`.
pub(super) fn explicit_token(global: &Global) -> Result<Option<String>> {
    let Some(path) = &global.token_file else { return Ok(global.token.clone().filter(|token| !token.is_empty())) };
    let text =
        std::fs::read_to_string(path).map_err(|error| CliError::usage(format!("{}: {error}", path.display())))?;
    match first_token(&text) {
        Some(token) => Ok(Some(token)),
        None => Err(CliError::usage(format!("{} holds no token", path.display())).hint("one token a line")),
    }
}

/// The first token of a file as the daemon reads it: `TOKEN` or `NAME: TOKEN` a line, `#` comments.
fn first_token(text: &str) -> Option<String> {
    // A line with a hash in the place of its token is of no use to whoever wants to show one.
    let is_hashed = |line: &&str| {
        line.rsplit_once(':').is_some_and(|(rest, hash)| {
            rest.contains(':') && hash.trim().len() == 64 && hash.trim().bytes().all(|b| b.is_ascii_hexdigit())
        })
    };
    let line =
        text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#') && !is_hashed(line))?;
    let token = line.split_once(':').map_or(line, |(_, token)| token.trim());
    Some(token.to_owned()).filter(|token| !token.is_empty())
}

/// Where the daemon that uses a data folder listens, if one is at work.
fn running(data: &Path) -> Option<String> {
    let note = DaemonNote::read(data)?;
    match note.address.parse::<SocketAddr>() {
        Ok(address) => Some(reachable(address).to_string()),
        Err(_) => Some(note.address).filter(|address| !address.is_empty()),
    }
}

/// A daemon on all addresses is reached on loopback.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_be_short() {
        let base = |server: &str| Client::at(server, None).map(|client| client.base).map_err(|error| error.exit);
        assert_eq!(base("127.0.0.1:8470"), Ok("http://127.0.0.1:8470".into()));
        assert_eq!(base("http://host:1/"), Ok("http://host:1".into()));
        assert_eq!(base("localhost:8470"), Ok("http://localhost:8470".into()));
        for wrong in ["https://host", "ftp://host", "http://", "http://host/path", "a b", ""] {
            assert_eq!(base(wrong), Err(Exit::Usage), "{wrong}");
        }
    }

    #[test]
    fn a_daemon_on_all_addresses_is_reached_on_loopback() {
        assert_eq!(reachable(([0, 0, 0, 0], 7).into()).to_string(), "127.0.0.1:7");
        assert_eq!(reachable("[::]:7".parse().expect("an address")).to_string(), "[::1]:7");
        assert_eq!(reachable(([10, 0, 0, 1], 7).into()).to_string(), "10.0.0.1:7");
    }

    #[test]
    fn the_first_token_counts() {
        assert_eq!(first_token("# mine\n\n  laptop: abc \nphone: def\n").as_deref(), Some("abc"));
        assert_eq!(first_token("abc").as_deref(), Some("abc"));
        let hashed = format!("phone:read:{}\nlaptop:abc\n", "0f".repeat(32));
        assert_eq!(first_token(&hashed).as_deref(), Some("abc"));
        assert_eq!(first_token("# none\n"), None);
        assert_eq!(first_token("name:\n"), None);
    }

    #[test]
    fn the_exit_code_tells_what_a_refusal_means() {
        for (status, code, exit) in [
            (404, "not_found", Exit::NotFound),
            (422, "image_truncated", Exit::Failed),
            (413, "upload_too_large", Exit::Failed),
            (422, "invalid_params", Exit::Usage),
            (401, "unauthorized", Exit::Usage),
            (409, "conflict", Exit::Failed),
            (429, "queue_full", Exit::Failed),
            (500, "internal", Exit::Failed),
        ] {
            assert_eq!(exit_of(StatusCode::from_u16(status).expect("a status"), code), exit, "{code}");
        }
    }
}

//! Who may speak with the daemon: bearer tokens, and without any, only what comes from this machine.
//!
//! A browser on this machine speaks for every page that it shows. So without tokens the name that a request was sent
//! to must be this machine's own (a rebound DNS name is not), and a page of another origin must be allowed by
//! `server.allowed_origins`.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use atelier_domain::ErrorCode;
use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Uri, header, uri::Authority},
    middleware::Next,
    response::Response,
};
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConstantTimeEq as _};

use super::{Http, dashboard, problem::Problem, status::HttpCode};
use crate::config::Server;

/// How often the tokens' file is looked at, for changes.
const LOOK: Duration = Duration::from_secs(1);

/// The tokens' file cannot be used. The daemon does not start then: it would be open, or closed for everybody.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    #[error("{}: {error}", path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error("{}:{line}: {what}", path.display())]
    Line { path: PathBuf, line: usize, what: &'static str },
    #[error("{} holds no token", path.display())]
    Empty { path: PathBuf },
}

/// Who sends a request, in the request's extensions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Caller {
    /// What the tokens' file calls the token.
    pub(crate) name: Option<Arc<str>>,
}

struct Token {
    name: Option<Arc<str>>,
    digest: [u8; 32],
}

/// All tokens. Only their hashes are kept.
struct Tokens(Vec<Token>);

impl Tokens {
    fn parse(path: &Path, text: &str) -> Result<Self, TokensError> {
        let mut tokens = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (name, token) = match line.split_once(':') {
                Some((name, token)) => (Some(name.trim()), token.trim()),
                None => (None, line),
            };
            let wrong = |what| Err(TokensError::Line { path: path.to_owned(), line: index + 1, what });
            if token.is_empty() {
                return wrong("a name without a token");
            }
            if !token.bytes().all(|b| b.is_ascii_graphic()) {
                return wrong("a token is made of visible ASCII characters, without spaces");
            }
            tokens.push(Token { name: name.map(Arc::from), digest: Sha256::digest(token).into() });
        }
        if tokens.is_empty() { Err(TokensError::Empty { path: path.to_owned() }) } else { Ok(Self(tokens)) }
    }

    /// Compares with every token, in a time that does not depend on them.
    fn find(&self, presented: &[u8]) -> Option<&Token> {
        let digest: [u8; 32] = Sha256::digest(presented).into();
        let mut found = None;
        for token in &self.0 {
            let equal: Choice = token.digest.ct_eq(&digest);
            if bool::from(equal) {
                found = Some(token);
            }
        }
        found
    }
}

/// What tells a file from the one that was read.
type Stamp = (u64, u64, i64, i64);

struct TokensFile {
    path: PathBuf,
    state: Mutex<FileState>,
}

struct FileState {
    tokens: Arc<Tokens>,
    stamp: Option<Stamp>,
    looked: Instant,
}

impl TokensFile {
    fn open(path: &Path) -> Result<Self, TokensError> {
        let stamp = Self::stamp(path);
        let tokens = Arc::new(Self::read(path)?);
        let state = Mutex::new(FileState { tokens, stamp, looked: Instant::now() });
        Ok(Self { path: path.to_owned(), state })
    }

    fn read(path: &Path) -> Result<Tokens, TokensError> {
        let text = fs::read_to_string(path).map_err(|error| TokensError::Read { path: path.to_owned(), error })?;
        Tokens::parse(path, &text)
    }

    fn stamp(path: &Path) -> Option<Stamp> {
        fs::metadata(path).ok().map(|meta| (meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()))
    }

    /// The tokens as the file has them now. A file that cannot be read leaves the tokens as they were.
    fn current(&self) -> Arc<Tokens> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.looked.elapsed() >= LOOK {
            state.looked = Instant::now();
            let stamp = Self::stamp(&self.path);
            if stamp != state.stamp {
                state.stamp = stamp;
                match Self::read(&self.path) {
                    Ok(tokens) => {
                        tracing::info!(file = %self.path.display(), tokens = tokens.0.len(), "read the tokens again");
                        state.tokens = Arc::new(tokens);
                    }
                    Err(error) => tracing::error!(%error, "the tokens stay as they were"),
                }
            }
        }
        state.tokens.clone()
    }
}

/// The doors.
pub(crate) struct Access {
    tokens: Option<TokensFile>,
}

impl Access {
    pub(crate) fn open(server: &Server) -> Result<Self, TokensError> {
        let tokens = server.tokens_file.as_deref().map(TokensFile::open).transpose()?;
        Ok(Self { tokens })
    }

    pub(crate) fn has_tokens(&self) -> bool {
        self.tokens.is_some()
    }

    fn check(&self, headers: &HeaderMap, uri: &Uri, allowed_origins: &[String]) -> Result<Caller, Problem> {
        if let Some(file) = &self.tokens {
            return bearer(&file.current(), headers);
        }
        check_host(headers, uri, allowed_origins)?;
        check_origin(headers, allowed_origins)?;
        Ok(Caller::default())
    }
}

fn bearer(tokens: &Tokens, headers: &HeaderMap) -> Result<Caller, Problem> {
    let refused = |challenge: &'static str, detail: &str| {
        Err(Problem::new(ErrorCode::Unauthorized, detail)
            .with_hint("send the header `Authorization: Bearer TOKEN`")
            .with_header(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge)))
    };
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        return refused("Bearer realm=\"atelier\"", "this server needs a token");
    };
    match tokens.find(&presented(value.as_bytes())) {
        Some(token) => Ok(Caller { name: token.name.clone() }),
        None => refused("Bearer realm=\"atelier\", error=\"invalid_token\"", "the token is not known"),
    }
}

/// The token in an `Authorization`: after `Bearer`, after `Token` (older clients of Replicate), or as the password of
/// `Basic` (clients of A1111, whatever the user's name).
fn presented(value: &[u8]) -> Vec<u8> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let after = |scheme: &[u8]| {
        let (given, rest) = value.split_at_checked(scheme.len())?;
        given.eq_ignore_ascii_case(scheme).then(|| rest.trim_ascii())
    };
    if let Some(token) = after(b"bearer ").or_else(|| after(b"token ")) {
        return token.to_vec();
    }
    let pair = after(b"basic ").and_then(|pair| STANDARD.decode(pair).ok()).unwrap_or_default();
    pair.iter().position(|byte| *byte == b':').map(|colon| pair[colon + 1..].to_vec()).unwrap_or_default()
}

/// Whether a `Host` can only mean this machine.
fn is_local(host: &str) -> bool {
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) => address.is_loopback(),
        Ok(IpAddr::V6(address)) => {
            address.is_loopback() || address.to_ipv4_mapped().is_some_and(|mapped: Ipv4Addr| mapped.is_loopback())
        }
        Err(_) => {
            let host = host.to_ascii_lowercase();
            host == "localhost" || host.ends_with(".localhost")
        }
    }
}

fn check_host(headers: &HeaderMap, uri: &Uri, allowed_origins: &[String]) -> Result<(), Problem> {
    let hosts: Vec<_> = headers.get_all(header::HOST).iter().collect();
    let [host] = hosts.as_slice() else {
        return Err(Problem::http(HttpCode::MalformedRequest, "a request names its Host once"));
    };
    let host: Authority = host
        .to_str()
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| Problem::http(HttpCode::MalformedRequest, "the Host cannot be read"))?;
    for authority in [Some(&host), uri.authority()].into_iter().flatten() {
        let allowed = || allowed_origins.iter().any(|origin| authority_of(origin) == Some(authority.as_str()));
        if !is_local(authority.host()) && !allowed() {
            return Err(Problem::new(ErrorCode::Forbidden, format!("{authority} is not a name of this machine"))
                .with_hint("without server.tokens_file only localhost and its addresses are answered"));
        }
    }
    Ok(())
}

fn authority_of(origin: &str) -> Option<&str> {
    origin.split_once("://").map(|(_, authority)| authority)
}

/// The page behind a request, where it is a page, must be our own or an allowed one.
fn check_origin(headers: &HeaderMap, allowed_origins: &[String]) -> Result<(), Problem> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().unwrap_or("?");
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let is_ours = host.is_some() && authority_of(origin) == host;
    if is_ours || is_allowed(origin, allowed_origins) {
        return Ok(());
    }
    let shown: String = origin.chars().take(100).collect();
    Err(Problem::new(ErrorCode::Forbidden, format!("pages of {shown} may not use this server"))
        .with_hint("server.allowed_origins lists those that may"))
}

/// Origins are compared letter by letter, as browsers do.
pub(crate) fn is_allowed(origin: &str, allowed_origins: &[String]) -> bool {
    allowed_origins.iter().any(|allowed| allowed == origin)
}

impl Http {
    /// Browsers hold back other origins' reads, but not their WebSockets.
    pub(crate) fn check_socket_origin(&self, headers: &HeaderMap) -> Result<(), Problem> {
        check_origin(headers, &self.app.config().server.allowed_origins)
    }
}

/// What tells nothing: whether the daemon is up, and the dashboard's own files.
fn needs_no_token(request: &Request) -> bool {
    let path = request.uri().path();
    matches!(path, "/healthz" | "/readyz")
        || dashboard::PATHS.contains(&path)
        || (path == "/" && dashboard::wants_page(request.headers()))
}

/// The layer before every route but the probes.
pub(crate) async fn guard(
    State(http): State<Arc<Http>>,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    if !needs_no_token(&request) {
        let config = http.app.config();
        let caller = http.access.check(request.headers(), request.uri(), &config.server.allowed_origins)?;
        if let Some(name) = &caller.name {
            tracing::Span::current().record("token", name.as_ref());
        }
        request.extensions_mut().insert(caller);
    }
    Ok(next.run(request).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                (header::HeaderName::from_static(name), HeaderValue::from_str(value).expect("header value"))
            })
            .collect()
    }

    fn code(result: Result<(), Problem>) -> &'static str {
        result.map_or_else(|problem| problem.code(), |()| "ok")
    }

    #[test]
    fn a_token_is_presented_in_three_ways() {
        assert_eq!(presented(b"Bearer abc"), b"abc");
        assert_eq!(presented(b"token  abc "), b"abc");
        // `me:abc:d` and `abc`.
        assert_eq!(presented(b"Basic bWU6YWJjOmQ="), b"abc:d");
        for none in [&b"Basic YWJj"[..], b"Basic ???", b"abc", b"Bearer", b"", b"Digest abc"] {
            assert_eq!(presented(none), b"", "{}", String::from_utf8_lossy(none));
        }
    }

    #[test]
    fn only_names_of_this_machine_pass_without_tokens() {
        let uri = Uri::from_static("/");
        let host = |host: &str| code(check_host(&headers(&[("host", host)]), &uri, &["http://studio.lan:8470".into()]));
        for local in [
            "localhost",
            "LOCALHOST:8470",
            "127.0.0.1:8470",
            "127.8.9.1",
            "[::1]:8470",
            "[::ffff:127.0.0.1]",
            "a.localhost",
            "studio.lan:8470",
        ] {
            assert_eq!(host(local), "ok", "{local}");
        }
        for other in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "10.0.0.1",
            "[::]",
            "0.0.0.0",
            "studio.lan",
            "128.0.0.1",
        ] {
            assert_eq!(host(other), "forbidden", "{other}");
        }
        assert_eq!(code(check_host(&HeaderMap::new(), &uri, &[])), "malformed_request");
        let absolute = Uri::from_static("http://evil.example/");
        assert_eq!(code(check_host(&headers(&[("host", "localhost")]), &absolute, &[])), "forbidden");
    }

    #[test]
    fn a_page_is_our_own_or_allowed() {
        let allowed = ["https://studio.example".to_owned()];
        let origin =
            |origin: &str| code(check_origin(&headers(&[("host", "127.0.0.1:8470"), ("origin", origin)]), &allowed));
        assert_eq!(origin("http://127.0.0.1:8470"), "ok");
        assert_eq!(origin("https://studio.example"), "ok");
        for other in [
            "null",
            "http://127.0.0.1:3000",
            "https://studio.example.evil",
            "https://studio.example:444",
            "http://studio.example",
            "https://evil.example",
        ] {
            assert_eq!(origin(other), "forbidden", "{other}");
        }
        assert_eq!(code(check_origin(&headers(&[("host", "localhost")]), &allowed)), "ok");
    }

    #[test]
    fn a_token_is_known_whole_or_not_at_all() {
        let text = "# comment\n\nsecret-one\nlaptop: secret-two\n";
        let tokens = Tokens::parse(Path::new("tokens"), text).expect("parses");
        let ask = |value: &str| bearer(&tokens, &headers(&[("authorization", value)])).map(|caller| caller.name);
        assert_eq!(ask("Bearer secret-one").expect("known"), None);
        assert_eq!(ask("bearer  secret-two ").expect("known").as_deref(), Some("laptop"));
        for wrong in [
            "Bearer secret-on",
            "Bearer secret-one1",
            "Bearer ",
            "Basic secret-one",
            "secret-one",
            "Bearer laptop: secret-two",
            "Bearer # comment",
        ] {
            assert_eq!(ask(wrong).expect_err(wrong).code(), "unauthorized", "{wrong}");
        }
        assert_eq!(bearer(&tokens, &HeaderMap::new()).expect_err("none").code(), "unauthorized");
    }

    #[test]
    fn a_tokens_file_that_says_nothing_or_rubbish_is_refused() {
        let parse = |text: &str| Tokens::parse(Path::new("tokens"), text).map(|_| ()).map_err(|e| e.to_string());
        assert_eq!(parse("# nothing\n"), Err("tokens holds no token".into()));
        assert_eq!(parse("ok\nname:\n"), Err("tokens:2: a name without a token".into()));
        assert!(parse("two words").is_err());
        assert!(TokensFile::open(Path::new("/nonexistent/tokens")).is_err());
    }

    #[test]
    fn a_changed_file_is_read_again_and_a_broken_one_is_not() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("tokens");
        fs::write(&path, "one").expect("write");
        let file = TokensFile::open(&path).expect("opens");
        let look_again = || {
            let past = Instant::now().checked_sub(2 * LOOK).expect("the clock is older than that");
            file.state.lock().expect("lock").looked = past;
            file.current()
        };
        fs::write(&path, "one\ntwo").expect("write");
        assert!(look_again().find(b"two").is_some());
        fs::remove_file(&path).expect("remove");
        assert!(look_again().find(b"two").is_some(), "a vanished file locks nobody out and lets nobody in");
        fs::write(&path, "three").expect("write");
        assert!(look_again().find(b"three").is_some());
        assert!(look_again().find(b"two").is_none());
    }
}

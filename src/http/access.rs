//! Who may speak with the daemon: bearer tokens, and without any, only what comes from this machine.
//!
//! A browser on this machine speaks for every page that it shows. So without tokens the name that a request was sent
//! to must be this machine's own (a rebound DNS name is not), and a page of another origin must be allowed by
//! `server.allowed_origins`. `server.allowed_hosts` holds with tokens too.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use atelier_domain::{ErrorCode, Timestamp};
use axum::{
    extract::{ConnectInfo, MatchedPath, Request, State},
    http::{HeaderMap, HeaderValue, Uri, header, uri::Authority},
    middleware::Next,
    response::Response,
};

use super::{
    Http, dashboard,
    problem::Problem,
    rate::{Rates, Who},
    scope::{self, Scope},
    status::HttpCode,
    tokens::{TokenDigest, Tokens, TokensError, TokensFile},
};
use crate::config::Server;

/// Who sends a request, in the request's extensions.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// What the tokens' file calls the token.
    pub(crate) name: Option<Arc<str>>,
    scope: Scope,
    token: Option<TokenDigest>,
}

impl Caller {
    /// Whoever speaks from this machine, where no tokens are asked for.
    const LOCAL: Self = Self { name: None, scope: Scope::Admin, token: None };

    fn may(&self, needed: Scope) -> Result<(), Problem> {
        if self.scope >= needed {
            return Ok(());
        }
        let (has, needs) = (self.scope.as_str(), needed.as_str());
        Err(Problem::new(ErrorCode::Forbidden, format!("this needs a token of scope {needs}, and yours is of {has}"))
            .with_hint("the scope stands in the server's file of tokens"))
    }
}

/// The doors.
pub(crate) struct Access {
    tokens: Option<TokensFile>,
    rates: Rates,
}

impl Access {
    pub(crate) fn open(server: &Server) -> Result<Self, TokensError> {
        let tokens = server.tokens_file.as_deref().map(TokensFile::open).transpose()?;
        Ok(Self { tokens, rates: Rates::default() })
    }

    pub(crate) fn has_tokens(&self) -> bool {
        self.tokens.is_some()
    }

    /// `is_public`: what is asked for is no secret, and a browser that opens a page shows no token.
    fn check(&self, headers: &HeaderMap, uri: &Uri, server: &Server, is_public: bool) -> Result<Caller, Problem> {
        if self.tokens.is_none() || !server.allowed_hosts.is_empty() {
            check_host(headers, uri, server)?;
        }
        if is_public {
            return Ok(Caller { scope: Scope::Read, ..Caller::LOCAL });
        }
        if let Some(file) = &self.tokens {
            return bearer(&file.current(), headers);
        }
        check_origin(headers, &server.allowed_origins)?;
        Ok(Caller::LOCAL)
    }

    /// Counts the request. Whoever shows no token that is known counts by address, so that tokens cannot be guessed
    /// fast.
    fn count(&self, caller: Option<&Caller>, peer: Option<SocketAddr>, per_minute: u32) -> Result<(), Problem> {
        let address = || Who::Address(peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.ip()));
        let who = caller.and_then(|caller| caller.token).map_or_else(address, Who::Token);
        self.rates.take(who, per_minute, Instant::now()).map_err(|wait| {
            Problem::http(HttpCode::RateLimited, format!("more than {per_minute} requests a minute"))
                .with_hint("server.rate_limit sets the bound")
                .retry_after(wait.as_secs() + 1)
        })
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
        Some(token) => Ok(Caller { name: token.name.clone(), scope: token.scope, token: Some(token.digest) }),
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

fn check_host(headers: &HeaderMap, uri: &Uri, server: &Server) -> Result<(), Problem> {
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
        let name = authority.host().to_ascii_lowercase();
        let allowed = || {
            server.allowed_hosts.contains(&name)
                || server.allowed_origins.iter().any(|origin| authority_of(origin) == Some(authority.as_str()))
        };
        if !is_local(&name) && !allowed() {
            return Err(Problem::new(ErrorCode::Forbidden, format!("{authority} is not a name of this server"))
                .with_hint("server.allowed_hosts lists the names that are answered beside localhost"));
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
    /// Whether the address itself says that it may be read.
    fn is_signed(&self, request: &Request) -> bool {
        let opens = |links: &super::links::Links| links.opens(request.method(), request.uri(), Timestamp::now());
        self.links.as_ref().is_some_and(opens)
    }

    /// Browsers hold back other origins' reads, but not their WebSockets.
    pub(crate) fn check_socket_origin(&self, headers: &HeaderMap) -> Result<(), Problem> {
        check_origin(headers, &self.app.config().server.allowed_origins)
    }
}

/// What the API looks like; the same in every Atelier.
const PUBLIC: [&str; 3] = ["/docs", "/docs/rapidoc-min.js", "/openapi.json"];
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
        let is_public = PUBLIC.contains(&request.uri().path()) || http.is_signed(&request);
        let checked = http.access.check(request.headers(), request.uri(), &config.server, is_public);
        let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0);
        http.access.count(checked.as_ref().ok(), peer, config.server.rate_limit)?;
        let caller = checked?;
        let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
        caller.may(scope::needed(request.method(), route))?;
        if let Some(name) = &caller.name {
            tracing::Span::current().record("token", name.as_ref());
        }
        request.extensions_mut().insert(caller);
    }
    Ok(next.run(request).await)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

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
        let server = Server {
            allowed_origins: vec!["http://studio.lan:8470".into()],
            allowed_hosts: vec!["atelier.example".into()],
            ..Config::defaults().server
        };
        let host = |host: &str| code(check_host(&headers(&[("host", host)]), &uri, &server));
        for local in [
            "localhost",
            "LOCALHOST:8470",
            "127.0.0.1:8470",
            "127.8.9.1",
            "[::1]:8470",
            "[::ffff:127.0.0.1]",
            "a.localhost",
            "studio.lan:8470",
            "atelier.example",
            "Atelier.Example:99",
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
            "x.atelier.example",
            "128.0.0.1",
        ] {
            assert_eq!(host(other), "forbidden", "{other}");
        }
        assert_eq!(code(check_host(&HeaderMap::new(), &uri, &server)), "malformed_request");
        let absolute = Uri::from_static("http://evil.example/");
        assert_eq!(code(check_host(&headers(&[("host", "localhost")]), &absolute, &server)), "forbidden");
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
}

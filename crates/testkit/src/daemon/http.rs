//! A small HTTP client for tests: every answer is an answer, whatever its status.

use std::{
    io::{BufRead, BufReader},
    time::Duration,
};

use serde_json::Value;
use ureq::{
    Agent, Body,
    http::{HeaderMap, Request, Response},
};

use crate::wait::PATIENCE;

/// Speaks to one server. Every request has a connection of its own, so that a restart leaves nothing stale.
#[derive(Clone, Debug)]
pub struct Http {
    base: String,
    agent: Agent,
}

/// What a server answered.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {}", self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header's value, empty where it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The same answer, where its status is `status`.
    #[track_caller]
    #[expect(clippy::return_self_not_must_use, reason = "often the check alone is wanted")]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text());
        self
    }
}

/// One part of a multipart request.
#[derive(Clone, Debug)]
pub struct Part<'a> {
    pub name: &'a str,
    pub file_name: Option<&'a str>,
    pub content_type: Option<&'a str>,
    pub body: &'a [u8],
}

impl<'a> Part<'a> {
    /// A field without a file name.
    pub fn field(name: &'a str, text: &'a str) -> Self {
        Self { name, file_name: None, content_type: None, body: text.as_bytes() }
    }

    pub fn file(name: &'a str, file_name: &'a str, body: &'a [u8]) -> Self {
        Self { name, file_name: Some(file_name), content_type: Some("application/octet-stream"), body }
    }
}

/// The content type and the body of a multipart request.
pub fn multipart(parts: &[Part<'_>]) -> (String, Vec<u8>) {
    // Longer than any line of text; binary content does not contain it by chance.
    let boundary = "------------------------atelier-testkit-3f9a61c27be84d05";
    let mut body = Vec::new();
    for part in parts {
        let quoted = |name: &str| name.replace('\\', "\\\\").replace('"', "\\\"");
        let file_name = part.file_name.map(|name| format!("; filename=\"{}\"", quoted(name))).unwrap_or_default();
        let content_type = part.content_type.map(|name| format!("\r\nContent-Type: {name}")).unwrap_or_default();
        let name = quoted(part.name);
        let head = format!("Content-Disposition: form-data; name=\"{name}\"{file_name}{content_type}\r\n\r\n");
        let opening = format!("--{boundary}\r\n");
        body.extend([opening.as_bytes(), head.as_bytes(), part.body, b"\r\n"].concat());
    }
    body.extend(format!("--{boundary}--\r\n").bytes());
    (format!("multipart/form-data; boundary={boundary}"), body)
}

impl Http {
    /// `address` is `host:port`.
    pub fn new(address: &str) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .allow_non_standard_methods(true)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .max_idle_connections(0)
            .proxy(None)
            .timeout_global(Some(2 * PATIENCE))
            .build();
        Self { base: format!("http://{address}"), agent: config.new_agent() }
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// Any request.
    ///
    /// # Errors
    /// No connection, or one that broke.
    pub fn try_send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Answer, ureq::Error> {
        let mut response = self.open(method, path, headers, body)?;
        let body = response.body_mut().with_config().limit(1 << 30).read_to_vec()?;
        Ok(Answer { status: response.status().as_u16(), headers: response.headers().clone(), body })
    }

    #[track_caller]
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.try_send(method, path, headers, body).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], &[])
    }

    #[track_caller]
    pub fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, &[], &[])
    }

    #[track_caller]
    pub fn post(&self, path: &str, json: &Value) -> Answer {
        self.send("POST", path, &[("Content-Type", "application/json")], json.to_string().as_bytes())
    }

    #[track_caller]
    pub fn post_multipart(&self, path: &str, parts: &[Part<'_>]) -> Answer {
        let (content_type, body) = multipart(parts);
        self.send("POST", path, &[("Content-Type", &content_type)], &body)
    }

    /// An answer that goes on, such as an event stream, line by line. A read fails after `patience` in all.
    #[track_caller]
    pub fn stream(&self, path: &str, headers: &[(&str, &str)], patience: Duration) -> impl BufRead + use<> {
        let agent = self.agent.config().clone();
        let request = request("GET", &self.url(path), headers, &[]);
        let request = agent.new_agent().configure_request(request).timeout_global(Some(patience)).build();
        let response = self.agent.run(request).unwrap_or_else(|error| panic!("GET {path}: {error}"));
        assert!(response.status().is_success(), "GET {path}: {}", response.status());
        BufReader::new(response.into_body().into_reader())
    }

    fn open(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Response<Body>, ureq::Error> {
        self.agent.run(request(method, &self.url(path), headers, body))
    }
}

fn request<'a>(method: &str, url: &str, headers: &[(&str, &str)], body: &'a [u8]) -> Request<&'a [u8]> {
    let builder = Request::builder().method(method).uri(url);
    let builder = headers.iter().fold(builder, |builder, (name, value)| builder.header(*name, *value));
    builder.body(body).expect("a valid request")
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::TcpListener,
        thread::JoinHandle,
    };

    use super::*;

    /// Answers one request with `answer`, and gives what was sent.
    fn serve_once(answer: &'static [u8], request_ends_with: &'static [u8]) -> (String, JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
            while !seen.ends_with(request_ends_with) {
                let count = stream.read(&mut buffer).expect("readable");
                assert!(count > 0, "the request ended early: {}", String::from_utf8_lossy(&seen));
                seen.extend(&buffer[..count]);
            }
            stream.write_all(answer).expect("written");
            String::from_utf8(seen).expect("UTF-8")
        });
        (address, server)
    }

    #[test]
    fn an_error_status_is_an_answer_like_any_other() {
        let (address, server) = serve_once(
            b"HTTP/1.1 422 Unprocessable Entity\r\nContent-Length: 10\r\nX-Request-Id: r1\r\n\r\n{\"code\":1}",
            b"{\"a\":1}",
        );
        let answer = Http::new(&address).post("/api", &serde_json::json!({"a": 1})).expect(422);
        assert_eq!(answer.json()["code"], 1);
        assert_eq!(answer.header("x-request-id"), "r1");
        let request = server.join().expect("served").to_lowercase();
        assert!(request.starts_with("post /api http/1.1\r\n"), "{request}");
        assert!(request.contains("content-type: application/json\r\n"), "{request}");
        assert!(request.contains("content-length: 7\r\n"), "{request}");
    }

    #[test]
    fn a_stream_is_read_while_it_is_open() {
        let (address, server) = serve_once(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\ndata: one\n\ndata:\r\n5\r\n two\n\r\n",
            b"\r\n\r\n",
        );
        let mut lines = Http::new(&address).stream("/events", &[("Last-Event-ID", "7")], PATIENCE).lines();
        let next: Vec<String> = (0..3).map(|_| lines.next().expect("open").expect("a line")).collect();
        assert_eq!(next, ["data: one", "", "data: two"]);
        assert!(server.join().expect("served").to_lowercase().contains("last-event-id: 7\r\n"));
    }

    #[test]
    fn a_multipart_body_carries_names_types_and_bytes() {
        let (content_type, body) =
            multipart(&[Part::field("job", "{}"), Part::file("image", "a\"b.png", b"\x89PNG\r\n")]);
        let boundary = content_type.strip_prefix("multipart/form-data; boundary=").expect("the type");
        let expected = format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"job\"\r\n\r\n{{}}\r\n\
             --{boundary}\r\nContent-Disposition: form-data; name=\"image\"; filename=\"a\\\"b.png\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        );
        let expected = [expected.as_bytes(), b"\x89PNG\r\n\r\n--", boundary.as_bytes(), b"--\r\n"].concat();
        assert_eq!(body, expected);
    }
}

//! Over real sockets.

use std::net::SocketAddr;

use atelier_domain::Output;
use futures::{SinkExt as _, StreamExt as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::timeout,
};
use tokio_tungstenite::tungstenite::{self, client::IntoClientRequest as _};

use super::*;
use crate::http::{self, HttpError, Patience};

const LONG: Duration = Duration::from_mins(1);

struct Server {
    scene: Scene,
    address: SocketAddr,
    serving: JoinHandle<()>,
}

impl Server {
    async fn start(settings: Settings) -> Self {
        Self::over(Scene::new().await, settings).await
    }

    async fn over(scene: Scene, settings: Settings) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = http::Server::new(scene.app.clone(), listener, settings).unwrap();
        let serving = tokio::spawn(server.run());
        Self { scene, address, serving }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn stop(self) {
        self.scene.app.shutdown.cancel();
        timeout(LONG, self.serving).await.expect("the server ends").unwrap();
    }
}

/// Everything until the server closes.
async fn read_all(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    timeout(LONG, stream.read_to_end(&mut bytes)).await.expect("the server closes").unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn without_tokens_it_does_not_listen_to_others() {
    let scene = Scene::new().await;
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let error = http::Server::new(scene.app.clone(), listener, Settings::default()).err().expect("refused");
    assert!(matches!(error, HttpError::OpenToAll(_)), "{error}");
    assert!(error.to_string().contains("server.tokens_file"), "{error}");
}

#[tokio::test]
async fn a_client_that_sends_no_request_is_let_go() {
    let server = Server::start(Settings { header_timeout: Duration::from_millis(100), ..Settings::default() }).await;
    let mut silent = server.connect().await;
    let mut slow = server.connect().await;
    slow.write_all(b"GET / HTTP/1.1\r\nHost: ").await.unwrap();
    let mut kept_open = server.connect().await;
    kept_open.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    assert_eq!(read_all(&mut silent).await, "");
    assert!(!read_all(&mut slow).await.contains("200 OK"));
    assert!(read_all(&mut kept_open).await.starts_with("HTTP/1.1 200 OK"));
    server.stop().await;
}

#[tokio::test]
async fn a_body_that_stops_coming_is_408() {
    let body = Patience { idle: Duration::from_millis(100), ..Patience::default() };
    let server = Server::start(Settings { body, ..Settings::default() }).await;
    let mut stream = server.connect().await;
    let head = "POST /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{";
    stream.write_all(head.as_bytes()).await.unwrap();
    let answer = read_all(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("\"code\":\"request_timeout\""), "{answer}");
    server.scene.assert_nothing_is_left();
    server.stop().await;
}

/// A server that closed at once would reset the connection, and the client would never see why.
#[tokio::test]
async fn a_client_that_sends_everything_before_it_reads_still_gets_its_refusal() {
    let server = Server::start(Settings { linger: LONG, ..Settings::default() }).await;
    for (content_type, status) in [("text/plain", "415"), ("application/json", "413")] {
        let mut stream = server.connect().await;
        let length = 64 << 20;
        let head = format!(
            "POST /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let junk = vec![b'\0'; 1 << 20];
        let mut sent = 0;
        while sent < length {
            timeout(LONG, stream.write_all(&junk)).await.expect("somebody reads").expect("no reset");
            sent += junk.len();
        }
        stream.shutdown().await.unwrap();
        let answer = read_all(&mut stream).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_stops_reading_is_let_go() {
    let scene = Scene::new().await;
    let id = scene.submitted().await;
    let file = scene.app.config().outbox.dir.join("big.png");
    let bytes = 256 << 20;
    std::fs::File::create(&file).unwrap().set_len(bytes).unwrap();
    let mut job = scene.succeed(id, &[("small.png", b"x")]).await;
    let output = Output { bytes, ..job.outputs.pop().unwrap() };
    // The same job again, with the large file.
    let again = scene.submitted().await;
    scene.app.store.start(again).await.unwrap().unwrap();
    let published = Published {
        model: "m".into(),
        outputs: vec![output],
        output_paths: vec![file.clone().into()],
        result: None,
        manifest: Value::Null,
        resumed_from_step: None,
    };
    scene.app.store.succeed(again, published).await.unwrap().unwrap();
    let server =
        Server::over(scene, Settings { write_timeout: Duration::from_millis(300), ..Settings::default() }).await;
    let mut stream = server.connect().await;
    let get = format!("GET /api/v1/jobs/{again}/outputs/0 HTTP/1.1\r\nHost: localhost\r\n\r\n");
    stream.write_all(get.as_bytes()).await.unwrap();
    // Nothing is read from here; the server must give up, and the file with it.
    let is_open = || {
        let descriptors = std::fs::read_dir("/proc/self/fd").unwrap();
        descriptors.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok()).any(|target| target == file)
    };
    eventually(is_open).await;
    eventually(|| !is_open()).await;
    drop(stream);
    server.stop().await;
}

#[tokio::test]
async fn ending_lets_running_requests_finish_and_streams_close() {
    let server = Server::start(Settings::default()).await;
    let id = server.scene.submitted().await;
    let mut watcher = server.connect().await;
    let get = format!("GET /api/v1/jobs/{id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n");
    watcher.write_all(get.as_bytes()).await.unwrap();
    let mut waiter = server.connect().await;
    let body = r#"{"kind":"generate","params":{"prompt":"x"}}"#;
    let post = format!(
        "POST /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nPrefer: wait=600\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut events = server.scene.app.queue.subscribe();
    waiter.write_all(post.as_bytes()).await.unwrap();
    timeout(LONG, events.recv()).await.expect("the job is queued").unwrap();
    let mut idle = server.connect().await;
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut answer = vec![0; 4096];
    assert!(timeout(LONG, idle.read(&mut answer)).await.unwrap().unwrap() > 0);
    let mut seen = String::new();
    while !seen.contains("event: job.updated") {
        let n = timeout(LONG, watcher.read(&mut answer)).await.unwrap().unwrap();
        assert!(n > 0, "the stream ends early: {seen}");
        seen.push_str(&String::from_utf8_lossy(&answer[..n]));
    }
    server.stop().await;
    assert!(read_all(&mut waiter).await.starts_with("HTTP/1.1 202 Accepted"));
    assert!(read_all(&mut watcher).await.ends_with("0\r\n\r\n"), "the stream is closed in order");
    assert_eq!(read_all(&mut idle).await, "");
}

type Socket = tokio_tungstenite::WebSocketStream<TcpStream>;

async fn open_socket(server: &Server, path: &str, origin: Option<&str>) -> Result<Socket, tungstenite::Error> {
    let mut request = format!("ws://{}{path}", server.address).into_client_request().unwrap();
    if let Some(origin) = origin {
        request.headers_mut().insert("origin", origin.parse().unwrap());
    }
    tokio_tungstenite::client_async(request, server.connect().await).await.map(|(socket, _)| socket)
}

async fn next_text(socket: &mut Socket) -> Option<Value> {
    loop {
        match timeout(LONG, socket.next()).await.expect("a message").unwrap().unwrap() {
            tungstenite::Message::Text(text) => return Some(serde_json::from_str(&text).unwrap()),
            tungstenite::Message::Close(_) => return None,
            tungstenite::Message::Binary(_)
            | tungstenite::Message::Ping(_)
            | tungstenite::Message::Pong(_)
            | tungstenite::Message::Frame(_) => {}
        }
    }
}

#[tokio::test]
async fn a_socket_tells_the_same_events() {
    let server = Server::start(Settings::default()).await;
    let id = server.scene.submitted().await;
    let mut all = open_socket(&server, "/api/v1/ws?last_event_id=0", None).await.unwrap();
    let first = next_text(&mut all).await.unwrap();
    assert_eq!(
        (&first["type"], &first["seq"], &first["job"]["id"]),
        (&"job.updated".into(), &1.into(), &id.to_string().into())
    );
    let mut one = open_socket(&server, &format!("/api/v1/ws?job={id}"), None).await.unwrap();
    assert_eq!(next_text(&mut one).await.unwrap()["job"]["status"], "queued");
    all.send(tungstenite::Message::Text("whatever".into())).await.unwrap();
    all.send(tungstenite::Message::Ping(vec![1, 2].into())).await.unwrap();
    server.scene.succeed(id, &[]).await;
    for status in ["running", "succeeded"] {
        assert_eq!(next_text(&mut all).await.unwrap()["job"]["status"], status);
        assert_eq!(next_text(&mut one).await.unwrap()["job"]["status"], status);
    }
    let close = timeout(LONG, one.next()).await.unwrap().unwrap().unwrap();
    let tungstenite::Message::Close(Some(frame)) = close else { panic!("{close:?}") };
    assert_eq!(u16::from(frame.code), 1000);
    server.scene.call(Method::DELETE, &format!("/api/v1/jobs/{id}"), &[], "").await.expect(204);
    let removed = next_text(&mut all).await.unwrap();
    assert_eq!((&removed["type"], &removed["id"]), (&"job.removed".into(), &id.to_string().into()));

    server.scene.app.shutdown.cancel();
    let close = loop {
        if let tungstenite::Message::Close(frame) = timeout(LONG, all.next()).await.unwrap().unwrap().unwrap() {
            break frame.unwrap();
        }
    };
    assert_eq!(u16::from(close.code), 1001);
    drop(all);
    timeout(LONG, server.serving).await.unwrap().unwrap();
}

#[tokio::test]
async fn the_editors_socket_tells_its_job_in_the_editors_words() {
    let server = Server::start(Settings::default()).await;
    let id = server.scene.submitted().await;
    let mut socket = open_socket(&server, &format!("/api/jobs/{id}/ws"), None).await.unwrap();
    let first = next_text(&mut socket).await.unwrap();
    assert_eq!((&first["type"], &first["status"]), (&"status".into(), &"queued".into()));
    server.scene.succeed(id, &[("a.png", b"x")]).await;
    assert_eq!(next_text(&mut socket).await.unwrap()["status"], "processing");
    let last = next_text(&mut socket).await.unwrap();
    assert_eq!((&last["status"], &last["progress"]), (&"completed".into(), &100.into()));
    assert_eq!(last["download_url"], format!("/api/jobs/{id}/download"));
    assert_eq!(next_text(&mut socket).await, None, "it is closed with the job's end");
    let refused = open_socket(&server, &format!("/api/jobs/{id}/ws"), Some("https://evil.example")).await.unwrap_err();
    let tungstenite::Error::Http(response) = refused else { panic!("{refused}") };
    assert_eq!(response.status().as_u16(), 403);
    server.stop().await;
}

#[tokio::test]
async fn a_request_that_is_on_its_way_when_the_end_comes_is_answered() {
    const REQUEST: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let server = Server::start(Settings { first_request: LONG, ..Settings::default() }).await;
    let mut early = server.connect().await;
    // Connections are accepted in their order: once this one is answered, the first was let in.
    let mut later = server.connect().await;
    later.write_all(REQUEST).await.unwrap();
    assert!(read_all(&mut later).await.starts_with("HTTP/1.1 200 OK"));
    server.scene.app.shutdown.cancel();
    tokio::task::yield_now().await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    early.write_all(REQUEST).await.unwrap();
    assert!(read_all(&mut early).await.starts_with("HTTP/1.1 200 OK"));
    server.stop().await;
}

#[tokio::test]
async fn a_socket_is_for_our_own_pages_and_for_sockets() {
    let server = Server::start(Settings::default()).await;
    let refused = open_socket(&server, "/api/v1/ws", Some("https://evil.example")).await.unwrap_err();
    let tungstenite::Error::Http(response) = refused else { panic!("{refused}") };
    assert_eq!(response.status().as_u16(), 403);
    open_socket(&server, "/api/v1/ws", Some(&format!("http://{}", server.address))).await.unwrap();
    server.scene.get("/api/v1/ws").await.problem(426, "upgrade_required");
    let absent = JobId::from_ulid(ulid::Ulid::generate());
    let refused = open_socket(&server, &format!("/api/v1/ws?job={absent}"), None).await.unwrap_err();
    let tungstenite::Error::Http(response) = refused else { panic!("{refused}") };
    assert_eq!(response.status().as_u16(), 404);
    server.stop().await;
}

#[tokio::test]
async fn a_socket_that_is_sent_too_much_is_closed() {
    let server = Server::start(Settings::default()).await;
    let mut socket = open_socket(&server, "/api/v1/ws", None).await.unwrap();
    socket.send(tungstenite::Message::Binary(vec![0; 100_000].into())).await.unwrap();
    let end = timeout(LONG, async { while let Some(Ok(_)) = socket.next().await {} }).await;
    end.expect("the server closes");
    server.stop().await;
}

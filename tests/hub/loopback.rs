//! A hub on a loopback port, with a second port as its content network, and faults on order.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::Response,
};
use futures::StreamExt as _;
use serde_json::{Value, json};
use sha1::{Digest as _, Sha1};
use sha2::Sha256;
use tokio::sync::watch;

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What happens to a request for a file.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// So many bytes come, and the connection breaks.
    Cut(usize),
    /// So many bytes come, and nothing more.
    Stall(usize),
    /// So many bytes come, and the rest once the test lets go.
    Hold(usize),
    /// A status with a header.
    Status(u16, Option<(&'static str, &'static str)>),
    /// The first byte is another.
    Corrupt,
    /// The whole file, whatever part was asked for.
    Whole,
    /// Sent on to the content network.
    Elsewhere,
    /// The right part, of a file that is said to be longer.
    OtherTotal,
}

/// A request as it came in.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// `hub` or `cdn`.
    pub(crate) host: &'static str,
    pub(crate) path: String,
    pub(crate) first_byte: Option<usize>,
    pub(crate) authorization: Option<String>,
}

#[derive(Clone)]
struct File {
    bytes: Bytes,
    /// As large files are kept: listed by sha256.
    is_large: bool,
    /// Bytes more or fewer in the list than there are.
    lie: i64,
}

/// A fault on order.
struct Order {
    /// Of the path.
    part: String,
    /// Only requests from this byte on.
    from: usize,
    fault: Fault,
    /// How often still.
    times: usize,
}

struct World {
    repositories: BTreeMap<String, BTreeMap<String, File>>,
    faults: Vec<Order>,
    seen: Vec<Seen>,
    cdn: Option<SocketAddr>,
}

type Shared = Arc<(Mutex<World>, watch::Sender<bool>)>;

pub(crate) struct Hub {
    shared: Shared,
    address: SocketAddr,
    _runtime: tokio::runtime::Runtime,
}

impl Hub {
    pub(crate) fn start() -> Self {
        let world = World { repositories: BTreeMap::new(), faults: Vec::new(), seen: Vec::new(), cdn: None };
        let shared: Shared = Arc::new((Mutex::new(world), watch::Sender::new(false)));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let listen = |name: &'static str| {
            let shared = shared.clone();
            let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
            let address = listener.local_addr().unwrap();
            let router = Router::new().fallback(move |State(shared): State<Shared>, request: Request| async move {
                answer(&shared, name, &request)
            });
            runtime.spawn(async move { axum::serve(listener, router.with_state(shared)).await });
            address
        };
        let address = listen("hub");
        let cdn = listen("cdn");
        shared.0.lock().unwrap().cdn = Some(cdn);
        Self { shared, address, _runtime: runtime }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Adds a file; from 1,000 bytes on it is listed as a large one.
    pub(crate) fn put(&self, repository: &str, path: &str, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        let file = File { is_large: bytes.len() >= 1000, bytes, lie: 0 };
        let mut world = self.shared.0.lock().unwrap();
        world.repositories.entry(repository.to_owned()).or_default().insert(path.to_owned(), file);
    }

    /// The list says that a file is longer or shorter than it is.
    pub(crate) fn lie(&self, repository: &str, path: &str, by: i64) {
        let mut world = self.shared.0.lock().unwrap();
        world.repositories.get_mut(repository).unwrap().get_mut(path).unwrap().lie = by;
    }

    /// The next `times` requests whose path holds `part` meet `fault`.
    pub(crate) fn fault(&self, part: &str, fault: Fault, times: usize) {
        self.shared.0.lock().unwrap().faults.push(Order { part: part.to_owned(), from: 0, fault, times });
    }

    /// Every request for bytes from `from` on meets `fault`.
    pub(crate) fn fault_from(&self, part: &str, from: usize, fault: Fault) {
        let order = Order { part: part.to_owned(), from, fault, times: usize::MAX };
        self.shared.0.lock().unwrap().faults.push(order);
    }

    pub(crate) fn behave(&self) {
        self.shared.0.lock().unwrap().faults.clear();
    }

    /// Lets go of what is held, now and later.
    pub(crate) fn let_go(&self) {
        self.shared.1.send_replace(true);
    }

    /// Requests so far for paths that hold `part`.
    pub(crate) fn seen(&self, part: &str) -> Vec<Seen> {
        self.shared.0.lock().unwrap().seen.iter().filter(|seen| seen.path.contains(part)).cloned().collect()
    }

    pub(crate) fn forget(&self) {
        self.shared.0.lock().unwrap().seen.clear();
    }
}

fn answer(shared: &Shared, host: &'static str, request: &Request) -> Response {
    let path = request.uri().path().to_owned();
    let text =
        |name| request.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok()).map(str::to_owned);
    let range = text(header::RANGE).and_then(|range| {
        let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse::<usize>().ok()?, last.parse::<usize>().ok()?))
    });
    let mut world = shared.0.lock().unwrap();
    world.seen.push(Seen {
        host,
        path: path.clone(),
        first_byte: range.map(|(first, _)| first),
        authorization: text(header::AUTHORIZATION),
    });
    let met = world.faults.iter_mut().find(|order| {
        order.times > 0
            && path.contains(&order.part)
            && range.map_or(0, |(first, _)| first) >= order.from
            && !(host == "cdn" && matches!(order.fault, Fault::Elsewhere))
    });
    let fault = met.map(|order| {
        order.times -= 1;
        order.fault.clone()
    });
    if let Some(Fault::Status(status, extra)) = &fault {
        let mut response = Response::builder().status(*status);
        if let Some((name, value)) = extra {
            response = response.header(*name, *value);
        }
        return response.body(Body::empty()).unwrap();
    }
    if let Some(Fault::Elsewhere) = fault {
        let location = format!("http://{}{path}", world.cdn.unwrap());
        return Response::builder().status(302).header(header::LOCATION, location).body(Body::empty()).unwrap();
    }
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    match parts.as_slice() {
        ["api", "models", org, name, "revision", "main"] => match world.repositories.get(&format!("{org}/{name}")) {
            Some(files) => json_answer(&list(files)),
            None => status(StatusCode::NOT_FOUND),
        },
        [org, name, "resolve", COMMIT, file @ ..] => {
            let files = world.repositories.get(&format!("{org}/{name}"));
            match files.and_then(|files| files.get(&file.join("/"))) {
                Some(file) => send(file.bytes.clone(), range, fault.as_ref(), shared.1.subscribe()),
                None => status(StatusCode::NOT_FOUND),
            }
        }
        _ => status(StatusCode::NOT_FOUND),
    }
}

fn status(status: StatusCode) -> Response {
    Response::builder().status(status).body(Body::empty()).unwrap()
}

fn json_answer(value: &Value) -> Response {
    Response::builder().header(header::CONTENT_TYPE, "application/json").body(Body::from(value.to_string())).unwrap()
}

fn list(files: &BTreeMap<String, File>) -> Value {
    let sibling = |(path, file): (&String, &File)| {
        let size = i64::try_from(file.bytes.len()).unwrap() + file.lie;
        if file.is_large {
            let sha256 = hex(&Sha256::digest(&file.bytes));
            json!({"rfilename": path, "size": size, "blobId": COMMIT, "lfs": {"sha256": sha256, "size": size, "pointerSize": 134}})
        } else {
            let mut git = Sha1::new();
            git.update(format!("blob {}\0", file.bytes.len()));
            git.update(&file.bytes);
            json!({"rfilename": path, "size": size, "blobId": hex(&git.finalize())})
        }
    };
    json!({"id": "x", "sha": COMMIT, "private": false, "siblings": files.iter().map(sibling).collect::<Vec<_>>()})
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn send(bytes: Bytes, range: Option<(usize, usize)>, fault: Option<&Fault>, let_go: watch::Receiver<bool>) -> Response {
    let total = bytes.len() + usize::from(matches!(fault, Some(Fault::OtherTotal)));
    let range = range.filter(|_| !matches!(fault, Some(Fault::Whole)));
    let mut headers = HeaderMap::new();
    let (status, mut body) = match range {
        Some((first, last)) if first < bytes.len() => {
            let last = last.min(bytes.len() - 1);
            let value = format!("bytes {first}-{last}/{total}");
            headers.insert(header::CONTENT_RANGE, value.parse().unwrap());
            (StatusCode::PARTIAL_CONTENT, bytes.slice(first..=last))
        }
        Some(_) => return self::status(StatusCode::RANGE_NOT_SATISFIABLE),
        None => (StatusCode::OK, bytes),
    };
    if let Some(Fault::Corrupt) = fault {
        let mut changed = body.to_vec();
        changed[0] ^= 1;
        body = changed.into();
    }
    headers.insert(header::CONTENT_LENGTH, body.len().into());
    let body = match fault {
        Some(Fault::Cut(after)) => faulty(&body, *after, End::Cut),
        Some(Fault::Stall(after)) => faulty(&body, *after, End::Never),
        Some(Fault::Hold(after)) => faulty(&body, *after, End::When(let_go)),
        _ => Body::from(body),
    };
    let mut response = Response::builder().status(status).body(body).unwrap();
    response.headers_mut().extend(headers);
    response
}

enum End {
    Cut,
    Never,
    When(watch::Receiver<bool>),
}

fn faulty(body: &Bytes, after: usize, end: End) -> Body {
    let after = after.min(body.len());
    let (before, rest) = (body.slice(..after), body.slice(after..));
    let rest = async move {
        // What came before is on its way.
        tokio::time::sleep(Duration::from_millis(20)).await;
        match end {
            End::Cut => Err(std::io::Error::other("cut")),
            End::Never => std::future::pending().await,
            End::When(mut let_go) => {
                let _ = let_go.wait_for(|is_free| *is_free).await;
                Ok(rest)
            }
        }
    };
    Body::from_stream(futures::stream::once(async move { Ok(before) }).chain(futures::stream::once(rest)))
}

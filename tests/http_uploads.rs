//! Large uploads do not fill the memory: eight at once, of 100 MiB each as a form, and of 24 MiB each in JSON.
//!
//! The daemon is a process of its own, so what is measured is its memory and nothing else's.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use atelier_testkit::daemon::{Daemon, Setup};
use base64::Engine as _;

const PARALLEL: usize = 8;
const ALLOWED_GROWTH: u64 = 32 << 20;
/// For all eight on a loaded machine with a slow disk.
const LONG: Duration = Duration::from_mins(9);

/// A value of `/proc/<pid>/status` in bytes.
fn status(pid: u32, name: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// The header of an uncompressed picture, and its length in all. The rest are bytes of any value.
fn bmp(side: u32) -> (Vec<u8>, usize) {
    let row = (side * 3).next_multiple_of(4);
    let pixels = row * side;
    let mut head = b"BM".to_vec();
    head.extend((54 + pixels).to_le_bytes());
    head.extend([0; 4]);
    head.extend(54u32.to_le_bytes());
    head.extend(40u32.to_le_bytes());
    head.extend(side.to_le_bytes());
    head.extend(side.to_le_bytes());
    head.extend(1u16.to_le_bytes());
    head.extend(24u16.to_le_bytes());
    head.extend([0; 4]);
    head.extend(pixels.to_le_bytes());
    head.extend([0; 16]);
    assert_eq!(head.len(), 54);
    (head, (54 + pixels) as usize)
}

/// Sends pieces over a raw connection, and gives the answer's first line.
fn send(address: &str, content_type: &str, pieces: impl Iterator<Item = Vec<u8>> + Clone) -> String {
    let length: usize = pieces.clone().map(|piece| piece.len()).sum();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    let head = format!(
        "POST /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    for piece in pieces {
        stream.write_all(&piece).unwrap();
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn as_form(address: &str, side: u32) -> String {
    let (head, length) = bmp(side);
    let fields = "--b\r\nContent-Disposition: form-data; name=\"kind\"\r\n\r\nupscale\r\n\
        --b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nfake\r\n\
        --b\r\nContent-Disposition: form-data; name=\"image\"; filename=\"large.bmp\"\r\n\r\n";
    let rest = length - head.len();
    let pieces = [fields.as_bytes().to_vec(), head]
        .into_iter()
        .chain((0..rest).step_by(1 << 20).map(move |at| vec![0x55; (rest - at).min(1 << 20)]))
        .chain([b"\r\n--b--\r\n".to_vec()]);
    send(address, "multipart/form-data; boundary=b", pieces)
}

fn as_json(address: &str, side: u32) -> String {
    let (mut picture, length) = bmp(side);
    picture.resize(length, 0x55);
    let text = base64::engine::general_purpose::STANDARD.encode(&picture);
    let head = br#"{"kind":"upscale","model":"fake","images":["data:image/bmp;base64,"#.to_vec();
    let pieces =
        [head].into_iter().chain(text.as_bytes().chunks(1 << 20).map(<[u8]>::to_vec)).chain([b"\"]}".to_vec()]);
    send(address, "application/json", pieces)
}

/// Sends eight at once and says by how much the daemon's memory has grown at its peak.
fn growth(daemon: &Daemon, one: impl Fn(&str) -> String + Sync) -> u64 {
    let address = daemon.http().url("").strip_prefix("http://").unwrap().to_owned();
    // One alone first: threads and their arenas are there then, and are not the uploads'.
    let answer = one(&address);
    assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
    let pid = daemon.pid();
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
    let before = status(pid, "VmRSS");
    std::thread::scope(|scope| {
        let senders: Vec<_> = (0..PARALLEL).map(|_| scope.spawn(|| one(&address))).collect();
        for sender in senders {
            let answer = sender.join().unwrap();
            assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
        }
    });
    status(pid, "VmHWM").saturating_sub(before)
}

#[test]
fn eight_large_uploads_at_once_are_never_held_in_memory() {
    let daemon = Setup::new(env!("CARGO_BIN_EXE_atelier")).start();
    daemon.http().send("POST", "/api/v1/queue/pause", &[], &[]).expect(200);
    let form = growth(&daemon, |address| as_form(address, 5900));
    println!("8 × 100 MiB as forms: the daemon grew by {} KiB", form >> 10);
    let json = growth(&daemon, |address| as_json(address, 2890));
    println!("8 × 24 MiB in JSON: the daemon grew by {} KiB", json >> 10);
    assert!(form <= ALLOWED_GROWTH, "forms: {form} bytes");
    assert!(json <= ALLOWED_GROWTH, "JSON: {json} bytes");
    let jobs = daemon.jobs();
    assert_eq!(jobs.len(), 2 * (PARALLEL + 1));
    assert!(jobs.iter().all(|job| job["status"] == "queued"));
    assert_eq!(jobs.last().unwrap()["inputs"][0]["bytes"], bmp(5900).1);
}

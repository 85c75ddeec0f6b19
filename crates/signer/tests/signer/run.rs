//! One run of the program, and a look at what it has signed.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use atelier_domain::signing::{Answer, Credentials, Request, SIGNING_VERSION, Work};
use c2pa::{Context, Reader, settings::Settings};

#[track_caller]
pub(crate) fn ask(credentials: &Credentials, work: Option<Work>) -> Answer {
    let request = Request { version: SIGNING_VERSION, credentials: credentials.clone(), work };
    let mut child = Command::new(env!("CARGO_BIN_EXE_atelier-signer"))
        .args(["--daemon-pid", &std::process::id().to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&serde_json::to_vec(&request).unwrap()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Reads a file's manifests, trusting this authority.
#[track_caller]
pub(crate) fn read(path: &Path, anchor: &str) -> c2pa::Result<Reader> {
    let settings = Settings::new().with_value("trust.trust_anchors", anchor).unwrap();
    let media_type = c2pa::format_from_path(path).unwrap();
    let context = Context::new().with_settings(settings).unwrap();
    Reader::from_context(context).with_stream(&media_type, std::fs::File::open(path).unwrap())
}

/// As a manifest writes it.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    use std::fmt::Write as _;

    use sha2::Digest as _;
    sha2::Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

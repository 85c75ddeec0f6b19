//! What becomes of a file that is signed.

use std::{
    fs,
    path::{Path, PathBuf},
};

use atelier_domain::{
    JobKind,
    protocol::GpsPolicy,
    signing::{
        About, Answer, Credentials, FileToSign,
        SignatureAlgorithm::{self, Es256},
        SignedFile, SourceFile, Work,
    },
};
use atelier_imaging::{Limits, metadata};
use c2pa::ValidationState::{Invalid, Trusted, Valid};

use crate::{
    pki::Pki,
    run::{ask, read, sha256},
};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../imaging/tests/fixtures").join(name)
}

fn work(kind: JobKind, from: &Path, to: &Path, media_type: &str, sources: &[(&Path, &str)]) -> Work {
    let file = FileToSign { unsigned: from.into(), signed: to.into(), media_type: media_type.into() };
    let source =
        |(path, media_type): &(&Path, &str)| SourceFile { path: (*path).into(), media_type: (*media_type).to_owned() };
    Work { kind, files: vec![file], sources: sources.iter().map(source).collect(), gps: GpsPolicy::Keep }
}

#[track_caller]
fn signed(credentials: &Credentials, work: Work) -> SignedFile {
    match ask(credentials, Some(work)) {
        Answer::Signed { mut files, .. } if files.len() == 1 => files.remove(0),
        other => panic!("not signed: {other:?}"),
    }
}

/// Pictures with all the metadata that a format has.
const SAMPLES: [(&str, &str); 5] = [
    ("provenance/generated.png", "image/png"),
    ("provenance/generated.jpg", "image/jpeg"),
    ("provenance/generated.webp", "image/webp"),
    ("photo-coffee.jpg", "image/jpeg"),
    ("lzw.tif", "image/tiff"),
];

#[test]
fn a_signed_picture_verifies_and_has_lost_nothing() {
    let pki = Pki::new();
    let credentials = pki.good(Es256);
    for (name, media_type) in SAMPLES {
        let from = fixture(name);
        let to = pki.path("signed").with_extension(from.extension().unwrap());
        let about = signed(&credentials, work(JobKind::Generate, &from, &to, media_type, &[]));
        let bytes = fs::read(&to).unwrap();
        assert_eq!((about.bytes, about.sha256), (bytes.len() as u64, sha256(&bytes)), "{name}");

        let reader = read(&to, &pki.anchor()).unwrap();
        assert_eq!(reader.validation_state(), Trusted, "{name}: {}", reader.json());
        let told = reader.json();
        for word in ["c2pa.created", "digitalsourcetype/trainedAlgorithmicMedia", "\"name\": \"Atelier\""] {
            assert!(told.contains(word), "{name}: no {word} in {told}");
        }

        let limits = Limits::default();
        assert_eq!(metadata(&to, &limits).unwrap(), metadata(&from, &limits).unwrap(), "{name}");
        let pixels = |path: &Path| image::ImageReader::open(path).unwrap().decode().unwrap();
        assert_eq!(pixels(&to), pixels(&from), "{name}");
        fs::remove_file(&to).unwrap();
    }
}

#[test]
fn every_algorithm_signs() {
    let pki = Pki::new();
    let (from, to) = (fixture("provenance/generated.png"), pki.path("signed.png"));
    for algorithm in SignatureAlgorithm::ALL {
        signed(&pki.good(algorithm), work(JobKind::Generate, &from, &to, "image/png", &[]));
        let reader = read(&to, &pki.anchor()).unwrap();
        assert_eq!(reader.validation_state(), Trusted, "{algorithm:?}: {}", reader.json());
        let alg = reader.active_manifest().unwrap().signature_info().unwrap().alg.unwrap();
        assert_eq!(alg.to_string(), algorithm.as_str());
        fs::remove_file(&to).unwrap();
    }
}

#[test]
fn a_changed_picture_no_longer_verifies() {
    let pki = Pki::new();
    let credentials = pki.good(Es256);
    for (name, media_type) in SAMPLES {
        let from = fixture(name);
        let to = pki.path("signed").with_extension(from.extension().unwrap());
        signed(&credentials, work(JobKind::Generate, &from, &to, media_type, &[]));
        let whole = fs::read(&to).unwrap();
        // In the pixels: the last that are equal in both files.
        let plain = fs::read(&from).unwrap();
        let piece = &plain[plain.len() / 2..plain.len() / 2 + 8];
        let at = whole.windows(8).position(|window| window == piece).unwrap();
        let mut bytes = whole.clone();
        bytes[at + 4] ^= 1;
        fs::write(&to, &bytes).unwrap();
        let state = read(&to, &pki.anchor()).map(|reader| reader.validation_state());
        assert!(matches!(state, Ok(Invalid)), "{name}: {state:?}");
        fs::write(&to, &whole).unwrap();
        assert_eq!(read(&to, &pki.anchor()).unwrap().validation_state(), Trusted, "{name}");
        let strangers = Pki::new();
        assert_eq!(
            read(&to, &strangers.anchor()).unwrap().validation_state(),
            Valid,
            "{name}: signed, by nobody known"
        );
        fs::remove_file(&to).unwrap();
    }
}

#[test]
fn a_source_is_named_with_the_manifest_that_it_brings() {
    let pki = Pki::new();
    let credentials = pki.good(Es256);
    let (first, second) = (pki.path("first.png"), pki.path("second.png"));
    signed(&credentials, work(JobKind::Generate, &fixture("provenance/generated.png"), &first, "image/png", &[]));
    let photo = fixture("photo-coffee.jpg");
    let mut edit = work(
        JobKind::Edit,
        &fixture("provenance/generated.png"),
        &second,
        "image/png",
        &[(&first, "image/png"), (&photo, "image/jpeg")],
    );
    signed(&credentials, edit.clone());
    let reader = read(&second, &pki.anchor()).unwrap();
    assert_eq!(reader.validation_state(), Trusted, "{}", reader.json());
    let manifest = reader.active_manifest().unwrap();
    let parent = manifest.parent().expect("what was edited");
    assert!(parent.active_manifest().is_some(), "it brings its own manifest");
    let relations: Vec<_> = manifest.ingredients().iter().map(|i| format!("{:?}", i.relationship())).collect();
    assert_eq!(relations, ["ParentOf", "InputTo"]);
    assert_eq!(reader.manifests().len(), 2);
    assert!(!reader.json().contains("photo-coffee"), "names of files stay at home");

    // Where no place may be told, nobody knows what a source's own manifest tells.
    edit.gps = GpsPolicy::Strip;
    fs::remove_file(&second).unwrap();
    signed(&credentials, edit);
    let reader = read(&second, &pki.anchor()).unwrap();
    assert_eq!(reader.validation_state(), Trusted, "{}", reader.json());
    assert_eq!(reader.manifests().len(), 1);
    assert!(reader.active_manifest().unwrap().parent().unwrap().active_manifest().is_none());
}

#[test]
fn a_source_that_is_broken_or_gone_does_not_stop_the_signature() {
    let pki = Pki::new();
    let credentials = pki.good(Es256);
    let to = pki.path("signed.png");
    let output = fixture("provenance/generated.png");
    signed(&credentials, work(JobKind::Generate, &output, &pki.path("first.png"), "image/png", &[]));
    let mut broken = fs::read(pki.path("first.png")).unwrap();
    // Inside its manifest.
    let at = broken.windows(4).position(|window| window == b"caBX").unwrap();
    broken[at + 40..at + 400].fill(0xFF);
    fs::write(pki.path("broken.png"), &broken).unwrap();
    fs::write(pki.path("cut.png"), &broken[..at + 100]).unwrap();
    let bitmap = fixture("bits.bmp");
    for (path, media_type) in [
        (pki.path("broken.png"), "image/png"),
        (pki.path("cut.png"), "image/png"),
        (pki.path("gone.png"), "image/png"),
        (bitmap, "image/bmp"),
    ] {
        signed(&credentials, work(JobKind::Upscale, &output, &to, "image/png", &[(&path, media_type)]));
        let reader = read(&to, &pki.anchor()).unwrap();
        assert_ne!(reader.validation_state(), Invalid, "{}: {}", path.display(), reader.json());
        assert!(reader.active_manifest().unwrap().parent().is_some(), "{}", path.display());
        fs::remove_file(&to).unwrap();
    }
}

#[test]
fn nothing_is_written_over_and_nothing_is_left_half_done() {
    let pki = Pki::new();
    let credentials = pki.good(Es256);
    let to = pki.path("there.png");
    fs::write(&to, "here already").unwrap();
    let refused = |work: Work| match ask(&credentials, Some(work)) {
        Answer::Refused(refusal) => {
            assert_eq!(refusal.about, About::File, "{refusal:?}");
        }
        other => panic!("not refused: {other:?}"),
    };
    refused(work(JobKind::Generate, &fixture("provenance/generated.png"), &to, "image/png", &[]));
    assert_eq!(fs::read(&to).unwrap(), b"here already");

    fs::write(pki.path("no.png"), "no picture").unwrap();
    let nowhere = pki.path("nowhere.png");
    refused(work(JobKind::Generate, &pki.path("no.png"), &nowhere, "image/png", &[]));
    refused(work(JobKind::Generate, &fixture("provenance/generated.png"), &nowhere, "text/plain", &[]));
    assert!(!nowhere.exists());
}

//! From a whole file to a signed one beside it.

use std::{
    fs::{self, File},
    io::{self, Cursor, Seek as _},
};

use atelier_domain::{
    JobKind, Timestamp,
    protocol::GpsPolicy,
    signing::{About, FileToSign, Refusal, SignedFile, SourceFile, Work},
};
use atelier_imaging::Limits;
use c2pa::{Builder, Context, Ingredient, Reader, ValidationState, settings::Settings};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{
    credentials::{self, Loaded, hex},
    manifest::{self, Relation},
};

/// A picture of one pixel, for the rehearsal.
const PIXEL: &[u8] = &[
    137, 80, 78, 71, 13, 10, 26, 10, 0, 0, 0, 13, 73, 72, 68, 82, 0, 0, 0, 1, 0, 0, 0, 1, 8, 0, 0, 0, 0, 58, 126, 155,
    85, 0, 0, 0, 10, 73, 68, 65, 84, 120, 156, 99, 96, 0, 0, 0, 2, 0, 1, 72, 175, 164, 113, 0, 0, 0, 0, 73, 69, 78, 68,
    174, 66, 96, 130,
];

/// Signs all files of a job, or none that counts.
///
/// # Errors
/// What stands in the way.
pub(crate) fn all(credentials: &Loaded, work: &Work) -> Result<Vec<SignedFile>, Refusal> {
    work.files.iter().map(|file| one(credentials, work, file)).collect()
}

/// Signs a picture of one pixel in memory and verifies that.
///
/// # Errors
/// The credentials cannot do it.
pub(crate) fn rehearse(credentials: &Loaded) -> Result<(), Refusal> {
    let unfit = |error: c2pa::Error| credentials::unfit(&error);
    let definition = manifest::definition(JobKind::Generate, "image/png", None, 0, Timestamp::now());
    let mut builder = builder().and_then(|builder| builder.with_definition(definition)).map_err(unfit)?;
    let mut signed = Cursor::new(Vec::new());
    builder.sign(&credentials.signer, "image/png", &mut Cursor::new(PIXEL), &mut signed).map_err(unfit)?;
    signed.set_position(0);
    let reader =
        context().and_then(|context| Reader::from_context(context).with_stream("image/png", signed)).map_err(unfit)?;
    if reader.validation_state() == ValidationState::Invalid {
        let status = reader.validation_status().unwrap_or_default();
        let codes: Vec<_> = status.iter().map(|status| status.code().to_owned()).collect();
        return Err(credentials::unfit(&c2pa::Error::OtherError(codes.join(", ").into())));
    }
    Ok(())
}

/// Whom to trust is the business of who reads the picture, not of who signs it.
fn context() -> c2pa::Result<Context> {
    Context::new().with_settings(Settings::new().with_value("verify.verify_trust", false)?)
}

fn builder() -> c2pa::Result<Builder> {
    Ok(Builder::from_context(context()?))
}

fn one(credentials: &Loaded, work: &Work, file: &FileToSign) -> Result<SignedFile, Refusal> {
    let unsigned = file.unsigned.as_path();
    let failed = |what: String| Refusal {
        about: About::File,
        message: format!("{} cannot be signed: {what}", unsigned.display()),
        hint: "the daemon's log may say more; without [provenance] nothing is signed".into(),
    };
    // As large as it likes: it is ours. What is no picture names no origin.
    let limits = Limits { max_pixels: u64::MAX, max_bytes: u64::MAX };
    let origin = atelier_imaging::metadata(unsigned, &limits).ok().and_then(|metadata| metadata.digital_source());
    let definition =
        manifest::definition(work.kind, &file.media_type, origin.as_deref(), work.sources.len(), Timestamp::now());
    let mut builder =
        builder().and_then(|builder| builder.with_definition(definition)).map_err(|error| failed(error.to_string()))?;
    for (index, source) in work.sources.iter().enumerate() {
        add(&mut builder, work, index, source).map_err(|error| failed(error.to_string()))?;
    }
    write(&mut builder, credentials, file).map_err(|error| {
        let about = if no_room(&error) { About::Disk } else { About::File };
        Refusal { about, ..failed(error.to_string()) }
    })
}

fn no_room(error: &c2pa::Error) -> bool {
    let c2pa::Error::IoError(error) = error else { return false };
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// A source as an ingredient: with the manifest that it brings, unless that is to stay behind or cannot be read.
fn add(builder: &mut Builder, work: &Work, index: usize, source: &SourceFile) -> c2pa::Result<()> {
    let about = ingredient(work.kind, index, source).to_string();
    let is_known = Builder::supported_mime_types().contains(&source.media_type);
    if work.gps == GpsPolicy::Keep
        && is_known
        && let Ok(mut stream) = File::open(source.path.as_path())
        && builder.add_ingredient_from_stream(about.clone(), &source.media_type, &mut stream).is_ok()
    {
        return Ok(());
    }
    builder.add_ingredient(Ingredient::from_json(&about)?);
    Ok(())
}

/// No name: what a file was called at home is nobody's business.
fn ingredient(kind: JobKind, index: usize, source: &SourceFile) -> Value {
    json!({
        "label": manifest::name_of(index),
        "format": source.media_type,
        "relationship": Relation::of(kind, index).as_str(),
    })
}

fn write(builder: &mut Builder, credentials: &Loaded, file: &FileToSign) -> c2pa::Result<SignedFile> {
    let signed = file.signed.as_path();
    let mut from = File::open(file.unsigned.as_path())?;
    let mut to = File::options().read(true).write(true).create_new(true).open(signed)?;
    let written = (|| {
        builder.sign(&credentials.signer, &file.media_type, &mut from, &mut to)?;
        to.rewind()?;
        let mut digest = Sha256::new();
        let bytes = io::copy(&mut to, &mut digest)?;
        Ok(SignedFile { bytes, sha256: hex(&digest.finalize()) })
    })();
    if written.is_err() {
        let _ = fs::remove_file(signed);
    }
    written
}

//! Signatures: a job's finished files on their way from the worker to the outbox, when a certificate is configured.
//!
//! Signed is last, after all that is written into a file. `atelier-signer` does it, a program of its own; here it is
//! asked, and held to its time. The signed files lie in the job's folder beside those that the worker has made, and are
//! published in their stead: a crash before the note of [`crate::outbox`] signs them anew, one after it publishes what
//! the note names.
//!
//! Knows C2PA only by name.

mod process;

use std::{ffi::OsString, fs, io, path::Path, time::Duration};

use atelier_domain::{
    ErrorCode, ErrorInfo,
    protocol::{Finished, GpsPolicy, OutputFile, WirePath},
    signing::{About, Answer, Certificate, FileToSign, Refusal, Request, SIGNING_VERSION, SourceFile, Work},
};
use serde_json::{Value, json};

use crate::{
    config::{Config, Loaded, Origin, Problem, Provenance},
    failpoint, outbox,
    store::JobRecord,
};

/// For a look at the credentials.
const CHECK_PATIENCE: Duration = Duration::from_secs(30);
/// For a file of no size; more by its bytes.
const SIGN_PATIENCE: Duration = Duration::from_mins(2);
/// Bytes that the slowest machine signs in a second.
const BYTES_PER_SECOND: u64 = 1 << 20;

/// What a manifest of Atelier's calls its signature.
const IN_MANIFEST: &str = "signature";

/// Signs a job's finished files if a certificate is configured; what comes back names the signed ones. Blocks.
///
/// # Errors
/// What stands in the way, with what to do. Nothing is published.
pub fn sign(config: &Config, record: &JobRecord, finished: Finished, work_dir: &Path) -> Result<Finished, ErrorInfo> {
    let Some(credentials) = config.provenance.credentials() else { return Ok(finished) };
    if finished.outputs.is_empty() {
        return Ok(finished);
    }
    let mut signed = finished;
    let before: Vec<OutputFile> = signed.outputs.clone();
    // The note of an earlier try would name files that are about to change.
    outbox::forget(work_dir).map_err(|error| failure(&disk(&error, work_dir)))?;
    let mut files = Vec::new();
    for (index, output) in signed.outputs.iter_mut().enumerate() {
        let unsigned = work_dir.join(&output.file);
        output.file = format!("signed-{index}.{}", output.extension);
        let to = work_dir.join(&output.file);
        remove(&to).map_err(|error| failure(&disk(&error, &to)))?;
        files.push(FileToSign { unsigned: unsigned.into(), signed: to.into(), media_type: output.media_type.clone() });
    }
    let work = Work { kind: record.job.kind, files, sources: sources(record), gps: config.outbox.gps };
    let bytes: u64 = before.iter().map(|output| output.bytes).sum();
    let patience = SIGN_PATIENCE + Duration::from_secs(bytes / BYTES_PER_SECOND);
    let mut request = Request { version: SIGNING_VERSION, credentials, work: Some(work) };
    let command = command(&config.provenance);
    let mut answer = process::ask(&command, &request, patience);
    if let Err(refusal) = &answer
        && let Some(work) = request.work.as_mut()
        && !work.sources.is_empty()
        && work.gps == GpsPolicy::Keep
    {
        // A source's own manifest is somebody else's work, and may be what the signer has stumbled over.
        tracing::warn!(job = %record.job.id, "{}; tried again without the sources' own manifests", refusal.message);
        work.gps = GpsPolicy::Strip;
        for file in &work.files {
            remove(file.signed.as_path()).map_err(|error| failure(&disk(&error, file.signed.as_path())))?;
        }
        answer = process::ask(&command, &request, patience);
    }
    let (certificate, files) = match answer {
        Ok(Answer::Signed { certificate, files }) if files.len() == before.len() => (certificate, files),
        Ok(Answer::Refused(refusal)) | Err(refusal) => return Err(failure(&refusal)),
        Ok(Answer::Signed { .. } | Answer::Checked(_)) => return Err(failure(&process::nonsense(&command))),
    };
    failpoint::hit("signing.signed");
    for (output, file) in signed.outputs.iter_mut().zip(files) {
        (output.bytes, output.sha256) = (file.bytes, file.sha256);
    }
    if let Value::Object(manifest) = &mut signed.manifest {
        let unsigned: Vec<_> = before.iter().map(|output| &output.sha256).collect();
        manifest.insert(
            IN_MANIFEST.into(),
            json!({
                "algorithm": config.provenance.algorithm,
                "certificate_sha256": certificate.sha256,
                "unsigned_sha256": unsigned,
            }),
        );
    }
    tracing::debug!(job = %record.job.id, subject = %certificate.subject, "signed");
    Ok(signed)
}

/// Hashes of a manifest's outputs as they were before they were signed, which is different each time.
pub fn unsigned_hashes(manifest: &Value) -> Option<Vec<String>> {
    let hashes = manifest[IN_MANIFEST]["unsigned_sha256"].as_array()?;
    hashes.iter().map(|hash| hash.as_str().map(str::to_owned)).collect()
}

/// Looks at the configured credentials and tries them; `None` where none are configured. Blocks.
///
/// # Errors
/// What is wrong with them.
pub fn look(provenance: &Provenance) -> Result<Option<Certificate>, Refusal> {
    let Some(credentials) = provenance.credentials() else { return Ok(None) };
    let request = Request { version: SIGNING_VERSION, credentials, work: None };
    let command = command(provenance);
    match process::ask(&command, &request, CHECK_PATIENCE)? {
        Answer::Checked(certificate) => Ok(Some(certificate)),
        Answer::Refused(refusal) => Err(refusal),
        Answer::Signed { .. } => Err(process::nonsense(&command)),
    }
}

/// As [`look`], told as what is wrong with the configuration.
///
/// # Errors
/// The problem, at the key that it is about.
pub fn check(loaded: &Loaded) -> Result<(), Problem> {
    look(&loaded.config.provenance).map(|_| ()).map_err(|refusal| {
        let key = match refusal.about {
            About::Certificate | About::File | About::Disk => "provenance.certificate_file",
            About::Key => "provenance.key_file",
            About::Algorithm => "provenance.algorithm",
            About::Program => "provenance.command",
        };
        let origin = loaded.origins.get(key).cloned().unwrap_or(Origin::Default);
        Problem { origin, key: key.into(), message: refusal.message, hint: refusal.hint }
    })
}

fn command(provenance: &Provenance) -> Vec<OsString> {
    if provenance.command.is_empty() { vec![beside("atelier-signer")] } else { provenance.command.clone() }
}

/// A program beside this program's own file.
fn beside(name: &str) -> OsString {
    std::env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.join(name).into_os_string()))
        .unwrap_or_else(|| name.into())
}

/// What the job was given. The mask is no picture of its own.
fn sources(record: &JobRecord) -> Vec<SourceFile> {
    let paths = record.input_paths.iter().cloned().map(WirePath);
    let media_types = record.job.inputs.iter().map(|input| input.media_type.clone());
    paths.zip(media_types).map(|(path, media_type)| SourceFile { path, media_type }).collect()
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn disk(error: &io::Error, path: &Path) -> Refusal {
    Refusal { about: About::File, message: format!("{}: {error}", path.display()), hint: String::new() }
}

fn failure(refusal: &Refusal) -> ErrorInfo {
    let code = match refusal.about {
        About::Disk => ErrorCode::DiskFull,
        About::Certificate | About::Key | About::Algorithm | About::Program | About::File => ErrorCode::SigningFailed,
    };
    ErrorInfo::new(code, refusal.message.clone()).with_hint(refusal.hint.clone())
}

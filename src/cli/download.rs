//! Brings a job's outputs into a folder: each appears whole, under a name that stays in it.

use std::path::{Path, PathBuf};

use atelier_domain::{Job, Output};
use reqwest::{Response, header};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt as _;

use super::{
    bar,
    client::Client,
    error::{CliError, Result},
};

/// Makes the folder that outputs shall go to.
///
/// # Errors
/// It cannot be made, or something else has its name.
pub(super) fn prepare(folder: &Path) -> Result {
    std::fs::create_dir_all(folder).map_err(|error| CliError::usage(format!("--output {}: {error}", folder.display())))
}

/// All outputs of a job; answers where they lie.
pub(super) async fn all(client: &Client, job: &Job, folder: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for output in &job.outputs {
        paths.push(one(client, output, folder).await?);
    }
    Ok(paths)
}

async fn one(client: &Client, output: &Output, folder: &Path) -> Result<PathBuf> {
    let mut response = client.open(&output.url).await?;
    let name = safe_name(&named(&response).unwrap_or_else(|| output.name.clone()));
    let path = folder.join(&name);
    let part = folder.join(format!(".{name}.{}.part", std::process::id()));
    let failed = |error: std::io::Error| CliError::failed(format!("{}: {error}", path.display()));
    let progress = bar::bytes(output.bytes, &name);
    let received = async {
        let mut file = tokio::fs::File::create(&part).await.map_err(failed)?;
        let mut digest = Sha256::new();
        while let Some(bytes) = response.chunk().await.map_err(|error| client.transport(&error))? {
            digest.update(&bytes);
            file.write_all(&bytes).await.map_err(failed)?;
            progress.inc(bytes.len() as u64);
        }
        file.sync_all().await.map_err(failed)?;
        let sum = crate::admission::hex(&digest.finalize());
        if !output.sha256.is_empty() && sum != output.sha256 {
            return Err(CliError::failed(format!("{}: what arrived is not what the job made", path.display()))
                .hint("sha256 differs; try again"));
        }
        tokio::fs::rename(&part, &path).await.map_err(failed)
    }
    .await;
    progress.finish_and_clear();
    if received.is_err() {
        let _ = tokio::fs::remove_file(&part).await;
    }
    received.map(|()| path.clone())
}

/// The file name of `Content-Disposition`, the extended one first.
fn named(response: &Response) -> Option<String> {
    file_name(response.headers().get(header::CONTENT_DISPOSITION)?.to_str().ok()?)
}

fn file_name(disposition: &str) -> Option<String> {
    // Cut at semicolons outside of quotes.
    let mut parts = vec![String::new()];
    let (mut quoted, mut escaped) = (false, false);
    for c in disposition.chars() {
        match c {
            ';' if !quoted => {
                parts.push(String::new());
                continue;
            }
            '"' if !escaped => quoted = !quoted,
            _ => {}
        }
        escaped = quoted && c == '\\' && !escaped;
        parts.last_mut()?.push(c);
    }
    let value = |name: &str| {
        parts.iter().find_map(|part| {
            let (key, value) = part.split_once('=')?;
            key.trim().eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    };
    if let Some(extended) = value("filename*")
        && let Some((charset, rest)) = extended.split_once('\'')
        && charset.eq_ignore_ascii_case("UTF-8")
        && let Some((_, encoded)) = rest.split_once('\'')
        && let Some(name) = percent_decode(encoded)
    {
        return Some(name);
    }
    let plain = value("filename")?;
    match plain.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(inner) => {
            let mut name = String::new();
            let mut chars = inner.chars();
            while let Some(c) = chars.next() {
                name.push(if c == '\\' { chars.next().unwrap_or(c) } else { c });
            }
            Some(name)
        }
        None => Some(plain),
    }
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = [rest.next()?, rest.next()?];
        bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
    }
    String::from_utf8(bytes).ok()
}

/// A name that is one visible file in a folder, whatever a server says.
fn safe_name(name: &str) -> String {
    const MAX_BYTES: usize = 200;
    let last = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let kept: String = last.chars().filter(|c| !c.is_control()).collect();
    let mut name = kept.trim().trim_start_matches('.').to_owned();
    // The extension is at the end, so the front is what gives way.
    while name.len() > MAX_BYTES {
        name.remove(0);
    }
    if name.is_empty() { "output".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_the_folder() {
        for (name, safe) in [
            ("photo.png", "photo.png"),
            ("../../etc/passwd", "passwd"),
            ("C:\\Windows\\x.png", "x.png"),
            ("..", "output"),
            ("", "output"),
            ("/", "output"),
            (".bashrc", "bashrc"),
            ("a\0b\x1b[31m.png", "ab[31m.png"),
            ("Größe 1.png", "Größe 1.png"),
        ] {
            assert_eq!(safe_name(name), safe, "{name:?}");
        }
        let long = safe_name(&format!("{}.png", "é".repeat(300)));
        assert!(long.len() <= 200 && long.ends_with("é.png"), "{long}");
    }

    #[test]
    fn the_disposition_names_the_file() {
        for (header, name) in [
            ("attachment; filename=\"a b.png\"", Some("a b.png")),
            ("attachment; filename=a.png", Some("a.png")),
            ("inline; filename=\"x;y=\\\"1\\\".png\"; size=3", Some("x;y=\"1\".png")),
            ("attachment; filename=\"_.png\"; filename*=UTF-8''Gr%C3%B6%C3%9Fe.png", Some("Größe.png")),
            ("attachment; filename=\"ok.png\"; filename*=UTF-8''%zz", Some("ok.png")),
            ("attachment", None),
        ] {
            assert_eq!(file_name(header).as_deref(), name, "{header}");
        }
    }
}

//! What a repository holds, as the hub lists it: names, sizes and hashes. All of it is somebody else's word.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::HubError;

/// How the hub names a file's content.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Hash {
    /// Of the content; large files.
    Sha256(String),
    /// Git's name of the content (SHA-1 over a short header and the content); small files.
    GitBlob(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) bytes: u64,
    pub(super) hash: Hash,
}

#[derive(Debug)]
pub(super) struct Listing {
    /// The commit that the revision stands for now; everything is fetched from it.
    pub(super) commit: String,
    /// By path; only paths that may become one here.
    pub(super) files: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Answer {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

impl Listing {
    /// Reads the hub's answer to `/api/models/ORG/NAME/revision/REV?blobs=true`.
    pub(super) fn parse(what: &str, body: &[u8]) -> Result<Self, HubError> {
        let wrong = |why: String| HubError::Answer { what: what.to_owned(), why };
        let answer: Answer = serde_json::from_slice(body).map_err(|error| wrong(error.to_string()))?;
        if !is_hex(&answer.sha, 40) {
            return Err(wrong("it names no commit".to_owned()));
        }
        let mut files = BTreeMap::new();
        for sibling in answer.siblings {
            if !is_plain_path(&sibling.rfilename) {
                // Nothing that any family needs is called like that.
                tracing::debug!(path = %sibling.rfilename, "a path on the hub that is not taken");
                continue;
            }
            let Some(entry) = entry(&sibling) else {
                return Err(wrong(format!("it gives no size and hash for {}", sibling.rfilename)));
            };
            files.insert(sibling.rfilename, entry);
        }
        Ok(Self { commit: answer.sha, files })
    }

    pub(super) fn has(&self, path: &str) -> bool {
        self.files.contains_key(path)
    }
}

fn entry(sibling: &Sibling) -> Option<Entry> {
    if let Some(lfs) = &sibling.lfs {
        return is_hex(&lfs.sha256, 64)
            .then(|| Entry { bytes: lfs.size, hash: Hash::Sha256(lfs.sha256.to_ascii_lowercase()) });
    }
    let blob = sibling.blob_id.as_ref().filter(|blob| is_hex(blob, 40))?;
    Some(Entry { bytes: sibling.size?, hash: Hash::GitBlob(blob.to_ascii_lowercase()) })
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether a path stays below the folder that it is put into, on every file system, and means nothing to us.
fn is_plain_path(path: &str) -> bool {
    let parts: Vec<&str> = path.split('/').collect();
    path.len() <= 500
        && parts.len() <= 5
        && parts.iter().all(|part| {
            !part.is_empty()
                && !part.starts_with('.')
                && !part.ends_with([' ', '.'])
                && !is_suffix_of_ours(part)
                && part.len() <= 200
                && !part.chars().any(|c| c.is_control() || matches!(c, '\\' | ':'))
        })
}

/// What files are called that have not arrived yet.
fn is_suffix_of_ours(name: &str) -> bool {
    let suffix = std::path::Path::new(name).extension();
    suffix.is_some_and(|suffix| suffix == "part" || suffix == "journal")
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn parse(siblings: &serde_json::Value) -> Result<Listing, HubError> {
        let body = serde_json::json!({"sha": COMMIT, "siblings": siblings, "private": false});
        Listing::parse("org/name", body.to_string().as_bytes())
    }

    #[test]
    fn large_files_have_a_sha256_and_small_ones_what_git_calls_them() {
        let listing = parse(&serde_json::json!([
            {"rfilename": "config.json", "size": 2, "blobId": "9e26dfeeb6e641a33dae4961196235bdb965b21b"},
            {"rfilename": "unet/w.safetensors", "size": 130, "blobId": COMMIT,
             "lfs": {"sha256": "A".repeat(64), "size": 1000, "pointerSize": 130}},
        ]))
        .expect("understood");
        assert_eq!(listing.commit, COMMIT);
        let blob = Hash::GitBlob("9e26dfeeb6e641a33dae4961196235bdb965b21b".into());
        assert_eq!(listing.files["config.json"], Entry { bytes: 2, hash: blob });
        let large = Entry { bytes: 1000, hash: Hash::Sha256("a".repeat(64)) };
        assert_eq!(listing.files["unet/w.safetensors"], large);
    }

    #[test]
    fn a_path_that_leads_elsewhere_is_not_taken() {
        for path in [
            "../x",
            "/etc/passwd",
            "a/../b",
            "a//b",
            "./a",
            ".hidden",
            "a/.git/x",
            "c:\\x",
            "a/b.part",
            "x\u{7}",
            "a/b/c/d/e/f",
        ] {
            let listing = parse(&serde_json::json!([{"rfilename": path, "size": 1, "blobId": COMMIT}])).expect("read");
            assert!(listing.files.is_empty(), "{path}");
        }
    }

    #[test]
    fn a_file_without_a_hash_is_refused() {
        for sibling in [
            serde_json::json!({"rfilename": "a"}),
            serde_json::json!({"rfilename": "a", "size": 3}),
            serde_json::json!({"rfilename": "a", "size": 3, "blobId": "xyz"}),
            serde_json::json!({"rfilename": "a", "size": 3, "lfs": {"sha256": "", "size": 3}}),
        ] {
            let error = parse(&serde_json::json!([sibling])).expect_err("refused").to_string();
            assert!(error.contains("no size and hash for a"), "{error}");
        }
        Listing::parse("x", b"<html>").expect_err("no JSON");
        Listing::parse("x", br#"{"sha":"main"}"#).expect_err("no commit");
    }
}

//! Addresses that open without a token, for a while: for clients that are given a picture's address and fetch it with
//! nothing but that.
//!
//! An address is signed together with the moment until which it holds, with a key of the data folder's own. Who has such
//! an address has that one file, to read, until then.

use std::{fs, io, os::unix::fs::OpenOptionsExt as _, path::Path, time::Duration};

use atelier_domain::Timestamp;
use axum::http::{Method, Uri};
use hmac::{Hmac, Mac as _};
use sha2::Sha256;

use crate::admission;

/// As long as OpenAI's.
const HOLDS: Duration = Duration::from_hours(1);

/// The key's file in the data folder. Without it all addresses given out before are worth nothing.
const FILE: &str = "link-key";

const KEY_BYTES: usize = 32;

pub(crate) struct Links {
    key: [u8; KEY_BYTES],
}

impl Links {
    /// With the key of this data folder, which is made at the first call. Blocks.
    pub(crate) fn open(data: &Path) -> io::Result<Self> {
        let path = data.join(FILE);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => make(&path)?.to_vec(),
            other => other?,
        };
        let key = bytes.try_into().map_err(|_| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{} is no key; remove it", path.display()))
        })?;
        Ok(Self { key })
    }

    /// The address of `path`, as it opens from `now` on.
    pub(crate) fn sign(&self, path: &str, now: Timestamp) -> String {
        let expires = now.0.div_euclid(1000) + i64::try_from(HOLDS.as_secs()).unwrap_or(0);
        let signature = admission::hex(&self.mac(path, expires).finalize().into_bytes());
        format!("{path}?expires={expires}&signature={signature}")
    }

    /// Whether this is to read what a signed address says, at a time when it still holds.
    pub(crate) fn opens(&self, method: &Method, uri: &Uri, now: Timestamp) -> bool {
        let signed = uri.query().and_then(|query| {
            let (expires, signature) = query.strip_prefix("expires=")?.split_once("&signature=")?;
            Some((expires.parse::<i64>().ok()?, bytes_of(signature)?))
        });
        let Some((expires, signature)) = signed else { return false };
        matches!(*method, Method::GET | Method::HEAD)
            && now.0.div_euclid(1000) <= expires
            && self.mac(uri.path(), expires).verify_slice(&signature).is_ok()
    }

    fn mac(&self, path: &str, expires: i64) -> Hmac<Sha256> {
        let mac = Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes keys of any length");
        mac.chain_update(path).chain_update([0]).chain_update(expires.to_string())
    }
}

fn bytes_of(hex: &str) -> Option<Vec<u8>> {
    if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok()).collect()
}

/// A new key, in a file that only the daemon's user can read.
fn make(path: &Path) -> io::Result<[u8; KEY_BYTES]> {
    let key: [u8; KEY_BYTES] = rand::random();
    let temp = path.with_extension("tmp");
    let _ = fs::remove_file(&temp);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temp)?;
    io::Write::write_all(&mut file, &key)?;
    file.sync_all()?;
    fs::rename(&temp, path)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000_000);

    #[test]
    fn an_address_opens_what_it_says_until_its_time_is_over() {
        let data = tempfile::tempdir().expect("temp dir");
        let links = Links::open(data.path()).expect("made");
        let address = links.sign("/api/v1/jobs/A/outputs/0", NOW);
        let opens = |address: &str, now: Timestamp| links.opens(&Method::GET, &address.parse().expect("a URI"), now);
        let hour = 3_600_000;
        assert!(opens(&address, NOW) && opens(&address, NOW.plus_millis(hour)));
        assert!(!opens(&address, NOW.plus_millis(hour + 1000)));
        assert!(links.opens(&Method::HEAD, &address.parse().expect("a URI"), NOW));
        assert!(!links.opens(&Method::DELETE, &address.parse().expect("a URI"), NOW));
        let later = address.replace("expires=1003600", "expires=9003600");
        assert_ne!(later, address);
        for wrong in [
            later,
            address.replace("outputs/0", "outputs/1"),
            address.replace("jobs/A", "jobs/B"),
            address[..address.len() - 1].to_owned(),
            format!("{address}0"),
            format!("{address}&x=1"),
            address.split('?').next().expect("a path").to_owned(),
            "/api/v1/jobs/A/outputs/0?expires=1003600&signature=".to_owned(),
        ] {
            assert!(!opens(&wrong, NOW), "{wrong}");
        }
    }

    #[test]
    fn the_key_is_made_once_and_is_the_folders_own() {
        let data = tempfile::tempdir().expect("temp dir");
        let address = Links::open(data.path()).expect("made").sign("/a", NOW);
        assert_eq!(Links::open(data.path()).expect("read").sign("/a", NOW), address);
        let mode = fs::metadata(data.path().join(FILE)).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let other = tempfile::tempdir().expect("temp dir");
        assert_ne!(Links::open(other.path()).expect("made").sign("/a", NOW), address);
        fs::write(data.path().join(FILE), "short").expect("written");
        assert!(Links::open(data.path()).is_err());
    }
}

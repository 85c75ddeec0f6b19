//! Names of repositories and of their revisions, as far as they may become paths and addresses.

use std::{fmt, str::FromStr};

use super::HubError;

/// `ORG/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepoId {
    org: String,
    name: String,
}

/// The hub's own bound for one part of a name.
const MAX_PART: usize = 96;

impl RepoId {
    pub fn org(&self) -> &str {
        &self.org
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// `ORG--NAME`, one part of a path; no name holds `--`, so that it can be told apart again.
    pub(super) fn flat(&self) -> String {
        format!("{}--{}", self.org, self.name)
    }

    /// The other way round.
    pub fn from_flat(text: &str) -> Option<Self> {
        let (org, name) = text.split_once("--")?;
        format!("{org}/{name}").parse().ok()
    }
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.org, self.name)
    }
}

impl FromStr for RepoId {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let wrong = || HubError::Name { name: text.chars().take(200).collect(), wanted: "ORG/NAME" };
        let (org, name) = text.split_once('/').ok_or_else(wrong)?;
        // `loras` is where single files of LoRA weights lie.
        if !is_part(org) || !is_part(name) || org == "loras" {
            return Err(wrong());
        }
        Ok(Self { org: org.to_owned(), name: name.to_owned() })
    }
}

fn is_part(part: &str) -> bool {
    (1..=MAX_PART).contains(&part.len())
        && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
        && !part.starts_with(['.', '-'])
        && !part.ends_with(['.', '-'])
        && !part.contains("--")
        && !part.contains("..")
}

/// A branch, a tag or a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revision(String);

impl Default for Revision {
    fn default() -> Self {
        Self("main".to_owned())
    }
}

impl Revision {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Revision {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'/');
        let is_fine = (1..=200).contains(&text.len())
            && text.bytes().all(plain)
            && !text.contains("..")
            && !text.starts_with(['-', '/', '.'])
            && !text.ends_with('/');
        if !is_fine {
            return Err(HubError::Name { name: text.chars().take(200).collect(), wanted: "a branch, tag or commit" });
        }
        Ok(Self(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_two_plain_parts() {
        let id: RepoId = "org-1/Some_Model.v2".parse().expect("a name");
        assert_eq!((id.org(), id.name()), ("org-1", "Some_Model.v2"));
        assert_eq!(RepoId::from_flat(&id.flat()), Some(id));
        for text in [
            "",
            "name",
            "/name",
            "org/",
            "a/b/c",
            "../b",
            "a/..",
            "a/.hidden",
            "a b/c",
            "a/b--c",
            "loras/x",
            "a/b%2F",
            "ä/b",
        ] {
            text.parse::<RepoId>().expect_err(text);
        }
        format!("{}/b", "a".repeat(97)).parse::<RepoId>().expect_err("too long");
    }

    #[test]
    fn a_revision_is_no_way_out() {
        for text in ["main", "v1.0", "refs/pr/1", "0123456789abcdef0123456789abcdef01234567"] {
            assert_eq!(text.parse::<Revision>().expect(text).as_str(), text);
        }
        for text in ["", "../x", "a/../b", "-x", "/x", "x/", "a b", "a?b", "a#b"] {
            text.parse::<Revision>().expect_err(text);
        }
    }
}

//! The file of tokens: who may do what. Only hashes are kept, and a changed file is read again.
//!
//! One token a line: `TOKEN`, `NAME:TOKEN`, or `NAME:SCOPE:SHA256` with the hash in hexadecimal digits, so that the file
//! gives nobody away. A line without a scope may do everything.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConstantTimeEq as _};

use super::scope::Scope;

/// How often the tokens' file is looked at, for changes.
const LOOK: Duration = Duration::from_secs(1);

/// The tokens' file cannot be used. The daemon does not start then: it would be open, or closed for everybody.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    #[error("{}: {error}", path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error("{}:{line}: {what}", path.display())]
    Line { path: PathBuf, line: usize, what: &'static str },
    #[error("{} holds no token", path.display())]
    Empty { path: PathBuf },
}

/// A SHA-256.
pub(crate) type TokenDigest = [u8; 32];

#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub(crate) name: Option<Arc<str>>,
    pub(crate) scope: Scope,
    pub(crate) digest: TokenDigest,
}

impl Token {
    /// A line that is neither empty nor a comment.
    fn parse(line: &str) -> Result<Self, &'static str> {
        if let [name, scope, digest] = line.split(':').map(str::trim).collect::<Vec<_>>()[..]
            && let Some(digest) = digest_of(digest)
        {
            let scope = Scope::parse(scope).ok_or("the scope is none of read, submit and admin")?;
            return Ok(Self { name: Some(name.into()), scope, digest });
        }
        let (name, token) = match line.split_once(':') {
            Some((name, token)) => (Some(name.trim()), token.trim()),
            None => (None, line),
        };
        if token.is_empty() {
            return Err("a name without a token");
        }
        if !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err("a token is made of visible ASCII characters, without spaces");
        }
        Ok(Self { name: name.map(Arc::from), scope: Scope::Admin, digest: Sha256::digest(token).into() })
    }
}

/// 64 hexadecimal digits.
fn digest_of(text: &str) -> Option<TokenDigest> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut digest = [0; 32];
    for (byte, pair) in digest.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(digest)
}

/// All tokens. Only their hashes are kept.
#[derive(Debug)]
pub(crate) struct Tokens(Vec<Token>);

impl Tokens {
    pub(crate) fn parse(path: &Path, text: &str) -> Result<Self, TokensError> {
        let mut tokens = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let token = Token::parse(line);
            tokens.push(token.map_err(|what| TokensError::Line { path: path.to_owned(), line: index + 1, what })?);
        }
        if tokens.is_empty() { Err(TokensError::Empty { path: path.to_owned() }) } else { Ok(Self(tokens)) }
    }

    /// Compares with every token, in a time that does not depend on them.
    pub(crate) fn find(&self, presented: &[u8]) -> Option<&Token> {
        let digest: TokenDigest = Sha256::digest(presented).into();
        let mut found = None;
        for token in &self.0 {
            let equal: Choice = token.digest.ct_eq(&digest);
            if bool::from(equal) {
                found = Some(token);
            }
        }
        found
    }
}

/// What tells a file from the one that was read.
type Stamp = (u64, u64, i64, i64);

#[derive(Debug)]
pub(crate) struct TokensFile {
    path: PathBuf,
    state: Mutex<FileState>,
}

#[derive(Debug)]
struct FileState {
    tokens: Arc<Tokens>,
    stamp: Option<Stamp>,
    looked: Instant,
}

impl TokensFile {
    pub(crate) fn open(path: &Path) -> Result<Self, TokensError> {
        let stamp = Self::stamp(path);
        let tokens = Arc::new(Self::read(path)?);
        let state = Mutex::new(FileState { tokens, stamp, looked: Instant::now() });
        Ok(Self { path: path.to_owned(), state })
    }

    fn read(path: &Path) -> Result<Tokens, TokensError> {
        let text = fs::read_to_string(path).map_err(|error| TokensError::Read { path: path.to_owned(), error })?;
        Tokens::parse(path, &text)
    }

    fn stamp(path: &Path) -> Option<Stamp> {
        fs::metadata(path).ok().map(|meta| (meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()))
    }

    /// The tokens as the file has them now. A file that cannot be read leaves the tokens as they were.
    pub(crate) fn current(&self) -> Arc<Tokens> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.looked.elapsed() >= LOOK {
            state.looked = Instant::now();
            let stamp = Self::stamp(&self.path);
            if stamp != state.stamp {
                state.stamp = stamp;
                match Self::read(&self.path) {
                    Ok(tokens) => {
                        tracing::info!(file = %self.path.display(), tokens = tokens.0.len(), "read the tokens again");
                        state.tokens = Arc::new(tokens);
                    }
                    Err(error) => tracing::error!(%error, "the tokens stay as they were"),
                }
            }
        }
        state.tokens.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_a_hash_says_what_its_token_may_do() {
        let hash = crate::admission::hex(&Sha256::digest("secret"));
        let text = format!(
            "phone:read:{hash}\nscript : submit : {}\nplain\n",
            crate::admission::hex(&Sha256::digest("other"))
        );
        let tokens = Tokens::parse(Path::new("tokens"), &text).expect("parses");
        let found = |token: &str| tokens.find(token.as_bytes()).map(|token| (token.name.as_deref(), token.scope));
        assert_eq!(found("secret"), Some((Some("phone"), Scope::Read)));
        assert_eq!(found("other"), Some((Some("script"), Scope::Submit)));
        assert_eq!(found("plain"), Some((None, Scope::Admin)));
        assert_eq!(found(&hash), None, "the hash itself opens nothing");
        let parse = |text: &str| Tokens::parse(Path::new("tokens"), text).map(|_| ()).map_err(|e| e.to_string());
        assert_eq!(
            parse(&format!("a:write:{hash}")),
            Err("tokens:1: the scope is none of read, submit and admin".into())
        );
        // A token of three parts is a token as ever.
        assert_eq!(parse("name:to:ken"), Ok(()));
    }

    #[test]
    fn a_tokens_file_that_says_nothing_or_rubbish_is_refused() {
        let parse = |text: &str| Tokens::parse(Path::new("tokens"), text).map(|_| ()).map_err(|e| e.to_string());
        assert_eq!(parse("# nothing\n"), Err("tokens holds no token".into()));
        assert_eq!(parse("ok\nname:\n"), Err("tokens:2: a name without a token".into()));
        assert!(parse("two words").is_err());
        assert!(TokensFile::open(Path::new("/nonexistent/tokens")).is_err());
    }

    #[test]
    fn a_changed_file_is_read_again_and_a_broken_one_is_not() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("tokens");
        fs::write(&path, "one").expect("write");
        let file = TokensFile::open(&path).expect("opens");
        let look_again = || {
            let past = Instant::now().checked_sub(2 * LOOK).expect("the clock is older than that");
            file.state.lock().expect("lock").looked = past;
            file.current()
        };
        fs::write(&path, "one\ntwo").expect("write");
        assert!(look_again().find(b"two").is_some());
        fs::remove_file(&path).expect("remove");
        assert!(look_again().find(b"two").is_some(), "a vanished file locks nobody out and lets nobody in");
        fs::write(&path, "three").expect("write");
        assert!(look_again().find(b"three").is_some());
        assert!(look_again().find(b"two").is_none());
    }
}

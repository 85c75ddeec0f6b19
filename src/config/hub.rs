//! How to reach the hub that models are pulled from: the configuration, and the variables that other programs of its
//! users know too.

use std::{fmt, path::PathBuf};

use super::Config;

/// Where models come from when nobody says otherwise.
const PUBLIC_HUB: &str = "https://huggingface.co";

/// Address, credentials, and whether the hub may be asked at all.
#[derive(Clone, Debug)]
pub struct HubAccess {
    pub endpoint: String,
    pub token: Option<Token>,
    /// `HF_HUB_OFFLINE`: no request leaves this machine.
    pub offline: bool,
}

/// A secret that no log and no message shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    pub fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// # Errors
/// `models.token_file` cannot be read, or a token is no token. The message says which.
pub fn hub_access(config: &Config) -> Result<HubAccess, String> {
    access(config, |name| std::env::var(name).ok())
}

fn access(config: &Config, variable: impl Fn(&str) -> Option<String>) -> Result<HubAccess, String> {
    let set = |name: &str| variable(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
    let endpoint = Some(config.models.endpoint.clone()).filter(|endpoint| !endpoint.is_empty());
    let endpoint = endpoint.or_else(|| set("HF_ENDPOINT")).unwrap_or_else(|| PUBLIC_HUB.to_owned());
    let offline = set("HF_HUB_OFFLINE").is_some_and(|text| is_yes(&text));
    Ok(HubAccess { endpoint, token: token(config, set)?, offline })
}

fn token(config: &Config, set: impl Fn(&str) -> Option<String>) -> Result<Option<Token>, String> {
    if let Some(path) = &config.models.token_file {
        let text =
            std::fs::read_to_string(path).map_err(|error| format!("models.token_file {}: {error}", path.display()))?;
        return checked(&text, "models.token_file");
    }
    if let Some(text) = set("HF_TOKEN") {
        return checked(&text, "HF_TOKEN");
    }
    // Where the hub's own command line leaves it.
    let home = set("HF_HOME").map(PathBuf::from).or_else(|| Some(cache_home(&set)?.join("huggingface")));
    let path = set("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| Some(home?.join("token")));
    match path.and_then(|path| std::fs::read_to_string(path).ok()) {
        Some(text) => checked(&text, "the hub's token file"),
        None => Ok(None),
    }
}

fn checked(text: &str, place: &str) -> Result<Option<Token>, String> {
    let token = text.trim();
    if token.is_empty() {
        return Ok(None);
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!("{place}: a token is one word of visible ASCII characters"));
    }
    Ok(Some(Token(token.to_owned())))
}

fn is_yes(text: &str) -> bool {
    matches!(text.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE")
}

fn cache_home(set: impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    set("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| Some(PathBuf::from(set("HOME")?).join(".cache")))
}

/// The variables that [`default_cache`] reads.
pub(super) const CACHE_VARIABLES: [&str; 5] =
    ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HOME"];

/// The folder in which the hub's own programs keep models; it need not exist.
pub(super) fn default_cache(variables: &[(String, String)]) -> Option<PathBuf> {
    let set = |name: &str| {
        variables.iter().find(|(known, text)| known == name && !text.is_empty()).map(|(_, text)| text.clone())
    };
    let named = set("HF_HUB_CACHE").or_else(|| set("HUGGINGFACE_HUB_CACHE")).map(PathBuf::from);
    let path = named.or_else(|| Some(PathBuf::from(set("HF_HOME")?).join("hub")));
    path.or_else(|| Some(cache_home(set)?.join("huggingface/hub"))).filter(|path| path.is_absolute())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn read(config: &Config, variables: &[(&str, &str)]) -> Result<HubAccess, String> {
        access(config, |name| variables.iter().find(|(known, _)| *known == name).map(|(_, text)| (*text).to_owned()))
    }

    #[test]
    fn the_configuration_is_stronger_than_the_environment_and_both_than_the_public_hub() {
        let mut config = Config::defaults();
        let found = read(&config, &[]).expect("read");
        assert_eq!((found.endpoint.as_str(), found.token, found.offline), (PUBLIC_HUB, None, false));
        let found =
            read(&config, &[("HF_ENDPOINT", "http://mirror"), ("HF_HUB_OFFLINE", "1"), ("HF_TOKEN", " hf_x\n")]);
        let found = found.expect("read");
        assert_eq!((found.endpoint.as_str(), found.offline), ("http://mirror", true));
        assert_eq!(found.token.as_ref().expect("a token").secret(), "hf_x");
        assert!(!format!("{found:?}").contains("hf_x"), "{found:?}");
        config.models.endpoint = "https://ours".into();
        let found = read(&config, &[("HF_ENDPOINT", "http://mirror"), ("HF_HUB_OFFLINE", "0")]).expect("read");
        assert_eq!((found.endpoint.as_str(), found.offline), ("https://ours", false));
    }

    #[test]
    fn a_token_is_looked_for_where_it_is_usually_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let home = folder.path().to_str().expect("UTF-8");
        std::fs::create_dir_all(folder.path().join(".cache/huggingface")).expect("made");
        std::fs::write(folder.path().join(".cache/huggingface/token"), "hf_kept\n").expect("written");
        let mut config = Config::defaults();
        let secret = |found: HubAccess| found.token.map(|token| token.secret().to_owned());
        assert_eq!(secret(read(&config, &[("HOME", home)]).expect("read")), Some("hf_kept".into()));
        assert_eq!(
            secret(read(&config, &[("HOME", home), ("HF_TOKEN", "hf_set")]).expect("read")),
            Some("hf_set".into())
        );
        let own = folder.path().join("own");
        std::fs::write(&own, "two words").expect("written");
        config.models.token_file = Some(own.clone());
        let error = read(&config, &[("HF_TOKEN", "hf_set")]).expect_err("no token");
        assert!(error.contains("models.token_file") && !error.contains("two words"), "{error}");
        std::fs::remove_file(own).expect("removed");
        read(&config, &[]).expect_err("a file that is named must be there");
    }

    #[test]
    fn the_cache_is_where_the_hubs_own_programs_have_it() {
        let cache = |variables: &[(&str, &str)]| {
            let variables: Vec<_> = variables.iter().map(|(name, text)| ((*name).into(), (*text).into())).collect();
            default_cache(&variables)
        };
        assert_eq!(cache(&[]), None);
        assert_eq!(cache(&[("HOME", "/h")]).as_deref(), Some(Path::new("/h/.cache/huggingface/hub")));
        assert_eq!(
            cache(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]).as_deref(),
            Some(Path::new("/x/huggingface/hub"))
        );
        assert_eq!(cache(&[("HOME", "/h"), ("HF_HOME", "/f")]).as_deref(), Some(Path::new("/f/hub")));
        assert_eq!(cache(&[("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")]).as_deref(), Some(Path::new("/c")));
        assert_eq!(cache(&[("HF_HUB_CACHE", "relative")]), None);
    }
}

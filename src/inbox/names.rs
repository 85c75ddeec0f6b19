//! File names: what they say a file is, and what files are called on their way through the folders.
//!
//! Names are bytes; nothing here assumes UTF-8, touches a disk or knows what a job is beyond its id.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::{Path, PathBuf},
};

use atelier_domain::JobId;

/// The longest name that Linux file systems take.
const NAME_MAX: usize = 255;
/// A ULID and the dash behind it.
const ID_PREFIX: usize = 27;

pub const DONE: &str = "done";
pub const FAILED: &str = "failed";
pub const PROCESSING: &str = ".processing";
pub const ERROR_SUFFIX: &str = ".error.json";
pub const DUPLICATE_SUFFIX: &str = ".duplicate.json";

/// What a name says its file is for. Only content decides whether a picture is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameKind {
    Picture,
    /// `.toml` or `.json`: parameters of a picture, or a job by itself.
    Spec,
    /// `.txt`: the prompt of a picture, never a job by itself.
    Prompt,
}

const SIDECARS: [(&str, NameKind); 3] = [("toml", NameKind::Spec), ("json", NameKind::Spec), ("txt", NameKind::Prompt)];

pub fn kind_of(name: &[u8]) -> NameKind {
    let (_, extension) = split_extension(name);
    SIDECARS
        .iter()
        .find(|(known, _)| extension.is_some_and(|e| e == known.as_bytes()))
        .map_or(NameKind::Picture, |(_, kind)| *kind)
}

/// The sidecars that `picture` (a path or a name) may have, strongest first.
pub fn sidecars_of(picture: &OsStr) -> impl Iterator<Item = OsString> + use<> {
    let whole = picture.as_bytes().to_vec();
    let stem = stem_of_path(&whole).to_vec();
    let bases = if stem == whole { vec![whole] } else { vec![whole, stem] };
    bases.into_iter().flat_map(|base| {
        SIDECARS.into_iter().map(move |(extension, _)| {
            let mut name = base.clone();
            name.push(b'.');
            name.extend_from_slice(extension.as_bytes());
            OsString::from_vec(name)
        })
    })
}

/// `photo.jpg` of `photo.jpg.toml`, and `photo` of `photo.toml`: the picture's name, or its stem.
pub fn base_of_sidecar(name: &[u8]) -> &[u8] {
    split_extension(name).0
}

/// Whether a sidecar of base `base` may belong to the picture `name`.
pub fn belongs(base: &[u8], name: &[u8]) -> bool {
    base == name || base == split_extension(name).0
}

/// The name without its extension; a leading dot starts no extension.
pub fn stem(name: &OsStr) -> &OsStr {
    OsStr::from_bytes(split_extension(name.as_bytes()).0)
}

fn split_extension(name: &[u8]) -> (&[u8], Option<&[u8]>) {
    match name.iter().rposition(|b| *b == b'.') {
        Some(dot) if dot > 0 => (&name[..dot], Some(&name[dot + 1..])),
        _ => (name, None),
    }
}

fn stem_of_path(path: &[u8]) -> &[u8] {
    let start = path.iter().rposition(|b| *b == b'/').map_or(0, |slash| slash + 1);
    let (stem, _) = split_extension(&path[start..]);
    &path[..start + stem.len()]
}

/// The folder (empty for the root) and the name of a path below the inbox.
pub fn split(rel: &OsStr) -> (&Path, &OsStr) {
    let bytes = rel.as_bytes();
    match bytes.iter().rposition(|b| *b == b'/') {
        Some(slash) => (Path::new(OsStr::from_bytes(&bytes[..slash])), OsStr::from_bytes(&bytes[slash + 1..])),
        None => (Path::new(""), rel),
    }
}

/// Folder and name together again.
pub fn join(folder: &Path, name: &OsStr) -> OsString {
    folder.join(name).into_os_string()
}

/// What a file is called in `.processing`: `<job id>-<name>`, within what a file system takes as a name.
pub fn processing(id: JobId, name: &OsStr) -> OsString {
    let mut full = OsString::from(format!("{id}-"));
    full.push(OsString::from_vec(shortened(name.as_bytes(), NAME_MAX - ID_PREFIX)));
    full
}

/// The id and the name in a name that [`processing`] made.
pub fn parse_processing(name: &OsStr) -> Option<(JobId, &OsStr)> {
    let bytes = name.as_bytes();
    if bytes.get(ID_PREFIX - 1) != Some(&b'-') || bytes.len() == ID_PREFIX {
        return None;
    }
    let id = std::str::from_utf8(&bytes[..ID_PREFIX - 1]).ok()?.parse().ok()?;
    Some((id, OsStr::from_bytes(&bytes[ID_PREFIX..])))
}

/// `name` with `suffix` behind it, within what a file system takes.
pub fn suffixed(name: &OsStr, suffix: &str) -> OsString {
    let mut bytes = shortened(name.as_bytes(), NAME_MAX - suffix.len());
    bytes.extend_from_slice(suffix.as_bytes());
    OsString::from_vec(bytes)
}

/// `photo (2).jpg` for `photo.jpg`; the name itself for the first.
///
/// `base` is what the number goes behind: a sidecar keeps its picture's number, `photo (2).jpg.toml`.
pub fn numbered(name: &OsStr, base: &OsStr, number: u32) -> OsString {
    if number < 2 {
        return name.to_owned();
    }
    let base_stem = split_extension(base.as_bytes()).0;
    let stem = if name.as_bytes().starts_with(base_stem) { base_stem } else { split_extension(name.as_bytes()).0 };
    let tail = &name.as_bytes()[stem.len()..];
    let mark = format!(" ({number})");
    let mut bytes = cut(stem, NAME_MAX.saturating_sub(mark.len() + tail.len())).to_vec();
    bytes.extend_from_slice(mark.as_bytes());
    bytes.extend_from_slice(tail);
    bytes.truncate(NAME_MAX);
    OsString::from_vec(bytes)
}

/// At most `max` bytes of `name`, its extension kept. What is cut away is replaced by a hash of the whole name, so that
/// two names which differ stay two names.
fn shortened(name: &[u8], max: usize) -> Vec<u8> {
    if name.len() <= max {
        return name.to_vec();
    }
    let (stem, extension) = split_extension(name);
    let extension = extension.filter(|e| e.len() <= 16).unwrap_or_default();
    let mark = format!("~{:08x}", fnv(name) & 0xffff_ffff);
    let dot = usize::from(!extension.is_empty());
    let mut short = cut(stem, max - mark.len() - dot - extension.len()).to_vec();
    short.extend_from_slice(mark.as_bytes());
    if dot == 1 {
        short.push(b'.');
        short.extend_from_slice(extension);
    }
    short
}

/// The first `max` bytes, fewer where that would split a character.
fn cut(bytes: &[u8], max: usize) -> &[u8] {
    if bytes.len() <= max {
        return bytes;
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => &bytes[..text.floor_char_boundary(max)],
        Err(_) => &bytes[..max],
    }
}

/// FNV-1a: the same in every build and version, which names on disk have to be.
pub fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// What a file's sub-folder says: the preset to use, and where below the outbox its outputs go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    pub preset: Option<String>,
    pub output_dir: Option<PathBuf>,
}

/// `is_preset` tells whether a folder's name is a preset's; only the first folder below the inbox can be one.
pub fn route(rel: &OsStr, is_preset: impl Fn(&str) -> bool) -> Route {
    let (folder, _) = split(rel);
    let mut rest = folder.components();
    let preset = rest.next().and_then(|first| first.as_os_str().to_str()).filter(|name| is_preset(name));
    let output = if preset.is_some() { rest.as_path() } else { folder };
    Route {
        preset: preset.map(str::to_owned),
        output_dir: (!output.as_os_str().is_empty()).then(|| output.to_path_buf()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id() -> JobId {
        "01JD0000000000000000000000".parse().expect("an id")
    }

    #[test]
    fn a_picture_has_sidecars_by_its_name_and_by_its_stem() {
        let names: Vec<_> = sidecars_of(OsStr::new("a.b/photo.jpg")).collect();
        let expected = [
            "a.b/photo.jpg.toml",
            "a.b/photo.jpg.json",
            "a.b/photo.jpg.txt",
            "a.b/photo.toml",
            "a.b/photo.json",
            "a.b/photo.txt",
        ];
        assert_eq!(names, expected);
        assert_eq!(sidecars_of(OsStr::new("a.b/photo")).count(), 3);
        for name in expected {
            let (_, name) = split(OsStr::new(name));
            assert!(belongs(base_of_sidecar(name.as_bytes()), b"photo.jpg"), "{name:?}");
        }
        assert!(!belongs(b"photo.jpg", b"photo.png"));
        assert_eq!(kind_of(b"photo.jpg.toml"), NameKind::Spec);
        assert_eq!(kind_of(b"photo.txt"), NameKind::Prompt);
        assert_eq!(kind_of(b"toml"), NameKind::Picture);
        assert_eq!(kind_of(b".toml"), NameKind::Picture);
    }

    #[test]
    fn numbers_go_before_the_extension_and_sidecars_follow_their_picture() {
        let numbered = |name: &str, base: &str| numbered(OsStr::new(name), OsStr::new(base), 2);
        assert_eq!(numbered("photo.jpg", "photo.jpg"), "photo (2).jpg");
        assert_eq!(numbered("photo.jpg.toml", "photo.jpg"), "photo (2).jpg.toml");
        assert_eq!(numbered("photo.toml", "photo.jpg"), "photo (2).toml");
        assert_eq!(numbered("photo", "photo"), "photo (2)");
        assert_eq!(super::numbered(OsStr::new("photo.jpg"), OsStr::new("photo.jpg"), 1), "photo.jpg");
    }

    #[test]
    fn the_first_folder_chooses_the_preset_and_the_rest_is_kept_for_the_outputs() {
        let route = |rel: &str| route(OsStr::new(rel), |name| name == "portrait");
        assert_eq!(route("photo.jpg"), Route::default());
        let plain = route("holiday/2024/photo.jpg");
        assert_eq!(plain, Route { preset: None, output_dir: Some("holiday/2024".into()) });
        assert_eq!(route("portrait/a.jpg"), Route { preset: Some("portrait".into()), output_dir: None });
        let deep = route("portrait/x/y/a.jpg");
        assert_eq!(deep, Route { preset: Some("portrait".into()), output_dir: Some("x/y".into()) });
        assert_eq!(route("x/portrait/a.jpg").preset, None);
    }

    #[test]
    fn two_long_names_that_differ_stay_two_names() {
        let long = "x".repeat(240);
        let a = processing(id(), OsStr::new(&format!("{long}.jpg.toml")));
        let b = processing(id(), OsStr::new(&format!("{long}.toml")));
        assert_ne!(a, b);
        assert!(a.as_bytes().ends_with(b".toml") && a.len() == NAME_MAX);
    }

    proptest! {
        #[test]
        fn names_of_any_bytes_stay_within_the_limit_and_keep_their_extension(
            stem in proptest::collection::vec(1u8..=255, 1..251),
        ) {
            let stem: Vec<u8> = stem.into_iter().filter(|b| *b != b'/').chain(*b"x").collect();
            let name = OsString::from_vec([&stem[..], b".jpg"].concat());
            let made = processing(id(), &name);
            prop_assert!(made.len() <= NAME_MAX);
            prop_assert!(made.as_bytes().ends_with(b".jpg"));
            let (parsed, rest) = parse_processing(&made).expect("parses back");
            prop_assert_eq!(parsed, id());
            if name.len() <= NAME_MAX - ID_PREFIX {
                prop_assert_eq!(rest, &name);
            }
            for made in [suffixed(&name, ERROR_SUFFIX), numbered(&name, &name, 12)] {
                prop_assert!(made.len() <= NAME_MAX);
            }
        }

        #[test]
        fn a_name_cut_short_is_still_text_where_it_was_text(name in "[aé水]{100,125}") {
            prop_assume!((NAME_MAX - ID_PREFIX..=NAME_MAX).contains(&name.len()));
            prop_assert!(processing(id(), OsStr::new(&name)).to_str().is_some());
        }
    }
}

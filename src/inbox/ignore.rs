//! Which names in the inbox are no candidates: half-finished downloads, editors' and synchronisers' leavings.
//!
//! Only names are judged, and names are bytes.

/// What browsers, editors, synchronisers and desktops leave lying about and nobody wants as a job.
///
/// Names with a dot in front (rsync's `.NAME.XXXXXX`, `.#lock`, `.syncthing.*`, `.DS_Store`, `.~lock*`) are left alone
/// without a pattern.
pub const IGNORED: [&str; 26] = [
    "*.part",
    "*.partial",
    "*.filepart",
    "*.crdownload",
    "*.download",
    "*.opdownload",
    "*.tmp",
    "*.temp",
    "*.aria2",
    "*.!qb",
    "*.!ut",
    "*~",
    "~$*",
    "#*#",
    "~syncthing~*",
    "thumbs.db",
    "desktop.ini",
    "@eadir",
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "__macosx",
    // Our own reports, moved back together with what they report on.
    "*.error.json",
    "*.duplicate.json",
];

/// The patterns of names that are no candidates: [`IGNORED`] and the configuration's own.
#[derive(Clone, Debug)]
pub struct Ignore {
    patterns: Vec<Pattern>,
}

/// A pattern in the form that is quickest to try: this is asked for every name in the inbox at every scan.
#[derive(Clone, Debug)]
enum Pattern {
    Exact(Vec<u8>),
    Prefix(Vec<u8>),
    Suffix(Vec<u8>),
    Glob(Vec<u8>),
}

impl Pattern {
    fn new(pattern: &str) -> Self {
        let bytes = pattern.as_bytes();
        let is_plain = |part: &[u8]| !part.iter().any(|b| matches!(b, b'*' | b'?'));
        match bytes {
            [b'*', suffix @ ..] if is_plain(suffix) => Self::Suffix(suffix.to_vec()),
            [prefix @ .., b'*'] if is_plain(prefix) => Self::Prefix(prefix.to_vec()),
            plain if is_plain(plain) => Self::Exact(plain.to_vec()),
            glob => Self::Glob(glob.to_vec()),
        }
    }

    fn fits(&self, name: &[u8]) -> bool {
        let same = |part: Option<&[u8]>, own: &[u8]| part.is_some_and(|part| part.eq_ignore_ascii_case(own));
        match self {
            Self::Exact(own) => name.eq_ignore_ascii_case(own),
            Self::Prefix(own) => same(name.get(..own.len()), own),
            Self::Suffix(own) => same(name.len().checked_sub(own.len()).map(|at| &name[at..]), own),
            Self::Glob(own) => matches(own, name),
        }
    }
}

impl Ignore {
    /// `extra` are patterns where `*` stands for any bytes and `?` for one; capital letters make no difference.
    pub fn new(extra: &[String]) -> Self {
        let patterns = IGNORED.into_iter().chain(extra.iter().map(String::as_str)).map(Pattern::new).collect();
        Self { patterns }
    }

    pub fn skips(&self, name: &[u8]) -> bool {
        name.first().is_none_or(|first| *first == b'.') || self.patterns.iter().any(|pattern| pattern.fits(name))
    }
}

/// Whether `name` fits `pattern`: `*` is any run of bytes, `?` is one byte, ASCII letters fit in either case.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    // Where to go on when a guess about the last star was wrong.
    let mut retry: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p + 1, n));
                p += 1;
            }
            Some(c) if *c == b'?' || c.eq_ignore_ascii_case(&name[n]) => {
                p += 1;
                n += 1;
            }
            _ => match retry {
                Some((after_star, eaten)) => {
                    retry = Some((after_star, eaten + 1));
                    p = after_star;
                    n = eaten + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_names_of_browsers_editors_and_synchronisers_are_left_alone() {
        let ignore = Ignore::new(&["raw_*".into(), "*.X?".into(), "a*b*.png".into()]);
        for name in [
            ".hidden",
            ".photo.jpg.A1b2C3",
            "photo.jpg.part",
            "photo.jpg.PART",
            "photo.tmp",
            "photo.temp",
            "a.filepart",
            "a.crdownload",
            "a.partial",
            "a.download",
            "a.opdownload",
            "~$letter.docx",
            ".#photo.jpg",
            "#photo.jpg#",
            "photo.jpg~",
            ".syncthing.photo.jpg.tmp",
            "~syncthing~photo.jpg.tmp",
            ".~lock.photo.jpg#",
            "Thumbs.db",
            "desktop.ini",
            ".DS_Store",
            "@eaDir",
            ".stfolder",
            ".stversions",
            "photo.jpg.error.json",
            "photo.jpg.duplicate.json",
            "raw_1.jpg",
            "a.xy",
            "a1b2.png",
            "",
        ] {
            assert!(ignore.skips(name.as_bytes()), "{name:?} is a candidate");
        }
        for name in ["photo.jpg", "partial.jpg", "tmp", "a~b.jpg", "#1.jpg", "x.raw_1", "download.png", "a.json"] {
            assert!(!ignore.skips(name.as_bytes()), "{name:?} is left alone");
        }
        assert!(!ignore.skips(b"\xff\xfe.jpg"));
    }
}

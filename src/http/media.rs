//! Names, ranges and validators of files on the wire.

use std::fmt::Write as _;

use axum::http::{HeaderMap, HeaderValue, header};

/// Longest name that is kept of what a client calls a file, in bytes.
const NAME_BYTES: usize = 120;

/// What a client calls a file, without folders, control characters and the marks that turn text around. May be
/// empty.
pub(crate) fn base_name(name: &str) -> String {
    let base = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let clean: String = base.chars().filter(|c| !c.is_control() && !is_format_mark(*c)).collect();
    let clean = clean.trim();
    if clean.chars().all(|c| c == '.') { String::new() } else { shortened(clean, NAME_BYTES) }
}

/// Bidirectional and invisible marks: `gpj.exe` must not show as `exe.jpg`.
fn is_format_mark(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Cuts the middle out of a long name; its extension stays.
fn shortened(name: &str, max: usize) -> String {
    if name.len() <= max {
        return name.to_owned();
    }
    let extension = name.rfind('.').map(|dot| &name[dot..]).filter(|ext| ext.len() <= 16).unwrap_or_default();
    let mut end = max - extension.len();
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{extension}", &name[..end])
}

/// A [`base_name`] as a file's name on disk; never empty, never hidden.
pub(crate) fn file_name(name: &str) -> String {
    let name = base_name(name);
    let name = name.trim_start_matches('.');
    if name.is_empty() { "image".to_owned() } else { name.to_owned() }
}

/// `Content-Disposition` (RFC 6266), with the name in ASCII for old clients and in UTF-8 (RFC 8187) where it differs.
pub(crate) fn content_disposition(kind: &str, name: &str) -> HeaderValue {
    let ascii: String =
        name.chars().map(|c| if matches!(c, ' '..='~') && !matches!(c, '"' | '\\' | '%') { c } else { '_' }).collect();
    let mut value = format!("{kind}; filename=\"{ascii}\"");
    if ascii != name {
        value.push_str("; filename*=UTF-8''");
        for byte in name.bytes() {
            if byte.is_ascii_alphanumeric() || b"!#$&+-.^_`|~".contains(&byte) {
                value.push(char::from(byte));
            } else {
                write!(value, "%{byte:02X}").expect("a String takes everything");
            }
        }
    }
    HeaderValue::from_str(&value).expect("only visible ASCII and spaces were written")
}

/// The name in a part's `Content-Disposition`: `filename*` before `filename`.
pub(crate) fn extended_file_name(disposition: &HeaderValue) -> Option<String> {
    let text = disposition.to_str().ok()?;
    let at = text.to_ascii_lowercase().find("filename*=")? + "filename*=".len();
    let value = text[at..].split(';').next()?.trim().trim_matches('"');
    let (charset, rest) = value.split_once('\'')?;
    let (_language, encoded) = rest.split_once('\'')?;
    if !charset.eq_ignore_ascii_case("utf-8") {
        return None;
    }
    String::from_utf8(percent_decoded(encoded)).ok()
}

fn percent_decoded(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.as_bytes();
    while let Some((&byte, rest)) = bytes.split_first() {
        let digit = |i: usize| rest.get(i).and_then(|b| char::from(*b).to_digit(16)).and_then(|d| u8::try_from(d).ok());
        if byte == b'%'
            && let (Some(high), Some(low)) = (digit(0), digit(1))
        {
            out.push(high * 16 + low);
            bytes = &rest[2..];
        } else {
            out.push(byte);
            bytes = rest;
        }
    }
    out
}

/// What of a file to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Selection {
    /// The client has it already.
    NotModified,
    Whole,
    /// From the first byte, so many.
    Part {
        first: u64,
        length: u64,
    },
    /// A range that lies beyond the file.
    Unsatisfiable,
}

/// Decides by `If-None-Match`, `If-Range` and `Range`. `etag` is a strong validator, with its quotes.
pub(crate) fn select(headers: &HeaderMap, etag: &str, length: u64) -> Selection {
    if matches_any(headers, etag) {
        return Selection::NotModified;
    }
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let Some(range) = text(header::RANGE) else { return Selection::Whole };
    // A date, or a weak or other tag: the client's part belongs to something else.
    if text(header::IF_RANGE).is_some_and(|tag| tag != etag) {
        return Selection::Whole;
    }
    parse_range(range, length)
}

fn matches_any(headers: &HeaderMap, etag: &str) -> bool {
    headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok()).any(|tags| {
        tags.split(',').map(str::trim).any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
    })
}

/// One range of bytes. Several at once are answered with the whole file, which every client must take.
fn parse_range(range: &str, length: u64) -> Selection {
    let Some((unit, spec)) = range.split_once('=') else { return Selection::Whole };
    if !unit.trim().eq_ignore_ascii_case("bytes") || spec.contains(',') {
        return Selection::Whole;
    }
    let Some((first, last)) = spec.trim().split_once('-') else { return Selection::Whole };
    let digits = |text: &str| -> Option<u64> {
        let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        // More digits than fit: further than any file.
        is_number.then(|| text.parse().unwrap_or(u64::MAX))
    };
    let (first, last) = match (first.trim(), last.trim()) {
        ("", suffix) => match digits(suffix) {
            None => return Selection::Whole,
            Some(0) => return Selection::Unsatisfiable,
            Some(n) => (length.saturating_sub(n), u64::MAX),
        },
        (first, "") => match digits(first) {
            None => return Selection::Whole,
            Some(first) => (first, u64::MAX),
        },
        (first, last) => match (digits(first), digits(last)) {
            (Some(first), Some(last)) if first <= last => (first, last),
            _ => return Selection::Whole,
        },
    };
    if first >= length {
        return Selection::Unsatisfiable;
    }
    Selection::Part { first, length: last.min(length - 1) - first + 1 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_loses_folders_and_tricks_and_keeps_its_language() {
        for (given, expected) in [
            ("../../etc/passwd", "passwd"),
            ("C:\\Users\\me\\photo.jpg", "photo.jpg"),
            ("Grüße 你好 🎨.jpg", "Grüße 你好 🎨.jpg"),
            ("a\0b\nc\u{202e}gpj.exe", "abcgpj.exe"),
            ("..", ""),
            ("/", ""),
            ("  x.png ", "x.png"),
        ] {
            assert_eq!(base_name(given), expected);
        }
        assert_eq!(file_name(".htaccess"), "htaccess");
        assert_eq!(file_name(".."), "image");
        let long = format!("{}.jpeg", "ü".repeat(300));
        assert!(base_name(&long).len() <= 120 && base_name(&long).ends_with("ü.jpeg"));
    }

    proptest! {
        #[test]
        fn any_name_becomes_one_path_component(name in ".{0,300}") {
            let name = file_name(&name);
            prop_assert!(!name.is_empty() && name.len() <= 120);
            prop_assert!(!name.contains(['/', '\\', '\0']) && !name.starts_with('.'));
            content_disposition("inline", &name);
        }

        #[test]
        fn a_selected_part_lies_within_the_file(range in "bytes=[0-9]{0,21}-[0-9]{0,21}", length in 0u64..100) {
            if let Selection::Part { first, length: n } = parse_range(&range, length) {
                prop_assert!(n >= 1 && first + n <= length);
            }
        }
    }

    #[test]
    fn a_disposition_names_the_file_twice_where_ascii_is_not_enough() {
        assert_eq!(content_disposition("inline", "a b.png"), "inline; filename=\"a b.png\"");
        assert_eq!(
            content_disposition("attachment", "Grüße \"x\".png"),
            "attachment; filename=\"Gr__e _x_.png\"; filename*=UTF-8''Gr%C3%BC%C3%9Fe%20%22x%22.png"
        );
    }

    #[test]
    fn an_extended_name_is_read() {
        let read = |text: &'static str| extended_file_name(&HeaderValue::from_static(text));
        assert_eq!(
            read("form-data; name=\"image\"; filename=\"x\"; filename*=UTF-8''Gr%C3%BC.jpg").as_deref(),
            Some("Grü.jpg")
        );
        assert_eq!(read("form-data; name=\"image\"; filename=\"x\""), None);
        assert_eq!(read("form-data; filename*=latin1''x"), None);
        assert_eq!(read("form-data; filename*=UTF-8''%"), Some("%".into()));
    }

    #[test]
    fn ranges_and_conditions_follow_the_rfc() {
        use Selection::{NotModified, Part, Unsatisfiable, Whole};
        let etag = "\"abc\"";
        let decide = |pairs: &[(header::HeaderName, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.append(name, HeaderValue::from_static(value));
            }
            select(&headers, etag, 100)
        };
        assert_eq!(decide(&[]), Whole);
        for (range, expected) in [
            ("bytes=0-0", Part { first: 0, length: 1 }),
            ("bytes=10-19", Part { first: 10, length: 10 }),
            ("bytes=90-", Part { first: 90, length: 10 }),
            ("bytes=90-1000", Part { first: 90, length: 10 }),
            ("bytes=-10", Part { first: 90, length: 10 }),
            ("bytes=-1000", Part { first: 0, length: 100 }),
            ("bytes=100-", Unsatisfiable),
            ("bytes=99999999999999999999999-", Unsatisfiable),
            ("bytes=-0", Unsatisfiable),
            ("bytes=5-4", Whole),
            ("bytes=0-1,5-6", Whole),
            ("bytes=a-b", Whole),
            ("bytes=+1-2", Whole),
            ("lines=0-1", Whole),
            ("bytes", Whole),
        ] {
            assert_eq!(decide(&[(header::RANGE, range)]), expected, "{range}");
        }
        let range = (header::RANGE, "bytes=0-9");
        assert_eq!(decide(&[range.clone(), (header::IF_RANGE, "\"abc\"")]), Part { first: 0, length: 10 });
        assert_eq!(decide(&[range.clone(), (header::IF_RANGE, "\"other\"")]), Whole);
        assert_eq!(decide(&[range.clone(), (header::IF_RANGE, "W/\"abc\"")]), Whole);
        assert_eq!(decide(&[range.clone(), (header::IF_RANGE, "Wed, 21 Oct 2015 07:28:00 GMT")]), Whole);
        for tags in ["\"abc\"", "W/\"abc\"", "\"x\", \"abc\"", "*"] {
            assert_eq!(decide(&[range.clone(), (header::IF_NONE_MATCH, tags)]), NotModified, "{tags}");
        }
        assert_eq!(decide(&[(header::IF_NONE_MATCH, "\"x\"")]), Whole);
        assert_eq!(parse_range("bytes=0-", 0), Unsatisfiable);
    }
}

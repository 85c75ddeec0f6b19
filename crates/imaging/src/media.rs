//! What a file is, judged by its first bytes.

/// A type of picture that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MediaType {
    Jpeg,
    Png,
    WebP,
    Bmp,
    Tiff,
    Gif,
}

/// How many bytes of a file's beginning are enough for `sniff`, and for a good guess at what else it is.
pub(crate) const HEAD: usize = 1024;

impl MediaType {
    pub const ALL: [Self; 6] = [Self::Jpeg, Self::Png, Self::WebP, Self::Bmp, Self::Tiff, Self::Gif];

    /// The registered media type.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Jpeg => "image/jpeg",
            Self::Png => "image/png",
            Self::WebP => "image/webp",
            Self::Bmp => "image/bmp",
            Self::Tiff => "image/tiff",
            Self::Gif => "image/gif",
        }
    }

    /// What people call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::WebP => "WebP",
            Self::Bmp => "BMP",
            Self::Tiff => "TIFF",
            Self::Gif => "GIF",
        }
    }

    /// The usual file extension.
    pub const fn extension(self) -> &'static str {
        match self {
            Self::Jpeg => "jpg",
            Self::Png => "png",
            Self::WebP => "webp",
            Self::Bmp => "bmp",
            Self::Tiff => "tif",
            Self::Gif => "gif",
        }
    }

    /// The type that the first bytes of a file announce. 30 bytes are enough.
    pub fn sniff(head: &[u8]) -> Option<Self> {
        if head.starts_with(b"\xFF\xD8\xFF") {
            Some(Self::Jpeg)
        } else if head.starts_with(b"\x89PNG\r\n\x1A\n") {
            Some(Self::Png)
        } else if head.starts_with(b"RIFF") && head.get(8..12) == Some(b"WEBP") {
            Some(Self::WebP)
        } else if head.starts_with(b"GIF87a") || head.starts_with(b"GIF89a") {
            Some(Self::Gif)
        } else if head.starts_with(b"II\x2A\0") || head.starts_with(b"MM\0\x2A") || is_big_tiff(head) {
            (head.get(8..10) != Some(b"CR")).then_some(Self::Tiff)
        } else if is_bmp(head) {
            Some(Self::Bmp)
        } else {
            None
        }
    }
}

fn is_big_tiff(head: &[u8]) -> bool {
    head.starts_with(b"II\x2B\0\x08\0\0\0") || head.starts_with(b"MM\0\x2B\0\x08\0\0")
}

/// "BM" alone begins many a text: the header's size must be one of those that exist, as far as it is there to see.
fn is_bmp(head: &[u8]) -> bool {
    head.starts_with(b"BM")
        && match head.get(14..18) {
            Some(&[size, 0, 0, 0]) => matches!(size, 12 | 16 | 40 | 52 | 56 | 64 | 108 | 124),
            Some(_) => false,
            None => head.len() < 18 && head.iter().any(|byte| !byte.is_ascii_graphic() && !byte.is_ascii_whitespace()),
        }
}

/// The beginning of a supported type of which too little is there to tell: "RIFF" and the like.
pub(crate) fn may_become(head: &[u8]) -> Option<MediaType> {
    const STARTS: [(MediaType, &[u8]); 8] = [
        (MediaType::Jpeg, b"\xFF\xD8\xFF"),
        (MediaType::Png, b"\x89PNG\r\n\x1A\n"),
        (MediaType::Gif, b"GIF89a"),
        (MediaType::Gif, b"GIF87a"),
        (MediaType::Tiff, b"II\x2A\0"),
        (MediaType::Tiff, b"MM\0\x2A"),
        (MediaType::Tiff, b"II\x2B\0\x08\0\0\0"),
        (MediaType::Tiff, b"MM\0\x2B\0\x08\0\0"),
    ];
    if head.is_empty() {
        return None;
    }
    if head.len() < 12 && b"RIFF".starts_with(&head[..head.len().min(4)]) {
        return Some(MediaType::WebP);
    }
    if head == b"B" || (head.len() < 18 && head.starts_with(b"BM")) {
        return Some(MediaType::Bmp);
    }
    STARTS.into_iter().find(|(_, start)| head.len() < start.len() && start.starts_with(head)).map(|(media, _)| media)
}

/// What a file that is none of the supported types seems to be: completes "this is …".
pub(crate) fn describe(head: &[u8]) -> &'static str {
    const MAGIC: [(&[u8], &str); 26] = [
        (b"%PDF", "a PDF document"),
        (b"%!PS", "a PostScript document"),
        (b"PK\x03\x04", "a ZIP archive (or an office document)"),
        (b"PK\x05\x06", "an empty ZIP archive"),
        (b"\x1F\x8B", "a gzip archive"),
        (b"BZh", "a bzip2 archive"),
        (b"\xFD7zXZ\0", "an xz archive"),
        (b"\x28\xB5\x2F\xFD", "a zstd archive"),
        (b"7z\xBC\xAF\x27\x1C", "a 7z archive"),
        (b"Rar!\x1A\x07", "a RAR archive"),
        (b"8BPS", "a Photoshop document"),
        (b"\0\0\x01\0", "an icon (ICO)"),
        (b"\0\0\x02\0", "a cursor (CUR)"),
        (b"\xFF\x0A", "a JPEG XL picture"),
        (b"\0\0\0\x0CJXL \r\n\x87\n", "a JPEG XL picture"),
        (b"\0\0\0\x0CjP  \r\n\x87\n", "a JPEG 2000 picture"),
        (b"\xFF\x4F\xFF\x51", "a JPEG 2000 picture"),
        (b"v/1\x01", "an OpenEXR picture"),
        (b"qoif", "a QOI picture"),
        (b"DDS ", "a DDS texture"),
        (b"#?RADIANCE", "a Radiance HDR picture"),
        (b"FUJIFILMCCD-RAW", "a camera raw file (RAF)"),
        (b"IIU\0", "a camera raw file (RW2)"),
        (b"IIRO", "a camera raw file (ORF)"),
        (b"\x7FELF", "a program"),
        (b"MZ", "a Windows program"),
    ];
    if let Some((_, what)) = MAGIC.iter().find(|(magic, _)| head.starts_with(magic)) {
        return what;
    }
    if head.get(8..10) == Some(b"CR") && (head.starts_with(b"II\x2A\0") || head.starts_with(b"MM\0\x2A")) {
        return "a camera raw file (CR2)";
    }
    if head.get(4..8) == Some(b"ftyp") {
        return match head.get(8..12) {
            Some(b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"mif1" | b"msf1") => "a HEIC picture",
            Some(b"avif" | b"avis") => "an AVIF picture",
            Some(b"crx ") => "a camera raw file (CR3)",
            _ => "a video (MP4 or QuickTime)",
        };
    }
    if head.starts_with(b"RIFF") {
        return "a RIFF file (sound or video)";
    }
    describe_text(head).unwrap_or("a file of an unknown type")
}

fn describe_text(head: &[u8]) -> Option<&'static str> {
    let text = head.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(head);
    if text.iter().any(|&byte| byte == 0 || (byte < 0x20 && !byte.is_ascii_whitespace())) {
        return None;
    }
    let lower = String::from_utf8_lossy(text).trim_start().to_ascii_lowercase();
    if lower.starts_with("<svg") || (lower.starts_with('<') && lower.contains("<svg")) {
        return Some("an SVG drawing");
    }
    if lower.starts_with("<!doctype html") || lower.starts_with("<html") || lower.contains("<html") {
        return Some("an HTML page");
    }
    if lower.starts_with("<?xml") {
        return Some("an XML document");
    }
    if lower.starts_with('{') || lower.starts_with('[') {
        return Some("a JSON document");
    }
    (!lower.is_empty() && std::str::from_utf8(&text[..text.len().saturating_sub(3)]).is_ok()).then_some("a text file")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disguised_files_are_named_for_what_they_seem_to_be() {
        let cases: [(&[u8], &str); 12] = [
            (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
            (b"\xEF\xBB\xBF<?xml version='1.0'?>\n<!-- x -->\n<svg/>", "an SVG drawing"),
            (b"<!DOCTYPE html><html>", "an HTML page"),
            (b"PK\x03\x04\x14\0", "a ZIP archive (or an office document)"),
            (b"%PDF-1.7\n", "a PDF document"),
            (b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIC picture"),
            (b"\0\0\0\x18ftypisom\0\0\0\0", "a video (MP4 or QuickTime)"),
            (b"II\x2A\0\x10\0\0\0CR\x02\0", "a camera raw file (CR2)"),
            (b"RIFF\x24\0\0\0WAVEfmt ", "a RIFF file (sound or video)"),
            (b"{\"a\": 1}", "a JSON document"),
            (b"BMW is a maker of cars", "a text file"),
            (b"\x01\x02\x03\x04", "a file of an unknown type"),
        ];
        for (head, expected) in cases {
            assert_eq!(MediaType::sniff(head), None, "{expected}");
            assert_eq!(describe(head), expected);
        }
    }
}

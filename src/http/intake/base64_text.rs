//! A picture written as text, decoded as it arrives: a data URI, or bare base64 in the standard or the URL-safe
//! alphabet, with or without padding, with or without line breaks.

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

/// Longer than any `data:` header that somebody means.
const HEADER_BYTES: usize = 256;

const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::RequireNone),
);

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TextError {
    #[error("a data URI without ;base64")]
    NotBase64Uri,
    #[error("a data URI whose header does not end")]
    EndlessHeader,
    #[error("a URL; pictures are sent, not fetched")]
    Url,
    #[error("not base64: {} at character {at}", shown(*.byte))]
    Alphabet { byte: u8, at: u64 },
    #[error("base64 that ends in the middle")]
    Cut,
}

fn shown(byte: u8) -> String {
    if byte.is_ascii_graphic() { format!("'{}'", char::from(byte)) } else { format!("byte 0x{byte:02x}") }
}

#[derive(Debug)]
enum State {
    /// Not yet known whether it is a data URI.
    Header(Vec<u8>),
    Body,
    /// Nothing but padding may follow.
    Padding(u8),
}

/// Takes characters, gives bytes.
#[derive(Debug)]
pub(crate) struct TextDecoder {
    state: State,
    /// Characters that do not make a whole group yet; always fewer than four between calls.
    group: Vec<u8>,
    seen: u64,
    start: Vec<u8>,
}

impl Default for TextDecoder {
    fn default() -> Self {
        Self { state: State::Header(Vec::new()), group: Vec::new(), seen: 0, start: Vec::new() }
    }
}

impl TextDecoder {
    /// Decodes what `text` completes onto the end of `out`.
    pub(crate) fn push(&mut self, text: &[u8], out: &mut Vec<u8>) -> Result<(), TextError> {
        const SCHEME: &[u8] = b"data:";
        let State::Header(header) = &mut self.state else { return self.decode(text, out) };
        header.extend_from_slice(text);
        let compared = header.len().min(SCHEME.len());
        if !header[..compared].eq_ignore_ascii_case(&SCHEME[..compared]) {
            let text = std::mem::take(header);
            self.state = State::Body;
            return self.decode(&text, out);
        }
        let Some(comma) = header.iter().take(HEADER_BYTES).position(|b| *b == b',') else {
            return if header.len() < HEADER_BYTES { Ok(()) } else { Err(TextError::EndlessHeader) };
        };
        let text = std::mem::take(header);
        if !text[..comma].to_ascii_lowercase().ends_with(b";base64") {
            return Err(TextError::NotBase64Uri);
        }
        self.state = State::Body;
        self.seen = comma as u64 + 1;
        self.decode(&text[comma + 1..], out)
    }

    fn decode(&mut self, text: &[u8], out: &mut Vec<u8>) -> Result<(), TextError> {
        if self.start.len() < 8 {
            self.start.extend(text.iter().take(8 - self.start.len()));
        }
        for &byte in text {
            self.seen += 1;
            match byte {
                b' ' | b'\t' | b'\r' | b'\n' => {}
                b'=' => match &mut self.state {
                    State::Padding(n) if *n < 2 => *n += 1,
                    State::Body => self.state = State::Padding(1),
                    State::Padding(_) | State::Header(_) => return Err(self.wrong(byte)),
                },
                _ if matches!(self.state, State::Padding(_)) => return Err(self.wrong(byte)),
                b'-' => self.group.push(b'+'),
                b'_' => self.group.push(b'/'),
                b'+' | b'/' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => self.group.push(byte),
                _ => return Err(self.wrong(byte)),
            }
        }
        let whole = self.group.len() / 4 * 4;
        // Whole groups of the alphabet always decode.
        LENIENT.decode_vec(&self.group[..whole], out).map_err(|_| TextError::Cut)?;
        self.group.drain(..whole);
        Ok(())
    }

    /// The text is complete.
    pub(crate) fn finish(mut self, out: &mut Vec<u8>) -> Result<(), TextError> {
        if let State::Header(header) = &mut self.state {
            let text = std::mem::take(header);
            if text.len() >= 5 {
                return Err(TextError::EndlessHeader);
            }
            self.state = State::Body;
            self.decode(&text, out)?;
        }
        LENIENT.decode_vec(&self.group, out).map_err(|_| TextError::Cut)
    }

    fn wrong(&self, byte: u8) -> TextError {
        let start = self.start.to_ascii_lowercase();
        if start.starts_with(b"http:") || start.starts_with(b"https:") {
            return TextError::Url;
        }
        TextError::Alphabet { byte, at: self.seen }
    }
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
    use proptest::prelude::*;

    use super::*;

    fn decode(text: &[u8], step: usize) -> Result<Vec<u8>, TextError> {
        let mut decoder = TextDecoder::default();
        let mut out = Vec::new();
        for chunk in text.chunks(step.max(1)) {
            decoder.push(chunk, &mut out)?;
        }
        decoder.finish(&mut out)?;
        Ok(out)
    }

    proptest! {
        #[test]
        fn any_bytes_come_back_from_any_spelling_in_any_pieces(
            bytes in proptest::collection::vec(any::<u8>(), 0..300), step in 1usize..70, wrap in 1usize..80
        ) {
            for engine in [&STANDARD, &STANDARD_NO_PAD, &URL_SAFE, &URL_SAFE_NO_PAD] {
                let text = engine.encode(&bytes);
                prop_assert_eq!(decode(text.as_bytes(), step), Ok(bytes.clone()));
                let wrapped: Vec<u8> = text.as_bytes().chunks(wrap).flat_map(|l| [l, b"\r\n"].concat()).collect();
                prop_assert_eq!(decode(&wrapped, step), Ok(bytes.clone()));
                let uri = format!("data:image/png;name=a;base64,{text}");
                prop_assert_eq!(decode(uri.as_bytes(), step), Ok(bytes.clone()));
            }
        }

        #[test]
        fn rubbish_is_an_error_and_never_a_panic(text in proptest::collection::vec(any::<u8>(), 0..400), step in 1usize..50) {
            let _ = decode(&text, step);
        }
    }

    #[test]
    fn what_is_no_base64_is_told_apart() {
        for step in [1, 3, 1000] {
            assert_eq!(decode(b"https://example.org/a.png", step), Err(TextError::Url));
            assert_eq!(decode(b"data:image/png,abc", step), Err(TextError::NotBase64Uri));
            assert_eq!(decode(&[b"data:".to_vec(), vec![b'x'; 300]].concat(), step), Err(TextError::EndlessHeader));
            assert_eq!(decode(b"data:image/png;base64", step), Err(TextError::EndlessHeader));
            assert_eq!(decode(b"QUJD!", step), Err(TextError::Alphabet { byte: b'!', at: 5 }));
            assert_eq!(decode(b"QUJDQ", step), Err(TextError::Cut));
            assert_eq!(decode(b"QUI=Q", step), Err(TextError::Alphabet { byte: b'Q', at: 5 }));
            assert_eq!(decode(b"QUJD===", step), Err(TextError::Alphabet { byte: b'=', at: 7 }));
            assert_eq!(decode(b"", step), Ok(vec![]));
        }
    }
}

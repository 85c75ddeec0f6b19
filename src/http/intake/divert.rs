//! Takes the pictures out of a JSON text while it streams by: strings under known names, or all strings that are long.
//!
//! A picture in JSON is a string of up to 140 MB. The [`Diverter`] hands such strings on in pieces and keeps the rest
//! of the text, its *skeleton*, in which each of them is `""`. The skeleton is small and is parsed as a whole
//! afterwards; so this scanner does not judge JSON, it only has to find strings in JSON that is well formed.

use super::json::{self, JsonError};

/// Names at the top of the object whose strings are pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slots {
    /// The value is one string.
    pub(crate) one: &'static [&'static str],
    /// The value is a list of strings.
    pub(crate) many: &'static [&'static str],
}

/// The slot of a string that is taken out because it is long, wherever it stands.
pub(crate) const LONG: &str = "a long text";

/// Which strings are long, and what stands in their place: the mark and a number, counted from 0.
#[derive(Debug)]
struct Long {
    over: usize,
    mark: String,
}

/// What the scanner has found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// A picture begins, under this name.
    Begin(&'static str),
    /// Some of its characters, without JSON's escapes.
    Characters,
    End,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DivertError {
    #[error("more than {0} bytes of JSON beside the pictures")]
    TooLong(usize),
    #[error("a control character in a string")]
    Control,
    #[error("an escape that is none")]
    Escape,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    Object,
    Array,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Text {
    Outside,
    /// A string that stays, with where it began in the skeleton.
    Kept {
        start: usize,
        is_name: bool,
        escaped: bool,
    },
    Diverted(Escape),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Escape {
    None,
    Backslash,
    Unicode { digits: u8, value: u32 },
}

#[derive(Debug)]
pub(crate) struct Diverter {
    slots: Slots,
    max_skeleton: usize,
    skeleton: Vec<u8>,
    open: Vec<Open>,
    /// Within an object: a name comes next, not a value.
    name_next: bool,
    /// The slot whose value is being read at the top of the object.
    slot: Option<(&'static str, bool)>,
    text: Text,
    characters: Vec<u8>,
    long: Option<Long>,
    /// Characters of a long string that were there before it was known to be long.
    begun: Vec<u8>,
    /// Per diverted string: where its quotes stand in the skeleton, and how many bytes are gone from between them.
    gone: Vec<(usize, usize)>,
}

impl Diverter {
    pub(crate) fn new(slots: Slots, max_skeleton: usize) -> Self {
        Self {
            slots,
            max_skeleton,
            skeleton: Vec::new(),
            open: Vec::new(),
            name_next: false,
            slot: None,
            text: Text::Outside,
            characters: Vec::new(),
            long: None,
            begun: Vec::new(),
            gone: Vec::new(),
        }
    }

    /// Takes out every string of more than `over` bytes; `mark` is what no client can guess, and shorter than that.
    pub(crate) fn of_long_texts(over: usize, mark: String, max_skeleton: usize) -> Self {
        let mut diverter = Self::new(Slots { one: &[], many: &[] }, max_skeleton);
        diverter.long = Some(Long { over, mark });
        diverter
    }

    /// The characters that the last [`Piece::Characters`] speaks of.
    pub(crate) fn characters(&self) -> &[u8] {
        &self.characters
    }

    /// Scans on to the next piece; `None`: all of `input` is used up.
    pub(crate) fn next(&mut self, input: &mut &[u8]) -> Result<Option<Piece>, DivertError> {
        self.characters.clear();
        self.characters.append(&mut self.begun);
        while let Some((&byte, rest)) = input.split_first() {
            if let Text::Diverted(escape) = self.text {
                if byte == b'"' && escape == Escape::None {
                    if !self.characters.is_empty() {
                        return Ok(Some(Piece::Characters));
                    }
                    *input = rest;
                    self.keep(byte)?;
                    self.text = Text::Outside;
                    return Ok(Some(Piece::End));
                }
                let run = if escape == Escape::None { plain_run(input) } else { 0 };
                if run > 0 {
                    self.characters.extend_from_slice(&input[..run]);
                    self.gone_more(run);
                    *input = &input[run..];
                } else {
                    *input = rest;
                    self.divert(byte, escape)?;
                }
                continue;
            }
            *input = rest;
            self.keep(byte)?;
            if let Some(slot) = self.walk(byte) {
                self.gone.push((self.skeleton.len(), 0));
                self.text = Text::Diverted(Escape::None);
                return Ok(Some(Piece::Begin(slot)));
            }
            if self.grows_long()? {
                return Ok(Some(Piece::Begin(LONG)));
            }
        }
        Ok(if self.characters.is_empty() { None } else { Some(Piece::Characters) })
    }

    /// Whether the string that is being kept has become one to take out; what was kept of it moves then.
    fn grows_long(&mut self) -> Result<bool, DivertError> {
        let (Some(long), Text::Kept { start, is_name: false, .. }) = (&self.long, self.text) else { return Ok(false) };
        if self.skeleton.len() - start <= long.over {
            return Ok(false);
        }
        let mark = format!("{}{}", long.mark, self.gone.len());
        let begun = self.skeleton.split_off(start + 1);
        self.skeleton.extend_from_slice(mark.as_bytes());
        self.gone.push((self.skeleton.len(), 0));
        self.text = Text::Diverted(Escape::None);
        for byte in begun {
            match self.text {
                Text::Diverted(Escape::None) if !matches!(byte, b'\\' | 0..=0x1f) => {
                    self.characters.push(byte);
                    self.gone_more(1);
                }
                Text::Diverted(escape) => self.divert(byte, escape)?,
                Text::Outside | Text::Kept { .. } => {}
            }
        }
        if let Some((_, gone)) = self.gone.last_mut() {
            *gone = gone.saturating_sub(mark.len());
        }
        self.begun = std::mem::take(&mut self.characters);
        Ok(true)
    }

    fn keep(&mut self, byte: u8) -> Result<(), DivertError> {
        if self.skeleton.len() >= self.max_skeleton {
            return Err(DivertError::TooLong(self.max_skeleton));
        }
        self.skeleton.push(byte);
        Ok(())
    }

    /// Follows the structure over one kept byte; the slot's name where a picture begins with it.
    fn walk(&mut self, byte: u8) -> Option<&'static str> {
        if let Text::Kept { start, is_name, escaped } = self.text {
            match byte {
                _ if escaped => self.text = Text::Kept { start, is_name, escaped: false },
                b'\\' => self.text = Text::Kept { start, is_name, escaped: true },
                b'"' => {
                    self.text = Text::Outside;
                    if is_name && self.open.len() == 1 {
                        self.slot = self.slot_of(start);
                    }
                }
                _ => {}
            }
            return None;
        }
        match byte {
            b'{' => {
                self.open.push(Open::Object);
                self.name_next = true;
            }
            b'[' => {
                self.open.push(Open::Array);
                self.name_next = false;
            }
            b'}' | b']' => {
                self.open.pop();
                self.name_next = false;
            }
            b',' => self.name_next = self.open.last() == Some(&Open::Object),
            b':' => self.name_next = false,
            b'"' => {
                if let Some(slot) = self.begins_picture() {
                    return Some(slot);
                }
                self.text = Text::Kept { start: self.skeleton.len() - 1, is_name: self.name_next, escaped: false };
            }
            _ => {}
        }
        None
    }

    fn begins_picture(&self) -> Option<&'static str> {
        let (name, many) = self.slot?;
        match (self.open.as_slice(), many) {
            ([Open::Object], false) if !self.name_next => Some(name),
            ([Open::Object, Open::Array], true) => Some(name),
            _ => None,
        }
    }

    fn slot_of(&self, start: usize) -> Option<(&'static str, bool)> {
        let name: String = serde_json::from_slice(&self.skeleton[start..]).ok()?;
        let find = |names: &'static [&'static str]| names.iter().copied().find(|slot| *slot == name);
        find(self.slots.one).map(|slot| (slot, false)).or_else(|| find(self.slots.many).map(|slot| (slot, true)))
    }

    fn gone_more(&mut self, bytes: usize) {
        if let Some((_, gone)) = self.gone.last_mut() {
            *gone += bytes;
        }
    }

    /// One byte of a diverted string that does not simply stand for itself.
    fn divert(&mut self, byte: u8, escape: Escape) -> Result<(), DivertError> {
        self.gone_more(1);
        let next = match escape {
            Escape::None if byte == b'\\' => Escape::Backslash,
            Escape::None => return Err(DivertError::Control),
            Escape::Backslash => {
                let character = match byte {
                    b'u' => {
                        self.text = Text::Diverted(Escape::Unicode { digits: 0, value: 0 });
                        return Ok(());
                    }
                    b'"' | b'\\' | b'/' => byte,
                    b'b' => 8,
                    b'f' => 12,
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    _ => return Err(DivertError::Escape),
                };
                self.characters.push(character);
                Escape::None
            }
            Escape::Unicode { digits, value } => {
                let digit = char::from(byte).to_digit(16).ok_or(DivertError::Escape)?;
                let value = value * 16 + digit;
                if digits < 3 {
                    Escape::Unicode { digits: digits + 1, value }
                } else {
                    // A picture is written in ASCII; whatever is not will be refused by name of this byte.
                    self.characters.push(u8::try_from(value).ok().filter(u8::is_ascii).unwrap_or(0xff));
                    Escape::None
                }
            }
        };
        self.text = Text::Diverted(next);
        Ok(())
    }

    /// The text without its pictures.
    pub(crate) fn finish(self) -> Result<serde_json::Value, JsonError> {
        json::parse(&self.skeleton).map_err(|error| self.in_the_original(error))
    }

    /// Where the scanner stands in the original text.
    pub(crate) fn here(&self, error: &DivertError) -> JsonError {
        let line_start = self.skeleton.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let line = self.skeleton.split(|b| *b == b'\n').count();
        let column = self.skeleton.len() - line_start;
        self.in_the_original(JsonError { line, column, message: error.to_string() })
    }

    /// The skeleton's place, moved by what was taken out of its line before it.
    fn in_the_original(&self, mut error: JsonError) -> JsonError {
        let line_start = match error.line {
            0 | 1 => 0,
            line => {
                self.skeleton.iter().enumerate().filter(|(_, b)| **b == b'\n').nth(line - 2).map_or(0, |(at, _)| at + 1)
            }
        };
        let place = line_start..=line_start + error.column;
        error.column += self.gone.iter().filter(|(at, _)| place.contains(at)).map(|(_, gone)| gone).sum::<usize>();
        error
    }
}

/// How many bytes at the front of a string stand for themselves.
fn plain_run(input: &[u8]) -> usize {
    input.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..=0x1f)).unwrap_or(input.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const SLOTS: Slots = Slots { one: &["mask"], many: &["images"] };

    #[derive(Debug, PartialEq)]
    struct Result_ {
        value: Result<Value, JsonError>,
        pictures: Vec<(&'static str, Vec<u8>)>,
    }

    fn scan(text: &[u8], step: usize) -> Result<Result_, JsonError> {
        let mut diverter = Diverter::new(SLOTS, 1 << 16);
        let mut pictures: Vec<(&'static str, Vec<u8>)> = Vec::new();
        for mut chunk in text.chunks(step.max(1)) {
            loop {
                match diverter.next(&mut chunk) {
                    Err(error) => return Err(diverter.here(&error)),
                    Ok(None) => break,
                    Ok(Some(Piece::Begin(slot))) => pictures.push((slot, Vec::new())),
                    Ok(Some(Piece::Characters)) => {
                        let (_, picture) = pictures.last_mut().expect("began");
                        picture.extend_from_slice(diverter.characters());
                    }
                    Ok(Some(Piece::End)) => {}
                }
            }
        }
        Ok(Result_ { value: diverter.finish(), pictures })
    }

    #[test]
    fn pictures_leave_and_the_rest_stays() {
        let text = br#"{"a":"images","images":["QU\/\u003dI", "x\n"],"params":{"images":["kept"],"mask":"kept"},
            "m\u0061sk" : "TQ","b":["mask"]}"#;
        for step in [1, 2, 7, 1000] {
            let got = scan(text, step).expect("scans");
            assert_eq!(
                got.value.expect("parses"),
                json!({"a":"images","images":["",""],"params":{"images":["kept"],"mask":"kept"},"mask":"","b":["mask"]})
            );
            let expected = [("images", b"QU/=I".to_vec()), ("images", b"x\n".to_vec()), ("mask", b"TQ".to_vec())];
            assert_eq!(got.pictures, expected);
        }
    }

    #[test]
    fn long_strings_leave_wherever_they_stand() {
        let long = "QUJD/".repeat(20);
        let escaped = long.replace('/', "\\/").replace('J', "\\u004a");
        let text = format!(r#"{{"a":"short","{long}":1,"b":[{{"c":"{escaped}"}},"{long}"],"d":"\"\\"}}"#);
        for step in [1, 2, 7, 1000] {
            let mut diverter = Diverter::of_long_texts(32, "mark:".into(), 1 << 16);
            let mut found: Vec<Vec<u8>> = Vec::new();
            for mut chunk in text.as_bytes().chunks(step) {
                while let Some(piece) = diverter.next(&mut chunk).expect("scans") {
                    match piece {
                        Piece::Begin(slot) => {
                            assert_eq!(slot, LONG);
                            found.push(Vec::new());
                        }
                        Piece::Characters => {
                            found.last_mut().expect("began").extend_from_slice(diverter.characters());
                        }
                        Piece::End => {}
                    }
                }
            }
            assert_eq!(found, [long.as_bytes(), long.as_bytes()]);
            let value = diverter.finish().expect("parses");
            assert_eq!(value, json!({"a":"short", long.as_str(): 1, "b":[{"c":"mark:0"},"mark:1"], "d":"\"\\"}));
        }
    }

    #[test]
    fn only_strings_in_the_right_place_are_pictures() {
        for text in [
            r#"{"images":[["nested"]],"mask":["list"]}"#,
            r#"{"images":{"0":"object"},"mask":null}"#,
            r#"["images","mask"]"#,
            r#"{"images":"one","x":{"mask":"y"}}"#,
            r#"{"images":[],"mask":7,"x":"after"}"#,
        ] {
            let got = scan(text.as_bytes(), 3).expect("scans");
            assert_eq!(got.pictures, [], "{text}");
            assert_eq!(got.value.expect("parses"), serde_json::from_str::<Value>(text).expect("parses"), "{text}");
        }
    }

    #[test]
    fn errors_name_the_place_in_the_text_that_was_sent() {
        let long = "A".repeat(1000);
        let place = |text: &str| {
            let error = match scan(text.as_bytes(), 5) {
                Ok(got) => got.value.expect_err("malformed"),
                Err(error) => error,
            };
            (error.line, error.column)
        };
        assert_eq!(place(&format!("{{\"images\":[\"{long}\"] \"kind\":1}}")), (1, 1000 + 16));
        assert_eq!(place(&format!("{{\"images\":[\"{long}\"],\n \"kind\" 1}}")), (2, 9));
        assert_eq!(place(&format!("{{\"mask\":\"{long}\n\"}}")), (1, 9 + 1000 + 1));
        assert_eq!(place("{\"mask\":\"\\x\"}"), (1, 9 + 2));
    }

    #[test]
    fn text_beside_the_pictures_is_bounded() {
        let mut diverter = Diverter::new(SLOTS, 10);
        let mut input: &[u8] = b"{\"prompt\":\"aaaa";
        assert_eq!(diverter.next(&mut input), Err(DivertError::TooLong(10)));
    }

    proptest! {
        #[test]
        fn pieces_of_any_size_give_the_same(text in "[\\[\\]{}:,\"\\\\a-z0-9 ]{0,80}|.{0,60}", step in 1usize..20) {
            let whole = scan(text.as_bytes(), 10_000);
            let pieces = scan(text.as_bytes(), step);
            prop_assert_eq!(whole, pieces);
        }

        #[test]
        fn well_formed_json_without_pictures_is_not_touched(
            keys in proptest::collection::vec(".{0,12}", 0..6), values in proptest::collection::vec(".{0,20}", 6)
        ) {
            let object: serde_json::Map<String, Value> =
                keys.iter().zip(&values).filter(|(k, _)| *k != "mask").map(|(k, v)| (k.clone(), json!([v, {"mask": v}]))).collect();
            let value = Value::Object(object);
            prop_assume!(value.get("images").is_none());
            let got = scan(value.to_string().as_bytes(), 3).expect("scans");
            prop_assert_eq!(got.pictures.len(), 0);
            prop_assert_eq!(got.value.expect("parses"), value);
        }
    }
}

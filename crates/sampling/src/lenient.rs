//! Python's JSON has `Infinity`, `-Infinity` and `NaN`; JSON has not.

const CONSTANTS: [&[u8]; 3] = [b"-Infinity", b"Infinity", b"NaN"];

/// `json` with those constants, outside of strings, in quotes.
pub(crate) fn quote_constants(json: &[u8]) -> Vec<u8> {
    let mut quoted = Vec::with_capacity(json.len() + 2);
    let (mut in_string, mut at) = (false, 0);
    while let Some(byte) = json.get(at) {
        let constant = CONSTANTS.iter().find(|constant| !in_string && json[at..].starts_with(constant));
        if let Some(constant) = constant {
            quoted.push(b'"');
            quoted.extend_from_slice(constant);
            quoted.push(b'"');
            at += constant.len();
            continue;
        }
        quoted.push(*byte);
        if in_string && *byte == b'\\' {
            quoted.extend(json.get(at + 1));
            at += 1;
        } else if *byte == b'"' {
            in_string = !in_string;
        }
        at += 1;
    }
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_quoted_but_not_within_strings() {
        let json = br#"{"a": -Infinity, "NaN": [NaN, Infinity], "b": "\"NaN", "c": 1}"#;
        let expected = br#"{"a": "-Infinity", "NaN": ["NaN", "Infinity"], "b": "\"NaN", "c": 1}"#;
        assert_eq!(quote_constants(json), expected);
    }
}

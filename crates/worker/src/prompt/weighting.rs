//! `(word:1.2)`, `((word))`, `[word]`: the weights of a prompt's words, as AUTOMATIC1111's web interface writes them.

/// How much more a pair of parentheses weighs than none; a pair of brackets weighs that much less.
const STEP: f64 = 1.1;

/// A part of a prompt, all of whose words have one weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    pub text: String,
    pub weight: f64,
}

/// An opening parenthesis or bracket that nothing has closed yet: the number of the first piece after it.
enum Open {
    Round(usize),
    Square(usize),
}

/// The pieces of a prompt, neighbours with the same weight made one. A backslash makes the next of `( ) [ ] \` a plain
/// character. What is opened and never closed counts as closed at the end; what closes nothing is a plain character.
pub fn parse(prompt: &str) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    let mut open: Vec<Open> = Vec::new();
    let mut text = String::new();
    let mut rest = prompt;
    while let Some(first) = rest.chars().next() {
        let mut taken = first.len_utf8();
        match first {
            '\\' if rest[1..].starts_with(['(', ')', '[', ']', '\\']) => {
                text.push_str(&rest[1..2]);
                taken = 2;
            }
            '(' => {
                flush(&mut pieces, &mut text);
                open.push(Open::Round(pieces.len()));
            }
            '[' => {
                flush(&mut pieces, &mut text);
                open.push(Open::Square(pieces.len()));
            }
            ':' if has_round(&open) && weight(rest).is_some() => {
                let (factor, length) = weight(rest).unwrap_or((1.0, 1));
                close_round(&mut pieces, &mut text, &mut open, factor);
                taken = length;
            }
            ')' if has_round(&open) => close_round(&mut pieces, &mut text, &mut open, STEP),
            ']' if matches!(open.last(), Some(Open::Square(_))) => {
                flush(&mut pieces, &mut text);
                if let Some(Open::Square(start)) = open.pop() {
                    scale(&mut pieces, start, 1.0 / STEP);
                }
            }
            other => text.push(other),
        }
        rest = &rest[taken..];
    }
    flush(&mut pieces, &mut text);
    for opened in open {
        match opened {
            Open::Round(start) => scale(&mut pieces, start, STEP),
            Open::Square(start) => scale(&mut pieces, start, 1.0 / STEP),
        }
    }
    merge(pieces)
}

fn flush(pieces: &mut Vec<Piece>, text: &mut String) {
    if !text.is_empty() {
        pieces.push(Piece { text: std::mem::take(text), weight: 1.0 });
    }
}

fn scale(pieces: &mut [Piece], start: usize, factor: f64) {
    for piece in pieces.iter_mut().skip(start) {
        piece.weight *= factor;
    }
}

/// Whether a closing parenthesis closes the innermost open thing.
fn has_round(open: &[Open]) -> bool {
    matches!(open.last(), Some(Open::Round(_)))
}

fn close_round(pieces: &mut Vec<Piece>, text: &mut String, open: &mut Vec<Open>, factor: f64) {
    flush(pieces, text);
    if let Some(Open::Round(start)) = open.pop() {
        scale(pieces, start, factor);
    }
}

/// The number in `:1.2)`, where `text` begins with that, and its length.
fn weight(text: &str) -> Option<(f64, usize)> {
    let end = text.find(')')?;
    let number: f64 = text[1..end].trim().parse().ok()?;
    number.is_finite().then_some((number, end + 1))
}

fn merge(pieces: Vec<Piece>) -> Vec<Piece> {
    let mut merged: Vec<Piece> = Vec::with_capacity(pieces.len());
    for piece in pieces {
        match merged.last_mut() {
            // The same product of the same factors is the same number.
            Some(last) if last.weight.to_bits() == piece.weight.to_bits() => last.text.push_str(&piece.text),
            _ => merged.push(piece),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(prompt: &str, expected: &[(&str, f64)]) {
        let pieces = parse(prompt);
        let texts: Vec<&str> = pieces.iter().map(|piece| piece.text.as_str()).collect();
        assert_eq!(texts, expected.iter().map(|(text, _)| *text).collect::<Vec<_>>(), "{prompt}");
        for (piece, (text, weight)) in pieces.iter().zip(expected) {
            assert!((piece.weight - weight).abs() < 1e-9, "{prompt}: {text} weighs {}", piece.weight);
        }
    }

    #[test]
    fn words_weigh_what_their_parentheses_say() {
        check("", &[]);
        check("normal text", &[("normal text", 1.0)]);
        check("an (important) word", &[("an ", 1.0), ("important", 1.1), (" word", 1.0)]);
        check("a (word:1.25), b", &[("a ", 1.0), ("word", 1.25), (", b", 1.0)]);
        check("(unnecessary)(parens)", &[("unnecessaryparens", 1.1)]);
        check("((sky)) [on] [[mud]]", &[("sky", 1.21), (" ", 1.0), ("on", 1.0 / 1.1), (" ", 1.0), ("mud", 1.0 / 1.21)]);
        check(
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            &[
                ("a ", 1.0),
                ("house", 1.573),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641),
                (".", 1.1),
            ],
        );
        check("(a: -0.5 )", &[("a", -0.5)]);
    }

    #[test]
    fn what_is_no_weight_is_text() {
        check(r"\(literal\] \\ \a", &[(r"(literal] \ \a", 1.0)]);
        check("(unbalanced", &[("unbalanced", 1.1)]);
        check("a) b] c:1.2)", &[("a) b] c:1.2)", 1.0)]);
        check("(a: b:1.2.3)", &[("a: b:1.2.3", 1.1)]);
        check("(time 10:30)", &[("time 10", 30.0)]);
        check("(a:inf)", &[("a:inf", 1.1)]);
        check("é(日本:1.5)", &[("é", 1.0), ("日本", 1.5)]);
        check("[a)", &[("a)", 1.0 / 1.1)]);
    }
}

//! `<lora:name:0.8>` in a prompt.

use super::PromptError;

const OPEN: &str = "<lora:";

/// A LoRA that a prompt asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraTag {
    pub name: String,
    /// Of the text encoders' part.
    pub text_encoder_weight: f64,
    /// Of the denoiser's part.
    pub denoiser_weight: f64,
}

/// The prompt without its LoRA tags, and those, in order. `<lora:name>` weighs 1; `<lora:name:A:B>` gives the text
/// encoders and the denoiser weights of their own.
///
/// # Errors
/// A tag that does not end, without a name, or with something else than numbers.
pub fn extract(prompt: &str) -> Result<(String, Vec<LoraTag>), PromptError> {
    let (mut text, mut tags) = (String::with_capacity(prompt.len()), Vec::new());
    let mut rest = prompt;
    while let Some(start) = rest.find(OPEN) {
        text.push_str(&rest[..start]);
        let tag = &rest[start..];
        let Some(end) = tag.find('>') else {
            return Err(PromptError::LoraTag { tag: tag.chars().take(40).collect(), detail: "it does not end" });
        };
        tags.push(
            read(&tag[OPEN.len()..end]).map_err(|detail| PromptError::LoraTag { tag: tag[..=end].into(), detail })?,
        );
        rest = &tag[end + 1..];
    }
    text.push_str(rest);
    Ok((text, tags))
}

fn read(inner: &str) -> Result<LoraTag, &'static str> {
    let mut parts = inner.split(':').map(str::trim);
    let name = parts.next().filter(|name| !name.is_empty()).ok_or("it has no name")?;
    let weights: Vec<f64> = parts
        .map(|part| part.parse().ok().filter(|weight: &f64| weight.is_finite()).ok_or("a weight is no number"))
        .collect::<Result<_, _>>()?;
    let (text_encoder_weight, denoiser_weight) = match weights[..] {
        [] => (1.0, 1.0),
        [both] => (both, both),
        [text_encoder, denoiser] => (text_encoder, denoiser),
        _ => return Err("it has more than two weights"),
    };
    Ok(LoraTag { name: name.into(), text_encoder_weight, denoiser_weight })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(name: &str, text_encoder_weight: f64, denoiser_weight: f64) -> LoraTag {
        LoraTag { name: name.into(), text_encoder_weight, denoiser_weight }
    }

    #[test]
    fn loras_are_taken_out_of_the_prompt() {
        for (prompt, text, tags) in [
            ("a cat", "a cat", vec![]),
            ("a cat <lora:ink:0.8>, night", "a cat , night", vec![tag("ink", 0.8, 0.8)]),
            ("<lora:a><lora:b c:-1:.5>x", "x", vec![tag("a", 1.0, 1.0), tag("b c", -1.0, 0.5)]),
            ("a < b <hypernet:x:1>", "a < b <hypernet:x:1>", vec![]),
        ] {
            assert_eq!(extract(prompt), Ok((text.to_owned(), tags)), "{prompt}");
        }
    }

    #[test]
    fn a_tag_that_makes_no_sense_is_shown() {
        for (prompt, part) in [
            ("a <lora:ink:0.8", "does not end"),
            ("<lora::1>", "no name"),
            ("<lora:ink:much>", "<lora:ink:much>"),
            ("<lora:ink:nan>", "no number"),
            ("<lora:ink:1:2:3>", "more than two"),
        ] {
            let error = extract(prompt).expect_err(prompt).to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}

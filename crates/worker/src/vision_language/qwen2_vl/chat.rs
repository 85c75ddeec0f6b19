//! A question about pictures, as the models were taught to read it.
//!
//! *Source*: `chat_template.json` of Qwen2-VL and Qwen2.5-VL, which is the same text in all of them.

/// What stands for a picture until it is known how many tokens it has.
pub const IMAGE_PAD: &str = "<|image_pad|>";

/// Said where the caller says nothing.
pub const SYSTEM: &str = "You are a helpful assistant.";

/// One turn: what the assistant is, `pictures` pictures, the question; then the assistant speaks. A picture is one
/// [`IMAGE_PAD`], to be repeated by [`spread`].
pub fn question(system: &str, pictures: usize, text: &str) -> String {
    let shown = format!("<|vision_start|>{IMAGE_PAD}<|vision_end|>").repeat(pictures);
    format!(
        "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{shown}{text}<|im_end|>\n<|im_start|>assistant\n"
    )
}

/// `ids` with each picture's one token repeated as often as the picture has tokens.
///
/// None where the text has not as many places as there are pictures.
pub fn spread(ids: &[i64], image_token_id: i64, tokens: &[i64]) -> Option<Vec<i64>> {
    let mut counts = tokens.iter();
    let mut spread = Vec::with_capacity(ids.len());
    for &id in ids {
        if id == image_token_id {
            let count = usize::try_from(*counts.next()?).ok()?;
            spread.resize(spread.len() + count, id);
        } else {
            spread.push(id);
        }
    }
    counts.next().is_none().then_some(spread)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_picture_gets_as_many_tokens_as_it_has() {
        assert_eq!(spread(&[1, 9, 2, 9, 3], 9, &[2, 3]), Some(vec![1, 9, 9, 2, 9, 9, 9, 3]));
        assert_eq!(spread(&[1, 9, 2], 9, &[]), None);
        assert_eq!(spread(&[1, 2], 9, &[4]), None);
        assert_eq!(spread(&[1, 2], 9, &[]), Some(vec![1, 2]));
    }
}

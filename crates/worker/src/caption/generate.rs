//! The loop that writes a text: scores of the next token, a choice, and so on to the end.
//!
//! Source of the choices: transformers 5.23.0, generation/logits_process.py and generation/utils.py. With the same seed
//! on a CPU generator the same tokens are drawn as there.

use tch::{Device, Kind, Tensor};

use crate::{noise::Noise, torch::TorchError};

/// A language model that has read nothing yet of what it is to continue.
pub trait CausalLm {
    /// Reads all that comes before the answer → the scores of its first token, (V) in f32.
    fn prefill(&mut self) -> Result<Tensor, TorchError>;

    /// Reads one more token → the scores of the next, (V) in f32.
    fn step(&mut self, token: i64) -> Result<Tensor, TorchError>;
}

/// How the next token is chosen, and where a text ends.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    pub max_tokens: usize,
    /// Tokens that end the text.
    pub end: Vec<i64>,
    /// 0: the likeliest token each time.
    pub temperature: f64,
    /// With a temperature: only the likeliest tokens whose shares reach this sum are drawn from.
    pub top_p: f64,
    pub seed: u64,
    /// Scores of tokens that were there before are divided by it, or multiplied where they are below 0.
    pub repetition_penalty: f64,
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The model ended it.
    Token,
    /// There was no more room.
    Length,
    /// Whoever watched wanted no more.
    Stopped,
}

/// Writes a text after `prompt`, whose tokens count as there before. `watch` is told of each token as soon as it is
/// chosen, without the one that ends the text, and says whether to go on.
///
/// # Errors
/// Scores that are no numbers, or a device's failure.
///
/// # Cancellation
/// Between two tokens, through `watch`.
pub fn generate(
    model: &mut dyn CausalLm,
    choice: &Choice,
    prompt: &[i64],
    watch: &mut dyn FnMut(&[i64]) -> bool,
) -> Result<(Vec<i64>, End), TorchError> {
    let mut noise = Noise::new(choice.seed, 1, 0)?;
    let mut tokens: Vec<i64> = Vec::new();
    if !watch(&tokens) {
        return Ok((tokens, End::Stopped));
    }
    let mut scores = model.prefill()?;
    loop {
        let token = choice.next(&scores, prompt, &tokens, &mut noise)?;
        if choice.end.contains(&token) {
            return Ok((tokens, End::Token));
        }
        tokens.push(token);
        if !watch(&tokens) {
            return Ok((tokens, End::Stopped));
        }
        if tokens.len() >= choice.max_tokens {
            return Ok((tokens, End::Length));
        }
        scores = model.step(token)?;
    }
}

impl Choice {
    /// One of the tokens of `scores` (V).
    fn next(&self, scores: &Tensor, prompt: &[i64], tokens: &[i64], noise: &mut Noise) -> Result<i64, TorchError> {
        let mut scores = scores.f_to_kind(Kind::Float)?;
        #[expect(clippy::float_cmp, reason = "exactly 1 means none")]
        if self.repetition_penalty != 1.0 {
            scores = self.penalised(&scores, prompt, tokens)?;
        }
        if self.temperature <= 0.0 {
            let best = scores.f_argmax(0, false)?.f_int64_value(&[])?;
            if scores.f_double_value(&[best])?.is_nan() {
                return Err(TorchError::Other("the model's scores are no numbers".into()));
            }
            return Ok(best);
        }
        // Drawn on the CPU, so that a seed means the same on every device.
        let scores = scores.f_to_device(Device::Cpu)?.f_div_scalar(self.temperature)?;
        let scores = if self.top_p < 1.0 { self.nucleus(&scores)? } else { scores };
        noise.choose(&scores.f_softmax(0, None)?)
    }

    fn penalised(&self, scores: &Tensor, prompt: &[i64], tokens: &[i64]) -> Result<Tensor, TorchError> {
        let vocabulary = scores.size1()?;
        let seen: Vec<i64> = prompt.iter().chain(tokens).copied().filter(|id| (0..vocabulary).contains(id)).collect();
        let seen = Tensor::f_from_slice(&seen)?.f_to_device(scores.device())?;
        let found = scores.f_gather(0, &seen, false)?;
        let lower = found.f_mul_scalar(self.repetition_penalty)?;
        let higher = found.f_div_scalar(self.repetition_penalty)?;
        Ok(scores.f_scatter(0, &seen, &lower.f_where_self(&found.f_lt(0)?, &higher)?)?)
    }

    /// All but the likeliest tokens whose shares reach `top_p` become impossible; the likeliest never.
    fn nucleus(&self, scores: &Tensor) -> Result<Tensor, TorchError> {
        let (sorted, order) = scores.f_sort(0, false)?;
        let below = sorted.f_softmax(0, None)?.f_cumsum(0, None)?;
        let out = below.f_le(1.0 - self.top_p)?;
        let likeliest = Tensor::f_arange(out.size1()?, (Kind::Int64, Device::Cpu))?.f_eq(out.size1()? - 1)?;
        let out = out.f_logical_and(&likeliest.f_logical_not()?)?;
        let out = out.f_scatter(0, &order, &out)?;
        Ok(scores.f_masked_fill(&out, f64::NEG_INFINITY)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Always the same scores; remembers what it was given.
    struct Constant {
        scores: Vec<f32>,
        steps: Vec<i64>,
    }

    impl CausalLm for Constant {
        fn prefill(&mut self) -> Result<Tensor, TorchError> {
            Ok(Tensor::f_from_slice(&self.scores)?)
        }

        fn step(&mut self, token: i64) -> Result<Tensor, TorchError> {
            self.steps.push(token);
            self.prefill()
        }
    }

    fn choice() -> Choice {
        Choice { max_tokens: 5, end: vec![0], temperature: 0.0, top_p: 1.0, seed: 3, repetition_penalty: 1.0 }
    }

    fn run(scores: &[f32], choice: &Choice, prompt: &[i64]) -> (Vec<i64>, End) {
        let mut model = Constant { scores: scores.to_vec(), steps: Vec::new() };
        let done = generate(&mut model, choice, prompt, &mut |_| true).expect("written");
        let read = done.0.len() - usize::from(done.1 == End::Length);
        assert_eq!(model.steps, done.0[..read], "what was chosen is read, but for the last");
        done
    }

    #[test]
    fn the_likeliest_token_is_taken_until_the_end_or_the_length() {
        assert_eq!(run(&[0.0, 1.0, 3.0, 2.0], &choice(), &[]), (vec![2; 5], End::Length));
        assert_eq!(run(&[9.0, 1.0, 3.0, 2.0], &choice(), &[]), (vec![], End::Token));
    }

    #[test]
    fn what_was_said_before_is_said_less_readily() {
        let choice = Choice { repetition_penalty: 1.5, ..choice() };
        // 3 is divided to 2, then 2.2 to 1.47; below zero it would be multiplied.
        assert_eq!(run(&[-9.0, -1.0, 3.0, 2.2], &choice, &[]).0[..3], [2, 3, 2]);
        assert_eq!(run(&[-9.0, -1.0, 3.0, 2.2], &choice, &[2]).0[0], 3);
        assert_eq!(run(&[-9.0, -1.0, -1.4, -9.0], &choice, &[1]).0[0], 2);
    }

    #[test]
    fn a_seed_draws_the_same_tokens_and_a_small_share_leaves_the_likeliest() {
        let warm = Choice { temperature: 1.0, max_tokens: 40, ..choice() };
        let scores = [-9.0, 1.0, 1.5, 1.2];
        let (first, _) = run(&scores, &warm, &[]);
        assert_eq!(run(&scores, &warm, &[]).0, first);
        assert!([1, 2, 3].iter().all(|token| first.contains(token)), "{first:?}");
        assert_ne!(run(&scores, &Choice { seed: 4, ..warm.clone() }, &[]).0, first);
        assert_eq!(run(&scores, &Choice { top_p: 0.1, ..warm.clone() }, &[]).0, [2; 40]);
        let (two, _) = run(&scores, &Choice { top_p: 0.6, ..warm.clone() }, &[]);
        assert!(two.contains(&2) && two.contains(&3) && !two.contains(&1), "{two:?}");
        assert_eq!(run(&scores, &Choice { temperature: 0.01, ..warm }, &[]).0, [2; 40]);
    }

    #[test]
    fn whoever_watches_ends_it_between_two_tokens() {
        let mut model = Constant { scores: vec![0.0, 1.0], steps: Vec::new() };
        let mut seen = Vec::new();
        let mut watch = |tokens: &[i64]| {
            seen.push(tokens.len());
            tokens.len() < 2
        };
        let done = generate(&mut model, &choice(), &[], &mut watch).expect("written");
        assert_eq!((done, seen, model.steps), ((vec![1, 1], End::Stopped), vec![0, 1, 2], vec![1]));
    }

    #[test]
    fn scores_that_are_no_numbers_are_an_error() {
        for temperature in [0.0, 1.0] {
            let choice = Choice { temperature, ..choice() };
            let mut model = Constant { scores: vec![0.0, f32::NAN], steps: Vec::new() };
            assert!(generate(&mut model, &choice, &[], &mut |_| true).is_err());
        }
    }
}

//! One step of a sampler on tensors: the weighted sums that [`atelier_sampling`] has worked out.

use atelier_sampling::{Clamp, Denoised, Operand, Step, Sum};
use tch::{Kind, Tensor};

use crate::torch::TorchError;

/// The next latents, and the history for the step after. All in f32.
pub fn advance(
    step: &Step,
    sample: &Tensor,
    output: &Tensor,
    noise: Option<&Tensor>,
    history: &[Tensor],
) -> Result<(Tensor, Vec<Tensor>), TorchError> {
    let mut sums: Vec<Tensor> = Vec::with_capacity(step.sums.len());
    for sum in &step.sums {
        let next = add(sum, |operand| find(operand, sample, output, noise, history, &sums))?;
        sums.push(next);
    }
    let remembered = step
        .history
        .iter()
        .map(|&operand| find(operand, sample, output, noise, history, &sums).map(Tensor::shallow_clone));
    let remembered = remembered.collect::<Result<Vec<_>, _>>()?;
    let latents = sums.into_iter().nth(step.next);
    Ok((latents.ok_or_else(|| missing("its result"))?, remembered))
}

/// What the finished latents look like from here.
pub fn denoised(by: Denoised, sample: &Tensor, output: &Tensor) -> Result<Tensor, TorchError> {
    Ok(sample.f_mul_scalar(by.sample)?.f_add(&output.f_mul_scalar(by.output)?)?)
}

fn find<'a>(
    operand: Operand,
    sample: &'a Tensor,
    output: &'a Tensor,
    noise: Option<&'a Tensor>,
    history: &'a [Tensor],
    sums: &'a [Tensor],
) -> Result<&'a Tensor, TorchError> {
    match operand {
        Operand::Sample => Ok(sample),
        Operand::Output => Ok(output),
        Operand::Noise => noise.ok_or_else(|| missing("its noise")),
        Operand::History(at) => history.get(at).ok_or_else(|| missing("what it remembers")),
        Operand::Sum(at) => sums.get(at).ok_or_else(|| missing("an earlier sum")),
    }
}

/// The sampler has checked its own operands; this is for a caller that mixes up two runs.
fn missing(what: &str) -> TorchError {
    TorchError::Other(format!("a step of the sampler lacks {what}"))
}

fn add<'a>(sum: &Sum, find: impl Fn(Operand) -> Result<&'a Tensor, TorchError>) -> Result<Tensor, TorchError> {
    let mut total: Option<Tensor> = None;
    for term in &sum.terms {
        let part = find(term.operand)?.f_mul_scalar(term.weight)?;
        total = Some(match total {
            None => part,
            Some(total) => total.f_add(&part)?,
        });
    }
    let total = total.ok_or_else(|| missing("terms"))?;
    match sum.clamp {
        None => Ok(total),
        Some(Clamp::Range(range)) => Ok(total.f_clamp(-range, range)?),
        Some(Clamp::Dynamic { ratio, most }) => dynamic(&total, ratio, most),
    }
}

fn dynamic(values: &Tensor, ratio: f64, most: f64) -> Result<Tensor, TorchError> {
    let flat = values.f_flatten(1, -1)?.f_abs()?.f_to_kind(Kind::Float)?;
    let limit = flat.f_quantile_scalar(ratio, 1, false, "linear")?.f_clamp(1.0, most)?;
    let mut shape = vec![1; values.dim()];
    shape[0] = -1;
    let limit = limit.f_reshape(&shape)?;
    let inside = values.f_minimum(&limit)?.f_maximum(&limit.f_neg()?)?;
    Ok(inside.f_div(&limit)?)
}

#[cfg(test)]
mod tests {
    use atelier_sampling::{Options, Sampler, SchedulerConfig};

    use super::*;

    /// The same run on numbers and on tensors of one number.
    #[test]
    fn tensors_go_the_way_that_numbers_go() {
        for class in ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler"] {
            let json = format!(r#"{{"_class_name":"{class}","beta_schedule":"scaled_linear"}}"#);
            let config = SchedulerConfig::parse(json.as_bytes()).expect(class);
            let mut sampler = Sampler::new(&config, &Options::new(5)).expect(class);
            let mut number = 0.7 * sampler.init_noise_sigma();
            let mut numbers: Vec<f64> = Vec::new();
            let tensor = |value: f64| Tensor::from(value).to_kind(Kind::Double);
            let (mut sample, mut history) = (tensor(number), Vec::new());
            while let Some(step) = sampler.current() {
                let output = 0.1 * number * step.input_scale;
                let noise = 0.3;
                let mut sums: Vec<f64> = Vec::new();
                let value = |operand: Operand, sums: &[f64]| match operand {
                    Operand::Sample => number,
                    Operand::Output => output,
                    Operand::Noise => noise,
                    Operand::History(k) => numbers[k],
                    Operand::Sum(k) => sums[k],
                };
                for sum in &step.sums {
                    let total = sum.terms.iter().map(|term| value(term.operand, &sums) * term.weight).sum();
                    sums.push(total);
                }
                let remembered: Vec<f64> = step.history.iter().map(|&operand| value(operand, &sums)).collect();
                let given = tensor(noise);
                let noise = step.noise.then_some(&given);
                (sample, history) = advance(step, &sample, &tensor(output), noise, &history).expect(class);
                (number, numbers) = (sums[step.next], remembered);
                assert!((sample.double_value(&[]) - number).abs() < 1e-9 * number.abs().max(1.0), "{class}");
                assert_eq!(history.len(), numbers.len());
                sampler.advance();
            }
        }
    }

    #[test]
    fn dynamic_thresholding_keeps_each_picture_within_one() {
        let values = Tensor::from_slice(&[-8.0_f32, 1.0, 2.0, 4.0, 0.1, 0.2, 0.3, -0.4]).reshape([2, 1, 2, 2]);
        let got = dynamic(&values, 0.5, 100.0).expect("numbers");
        let got: Vec<f32> = Vec::try_from(got.flatten(0, -1)).expect("numbers");
        // The median of 8, 1, 2, 4 is 3; of the second picture it is below 1.
        for (got, wanted) in got.iter().zip([-1.0, 1.0 / 3.0, 2.0 / 3.0, 1.0, 0.1, 0.2, 0.3, -0.4]) {
            assert!((got - wanted).abs() < 1e-6, "{got} stands for {wanted}");
        }
    }
}

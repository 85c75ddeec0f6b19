//! `UniPCMultistepScheduler`: a predictor of orders 1 to 3 on predictions of x₀, and a corrector that redoes the step
//! before with the newest of them.

use super::{
    FinalSigma, Plan,
    flow_euler::read_terminal,
    multistep::{Common, Mixture, Point, ratios},
};
use crate::{
    Clamp, Operand, Options, SamplingError, Step, Sum,
    class::Method,
    keys::Keys,
    numpy::{linspace, real, single, whole},
    options::Fraction,
    prediction::read_clamp,
    sigmas::{DynamicShift, FlowShift, Precision, Spread, at_timesteps, check_given, stretch_to, truncated},
    training::{DDPM_BETAS, LastAlpha, Training},
};

#[derive(Debug)]
pub(crate) struct UniPc {
    common: Common,
    clamp: Option<Clamp>,
    /// B(h) = h, rather than eʰ − 1.
    bh1: bool,
    /// Steps after which the corrector does not run.
    uncorrected: Vec<usize>,
    sigma_min: Option<f64>,
    sigma_max: Option<f64>,
    dynamic: Option<DynamicShift>,
    terminal: Option<f64>,
    last: FinalSigma,
}

impl UniPc {
    pub(crate) fn read(keys: Keys<'_>) -> Result<Self, SamplingError> {
        if !keys.flag("predict_x0", true)? {
            return Err(keys.wrong("predict_x0", "only true is supported"));
        }
        keys.refuse("solver_p", "another solver as the predictor is not supported")?;
        let common = Common::read(keys, Training::read(keys, DDPM_BETAS, LastAlpha::Tiny)?)?;
        let flow = common.mixture == Mixture::Flow;
        if flow && matches!(common.spread, Spread::Exponential | Spread::Beta) {
            let why = "it cannot be combined with exponential or beta sigmas, which are not of a flow";
            return Err(keys.wrong("use_flow_sigmas", why));
        }
        let terminal = read_terminal(keys)?;
        if terminal.is_some() && !flow {
            return Err(keys.wrong("shift_terminal", "it needs `use_flow_sigmas: true`"));
        }
        let solvers = [("bh2", false), ("bh1", true), ("midpoint", false), ("heun", false), ("logrho", false)];
        let (sigma_min, sigma_max) = super::euler::read_range(keys)?;
        Ok(Self {
            common,
            clamp: read_clamp(keys, None)?,
            bh1: keys.choice("solver_type", "bh2", &solvers)?,
            uncorrected: keys.numbers("disable_corrector")?.unwrap_or_default().into_iter().map(whole).collect(),
            sigma_min,
            sigma_max,
            dynamic: DynamicShift::read(keys)?,
            terminal,
            last: FinalSigma::read(keys)?,
        })
    }

    fn schedule(&self, options: &Options) -> Result<(Vec<f64>, Vec<f64>), SamplingError> {
        let flow = self.common.mixture == Mixture::Flow;
        if !flow {
            options.refuse_sigmas("UniPCMultistepScheduler without `use_flow_sigmas`")?;
        }
        let own = self.common.training.sigmas();
        let train = real(self.common.training.len());
        let highest = self.sigma_max.unwrap_or(own[own.len() - 1]);
        let lowest = self.sigma_min.unwrap_or(own[0]);
        let mut timesteps = self.common.timesteps(options.steps, self.common.training.len())?;
        let spread = self.common.spread_between(self.common.spread, highest, lowest, options.steps);
        let mut sigmas = match spread {
            Some((_, sigmas)) if flow => {
                options.refuse_sigmas("UniPCMultistepScheduler with `use_karras_sigmas`")?;
                let sigmas: Vec<f64> = sigmas.into_iter().map(|sigma| sigma / (sigma + 1.0)).collect();
                timesteps = sigmas.iter().map(|sigma| sigma * train).collect();
                sigmas
            }
            Some((found, sigmas)) => {
                let karras = self.common.spread == Spread::Karras;
                timesteps = if karras { found.into_iter().map(f64::round_ties_even).collect() } else { found };
                sigmas
            }
            None if flow => {
                let sigmas = self.flow_sigmas(options)?;
                timesteps = sigmas.iter().map(|sigma| sigma * train).collect();
                sigmas
            }
            None => at_timesteps(&own, &timesteps),
        };
        truncated(&mut timesteps);
        let of_the_run = flow || self.common.spread != Spread::Timesteps;
        let lowest = if of_the_run { sigmas[sigmas.len() - 1] } else { own[0] };
        sigmas.push(self.last.sigma(lowest));
        Ok((timesteps, sigmas.into_iter().map(single).collect()))
    }

    fn flow_sigmas(&self, options: &Options) -> Result<Vec<f64>, SamplingError> {
        let steps = options.steps;
        let mut sigmas = match &options.sigmas {
            Some(given) if given.len() == steps => {
                check_given(given, 1.0)?;
                given.clone()
            }
            Some(given) => {
                return Err(SamplingError::Sigmas { reason: format!("{} for {steps} steps", given.len()) });
            }
            None => {
                let mut sigmas = linspace(1.0, 1.0 / real(self.common.training.len()), steps + 1);
                sigmas.truncate(steps);
                sigmas
            }
        };
        let shift = match self.dynamic {
            Some(dynamic) => dynamic.resolve(options)?,
            None => FlowShift::Static(self.common.flow_shift),
        };
        for sigma in &mut sigmas {
            *sigma = shift.apply(*sigma, Precision::Double);
        }
        if let Some(terminal) = self.terminal {
            stretch_to(&mut sigmas, terminal, Precision::Double);
        }
        // A level of nothing but noise has a λ of −∞.
        if (sigmas[0] - 1.0).abs() < 1e-6 {
            sigmas[0] -= 1e-6;
        }
        Ok(sigmas)
    }

    /// How many earlier predictions the predictor of step `index` uses.
    fn reach(&self, index: usize, begin: usize, count: usize) -> usize {
        let order =
            if self.common.lower_order_final { self.common.order.min(count - index) } else { self.common.order };
        (order - 1).min(index - begin)
    }

    fn step(&self, index: usize, begin: usize, timesteps: &[f64], points: &[Point]) -> Step {
        let count = timesteps.len();
        let point = points[index];
        let denoised = self.common.prediction.denoised(point.alpha, point.sigma);
        let mut sums = vec![denoised.sum(self.clamp)];
        let mut sample = Operand::Sample;
        if index > begin && !self.uncorrected.contains(&(index - 1)) {
            // The history is the sample that the step before began with, and predictions, newest first.
            let reach = self.reach(index - 1, begin, count);
            let earlier: Vec<Point> = (0..reach).map(|back| points[index - 2 - back]).collect();
            let predictions: Vec<Operand> = (1..=reach + 1).map(Operand::History).collect();
            let before = points[index - 1];
            let corrected =
                self.update(before, point, &earlier, Operand::History(0), &predictions, Some(Operand::Sum(0)));
            sample = Operand::Sum(sums.len());
            sums.push(corrected);
        }
        let reach = self.reach(index, begin, count);
        let earlier: Vec<Point> = (1..=reach).map(|back| points[index - back]).collect();
        let predictions: Vec<Operand> =
            std::iter::once(Operand::Sum(0)).chain((1..=reach).map(Operand::History)).collect();
        sums.push(self.update(point, points[index + 1], &earlier, sample, &predictions, None));
        let kept = if index + 1 == count { 0 } else { 1 + (index - begin + 1).min(self.common.order) };
        let history = [sample, Operand::Sum(0)].into_iter().chain((1..).map(Operand::History));
        Step {
            timestep: timesteps[index],
            input_scale: 1.0,
            level: point.level(),
            denoised,
            noise: false,
            next: sums.len() - 1,
            sums,
            history: history.take(kept).collect(),
        }
    }

    /// From one level to the next with the predictions at hand (that of `from` first, then those of `earlier`), and
    /// with the one at the end of the step where it is known already: formulas 3 and 8 of arXiv:2302.04867.
    fn update(
        &self,
        from: Point,
        to: Point,
        earlier: &[Point],
        sample: Operand,
        predictions: &[Operand],
        at_end: Option<Operand>,
    ) -> Sum {
        let mut ratios = ratios(from, to, earlier).unwrap_or_default();
        let first = -(from.lambda - to.lambda).exp_m1();
        let scale = to.alpha * if self.bh1 { to.lambda - from.lambda } else { first };
        let rhos = if at_end.is_some() {
            ratios.push(1.0);
            if ratios.len() == 1 { vec![0.5] } else { self.rhos(from, to, &ratios) }
        } else if ratios.len() == 1 {
            vec![0.5]
        } else {
            self.rhos(from, to, &ratios)
        };
        let others = predictions.iter().skip(1).take(ratios.len() - usize::from(at_end.is_some())).chain(&at_end);
        let mut newest = to.alpha * first;
        let mut terms = vec![(sample, to.sigma / from.sigma)];
        for ((operand, ratio), rho) in others.zip(&ratios).zip(rhos) {
            let weight = scale * rho / ratio;
            newest -= weight;
            terms.push((*operand, weight));
        }
        terms.push((predictions[0], newest));
        Sum::of(terms)
    }

    /// Solves Σₖ rₖⁱ⁻¹ ρₖ = bᵢ.
    fn rhos(&self, from: Point, to: Point, ratios: &[f64]) -> Vec<f64> {
        let back = from.lambda - to.lambda;
        let scale = if self.bh1 { back } else { back.exp_m1() };
        let (mut phi, mut factorial) = (back.exp_m1() / back - 1.0, 1.0);
        let (mut rows, mut power) = (Vec::new(), vec![1.0; ratios.len()]);
        for row in 1..=ratios.len() {
            let mut equation = power.clone();
            equation.push(phi * factorial / scale);
            rows.push(equation);
            factorial *= real(row + 1);
            phi = phi / back - 1.0 / factorial;
            for (power, ratio) in power.iter_mut().zip(ratios) {
                *power *= ratio;
            }
        }
        solve(rows)
    }
}

impl Method for UniPc {
    fn plan(&self, options: &Options) -> Result<Plan, SamplingError> {
        let begin = options.begin(Fraction::Dropped)?;
        let (timesteps, sigmas) = self.schedule(options)?;
        let points: Vec<Point> = sigmas.iter().map(|sigma| self.common.mixture.point(*sigma)).collect();
        let steps = (begin..timesteps.len()).map(|index| self.step(index, begin, &timesteps, &points)).collect();
        Ok(Plan { steps, sigmas: sigmas.get(begin..).unwrap_or_default().to_vec(), init_noise_sigma: 1.0 })
    }
}

/// Gauss-Jordan elimination of rows `[a₁ … aₙ b]`, with pivots.
fn solve(mut rows: Vec<Vec<f64>>) -> Vec<f64> {
    let size = rows.len();
    for column in 0..size {
        let pivot = (column..size).max_by(|a, b| rows[*a][column].abs().total_cmp(&rows[*b][column].abs()));
        rows.swap(column, pivot.unwrap_or(column));
        let pivot = rows[column].clone();
        for (index, row) in rows.iter_mut().enumerate() {
            let factor = if index == column { 0.0 } else { row[column] / pivot[column] };
            for (value, of_pivot) in row.iter_mut().zip(&pivot) {
                *value -= factor * of_pivot;
            }
        }
    }
    rows.iter().enumerate().map(|(index, row)| row[size] / row[index]).collect()
}

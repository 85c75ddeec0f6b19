//! `DPMSolverMultistepScheduler`: DPM-Solver++ of orders 1 to 3 and its SDE form of orders 1 and 2, on predictions of x₀.

use super::{
    FinalSigma, Plan,
    multistep::{Common, Mixture, Point, ratios},
};
use crate::{
    Clamp, Operand, Options, SamplingError, Step, Sum,
    class::Method,
    keys::Keys,
    numpy::{linspace, real, single},
    options::Fraction,
    prediction::read_clamp,
    sigmas::{DynamicShift, FlowShift, Precision, Spread, at_timesteps, truncated},
    training::{DDPM_BETAS, LastAlpha, Training},
};

/// Runs of this many steps or more keep their order to the end.
const FEW: usize = 15;

#[derive(Debug)]
pub(crate) struct DpmSolver {
    common: Common,
    clamp: Option<Clamp>,
    equation: Equation,
    second_order: SecondOrder,
    euler_at_final: bool,
    /// Levels evenly in λ (Lu et al., 3.1).
    lu_lambdas: bool,
    dynamic: Option<DynamicShift>,
    last: FinalSigma,
    /// Timesteps from here on are too noisy to be of use.
    last_timestep: usize,
    /// The cosine betas keep fractions in what becomes of Karras timesteps.
    rounds: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Equation {
    Ordinary,
    /// With fresh noise at each step.
    Stochastic,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SecondOrder {
    Midpoint,
    Heun,
}

impl DpmSolver {
    pub(crate) fn read(keys: Keys<'_>) -> Result<Self, SamplingError> {
        let training = Training::read(keys, DDPM_BETAS, LastAlpha::Tiny)?;
        let algorithms = [
            ("dpmsolver++", Equation::Ordinary),
            ("sde-dpmsolver++", Equation::Stochastic),
            ("deis", Equation::Ordinary),
        ];
        let equation = keys.choice("algorithm_type", "dpmsolver++", &algorithms)?;
        // Names of other classes' solvers stand for the midpoint's.
        let midpoint = ["midpoint", "logrho", "bh1", "bh2"].map(|name| (name, SecondOrder::Midpoint));
        let solvers: Vec<_> = midpoint.into_iter().chain([("heun", SecondOrder::Heun)]).collect();
        let lu_lambdas = keys.flag("use_lu_lambdas", false)?;
        if let Some("learned" | "learned_range") = keys.word("variance_type") {
            return Err(keys.wrong("variance_type", "models that predict their variance are not supported"));
        }
        let last_timestep = training.len() - too_noisy(keys, &training)?;
        let common = Common::read(keys, training)?;
        if equation == Equation::Stochastic && common.order == 3 {
            return Err(keys.wrong("solver_order", "`algorithm_type: sde-dpmsolver++` supports 1 and 2"));
        }
        if common.mixture == Mixture::Flow && (common.spread != Spread::Timesteps || lu_lambdas) {
            let why = "it cannot be combined with Karras, exponential, beta or Lu sigmas, which are not of a flow";
            return Err(keys.wrong("use_flow_sigmas", why));
        }
        let last = FinalSigma::read(keys)?;
        if common.mixture == Mixture::Flow && last == FinalSigma::Lowest {
            let why = "with `use_flow_sigmas` only `zero` is supported, since the lowest sigma is that of the betas";
            return Err(keys.wrong("final_sigmas_type", why));
        }
        let dynamic = DynamicShift::read(keys)?;
        if dynamic.is_some() && keys.word("time_shift_type").is_some_and(|kind| kind != "exponential") {
            return Err(keys.wrong("time_shift_type", "this class supports `exponential`"));
        }
        Ok(Self {
            common,
            clamp: read_clamp(keys, None)?,
            equation,
            second_order: keys.choice("solver_type", "midpoint", &solvers)?,
            euler_at_final: keys.flag("euler_at_final", false)?,
            lu_lambdas,
            dynamic,
            last,
            last_timestep,
            rounds: keys.word("beta_schedule") != Some("squaredcos_cap_v2"),
        })
    }

    fn schedule(&self, options: &Options) -> Result<(Vec<f64>, Vec<f64>), SamplingError> {
        let steps = options.steps;
        let own = self.common.training.sigmas();
        let mut timesteps = self.common.timesteps(steps, self.last_timestep)?;
        // Evenly in λ is evenly in ln σ.
        let even = self.lu_lambdas && self.common.spread == Spread::Timesteps;
        let spread = self.common.spread(if even { Spread::Exponential } else { self.common.spread }, steps);
        let rounds = self.rounds && (self.common.spread == Spread::Karras || self.lu_lambdas);
        let mut sigmas = if let Some((found, sigmas)) = spread {
            timesteps = if rounds { found.into_iter().map(f64::round_ties_even).collect() } else { found };
            sigmas
        } else if self.common.mixture == Mixture::Flow {
            let sigmas = self.flow_sigmas(options)?;
            timesteps = sigmas.iter().map(|sigma| sigma * real(self.common.training.len())).collect();
            sigmas
        } else {
            at_timesteps(&own, &timesteps)
        };
        truncated(&mut timesteps);
        sigmas.push(self.last.sigma(own[0]));
        Ok((timesteps, sigmas.into_iter().map(single).collect()))
    }

    fn flow_sigmas(&self, options: &Options) -> Result<Vec<f64>, SamplingError> {
        let shift = match self.dynamic {
            Some(dynamic) => match dynamic.resolve(options)? {
                FlowShift::Static(shift) | FlowShift::Dynamic(shift) => shift,
            },
            None => self.common.flow_shift,
        };
        let shift = FlowShift::Static(shift);
        let clean = linspace(1.0, 1.0 / real(self.common.training.len()), options.steps + 1);
        let noisy = clean.into_iter().rev().map(|alpha| shift.apply(1.0 - alpha, Precision::Double));
        Ok(noisy.take(options.steps).collect())
    }

    /// `point` then `earlier`, newest first: the levels of the predictions at hand.
    fn next(&self, from: Point, to: Point, earlier: &[Point]) -> Sum {
        let length = to.lambda - from.lambda;
        let ratios = ratios(from, to, earlier).unwrap_or_default();
        // In the SDE's terms each length counts twice.
        let stochastic = self.equation == Equation::Stochastic;
        let span = if stochastic { 2.0 * length } else { length };
        let gain = -(-span).exp_m1();
        let first = to.alpha * gain;
        let second = if self.second_order == SecondOrder::Heun || ratios.len() == 2 {
            to.alpha * (1.0 - gain / span)
        } else {
            0.5 * first
        };
        let sample = to.sigma / from.sigma * if stochastic { (-length).exp() } else { 1.0 };
        let noise = if stochastic { to.sigma * gain.max(0.0).sqrt() } else { 0.0 };
        let mut terms = vec![(Operand::Sample, sample)];
        match ratios[..] {
            [back] => {
                // D₁ = (m₀ − m₁) / r, with r = −back.
                let slope = second / -back;
                terms.extend([(Operand::Sum(0), first + slope), (Operand::History(0), -slope)]);
            }
            [back, far] => {
                let third = to.alpha * (0.5 - (span - gain) / (span * span));
                let (r0, r1) = (-back, back - far);
                let (near, past) = (1.0 / r0, 1.0 / r1);
                let (bend, curve) = (r0 / (r0 + r1), third / (r0 + r1));
                terms.extend([
                    (Operand::Sum(0), first + near * (second * (1.0 + bend) + curve)),
                    (Operand::History(0), -near * (second * (1.0 + bend) + curve) - past * (second * bend + curve)),
                    (Operand::History(1), past * (second * bend + curve)),
                ]);
            }
            _ => terms.push((Operand::Sum(0), first)),
        }
        terms.push((Operand::Noise, noise));
        Sum::of(terms)
    }

    /// How many earlier predictions step `index` of `count` uses, of those `remembered`.
    fn reach(&self, index: usize, count: usize, remembered: usize) -> usize {
        let left = count - index;
        let short = self.common.lower_order_final && count < FEW;
        let most = match left {
            1 if self.euler_at_final || short || self.last == FinalSigma::Zero => 0,
            2 if short => 1,
            _ => self.common.order - 1,
        };
        most.min(remembered)
    }
}

impl Method for DpmSolver {
    fn plan(&self, options: &Options) -> Result<Plan, SamplingError> {
        options.refuse_sigmas("DPMSolverMultistepScheduler")?;
        let begin = options.begin(Fraction::Dropped)?;
        let (timesteps, sigmas) = self.schedule(options)?;
        let count = timesteps.len();
        let points: Vec<Point> = sigmas.iter().map(|sigma| self.common.mixture.point(*sigma)).collect();
        let step = |index: usize| {
            let remembered = (index - begin).min(self.common.order - 1);
            let earlier: Vec<Point> =
                (1..=self.reach(index, count, remembered)).map(|back| points[index - back]).collect();
            let denoised = self.common.prediction.denoised(points[index].alpha, points[index].sigma);
            let kept = if index + 1 == count { 0 } else { (remembered + 1).min(self.common.order - 1) };
            Step {
                timestep: timesteps[index],
                input_scale: 1.0,
                level: points[index].level(),
                denoised,
                noise: self.equation == Equation::Stochastic,
                sums: vec![denoised.sum(self.clamp), self.next(points[index], points[index + 1], &earlier)],
                next: 1,
                history: std::iter::once(Operand::Sum(0)).chain((0..).map(Operand::History)).take(kept).collect(),
            }
        };
        let steps = (begin..count).map(step).collect();
        Ok(Plan { steps, sigmas: sigmas.get(begin..).unwrap_or_default().to_vec(), init_noise_sigma: 1.0 })
    }
}

/// `lambda_min_clipped`: how many of the last timesteps lie below it.
fn too_noisy(keys: Keys<'_>, training: &Training) -> Result<usize, SamplingError> {
    if keys.word("lambda_min_clipped") == Some("-Infinity") {
        return Ok(0);
    }
    let Some(clipped) = keys.optional_number("lambda_min_clipped")? else { return Ok(0) };
    let half_log_snr = |timestep: usize| {
        let alpha = training.alpha(timestep);
        single(single(single(alpha.sqrt()).ln()) - single(single(single(1.0 - alpha).sqrt()).ln()))
    };
    let below = (0..training.len()).filter(|timestep| half_log_snr(*timestep) < clipped).count();
    if below + 1 < training.len() { Ok(below) } else { Err(keys.wrong("lambda_min_clipped", "it leaves no timestep")) }
}

//! Noise schedules and samplers as scalar coefficients, in f64. No tensors.
//!
//! A [`SchedulerConfig`] is read from a model folder's `scheduler_config.json`; [`Sampler::new`] turns it and the
//! [`Options`] of a run into a list of [`Step`]s. A step is one call of the model: at which timestep, by what the
//! latents are scaled for it, and which weighted sums of tensors make the next latents and the history. Everything is
//! worked out before the first step, so that whatever is wrong with a folder or a request is told before a model runs,
//! and a sampler that was serialised in the middle of a run goes on with the very same bits.
//!
//! ```
//! use atelier_sampling::{Inputs, Options, Sampler, SamplingError, SchedulerConfig};
//!
//! let config = SchedulerConfig::parse(br#"{"_class_name": "UniPCMultistepScheduler", "beta_schedule": "scaled_linear"}"#)?;
//! let mut sampler = Sampler::new(&config, &Options::new(4))?;
//! // Numbers in place of tensors.
//! let (mut latents, mut history) = (0.7 * sampler.init_noise_sigma(), Vec::new());
//! while let Some(step) = sampler.current() {
//!     let output = 0.1 * (latents * step.input_scale); // the model, at `step.timestep`
//!     let noise = step.noise.then_some(&0.3); // a draw from the run's generator
//!     let inputs = Inputs { sample: &latents, output: &output, noise, history: &history };
//!     (latents, history) = step.apply(&inputs, |terms, clamp| {
//!         assert!(clamp.is_none(), "only where the configuration clips");
//!         Ok::<f64, SamplingError>(terms.iter().map(|(tensor, weight)| tensor * weight).sum())
//!     })?;
//!     sampler.advance(); // a checkpoint here is `sampler`, `latents` and `history`
//! }
//! # Ok::<(), atelier_sampling::SamplingError>(())
//! ```
//!
//! # The numbers
//!
//! The reference is diffusers 0.42.1. Its tables (betas, ᾱ, σ, timesteps) are f32, and so are they here, rounded where
//! it rounds; what follows from them is f64. `tools/fixtures/schedulers.py` records timesteps, sigmas, levels and
//! trajectories of the reference's own code in f64 on its own tables, and the tests hold this crate to 1e-6 of them, with
//! every step's latents measured by their own largest value.
//!
//! As the reference runs, in f32, it keeps within 1e-6 of itself in f64 too, but for v-prediction where σ is in the
//! hundreds or thousands (zero SNR, SVD): there it takes the small difference of two large numbers, and its first steps
//! are off by up to 1e-3 of the latents. The weights here have no such difference in them.
//!
//! On purpose otherwise than in the reference:
//! - Trailing spacing never visits timestep −1, which numpy's `arange` adds for 62 of the numbers of steps up to 1000.
//! - Where a solver's step has no length or no end, or two of its points are the same, it is of the first order; the
//!   reference divides by zero there.
//! - `shift_terminal` leaves a schedule of one step alone, for the same reason.
//!
//! # Sources
//!
//! | class in `scheduler_config.json` | method |
//! | --- | --- |
//! | `EulerDiscreteScheduler` | Karras et al. 2022, *Elucidating the Design Space of Diffusion-Based Generative Models*, algorithm 2 without churn, arXiv:2206.00364 |
//! | `EulerAncestralDiscreteScheduler` | the same with k-diffusion's ancestral step: σ_up² = σ_to² (σ_from² − σ_to²) / σ_from² |
//! | `DDIMScheduler` | Song et al. 2020, *Denoising Diffusion Implicit Models*, formulas 12 and 16, arXiv:2010.02502 |
//! | `DPMSolverMultistepScheduler` | Lu et al. 2022, *DPM-Solver++*, arXiv:2211.01095: 1M, 2M, 3M and their SDE forms |
//! | `UniPCMultistepScheduler` | Zhao et al. 2023, *UniPC*, arXiv:2302.04867, with the data prediction |
//! | `LCMScheduler` | Luo et al. 2023, *Latent Consistency Models*, algorithm 1, arXiv:2310.04378 |
//! | `PNDMScheduler` | Liu et al. 2022, *Pseudo Numerical Methods for Diffusion Models on Manifolds*, the linear multistep part, arXiv:2202.09778 |
//! | `FlowMatchEulerDiscreteScheduler` | Esser et al. 2024, *Scaling Rectified Flow Transformers*, arXiv:2403.03206, section 5.3.2 for the shift |
//!
//! Zero terminal SNR and the spacings are those of Lin et al. 2023, *Common Diffusion Noise Schedules and Sample Steps
//! are Flawed*, arXiv:2305.08891; beta sigmas those of arXiv:2407.12173; dynamic thresholding that of arXiv:2205.11487.
#![forbid(unsafe_code)]

mod beta;
mod bits;
mod class;
mod config;
mod error;
mod keys;
mod lenient;
mod method;
mod names;
mod numpy;
mod options;
mod prediction;
mod sampler;
mod sigmas;
mod spacing;
mod step;
mod training;

pub use config::SchedulerConfig;
pub use error::SamplingError;
pub use options::{Options, Shift, Start};
pub use sampler::Sampler;
pub use step::{Clamp, Denoised, Inputs, Level, Operand, Step, Sum, Term};

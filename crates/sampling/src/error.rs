//! What can be wrong with a scheduler's configuration or with a request.

use thiserror::Error;

#[derive(Clone, Debug, PartialEq, Error)]
pub enum SamplingError {
    #[error("scheduler_config.json is no JSON object: {reason}")]
    NotJson { reason: String },
    #[error("scheduler_config.json has no `_class_name`")]
    NoClass,
    #[error(
        "the scheduler `{class}` is not supported; supported are {supported}, or name a sampler in `params.sampler`"
    )]
    UnknownClass { class: String, supported: String },
    #[error("`{key}` in scheduler_config.json is {value}: {expected}")]
    Key { key: String, value: String, expected: String },
    #[error("the sampler `{name}` is not known; known are {known}")]
    UnknownSampler { name: String, known: String },
    #[error("the sampler `{name}` does not fit this model, which predicts a flow; use {fitting}")]
    NotForFlow { name: String, fitting: String },
    #[error("the sampler `{name}` is for models that predict a flow, and this one does not")]
    OnlyForFlow { name: String },
    #[error("steps is 0; ask for 1 or more")]
    NoSteps,
    #[error("steps is {steps}: {reason}")]
    Steps { steps: usize, reason: String },
    #[error("strength is {strength}; it must be above 0 and at most 1")]
    Strength { strength: f64 },
    #[error("strength {strength} of {steps} steps leaves no step to run; raise either")]
    StrengthLeavesNothing { strength: f64, steps: usize },
    #[error("eta is {eta}; it must be from 0 to 1")]
    Eta { eta: f64 },
    #[error("sigmas cannot be given: {reason}")]
    Sigmas { reason: String },
    #[error(
        "`use_dynamic_shifting` in scheduler_config.json needs the picture's sequence length or `mu`, and neither is given"
    )]
    NoShift,
    #[error("mu is {mu}, from which no shift can be made")]
    Mu { mu: f64 },
    #[error("step {index} (timestep {timestep}) of this schedule is no finite number; {hint}")]
    NotFinite { index: usize, timestep: f64, hint: String },
    #[error("the saved state of the sampler is not whole: {reason}")]
    State { reason: String },
}

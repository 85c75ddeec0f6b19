//! `scheduler_config.json`: a class name and its keys.

use serde_json::{Map, Value};

use crate::{SamplingError, class::Class, keys::Keys, lenient, names};

/// A model folder's scheduler, as its file says. Keys that the class does not read are kept and ignored, as diffusers
/// does: folders carry those of other classes along.
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulerConfig {
    class: String,
    keys: Map<String, Value>,
}

impl SchedulerConfig {
    /// Reads the file's bytes. Python's `Infinity` and `NaN`, which diffusers writes, are understood.
    ///
    /// # Errors
    /// Not JSON, or no class name. What the class and its keys are worth is told by [`Self::check`].
    pub fn parse(json: &[u8]) -> Result<Self, SamplingError> {
        let keys: Map<String, Value> = serde_json::from_slice(&lenient::quote_constants(json))
            .map_err(|error| SamplingError::NotJson { reason: error.to_string() })?;
        let class = keys.get("_class_name").and_then(Value::as_str).ok_or(SamplingError::NoClass)?.to_owned();
        Ok(Self { class, keys })
    }

    /// `_class_name`, or the class of the sampler that took its place.
    pub fn class_name(&self) -> &str {
        &self.class
    }

    /// Whether the model predicts a flow, with noise levels from 1 to 0.
    pub fn is_flow(&self) -> bool {
        Class::named(&self.class) == Some(Class::FlowEuler)
            || self.keys.get("use_flow_sigmas") == Some(&Value::Bool(true))
    }

    /// The same model with another sampler: the class and the spread of its noise levels change, while betas,
    /// prediction, spacing and the rest stay. `name` is one of [`Self::samplers`] in any case, or written as other
    /// programs do (`DPM++ 2M Karras`).
    ///
    /// # Errors
    /// A name that is not known, a sampler that does not fit a flow model, or one that cannot honour the folder's keys.
    pub fn with_sampler(&self, name: &str) -> Result<Self, SamplingError> {
        let (class, keys) = names::resolve(name, &self.keys, self.is_flow())?;
        let this = Self { class: class.name().to_owned(), keys };
        this.check()?;
        Ok(this)
    }

    /// Names that [`Self::with_sampler`] takes, with what other programs call them.
    pub fn samplers() -> Vec<(String, String)> {
        names::all()
    }

    /// Whether the class is known and all of the keys that it reads can be honoured.
    ///
    /// # Errors
    /// The first class or key that cannot, with its value and what is supported.
    pub fn check(&self) -> Result<(), SamplingError> {
        self.class()?.read(self.keys()).map(drop)
    }

    pub(crate) fn class(&self) -> Result<Class, SamplingError> {
        Class::named(&self.class).ok_or_else(|| {
            let supported: Vec<&str> = Class::ALL.iter().map(|class| class.name()).collect();
            SamplingError::UnknownClass { class: self.class.clone(), supported: supported.join(", ") }
        })
    }

    pub(crate) fn keys(&self) -> Keys<'_> {
        Keys(&self.keys)
    }
}

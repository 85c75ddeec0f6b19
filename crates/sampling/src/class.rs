//! The classes of `_class_name` that there are. A new sampler adds a variant, its name and its file in `method/`.

use crate::{
    Options, SamplingError,
    keys::Keys,
    method::{
        Plan, ddim::Ddim, dpm::DpmSolver, euler::Euler, euler_ancestral::EulerAncestral, flow_euler::FlowEuler,
        lcm::Lcm, pndm::Pndm, unipc::UniPc,
    },
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Euler,
    EulerAncestral,
    Ddim,
    DpmSolver,
    UniPc,
    Lcm,
    Pndm,
    FlowEuler,
}

/// A class with its keys read and checked.
pub(crate) trait Method {
    fn plan(&self, options: &Options) -> Result<Plan, SamplingError>;
}

impl Class {
    pub(crate) const ALL: [Self; 8] = [
        Self::Euler,
        Self::EulerAncestral,
        Self::Ddim,
        Self::DpmSolver,
        Self::UniPc,
        Self::Lcm,
        Self::Pndm,
        Self::FlowEuler,
    ];

    /// The diffusers class.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Euler => "EulerDiscreteScheduler",
            Self::EulerAncestral => "EulerAncestralDiscreteScheduler",
            Self::Ddim => "DDIMScheduler",
            Self::DpmSolver => "DPMSolverMultistepScheduler",
            Self::UniPc => "UniPCMultistepScheduler",
            Self::Lcm => "LCMScheduler",
            Self::Pndm => "PNDMScheduler",
            Self::FlowEuler => "FlowMatchEulerDiscreteScheduler",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.name() == name)
    }

    pub(crate) fn read(self, keys: Keys<'_>) -> Result<Box<dyn Method>, SamplingError> {
        Ok(match self {
            Self::Euler => Box::new(Euler::read(keys)?),
            Self::EulerAncestral => Box::new(EulerAncestral::read(keys)?),
            Self::Ddim => Box::new(Ddim::read(keys)?),
            Self::DpmSolver => Box::new(DpmSolver::read(keys)?),
            Self::UniPc => Box::new(UniPc::read(keys)?),
            Self::Lcm => Box::new(Lcm::read(keys)?),
            Self::Pndm => Box::new(Pndm::read(keys)?),
            Self::FlowEuler => Box::new(FlowEuler::read(keys)?),
        })
    }
}

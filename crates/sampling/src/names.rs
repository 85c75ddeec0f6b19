//! The names that people know samplers by, and what each makes of a folder's configuration.

use serde_json::{Map, Value};

use crate::{SamplingError, class::Class};

type Keys = Map<String, Value>;

/// Name, what other programs call it, class, whether its noise levels can be spread otherwise, whether it can follow a
/// flow.
struct Named {
    name: &'static str,
    label: &'static str,
    class: Class,
    spreads: bool,
    flows: bool,
}

/// How the few-step LoRAs of Qwen-Image are run: Euler along a flow whose levels are shifted by 3, whatever the picture's
/// size.
const LIGHTNING: &str = "lightning";
const LIGHTNING_SHIFT: f64 = 3.0;

const NAMED: [Named; 9] = [
    named("euler", "Euler", Class::Euler, true, true),
    named("euler_a", "Euler a", Class::EulerAncestral, false, false),
    named("ddim", "DDIM", Class::Ddim, false, false),
    named("dpmpp_2m", "DPM++ 2M", Class::DpmSolver, true, true),
    named("dpmpp_2m_sde", "DPM++ 2M SDE", Class::DpmSolver, true, true),
    named("unipc", "UniPC", Class::UniPc, true, true),
    named("lcm", "LCM", Class::Lcm, false, false),
    named("pndm", "PNDM", Class::Pndm, false, false),
    named(LIGHTNING, "Lightning", Class::Euler, false, true),
];

const SPREADS: [(&str, &str, &str); 3] = [
    ("_karras", " Karras", "use_karras_sigmas"),
    ("_exponential", " Exponential", "use_exponential_sigmas"),
    ("_beta", " Beta", "use_beta_sigmas"),
];

const fn named(name: &'static str, label: &'static str, class: Class, spreads: bool, flows: bool) -> Named {
    Named { name, label, class, spreads, flows }
}

/// Every name with its label.
pub(crate) fn all() -> Vec<(String, String)> {
    let mut all = Vec::new();
    for known in &NAMED {
        all.push((known.name.to_owned(), known.label.to_owned()));
        for (suffix, label, _) in SPREADS.iter().filter(|_| known.spreads) {
            all.push((format!("{}{suffix}", known.name), format!("{}{label}", known.label)));
        }
    }
    all
}

/// The class that `name` stands for, and `keys` with what the name settles. `flow`: of a flow model.
pub(crate) fn resolve(name: &str, keys: &Keys, flow: bool) -> Result<(Class, Keys), SamplingError> {
    let (known, spread) = find(name)?;
    if flow && !known.flows {
        let fitting: Vec<&str> = NAMED.iter().filter(|known| known.flows).map(|known| known.name).collect();
        return Err(SamplingError::NotForFlow { name: name.to_owned(), fitting: fitting.join(", ") });
    }
    if !flow && known.name == LIGHTNING {
        return Err(SamplingError::OnlyForFlow { name: name.to_owned() });
    }
    let mut keys = keys.clone();
    for (_, _, key) in SPREADS {
        keys.insert(key.to_owned(), Value::Bool(Some(key) == spread));
    }
    keys.insert("use_lu_lambdas".to_owned(), Value::Bool(false));
    settle(known, &mut keys);
    Ok((if flow { follow_flow(known.class, &mut keys) } else { known.class }, keys))
}

fn find(name: &str) -> Result<(&'static Named, Option<&'static str>), SamplingError> {
    let plain = normalise(name);
    let exact = |wanted: &str| NAMED.iter().find(|known| known.name == wanted);
    if let Some(known) = exact(&plain) {
        return Ok((known, None));
    }
    let spread = SPREADS.iter().find_map(|(suffix, _, key)| Some((exact(plain.strip_suffix(suffix)?)?, *key)));
    spread.filter(|(known, _)| known.spreads).map(|(known, key)| (known, Some(key))).ok_or_else(|| {
        let names: Vec<String> = all().into_iter().map(|(name, _)| name).collect();
        SamplingError::UnknownSampler { name: name.to_owned(), known: names.join(", ") }
    })
}

/// `DPM++ 2M Karras` as `dpmpp_2m_karras`.
fn normalise(name: &str) -> String {
    let plain = name.trim().to_lowercase().replace('+', "p");
    plain.split(|letter: char| !letter.is_alphanumeric()).filter(|word| !word.is_empty()).collect::<Vec<_>>().join("_")
}

/// What the name says beyond its class; what suits latents, where the folder's own class had no say in it.
fn settle(known: &Named, keys: &mut Keys) {
    let mut set = |key: &str, value: Value| keys.insert(key.to_owned(), value);
    match known.class {
        Class::DpmSolver => {
            let stochastic = known.name == "dpmpp_2m_sde";
            set("algorithm_type", Value::from(if stochastic { "sde-dpmsolver++" } else { "dpmsolver++" }));
            set("solver_order", Value::from(2));
        }
        Class::Ddim => {
            keys.entry("clip_sample").or_insert(Value::Bool(false));
            keys.entry("set_alpha_to_one").or_insert(Value::Bool(false));
        }
        Class::Pndm => {
            set("skip_prk_steps", Value::Bool(true));
        }
        Class::Euler if known.name == LIGHTNING => {
            let shift = LIGHTNING_SHIFT.ln();
            set("use_dynamic_shifting", Value::Bool(true));
            set("time_shift_type", Value::from("exponential"));
            set("base_shift", Value::from(shift));
            set("max_shift", Value::from(shift));
            set("shift", Value::from(1.0));
            set("shift_terminal", Value::Null);
            set("stochastic_sampling", Value::Bool(false));
        }
        Class::Euler | Class::EulerAncestral | Class::UniPc | Class::Lcm | Class::FlowEuler => {}
    }
}

/// The class that does for flows what `class` does, with the shift under the name that it has there.
fn follow_flow(class: Class, keys: &mut Keys) -> Class {
    let (from, to) = if class == Class::Euler { ("flow_shift", "shift") } else { ("shift", "flow_shift") };
    if let (Some(shift), false) = (keys.get(from).cloned(), keys.contains_key(to)) {
        keys.insert(to.to_owned(), shift);
    }
    if class == Class::Euler {
        return Class::FlowEuler;
    }
    keys.insert("use_flow_sigmas".to_owned(), Value::Bool(true));
    keys.insert("prediction_type".to_owned(), Value::from("flow_prediction"));
    class
}

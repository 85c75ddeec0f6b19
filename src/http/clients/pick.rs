//! Which model, and which kind of job, a client means.

use atelier_domain::{JobKind, Params};
use sha2::{Digest as _, Sha256};

use crate::{
    admission,
    models::{InstalledModel, Registry},
};

/// The owner that models without one are given, where an API cannot name a model without.
pub(crate) const OWNER: &str = "atelier";

/// The installed model that a client's name means: the id, its last part, or either with `atelier/` before it or a
/// ` [hash]` after it.
pub(crate) fn find<'r>(registry: &'r Registry, name: &str) -> Option<&'r InstalledModel> {
    let name = name.split(" [").next().unwrap_or(name).trim();
    let bare = name.strip_prefix(OWNER).and_then(|rest| rest.strip_prefix('/')).unwrap_or(name);
    registry
        .get(name)
        .or_else(|| registry.get(bare))
        .or_else(|| registry.list().find(|model| last_part(&model.id).eq_ignore_ascii_case(bare)))
}

pub(crate) fn last_part(id: &str) -> &str {
    id.rsplit('/').next().unwrap_or(id)
}

/// Owner and name, for APIs whose models have both.
pub(crate) fn owner_and_name(id: &str) -> (&str, &str) {
    id.split_once('/').unwrap_or((OWNER, id))
}

/// What a model's version is called, for APIs that name models by it: 64 hexadecimal digits, made of the id alone.
pub(crate) fn version(id: &str) -> String {
    admission::hex(&Sha256::digest(id))
}

/// The model whose [`version`] this is.
pub(crate) fn by_version<'r>(registry: &'r Registry, wanted: &str) -> Option<&'r InstalledModel> {
    registry.list().find(|model| version(&model.id) == wanted)
}

/// The first of these kinds that the model does, or that any installed model does where none is named. Where nothing
/// does any of them, the first, so that whoever checks the job says what is missing.
pub(crate) fn kind(registry: &Registry, model: Option<&InstalledModel>, wanted: &[JobKind]) -> JobKind {
    let serves = |kind: JobKind| match model {
        Some(model) => model.kinds.contains(&kind),
        None => registry.serving(kind).next().is_some(),
    };
    wanted.iter().copied().find(|kind| serves(*kind)).or(wanted.first().copied()).unwrap_or(JobKind::Generate)
}

/// Whether this version knows a parameter.
pub(crate) fn knows(name: &str) -> bool {
    Params::NAMES.contains(&name)
}

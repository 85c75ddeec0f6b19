//! Which model, and which kind of job, a client means.

use atelier_domain::{JobKind, Params};

use crate::models::{InstalledModel, Registry};
pub(crate) use crate::prediction::{OWNER, owner_and_name, version};

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

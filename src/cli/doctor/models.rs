//! Whether there are models for what shall be done.

use super::Check;
use crate::{
    config::Config,
    hub::{self, PullState},
    models::Registry,
};

const NAME: &str = "models";

pub(super) fn check(config: &Config) -> Vec<Check> {
    let dirs = config.all_model_dirs();
    let registry = Registry::scan(&dirs);
    let looked: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    let complete = registry.list().filter(|model| model.is_complete()).count();
    let mut checks = Vec::new();
    if complete == 0 {
        checks.push(Check::fail(
            NAME,
            format!("none that can be used in {}", looked.join(", ")),
            "put models there, or change paths.models; the embedded ones come with the sources under models/",
        ));
    } else {
        checks.push(Check::ok(NAME, format!("{complete} in {}", looked.join(", "))));
    }
    for model in registry.list() {
        if let Some(problem) = &model.problem {
            checks.push(Check::warn(
                NAME,
                format!("{}: {problem}", model.id),
                format!("fetch it again, or remove it with `atelier models rm {}`", model.id),
            ));
        }
    }
    for (pull, state) in hub::pulls_in(&dirs) {
        if state == PullState::Interrupted {
            checks.push(Check::warn(
                NAME,
                format!(
                    "{}: a pull was cut short at {} of {} bytes",
                    pull.id, pull.progress.bytes, pull.progress.total_bytes
                ),
                format!("`atelier models pull {0}` goes on with it, `atelier models rm {0}` removes it", pull.id),
            ));
        }
    }
    let preset = config.presets.get(&config.inbox.default_preset);
    if let Some(kind) = preset.and_then(|preset| preset.kind)
        && complete > 0
        && registry.serving(kind).next().is_none()
    {
        checks.push(Check::warn(
            NAME,
            format!("none serves {kind}, which dropped files are to be (inbox.default_preset)"),
            "install one, or choose another preset",
        ));
    }
    checks
}

//! The table of all keys: what may stand in a file, in the order of `config/default.toml`, and what a running daemon
//! takes when it is told to reload. Presets are not listed; they have names of their own.

use super::types::Config;

/// One key of the configuration.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    /// Dotted.
    pub(super) name: &'static str,
    /// Whether a running daemon follows a change.
    pub(super) reloadable: bool,
}

const fn live(name: &'static str) -> Key {
    Key { name, reloadable: true }
}

/// Read once, at the start.
const fn fixed(name: &'static str) -> Key {
    Key { name, reloadable: false }
}

pub(super) const KEYS: &[Key] = &[
    fixed("server.listen"),
    live("server.tokens_file"),
    live("server.allowed_origins"),
    live("server.allowed_hosts"),
    live("server.rate_limit"),
    fixed("server.max_connections"),
    fixed("paths.data"),
    live("paths.models"),
    fixed("inbox.enabled"),
    fixed("inbox.dir"),
    live("inbox.settle"),
    live("inbox.rescan"),
    live("inbox.sidecar_wait"),
    live("inbox.give_up"),
    live("inbox.default_preset"),
    live("inbox.duplicates"),
    fixed("inbox.watch"),
    live("inbox.ignore"),
    fixed("outbox.dir"),
    live("outbox.format"),
    live("outbox.quality"),
    live("outbox.gps"),
    live("provenance.certificate_file"),
    live("provenance.key_file"),
    live("provenance.algorithm"),
    live("provenance.command"),
    live("queue.max_attempts"),
    live("queue.max_crashes"),
    live("queue.max_queued"),
    live("queue.backoff"),
    live("queue.backoff_max"),
    live("queue.aging"),
    live("queue.affinity"),
    live("worker.command"),
    live("worker.device"),
    live("worker.threads"),
    live("worker.keep_alive"),
    live("worker.memory_budget"),
    live("worker.offload"),
    live("worker.stall_timeout"),
    live("worker.stop_timeout"),
    live("worker.cancel_grace"),
    live("progress.write_interval"),
    live("checkpoint.interval"),
    live("models.dirs"),
    live("models.endpoint"),
    live("models.token_file"),
    live("models.auto_pull"),
    live("models.hf_cache"),
    live("models.pull_parallel"),
    live("models.pull_retries"),
    live("models.pull_pause"),
    live("models.pull_stall"),
    live("limits.upload"),
    live("limits.pixels"),
    live("limits.prompt_chars"),
    live("limits.negative_prompt_chars"),
    live("limits.images"),
    live("limits.remote_images"),
    live("cleanup.every"),
    live("cleanup.keep_succeeded"),
    live("cleanup.keep_failed"),
    live("cleanup.keep_cancelled"),
    live("cleanup.keep_last"),
    live("cleanup.max_bytes"),
    live("webhooks.allow_private"),
    live("webhooks.secret_file"),
    live("webhooks.timeout"),
    live("webhooks.backoff"),
    live("webhooks.backoff_max"),
    live("webhooks.give_up"),
    live("log.level"),
    fixed("log.format"),
    fixed("log.files"),
    fixed("log.dir"),
    fixed("log.keep_files"),
];

/// The sections in their order, presets last.
pub(super) fn sections() -> impl Iterator<Item = &'static str> {
    let mut sections: Vec<&str> = KEYS.iter().filter_map(|key| key.name.split('.').next()).collect();
    sections.dedup();
    sections.push("presets");
    sections.into_iter()
}

/// The keys of one section, without its name.
pub(super) fn keys_of(section: &str) -> impl Iterator<Item = &'static str> + '_ {
    KEYS.iter().filter_map(|key| key.name.split_once('.')).filter(move |(of, _)| *of == section).map(|(_, name)| name)
}

/// A key that differs between two configurations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Dotted; `presets.NAME` for anything in a preset.
    pub key: String,
    /// Whether a running daemon follows, or needs a restart.
    pub reloadable: bool,
}

/// What changed, by whether a running daemon takes it.
pub fn diff(old: &Config, new: &Config) -> Vec<Change> {
    let (before, after) = (flat(old), flat(new));
    let mut changes: Vec<Change> = KEYS
        .iter()
        .filter(|key| before.get(key.name) != after.get(key.name))
        .map(|key| Change { key: key.name.to_owned(), reloadable: key.reloadable })
        .collect();
    let names: std::collections::BTreeSet<&String> = old.presets.keys().chain(new.presets.keys()).collect();
    changes.extend(
        names
            .into_iter()
            .filter(|name| old.presets.get(*name) != new.presets.get(*name))
            .map(|name| Change { key: format!("presets.{name}"), reloadable: true }),
    );
    changes
}

/// The new configuration as far as a running daemon takes it: what is read once at the start stays as it was.
#[must_use]
pub fn follow(old: &Config, mut new: Config) -> Config {
    new.server.listen = old.server.listen;
    new.server.max_connections = old.server.max_connections;
    new.paths.data.clone_from(&old.paths.data);
    new.inbox.enabled = old.inbox.enabled;
    new.inbox.dir.clone_from(&old.inbox.dir);
    new.inbox.watch = old.inbox.watch;
    new.outbox.dir.clone_from(&old.outbox.dir);
    new.log.format = old.log.format;
    new.log.files = old.log.files;
    new.log.dir.clone_from(&old.log.dir);
    new.log.keep_files = old.log.keep_files;
    new
}

/// Every key with its value as text, presets left out.
pub(super) fn flat(config: &Config) -> std::collections::BTreeMap<String, toml::Value> {
    let without_presets = Config { presets: std::collections::BTreeMap::new(), ..config.clone() };
    let table = toml::Table::try_from(&without_presets).expect("a configuration is made of tables, texts and numbers");
    table
        .into_iter()
        .filter_map(|(section, keys)| Some((section, keys.try_into::<toml::Table>().ok()?)))
        .flat_map(|(section, keys)| {
            keys.into_iter().map(move |(name, value)| (format!("{section}.{name}"), value)).collect::<Vec<_>>()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_table_lists_every_field_and_nothing_else() {
        let listed: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
        let fields: Vec<String> = flat(&Config::defaults()).into_keys().collect();
        assert_eq!(listed.len(), listed.iter().collect::<BTreeSet<_>>().len(), "a key twice");
        assert_eq!(listed.iter().map(ToString::to_string).collect::<BTreeSet<_>>(), fields.into_iter().collect());
    }

    #[test]
    fn a_running_daemon_follows_every_key_but_those_that_are_read_once() {
        let old = Config::defaults();
        let mut new = old.clone();
        new.server.listen = ([127, 0, 0, 1], 1).into();
        new.server.max_connections += 1;
        new.paths.data = "/elsewhere".into();
        new.inbox.enabled = !old.inbox.enabled;
        new.inbox.dir = "/elsewhere".into();
        new.inbox.watch = crate::config::Watch::Never;
        new.outbox.dir = "/elsewhere".into();
        new.log.format = crate::config::LogFormat::Json;
        new.log.files = !old.log.files;
        new.log.dir = "/elsewhere".into();
        new.log.keep_files += 1;
        let changed: Vec<String> = diff(&old, &new).into_iter().map(|change| change.key).collect();
        let fixed: Vec<&str> = KEYS.iter().filter(|key| !key.reloadable).map(|key| key.name).collect();
        assert_eq!(changed, fixed, "this test changes each of them");
        new.inbox.settle = std::time::Duration::from_secs(3);
        assert_eq!(diff(&old, &follow(&old, new)), [Change { key: "inbox.settle".into(), reloadable: true }]);
    }

    #[test]
    fn the_difference_names_each_key_and_whether_a_reload_takes_it() {
        let old = Config::defaults();
        assert_eq!(diff(&old, &old), []);
        let mut new = old.clone();
        new.server.listen = ([127, 0, 0, 1], 1).into();
        new.inbox.settle = std::time::Duration::from_secs(3);
        new.cleanup.max_bytes = Some(1);
        new.presets.remove("upscale-4x");
        new.presets.get_mut("upscale").expect("built in").params.scale = Some(4);
        let change = |key: &str, reloadable| Change { key: key.into(), reloadable };
        assert_eq!(
            diff(&old, &new),
            [
                change("server.listen", false),
                change("inbox.settle", true),
                change("cleanup.max_bytes", true),
                change("presets.upscale", true),
                change("presets.upscale-4x", true),
            ]
        );
    }
}

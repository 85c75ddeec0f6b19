//! What single values cannot show: keys that contradict each other.

use std::path::{Component, Path};

use atelier_domain::request::nearest;

use super::{
    error::{Origin, Problem, Wrong},
    places::inside,
    types::Config,
};

/// Checks a configuration whose values are each right; `origin` tells where a key was set.
pub(super) fn check(config: &Config, origin: &dyn Fn(&str) -> Origin) -> Vec<Problem> {
    let mut checks = Checks { config, origin, problems: Vec::new() };
    checks.access();
    checks.folders();
    checks.signature();
    checks.times();
    checks.default_preset();
    checks.problems
}

struct Checks<'a> {
    config: &'a Config,
    origin: &'a dyn Fn(&str) -> Origin,
    problems: Vec<Problem>,
}

impl Checks<'_> {
    /// Blames the first key that somebody set.
    fn refuse(&mut self, keys: &[&str], wrong: Wrong) {
        let set = keys.iter().find(|key| (self.origin)(key) != Origin::Default).or(keys.first());
        let key = set.copied().unwrap_or_default();
        self.problems.push(wrong.at((self.origin)(key), key));
    }

    fn access(&mut self) {
        let server = &self.config.server;
        if !server.listen.ip().is_loopback() && server.tokens_file.is_none() {
            let wrong =
                Wrong::new(format!("{} can be reached from other machines, and no token is asked for", server.listen))
                    .hint("set server.tokens_file, or listen on 127.0.0.1");
            self.refuse(&["server.listen", "server.tokens_file"], wrong);
        }
    }

    fn signature(&mut self) {
        let provenance = &self.config.provenance;
        let (set, lacks) = match (&provenance.certificate_file, &provenance.key_file) {
            (Some(_), None) => ("provenance.certificate_file", "provenance.key_file"),
            (None, Some(_)) => ("provenance.key_file", "provenance.certificate_file"),
            (Some(_), Some(_)) | (None, None) => return,
        };
        let wrong = Wrong::new(format!("is of no use without {lacks}"));
        self.refuse(&[set], wrong.hint("set both to sign outputs, or neither"));
    }

    fn folders(&mut self) {
        let data = &self.config.paths.data;
        let outbox = &self.config.outbox.dir;
        let own = ["spool", "checkpoints", "logs"].map(|name| (name, data.join(name)));
        let both = ["outbox.dir", "paths.data"];
        if let Some(rest) = inside(data, outbox)
            && !hidden(&rest)
        {
            let wrong = Wrong::new(format!("the outbox {} holds the data folder", outbox.display()))
                .hint("outputs need a folder of their own");
            self.refuse(&both, wrong);
        }
        if let Some((name, _)) = own.iter().find(|(_, folder)| inside(outbox, folder).is_some()) {
            let wrong = Wrong::new(format!("the outbox {} lies in the data folder's own {name:?}", outbox.display()));
            self.refuse(&both, wrong.hint("choose another folder"));
        }
        if self.config.inbox.enabled {
            self.inbox_folder(&own);
        }
    }

    fn inbox_folder(&mut self, own: &[(&str, std::path::PathBuf); 3]) {
        let inbox = &self.config.inbox.dir;
        let data = &self.config.paths.data;
        let outbox = &self.config.outbox.dir;
        let shown = inbox.display();
        if let Some(rest) = inside(outbox, inbox)
            && !hidden(&rest)
        {
            let wrong = Wrong::new(format!("the outbox {} lies in the inbox {shown}", outbox.display()))
                .hint("every output would be taken for a new job");
            self.refuse(&["outbox.dir", "inbox.dir"], wrong);
        } else if inside(inbox, outbox).is_some() {
            let wrong = Wrong::new(format!("the inbox {shown} lies in the outbox {}", outbox.display()))
                .hint("cleanup of the outbox would remove what was dropped");
            self.refuse(&["inbox.dir", "outbox.dir"], wrong);
        }
        let keys = ["inbox.dir", "paths.data"];
        if let Some(rest) = inside(data, inbox)
            && !hidden(&rest)
        {
            let wrong = Wrong::new(format!("the data folder {} lies in the inbox {shown}", data.display()))
                .hint("the daemon's own files would be taken for new jobs");
            self.refuse(&keys, wrong);
        } else if let Some((name, _)) = own.iter().find(|(_, folder)| inside(inbox, folder).is_some()) {
            let wrong = Wrong::new(format!("the inbox {shown} lies in the data folder's own {name:?}"));
            self.refuse(&keys, wrong.hint("choose another folder"));
        }
    }

    fn times(&mut self) {
        let queue = &self.config.queue;
        if queue.backoff > queue.backoff_max {
            let wrong = Wrong::new(format!(
                "the first pause ({}) is longer than the longest ({})",
                humantime::format_duration(queue.backoff),
                humantime::format_duration(queue.backoff_max)
            ));
            self.refuse(&["queue.backoff", "queue.backoff_max"], wrong.hint("raise queue.backoff_max"));
        }
        let webhooks = &self.config.webhooks;
        if webhooks.backoff > webhooks.backoff_max {
            let wrong = Wrong::new(format!(
                "the first pause ({}) is longer than the longest ({})",
                humantime::format_duration(webhooks.backoff),
                humantime::format_duration(webhooks.backoff_max)
            ));
            self.refuse(&["webhooks.backoff", "webhooks.backoff_max"], wrong.hint("raise webhooks.backoff_max"));
        }
    }

    fn default_preset(&mut self) {
        let name = &self.config.inbox.default_preset;
        if self.config.presets.contains_key(name) {
            return;
        }
        let names = || self.config.presets.keys().map(String::as_str);
        let wrong = Wrong::new(format!("there is no preset {name:?}"));
        let wrong = match nearest(name, names()) {
            Some(near) => wrong.hint(format!("did you mean {near:?}?")),
            None => wrong.hint(format!("there are {}", names().collect::<Vec<_>>().join(", "))),
        };
        self.refuse(&["inbox.default_preset"], wrong);
    }
}

/// The inbox passes over hidden folders, so what lies in one is safe from it.
fn hidden(rest: &Path) -> bool {
    rest.components().any(|part| matches!(part, Component::Normal(name) if name.as_encoded_bytes().starts_with(b".")))
}

//! From named values to [`Config`]: one line for each key says its type and bounds.

use std::time::Duration;

use atelier_domain::{
    OutputFormat,
    params::ParamLimits,
    protocol::{GpsPolicy, Offload},
    request::nearest,
    signing::SignatureAlgorithm,
};

use super::{
    error::{Problem, Wrong},
    layers::Layer,
    places::Places,
    presets,
    types::{
        Checkpoint, Cleanup, Config, Duplicates, HfCache, Inbox, Limits, Log, LogFormat, MemoryBudget, Models, Outbox,
        Paths, ProgressConfig, Provenance, QueueConfig, Server, Watch, Webhooks, Worker,
    },
    value::Given,
};

/// The shortest time between two rounds of anything that repeats.
const TICK: Duration = Duration::from_millis(10);

/// Looks values up and collects what is wrong with them.
struct Reader<'a> {
    layer: &'a Layer,
    /// The default stands in for a value that is refused, so that all others are still read.
    defaults: &'a Layer,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn get<T>(&mut self, key: &str, parse: impl Fn(&Given) -> Result<T, Wrong>) -> T {
        let default = || {
            let given = self.defaults.values.get(key).expect("a test holds that the defaults name every key");
            parse(given).expect("a test holds that the defaults are right")
        };
        let Some(given) = self.layer.values.get(key) else { return default() };
        match parse(given) {
            Ok(value) => value,
            Err(wrong) => {
                let value = default();
                self.problems.push(wrong.at(given.origin.clone(), key));
                value
            }
        }
    }
}

pub(super) fn build(layer: &Layer, defaults: &Layer, mut places: Places) -> (Config, Vec<Problem>) {
    let mut reader = Reader { layer, defaults, problems: Vec::new() };
    let r = &mut reader;
    let data = r.get("paths.data", |v| places.path(v));
    places.data = Some(data.clone());
    let limits = Limits {
        upload: r.get("limits.upload", Given::size),
        pixels: r.get("limits.pixels", |v| v.whole(1..=u64::from(u32::MAX))),
        prompt_chars: r.get("limits.prompt_chars", |v| v.whole(1..=1_000_000)),
        negative_prompt_chars: r.get("limits.negative_prompt_chars", |v| v.whole(0..=1_000_000)),
        images: r.get("limits.images", |v| v.whole(1..=1000)),
        remote_images: r.get("limits.remote_images", Given::flag),
    };
    let param_limits =
        ParamLimits { prompt_chars: limits.prompt_chars, negative_prompt_chars: limits.negative_prompt_chars };
    let config = Config {
        server: Server {
            listen: r.get("server.listen", Given::address),
            tokens_file: r.get("server.tokens_file", |v| places.optional_path(v)),
            allowed_origins: r.get("server.allowed_origins", origins),
            allowed_hosts: r.get("server.allowed_hosts", hosts),
            rate_limit: r.get("server.rate_limit", |v| v.whole(0..=1_000_000)),
            max_connections: r.get("server.max_connections", |v| v.whole(8..=1_000_000)),
        },
        paths: Paths { models: r.get("paths.models", |v| places.paths(v)), data },
        inbox: Inbox {
            enabled: r.get("inbox.enabled", Given::flag),
            dir: r.get("inbox.dir", |v| places.path(v)),
            settle: r.get("inbox.settle", |v| v.duration(Duration::ZERO)),
            rescan: r.get("inbox.rescan", |v| v.duration(TICK)),
            sidecar_wait: r.get("inbox.sidecar_wait", |v| v.duration(Duration::ZERO)),
            give_up: r.get("inbox.give_up", |v| v.duration(TICK)),
            default_preset: r.get("inbox.default_preset", Given::text),
            duplicates: r
                .get("inbox.duplicates", |v| v.choice(&[("skip", Duplicates::Skip), ("run", Duplicates::Run)])),
            watch: r.get("inbox.watch", |v| {
                v.choice(&[("auto", Watch::Auto), ("always", Watch::Always), ("never", Watch::Never)])
            }),
            ignore: r.get("inbox.ignore", patterns),
        },
        outbox: Outbox {
            dir: r.get("outbox.dir", |v| places.path(v)),
            format: r.get("outbox.format", |v| {
                v.choice(&[
                    ("png", OutputFormat::Png),
                    ("jpeg", OutputFormat::Jpeg),
                    ("webp", OutputFormat::Webp),
                    ("jpg", OutputFormat::Jpeg),
                ])
            }),
            quality: r.get("outbox.quality", |v| v.whole(1..=100)),
            gps: r.get("outbox.gps", |v| v.choice(&[("keep", GpsPolicy::Keep), ("strip", GpsPolicy::Strip)])),
        },
        provenance: Provenance {
            certificate_file: r.get("provenance.certificate_file", |v| places.optional_path(v)),
            key_file: r.get("provenance.key_file", |v| places.optional_path(v)),
            algorithm: r.get("provenance.algorithm", |v| {
                v.choice(&SignatureAlgorithm::ALL.map(|algorithm| (algorithm.as_str(), algorithm)))
            }),
            command: r.get("provenance.command", |v| places.command(v)),
        },
        queue: QueueConfig {
            max_attempts: r.get("queue.max_attempts", |v| v.whole(1..=100)),
            max_crashes: r.get("queue.max_crashes", |v| v.whole(1..=100)),
            max_queued: r.get("queue.max_queued", |v| v.whole(1..=1_000_000_000)),
            backoff: r.get("queue.backoff", |v| v.duration(Duration::from_millis(1))),
            backoff_max: r.get("queue.backoff_max", |v| v.duration(Duration::from_millis(1))),
            aging: r.get("queue.aging", |v| v.duration(Duration::ZERO)),
            affinity: r.get("queue.affinity", |v| v.whole(0..=1000)),
        },
        worker: Worker {
            command: r.get("worker.command", |v| places.command(v)),
            device: r.get("worker.device", device),
            threads: r.get("worker.threads", |v| v.whole(0..=1024)),
            keep_alive: r.get("worker.keep_alive", |v| v.duration(Duration::ZERO)),
            memory_budget: r.get("worker.memory_budget", memory_budget),
            offload: r.get("worker.offload", offload),
            stall_timeout: r.get("worker.stall_timeout", |v| v.duration(TICK)),
            stop_timeout: r.get("worker.stop_timeout", |v| v.duration(Duration::ZERO)),
            cancel_grace: r.get("worker.cancel_grace", |v| v.duration(Duration::ZERO)),
        },
        progress: ProgressConfig { write_interval: r.get("progress.write_interval", |v| v.duration(TICK)) },
        checkpoint: Checkpoint { interval: r.get("checkpoint.interval", |v| v.duration(TICK)) },
        models: Models {
            dirs: r.get("models.dirs", |v| places.paths(v)),
            endpoint: r.get("models.endpoint", endpoint),
            token_file: r.get("models.token_file", |v| places.optional_path(v)),
            auto_pull: r.get("models.auto_pull", Given::flag),
            hf_cache: r.get("models.hf_cache", |v| hf_cache(v, &places)),
            pull_parallel: r.get("models.pull_parallel", |v| v.whole(1..=32)),
            pull_retries: r.get("models.pull_retries", |v| v.whole(0..=1000)),
            pull_pause: r.get("models.pull_pause", |v| v.duration(Duration::from_millis(1))),
            pull_stall: r.get("models.pull_stall", |v| v.duration(TICK)),
        },
        cleanup: Cleanup {
            every: r.get("cleanup.every", |v| v.duration(TICK)),
            keep_succeeded: r.get("cleanup.keep_succeeded", Given::retention),
            keep_failed: r.get("cleanup.keep_failed", Given::retention),
            keep_cancelled: r.get("cleanup.keep_cancelled", Given::retention),
            keep_last: r.get("cleanup.keep_last", |v| v.whole(0..=1_000_000_000)),
            max_bytes: r.get("cleanup.max_bytes", Given::optional_size),
        },
        webhooks: Webhooks {
            allow_private: r.get("webhooks.allow_private", Given::flag),
            secret_file: r.get("webhooks.secret_file", |v| places.optional_path(v)),
            timeout: r.get("webhooks.timeout", |v| v.duration(TICK)),
            backoff: r.get("webhooks.backoff", |v| v.duration(TICK)),
            backoff_max: r.get("webhooks.backoff_max", |v| v.duration(TICK)),
            give_up: r.get("webhooks.give_up", |v| v.duration(TICK)),
        },
        log: Log {
            level: r.get("log.level", level),
            format: r.get("log.format", |v| v.choice(&[("pretty", LogFormat::Pretty), ("json", LogFormat::Json)])),
            files: r.get("log.files", Given::flag),
            dir: r.get("log.dir", |v| places.path(v)),
            keep_files: r.get("log.keep_files", |v| v.whole(1..=10_000)),
        },
        presets: presets::build(&layer.presets, param_limits, &mut r.problems),
        limits,
    };
    (config, reader.problems)
}

fn origins(given: &Given) -> Result<Vec<String>, Wrong> {
    let origins = given.texts()?;
    for (index, origin) in origins.iter().enumerate() {
        const HINT: &str = "as browsers send it: scheme and host, such as \"https://example.org\" or \
                            \"http://localhost:3000\"";
        if origin == "*" {
            return Err(Wrong::new("\"*\" would let every web page use this daemon").hint("name each origin"));
        }
        let host = ["http://", "https://"].iter().find_map(|scheme| origin.strip_prefix(scheme)).unwrap_or_default();
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-' | ':' | '[' | ']');
        if host.is_empty() || !host.chars().all(plain) {
            return Err(Wrong::new(format!("{origin:?} is not an origin")).hint(HINT));
        }
        if origins.iter().take(index).any(|earlier| earlier == origin) {
            return Err(Wrong::new(format!("{origin:?} is listed twice")));
        }
    }
    Ok(origins)
}

/// Names as they stand in a `Host`, without a port.
fn hosts(given: &Given) -> Result<Vec<String>, Wrong> {
    let hosts = given.texts()?;
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-' | ':' | '[' | ']');
    for host in &hosts {
        let has_port = host.contains(':') && !host.ends_with(']');
        if host.is_empty() || has_port || !host.chars().all(plain) {
            return Err(Wrong::new(format!("{host:?} is not the name of a host"))
                .hint("a name or an address in small letters, without scheme and port, such as \"studio.lan\""));
        }
    }
    Ok(hosts)
}

fn patterns(given: &Given) -> Result<Vec<String>, Wrong> {
    let patterns = given.texts()?;
    if let Some(pattern) = patterns.iter().find(|pattern| pattern.is_empty() || pattern.contains(['/', '\0'])) {
        return Err(Wrong::new(format!("{pattern:?} matches no name")).hint("a name with * and ?, such as \"*.bak\""));
    }
    Ok(patterns)
}

fn device(given: &Given) -> Result<String, Wrong> {
    const HINT: &str = "\"auto\", \"cpu\" or \"cuda:N\" with the number of the card, such as \"cuda:0\"";
    let text = given.text().map_err(|wrong| wrong.hint(HINT))?;
    let card =
        text.strip_prefix("cuda:").is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()) && n.parse::<u8>().is_ok());
    if card || text == "auto" || text == "cpu" {
        return Ok(text);
    }
    Err(Wrong::new(format!("{text:?} is not a device")).hint(HINT))
}

fn memory_budget(given: &Given) -> Result<MemoryBudget, Wrong> {
    if given.text().is_ok_and(|text| text == "auto") {
        return Ok(MemoryBudget::Auto);
    }
    given.size().map(MemoryBudget::Bytes).map_err(|wrong| {
        let hint = format!("\"auto\", or {}", wrong.hint);
        wrong.hint(hint)
    })
}

fn offload(given: &Given) -> Result<Offload, Wrong> {
    given.choice(&Offload::ALL.map(|offload| (offload.as_str(), offload)))
}

fn endpoint(given: &Given) -> Result<String, Wrong> {
    let text = given.text()?;
    if text.is_empty() || text.starts_with("https://") || text.starts_with("http://") {
        return Ok(text);
    }
    Err(Wrong::new(format!("{text:?} is not the address of a hub")).hint("such as \"https://hub.example.org\""))
}

fn hf_cache(given: &Given, places: &Places) -> Result<HfCache, Wrong> {
    match given.text()?.as_str() {
        "auto" => Ok(HfCache::Auto(places.hf_cache.clone())),
        "off" => Ok(HfCache::Off),
        _ => places.path(given).map(HfCache::Dir),
    }
}

fn level(given: &Given) -> Result<String, Wrong> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let one_of = LEVELS.join(", ");
    let text = given.text().map_err(|wrong| wrong.hint(one_of.clone()))?;
    for directive in text.split(',').map(str::trim) {
        // A lone word that is no level would be taken for the name of a part, and nothing else would be logged.
        let name = directive.rsplit('=').next().unwrap_or_default().trim();
        let is_part = !directive.contains('=') && (directive.contains("::") || directive.starts_with("atelier"));
        if !is_part && !directive.ends_with(']') && !LEVELS.contains(&name.to_lowercase().as_str()) {
            let wrong = Wrong::new(format!("{name:?} is not a level"));
            return Err(match nearest(&name.to_lowercase(), LEVELS.into_iter()) {
                Some(near) => wrong.hint(format!("did you mean {near:?}? One of {one_of}")),
                None => wrong.hint(format!("one of {one_of}")),
            });
        }
    }
    tracing_subscriber::EnvFilter::builder()
        .parse(&text)
        .map(|_| text.clone())
        .map_err(|error| Wrong::new(format!("{text:?} does not say what to log: {error}")).hint(one_of))
}

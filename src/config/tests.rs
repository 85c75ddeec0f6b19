use std::{collections::BTreeSet, fs, net::SocketAddr, time::Duration};

use atelier_domain::{Denoise, JobKind, OutputFormat};
use tempfile::TempDir;

use super::*;

/// A file in a folder of its own, and what loading it says.
struct Case {
    folder: TempDir,
    sources: Sources,
}

impl Case {
    fn file(text: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("atelier.toml");
        fs::write(&path, text).expect("written");
        Self { folder, sources: Sources { file: Some(path), ..Sources::default() } }
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.sources.env.push((name.into(), value.into()));
        self
    }

    fn flag(mut self, key: &str, value: &str) -> Self {
        self.sources.flags.push((key.into(), value.into()));
        self
    }

    fn load(&self) -> Result<Loaded, ConfigError> {
        load(&self.sources, Path::new("/somewhere"))
    }

    #[track_caller]
    fn config(&self) -> Config {
        self.load().unwrap_or_else(|error| panic!("{error}")).config
    }

    /// The problems, with the file's path cut down to its name.
    #[track_caller]
    fn problems(&self) -> Vec<String> {
        let error = self.load().expect_err("refused").to_string();
        let folder = format!("{}/", self.folder.path().display());
        error.lines().map(|line| line.replace(&folder, "")).collect()
    }
}

#[test]
fn the_defaults_are_those_of_the_contract() {
    let config = Config::defaults();
    assert_eq!(config.server.listen, SocketAddr::from(([127, 0, 0, 1], 8470)));
    assert_eq!(config.server.tokens_file, None);
    assert_eq!(config.server.allowed_origins, Vec::<String>::new());
    let here = std::env::current_dir().expect("a folder");
    assert_eq!(config.paths.data, here.join("data"));
    assert_eq!(config.paths.models, [here.join("models")]);
    assert!(config.inbox.enabled);
    assert_eq!(config.inbox.dir, here.join("watch-inbox"));
    assert_eq!(config.inbox.settle, Duration::from_secs(2));
    assert_eq!(config.inbox.rescan, Duration::from_secs(30));
    assert_eq!(config.inbox.sidecar_wait, Duration::from_secs(2));
    assert_eq!(config.inbox.default_preset, "upscale");
    assert_eq!(config.inbox.duplicates, Duplicates::Skip);
    assert_eq!(config.outbox.dir, here.join("data/outbox"));
    assert_eq!(config.outbox.format, OutputFormat::Png);
    assert_eq!(config.provenance.credentials(), None);
    assert_eq!((config.queue.max_attempts, config.queue.max_crashes, config.queue.max_queued), (3, 3, 10_000));
    assert_eq!(config.worker.command, Vec::<std::ffi::OsString>::new());
    assert_eq!((config.worker.device.as_str(), config.worker.threads), ("auto", 0));
    assert_eq!(config.worker.keep_alive, Duration::from_mins(10));
    assert_eq!(config.worker.memory_budget, MemoryBudget::Auto);
    assert_eq!(config.worker.stall_timeout, Duration::from_mins(5));
    assert_eq!(config.progress.write_interval, Duration::from_secs(2));
    assert_eq!(config.checkpoint.interval, Duration::from_secs(10));
    assert_eq!(config.cleanup.every, Duration::from_hours(1));
    assert_eq!(config.cleanup.keep_succeeded, Duration::from_hours(7 * 24));
    assert_eq!(config.cleanup.keep_failed, Duration::from_hours(30 * 24));
    assert_eq!(config.cleanup.max_bytes, None);
    assert_eq!(config.limits.upload, 100 << 20);
    assert_eq!(config.limits.pixels, 179_000_000);
    assert_eq!((config.limits.prompt_chars, config.limits.negative_prompt_chars), (2000, 1000));
    assert_eq!(config.log.format, LogFormat::Pretty);
    let upscale = &config.presets["upscale"];
    assert_eq!((upscale.kind, upscale.params.scale), (Some(JobKind::Upscale), Some(2)));
    assert_eq!(upscale.params.denoise, Some(Denoise::Auto));
    assert_eq!(config.presets["upscale-4x"].params.scale, Some(4));
}

#[test]
fn the_default_file_has_every_key_in_order_with_a_comment_above() {
    let mut section = String::new();
    let mut found = Vec::new();
    let mut previous = "";
    for line in DEFAULT_TOML.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
        } else if let Some((key, _)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) {
            assert!(previous.starts_with("# "), "no comment above {section}.{key}");
            found.push(format!("{section}.{key}"));
        }
        previous = line;
    }
    let settings: Vec<&str> = found.iter().map(String::as_str).filter(|key| !key.starts_with("presets.")).collect();
    assert_eq!(settings, keys::KEYS.iter().map(|key| key.name).collect::<Vec<_>>());
}

#[test]
fn the_default_file_marks_exactly_the_keys_that_need_a_restart() {
    let lines: Vec<&str> = DEFAULT_TOML.lines().collect();
    let mut section = "";
    for pair in lines.windows(2) {
        if let Some(name) = pair[0].strip_prefix('[') {
            section = name.trim_end_matches(']');
        }
        let Some((key, _)) = pair[1].split_once(" = ").filter(|_| !pair[1].starts_with('#')) else { continue };
        let name = format!("{section}.{key}");
        let Some(known) = keys::KEYS.iter().find(|known| known.name == name) else { continue };
        assert_eq!(pair[0].ends_with("(restart)"), !known.reloadable, "{name}");
    }
}

#[test]
fn stronger_layers_win_and_each_value_tells_where_it_comes_from() {
    let text = "[inbox]\nsettle = \"3s\"\nrescan = \"40s\"\n[worker]\nthreads = 3\n";
    let case = Case::file(text)
        .env("ATELIER__INBOX__RESCAN", "50s")
        .env("ATELIER__WORKER__THREADS", "5")
        .env("ATELIER_TOKEN", "not a key of the configuration")
        .flag("worker.threads", "6")
        .flag("worker.threads", "7");
    let loaded = case.load().expect("loads");
    assert_eq!(loaded.config.inbox.settle, Duration::from_secs(3));
    assert_eq!(loaded.config.inbox.rescan, Duration::from_secs(50));
    assert_eq!(loaded.config.worker.threads, 7);
    let path = case.sources.file.clone().expect("a file");
    assert_eq!(loaded.origins["inbox.settle"], Origin::File { path, line: 2 });
    assert_eq!(loaded.origins["inbox.rescan"], Origin::Env("ATELIER__INBOX__RESCAN".into()));
    assert_eq!(loaded.origins["worker.threads"], Origin::Flag);
    assert_eq!(loaded.origins["worker.device"], Origin::Default);
}

#[test]
fn relative_paths_count_from_the_file_they_stand_in() {
    let case = Case::file("[paths]\ndata = \"store\"\n[server]\ntokens_file = \"tokens\"\n")
        .env("ATELIER__PATHS__MODELS", "['m', '/abs']");
    let config = case.config();
    let folder = case.folder.path();
    assert_eq!(config.paths.data, folder.join("store"));
    assert_eq!(config.outbox.dir, folder.join("store/outbox"));
    assert_eq!(config.server.tokens_file, Some(folder.join("tokens")));
    assert_eq!(config.paths.models, [PathBuf::from("/somewhere/m"), "/abs".into()]);
    assert_eq!(config.inbox.dir, Path::new("/somewhere/watch-inbox"));
}

#[test]
fn every_problem_is_told_at_once_with_file_line_and_key() {
    let text = r#"
[server]
listen = "localhost"
tokenfile = "x"

[inbx]
dir = "y"

[inbox]
settle = 2
keep_alive = "1m"
duplicates = "skpi"

[limits]
upload = "100 MBit"
images = 0
frobnicate = 1
"#;
    insta::assert_snapshot!(Case::file(text).problems().join("\n"), @r#"
    atelier.toml:3: server.listen: "localhost" is not an address to listen on (an IP address and a port, such as "127.0.0.1:8470" or "[::1]:8470")
    atelier.toml:4: server.tokenfile: there is no key "tokenfile" in [server] (did you mean "tokens_file"?)
    atelier.toml:6: inbx: there is no section "inbx" (did you mean "inbox"?)
    atelier.toml:10: inbox.settle: expected a duration, got the number 2 (a number with a unit, such as "500ms", "2s", "10m", "1h" or "7d")
    atelier.toml:11: inbox.keep_alive: there is no key "keep_alive" in [inbox] (it belongs in [worker])
    atelier.toml:12: inbox.duplicates: "skpi" is not known (did you mean "skip"? One of "skip", "run")
    atelier.toml:15: limits.upload: "100 MBit" is not a size (a size such as "100MiB", "2GB" or a plain number of bytes)
    atelier.toml:16: limits.images: 0 is not within 1 to 1000
    atelier.toml:17: limits.frobnicate: there is no key "frobnicate" in [limits] (its keys are upload, pixels, prompt_chars, negative_prompt_chars, images, remote_images)
    "#);
}

#[test]
fn the_environment_and_flags_are_checked_like_the_file() {
    let case = Case::file("[inbox]\nsettle = \"x\"\n")
        .env("ATELIER__SERVER__LISTEN", "nowhere")
        .env("ATELIER__SERVR__LISTEN", "127.0.0.1:1")
        .env("ATELIER__LISTEN", "127.0.0.1:1")
        .flag("worker.thread", "2")
        .flag("worker.threads", "many");
    insta::assert_snapshot!(case.problems().join("\n"), @r#"
    atelier.toml:2: inbox.settle: "x" is not a duration: expected number at 0 (a number with a unit, such as "500ms", "2s", "10m", "1h" or "7d")
    ATELIER__SERVR__LISTEN: servr.listen: there is no section "servr" (did you mean "server"?)
    ATELIER__LISTEN: listen: a variable names a section and a key (for example ATELIER__SERVER__LISTEN)
    ATELIER__SERVER__LISTEN: server.listen: "nowhere" is not an address to listen on (an IP address and a port, such as "127.0.0.1:8470" or "[::1]:8470")
    command line: worker.thread: there is no key "thread" in [worker] (did you mean "threads"?)
    command line: worker.threads: expected a whole number, got the text "many"
    "#);
}

#[test]
fn a_file_that_is_not_toml_says_where() {
    let problems = Case::file("[server]\nlisten = \"127.0.0.1:1\n\n[inbox\n").problems();
    assert!(problems[0].starts_with("atelier.toml:2: "), "{problems:?}");
    let problems = Case::file("[server]\nlisten = \"127.0.0.1:1\"\nlisten = \"127.0.0.1:2\"\n").problems();
    assert!(problems[0].starts_with("atelier.toml:3: ") && problems[0].contains("duplicate"), "{problems:?}");
    let problems = Case::file("listen = \"127.0.0.1:1\"\nserver = 3\n").problems();
    assert_eq!(problems[0], "atelier.toml:1: listen: there is no section \"listen\" (write listen under [server])");
    assert!(problems[1].starts_with("atelier.toml:2: server: is a section"), "{problems:?}");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let mut case = Case::file("");
    case.sources.file = Some(case.folder.path().join("missing.toml"));
    let problems = case.problems();
    assert!(problems[0].starts_with("missing.toml:1: cannot be read: No such file"), "{problems:?}");
    fs::write(case.folder.path().join("missing.toml"), b"\xff\xfe").expect("written");
    assert!(case.problems()[0].contains("is not UTF-8"));
}

#[test]
fn an_address_beyond_loopback_needs_tokens() {
    let text = "[server]\nlisten = \"0.0.0.0:8470\"\n";
    let problems = Case::file(text).problems();
    assert!(problems[0].starts_with("atelier.toml:2: server.listen: 0.0.0.0:8470 can be reached"), "{problems:?}");
    assert!(problems[0].contains("server.tokens_file"), "{problems:?}");
    Case::file(text).flag("server.tokens_file", "/etc/atelier/tokens").config();
    Case::file("[server]\nlisten = \"[::1]:8470\"\n").config();
    let problems = Case::file("").flag("server.listen", "[::]:8470").problems();
    assert!(problems[0].starts_with("command line: server.listen"), "{problems:?}");
    let with = Case::file(text)
        .env("ATELIER__SERVER__TOKENS_FILE", "<credentials>/tokens")
        .env("CREDENTIALS_DIRECTORY", "/run/credentials/atelier.service");
    assert_eq!(with.config().server.tokens_file, Some("/run/credentials/atelier.service/tokens".into()));
}

#[test]
fn folders_that_would_feed_on_each_other_are_refused() {
    let refused = [
        ("in", "in/out", "data", "outbox.dir"),
        ("in", "in", "data", "outbox.dir"),
        ("in", "in/done", "data", "outbox.dir"),
        ("out/in", "out", "data", "inbox.dir"),
        ("out/.in", "out", "data", "inbox.dir"),
        ("data", "out", "data", "inbox.dir"),
        ("data/spool/in", "out", "data", "inbox.dir"),
        ("data/logs", "out", "data", "inbox.dir"),
        ("in", "out", "in/data", "inbox.dir"),
        ("in", "data", "data", "outbox.dir"),
        ("in", "data/checkpoints", "data", "outbox.dir"),
        ("in", "out", "out/data", "outbox.dir"),
        ("in/../in", "in/./x", "data", "outbox.dir"),
    ];
    let case = |inbox: &str, outbox: &str, data: &str| {
        Case::file(&format!("[inbox]\ndir = {inbox:?}\n[outbox]\ndir = {outbox:?}\n[paths]\ndata = {data:?}\n"))
    };
    for (inbox, outbox, data, key) in refused {
        let problems = case(inbox, outbox, data).problems();
        assert!(problems[0].contains(&format!(": {key}: ")), "{inbox} {outbox} {data}: {problems:?}");
    }
    for (inbox, outbox, data) in [
        ("in", "out", "data"),
        ("in", "in/.out", "in/.data"),
        ("data/in", "data/out", "data"),
        ("in", "in-out", "data"),
        ("in", "<data>/outbox", "."),
    ] {
        case(inbox, outbox, data).config();
    }
    let off = "[inbox]\nenabled = false\ndir = \"in\"\n[outbox]\ndir = \"in/out\"\n";
    Case::file(off).config();
}

#[test]
fn contradicting_values_are_refused() {
    for (text, expected) in [
        ("[queue]\nbackoff = \"20m\"\n", "queue.backoff: the first pause"),
        ("[queue]\nbackoff_max = \"1s\"\n", "queue.backoff_max: the first pause"),
        (
            "[inbox]\ndefault_preset = \"upscael\"\n",
            "inbox.default_preset: there is no preset \"upscael\" (did you mean \"upscale\"?)",
        ),
        ("[inbox]\ndefault_preset = \"\"\n", "(there are upscale, upscale-4x)"),
        ("[inbox]\nrescan = \"0s\"\n", "inbox.rescan: \"0s\" is too short"),
        ("[cleanup]\nevery = \"0s\"\n", "cleanup.every: \"0s\" is too short"),
        ("[progress]\nwrite_interval = \"0s\"\n", "progress.write_interval: \"0s\" is too short"),
        ("[worker]\ndevice = \"gpu\"\n", "worker.device: \"gpu\" is not a device"),
        ("[worker]\ndevice = \"cuda:+1\"\n", "worker.device"),
        ("[worker]\nmemory_budget = \"lots\"\n", "(\"auto\", or a size such as"),
        ("[outbox]\nquality = 101\n", "outbox.quality: 101 is not within 1 to 100"),
        ("[outbox]\nformat = \"gif\"\n", "outbox.format: \"gif\" is not known"),
        ("[log]\nlevel = \"wran\"\n", "log.level: \"wran\" is not a level (did you mean \"warn\"?"),
        ("[log]\nlevel = \"info,atelier=loud\"\n", "log.level: \"loud\" is not a level"),
        ("[server]\nallowed_origins = [\"*\"]\n", "would let every web page"),
        ("[server]\nallowed_origins = [\"https://a.org/\"]\n", "\"https://a.org/\" is not an origin"),
        ("[server]\nallowed_origins = [\"https://a.org\", \"https://a.org\"]\n", "listed twice"),
        ("[server]\nallowed_origins = \"https://a.org\"\n", "expected a list of texts"),
        ("[inbox]\nignore = [\"a/b\"]\n", "inbox.ignore"),
        ("[inbox]\ndir = \"~/inbox\"\n", "is not expanded"),
        ("[limits]\npixels = 99999999999999999999\n", "limits.pixels"),
    ] {
        let problems = Case::file(text).problems();
        assert!(problems.len() == 1 && problems[0].contains(expected), "{text}: {problems:?}");
        assert!(problems[0].starts_with("atelier.toml:") || text.contains("9999"), "{problems:?}");
    }
    for level in ["info", "warn,atelier::queue=debug", "off", "DEBUG", "atelier=trace,hyper=warn"] {
        assert_eq!(Case::file("").flag("log.level", level).config().log.level, level);
    }
}

#[test]
fn a_preset_is_layered_key_by_key() {
    let text = "[presets.upscale]\ndenoise = 1\n[presets.upscale-4x.params]\nscale = 2\n\
                [presets.\"Old photos\"]\nkind = \"edit\"\nparams = { prompt = \"sepia\", seed = 0 }\n";
    let case = Case::file(text)
        .env("ATELIER__PRESETS__UPSCALE_4X__DENOISE", "off")
        .env("ATELIER__PRESETS__NEW__KIND", "edit")
        .env("ATELIER__PRESETS__NEW__PARAMS__PROMPT", "12")
        .flag("presets.new.seed", "7");
    let presets = case.config().presets;
    assert_eq!(presets["upscale"].params.scale, Some(2), "from the defaults");
    assert_eq!(presets["upscale"].params.denoise, Some(Denoise::Level(1)));
    assert_eq!(presets["upscale-4x"].params.scale, Some(2));
    assert_eq!(presets["upscale-4x"].params.denoise, Some(Denoise::Off));
    assert_eq!(presets["Old photos"].params.prompt.as_deref(), Some("sepia"));
    assert_eq!(presets["Old photos"].params.seed, Some(0));
    assert_eq!(presets["new"].params.prompt.as_deref(), Some("12"));
    assert_eq!(presets["new"].params.seed, Some(7));
}

#[test]
fn a_preset_of_another_kind_takes_nothing_from_the_default_of_that_name() {
    let presets = Case::file("[presets.upscale]\nkind = \"edit\"\nprompt = \"sepia\"\n").config().presets;
    assert_eq!(presets["upscale"].kind, Some(JobKind::Edit));
    assert_eq!((presets["upscale"].params.scale, presets["upscale"].params.denoise), (None, None));
}

#[test]
fn problems_of_a_preset_are_told_at_their_lines() {
    let text = r#"
[presets.a]
kind = "upscale"
scael = 4

[presets.b]
scale = 2

[presets.c]
kind = "upscale"
scale = 3

[presets.done]
kind = "upscale"

[presets."x/y"]
kind = "upscale"

[presets.d]
kind = "paint"
priority = 1000

[presets.e]
kind = "edit"
scale = 2

[presets.f]
kind = "upscale"
scale = 2
params = { scale = 4 }

[presets]
g = 1

[presets.K]
kind = "upscale"

[presets.k]
kind = "upscale"

[presets.h]
kind = "generate"
guidance_scale = nan

[presets.i]
preset = "a"

[presets.j]
"#;
    insta::assert_snapshot!(Case::file(text).problems().join("\n"), @r#"
    atelier.toml:4: presets.a.scael: "scael" is not known here (did you mean "scale"?)
    atelier.toml:6: presets.b: a preset needs a kind (for example kind = "upscale")
    atelier.toml:11: presets.c.scale: 3 is not one of 2 and 4
    atelier.toml:13: presets.done: "done" is a folder of the inbox's own (choose another name)
    atelier.toml:16: presets.x/y: "x/y" is no name for a preset (a name is also a sub-folder of the inbox: letters, digits, '-', '_' and inner spaces, at most 64 characters)
    atelier.toml:20: presets.d.kind: kind "paint" is not known (one of upscale, edit, generate, inpaint, control, caption, video, talking_head, speech)
    atelier.toml:21: presets.d.priority: priority 1000 is not a whole number from -100 to 100
    atelier.toml:25: presets.e.scale: is for upscale, this job is of kind edit
    atelier.toml:29: presets.f.scale: is given twice, under params and beside it
    atelier.toml:33: presets.g: a preset is a table (write [presets.g] above its keys)
    atelier.toml:38: presets.k: differs from the preset "K" in capitals only (a folder on many shares could mean either)
    atelier.toml:43: presets.h.guidance_scale: NaN is no number to compute with
    atelier.toml:46: presets.i.preset: a preset does not build on another (write out its kind and parameters)
    atelier.toml:48: presets.j: a preset needs a kind (for example kind = "upscale")
    "#);
}

#[test]
fn what_is_shown_loads_to_the_same_configuration() {
    let text = "[server]\nlisten = \"0.0.0.0:1\"\ntokens_file = \"secret\"\n[cleanup]\nkeep_failed = \"forever\"\n\
                max_bytes = \"1GB\"\n[worker]\ncommand = [\"./w\", \"a b\"]\nmemory_budget = \"3GiB\"\n\
                [presets.\"Old photos\"]\nkind = \"edit\"\nprompt = 'a \"quoted\" one'\nstrength = 0.5\n";
    let case = Case::file(text).env("ATELIER__INBOX__IGNORE", "['*.bak']").flag("log.level", "debug");
    fs::write(case.folder.path().join("secret"), "hunter2\n").expect("written");
    let loaded = case.load().expect("loads");
    let shown = loaded.show();
    assert!(!shown.contains("hunter2"));
    let line = |start: &str| shown.lines().find(|line| line.starts_with(start)).unwrap_or_default();
    assert!(line("listen").ends_with("atelier.toml:2"), "{shown}");
    assert!(line("ignore").ends_with("# ATELIER__INBOX__IGNORE"), "{shown}");
    assert!(line("level").ends_with("# command line"), "{shown}");
    assert!(line("settle").ends_with("# default"), "{shown}");
    assert!(line("strength").ends_with("atelier.toml:13"), "{shown}");
    assert_eq!(Case::file(&shown).config(), loaded.config);
}

#[test]
fn the_shipped_file_says_what_the_defaults_are() {
    let defaults = load(&Sources::default(), Path::new("/somewhere")).expect("loads");
    let names: BTreeSet<&str> = defaults.config.presets.keys().map(String::as_str).collect();
    assert_eq!(names, BTreeSet::from(["upscale", "upscale-4x"]));
    assert!(defaults.origins.values().all(|origin| *origin == Origin::Default));
    let file = Case::file(DEFAULT_TOML);
    let folder = file.folder.path().to_owned();
    let mut config = file.config();
    assert_eq!(config.paths.data, folder.join("data"));
    config.paths = defaults.config.paths.clone();
    config.inbox.dir.clone_from(&defaults.config.inbox.dir);
    config.outbox.dir.clone_from(&defaults.config.outbox.dir);
    config.log.dir.clone_from(&defaults.config.log.dir);
    assert_eq!(config, defaults.config);
}

#[test]
fn model_folders_are_listed_once() {
    let text = "[paths]\nmodels = [\"/a\", \"/b\"]\n[models]\ndirs = [\"/b\", \"/c\"]\n";
    let dirs = Case::file(text).config().all_model_dirs();
    assert_eq!(dirs, ["/a", "/b", "/c"].map(PathBuf::from));
}

#[test]
fn a_checkouts_own_defaults_named_explicitly_mean_the_checkout() {
    let dir = tempfile::tempdir().expect("a folder");
    let checkout = dir.path().canonicalize().expect("a path");
    std::fs::create_dir(checkout.join("config")).expect("made");
    std::fs::write(checkout.join("config/default.toml"), super::DEFAULT_TOML).expect("written");
    std::fs::write(checkout.join("config/other.toml"), "[paths]\ndata = \"data\"\n").expect("written");
    let data_of = |file: &str| {
        let sources = super::Sources { file: Some(checkout.join(file)), ..super::Sources::default() };
        super::Config::load(&sources).expect("right").config.paths.data
    };
    assert_eq!(data_of("config/default.toml"), checkout.join("data"));
    assert_eq!(data_of("config/other.toml"), checkout.join("config/data"));
}

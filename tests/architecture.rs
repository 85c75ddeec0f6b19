//! Who may know whom, where Cargo cannot hold it.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            // Tests may look around.
            if path.file_name().is_none_or(|name| name != "tests") {
                sources(&path, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The files below `src/` that contain `word`, without comments, as paths below `src/`.
fn naming(word: &str) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 30, "the sources were found");
    let names = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().any(|line| !line.trim_start().starts_with("//") && line.contains(word))
    };
    let mut found: Vec<_> = files
        .iter()
        .filter(|path| names(path))
        .map(|path| path.strip_prefix(&root).unwrap().display().to_string())
        .collect();
    found.sort();
    found
}

fn only_in(word: &str, allowed: &[&str]) {
    let found = naming(word);
    assert!(!found.is_empty(), "{word} is named nowhere: the rule has lost its object");
    for file in found {
        assert!(allowed.iter().any(|prefix| file.starts_with(prefix)), "{file} names {word}; only {allowed:?} may");
    }
}

#[test]
fn only_the_store_speaks_sql() {
    only_in("sqlx::", &["store/"]);
}

#[test]
fn only_the_store_and_the_queue_know_apalis() {
    only_in("apalis", &["store/", "queue/", "telemetry.rs"]);
}

#[test]
fn imports_run_one_way() {
    for (module, must_not_know) in [
        ("store", &["queue", "engine", "http", "inbox", "cli", "maintenance", "serve", "app"][..]),
        ("engine", &["store", "queue", "http", "inbox", "cli", "maintenance", "serve", "app"]),
        ("outbox", &["queue", "engine", "http", "inbox", "cli", "serve", "app"]),
        ("signing", &["queue", "engine", "http", "inbox", "cli", "serve", "app"]),
        ("queue", &["http", "inbox", "cli", "serve", "app"]),
        ("hub", &["store", "queue", "engine", "http", "inbox", "cli", "serve", "app", "maintenance"]),
        ("config", &["store", "queue", "engine", "http", "inbox", "cli", "serve", "app", "maintenance"]),
        ("inbox", &["http", "cli", "serve"]),
        ("http", &["cli", "serve"]),
    ] {
        for other in must_not_know {
            let offenders: Vec<_> = naming(&format!("crate::{other}::"))
                .into_iter()
                .filter(|file| file.starts_with(&format!("{module}/")) || *file == format!("{module}.rs"))
                .collect();
            assert!(offenders.is_empty(), "{module} must not know {other}: {offenders:?}");
        }
    }
}

#[test]
fn only_the_configuration_reads_the_environment() {
    only_in("env::var", &["config/"]);
}

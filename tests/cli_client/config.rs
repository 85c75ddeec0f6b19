use crate::program::{Program, said};

#[test]
fn check_names_file_line_and_key_of_everything_that_is_wrong() {
    let program = Program::new();
    program.write("atelier.toml", "[server]\nlisten = \"here\"\n\n[inbox]\nsetle = \"2s\"\n");
    let said = program.run(&["config", "check", "--config", "atelier.toml"]).exits(2);
    let lines: Vec<&str> = said.stderr.lines().collect();
    assert!(lines[0].starts_with("atelier.toml:2: server.listen: "), "{said:#?}");
    assert!(lines[1].starts_with("atelier.toml:5: inbox.setle: "), "{said:#?}");
    assert!(lines[1].contains("did you mean \"settle\"?"), "{said:#?}");
    let json = program.run(&["config", "check", "atelier.toml", "--json"]).exits(2).json();
    assert_eq!(json["problems"][1]["line"], 5);
    assert_eq!(json["problems"][1]["key"], "inbox.setle");
    assert_eq!(json["ok"], false);
}

#[test]
fn check_says_ok_and_to_what() {
    let program = Program::new();
    program.write("atelier.toml", "[inbox]\nsettle = \"3s\"\n");
    assert_eq!(program.run(&["config", "check", "atelier.toml"]).exits(0).stdout, "OK: atelier.toml\n");
    assert_eq!(program.run(&["config", "check"]).exits(0).stdout, "OK: the defaults\n");
    program.run(&["config", "check", "missing.toml"]).exits(2);
}

#[test]
fn show_is_what_counts_with_where_it_comes_from() {
    let program = Program::new();
    program.write("atelier.toml", "[inbox]\nsettle = \"3s\"\n");
    let child = program
        .command(&["config", "show", "--config", "atelier.toml", "--set", "worker.threads=3", "--data", "a 'b"])
        .env("ATELIER__LOG__LEVEL", "debug")
        .spawn()
        .unwrap();
    let said = said(child).exits(0);
    let line = |key: &str| said.stdout.lines().find(|line| line.starts_with(key)).unwrap_or_default().to_owned();
    assert!(line("settle = \"3s\"").ends_with("# atelier.toml:2"), "{said:#?}");
    assert!(line("threads = 3").ends_with("# command line"), "{said:#?}");
    assert!(line("level = \"debug\"").ends_with("# ATELIER__LOG__LEVEL"), "{said:#?}");
    assert!(line("data = ").contains("/a 'b\""), "{said:#?}");
    // What is shown is a configuration.
    program.write("shown.toml", &said.stdout);
    let again = program.run(&["config", "show", "--json", "--config", "shown.toml"]).exits(0).json();
    assert_eq!(again["worker.threads"]["value"], 3);
    assert!(again["presets.upscale.scale"]["origin"].as_str().unwrap().starts_with("shown.toml:"));
}

#[test]
fn a_wrong_configuration_stops_every_command_that_needs_it() {
    let program = Program::new();
    program.write("atelier.toml", "[server]\nlisten = 8470\n");
    for args in [vec!["serve"], vec!["jobs", "list"], vec!["cleanup"], vec!["models", "list"], vec!["config", "show"]] {
        let args: Vec<&str> = args.into_iter().chain(["--config", "atelier.toml"]).collect();
        let said = program.run(&args).exits(2);
        assert!(said.stderr.contains("atelier.toml:2: server.listen: "), "{args:?}: {said:#?}");
    }
    // The daemon is named, so the configuration does not matter.
    program.run(&["jobs", "list", "--config", "atelier.toml", "--server", "127.0.0.1:1"]).exits(3);
}

#[test]
fn flags_of_serve_are_keys() {
    let program = Program::new();
    for (args, expected) in [
        (vec!["--listen", "nowhere"], "server.listen"),
        (vec!["--device", "gpu"], "worker.device"),
        (vec!["--log-level", "loud"], "log.level"),
        (vec!["--log-format", "xml"], "log.format"),
        (vec!["--outbox", "data"], "outbox.dir"),
        (vec!["--inbox", "data/spool"], "inbox.dir"),
        // No address of this machine: a daemon that started all the same would fail at once.
        (vec!["--listen", "192.0.2.1:0"], "server.tokens_file"),
        (vec!["--set", "inbox.settle"], "KEY=VALUE"),
        (vec!["--set", "inbox.setle=1s"], "did you mean \"settle\"?"),
    ] {
        let args: Vec<&str> = ["serve"].into_iter().chain(args).collect();
        let said = program.run(&args).exits(2);
        assert!(said.stderr.contains(expected), "{args:?}: {said:#?}");
    }
}

#[test]
fn completions_and_manual_pages_are_made() {
    let program = Program::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let said = program.run(&["completions", shell]).exits(0);
        assert!(said.stdout.contains("submit") && said.stdout.contains("idempotency-key"), "{shell}");
    }
    program.run(&["completions", "tcsh"]).exits(2);
    let page = program.run(&["man"]).exits(0).stdout;
    assert!(page.contains(".TH atelier 1") && page.contains("Exit codes"), "{page}");
    program.run(&["man", "pages/man1"]).exits(0);
    let pages: Vec<String> = std::fs::read_dir(program.path().join("pages/man1"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    for expected in ["atelier.1", "atelier-submit.1", "atelier-jobs-watch.1"] {
        assert!(pages.iter().any(|page| page == expected), "{pages:?}");
    }
}

#[test]
fn usage_errors_are_exit_2() {
    let program = Program::new();
    for args in [vec![], vec!["frobnicate"], vec!["jobs"], vec!["jobs", "show"], vec!["jobs", "list", "--limit", "0"]] {
        program.run(&args).exits(2);
    }
    assert!(program.run(&["--version"]).exits(0).stdout.starts_with("atelier "));
    let said = program.run(&["models", "pull", "name"]).exits(2);
    assert!(said.stderr.contains("is not ORG/NAME"), "{said:#?}");
}

//! Sidecars before, after and without their picture.

use super::*;

fn sidecars(findings: &Findings) -> Vec<(&str, Vec<&str>)> {
    findings.ready.iter().map(|ready| (ready.rel.to_str().expect("text"), names(&ready.sidecars))).collect()
}

#[test]
fn sidecars_that_are_there_go_along_strongest_first() {
    let bench = Bench::new();
    let mut looker = bench.looker();
    for name in ["x/a.txt", "x/a.jpg.json", "x/a.jpg.toml"] {
        bench.put(name, "scale = 2");
    }
    bench.put("x/a.jpg", picture("a"));
    bench.put("x/b.md", picture("no sidecar"));
    looker.look(true);
    let findings = looker.after(SETTLE).look(true);
    let expected = vec!["x/a.jpg.toml", "x/a.jpg.json", "x/a.txt"];
    assert_eq!(sidecars(&findings), [("x/a.jpg", expected), ("x/b.md", vec![])]);
}

#[test]
fn a_picture_waits_for_a_sidecar_that_is_being_written() {
    let bench = Bench::new();
    let mut looker = bench.looker();
    let writer = fs::File::create(bench.path("a.toml")).expect("made");
    bench.drop_in("a.jpg", picture("a"));
    looker.events_until(|_, scout| scout.table.get(rel("a.jpg")).is_some());
    assert!(looker.after(SETTLE * 5).ready().is_empty());
    drop(writer);
    assert!(looker.after(SETTLE).look(true).ready.iter().any(|ready| ready.sidecars == ["a.toml"]));
}

#[test]
fn a_picture_that_is_written_in_place_gives_its_sidecar_the_whole_time() {
    let mut bench = Bench::new();
    bench.settings.sidecar_wait = SETTLE * 10;
    let mut looker = bench.looker();
    bench.put("a.jpg", picture("a"));
    bench.put("b.jpg", picture("b"));
    looker.look(true);
    assert!(looker.after(SETTLE * 8).ready().is_empty());
    bench.drop_in("a.jpg.toml", "scale = 2");
    let findings = looker.events_until(|findings, _| !findings.ready.is_empty());
    assert_eq!(sidecars(&findings), [("a.jpg", vec!["a.jpg.toml"])]);
    looker.scout.forget(rel("a.jpg"));
    fs::remove_file(bench.path("a.jpg")).expect("there");
    assert_eq!(names(&looker.after(SETTLE * 2).ready()), ["b.jpg"]);
}

#[test]
fn a_picture_that_cannot_do_without_waits_for_a_sidecar_even_when_renamed_in() {
    let mut bench = Bench::new();
    bench.settings.sidecar_wait = SETTLE * 10;
    let mut looker = bench.looker();
    fs::create_dir(bench.path("edit")).expect("made");
    looker.look(true);
    for name in ["edit/a.jpg", "edit/b.jpg"] {
        bench.drop_in(name, picture(name));
    }
    looker.events_until(|_, scout| scout.table.get(rel("edit/b.jpg")).is_some());
    assert!(looker.after(SETTLE * 5).ready().is_empty());
    bench.drop_in("edit/a.txt", "warmer");
    let findings = looker.events_until(|findings, _| !findings.ready.is_empty());
    assert_eq!(sidecars(&findings), [("edit/a.jpg", vec!["edit/a.txt"])]);
    looker.scout.forget(rel("edit/a.jpg"));
    // Without one it is claimed all the same in the end, and fails with what it lacks.
    let findings = looker.after(SETTLE * 5).look(false);
    assert!(sidecars(&findings).contains(&("edit/b.jpg", vec![])));
}

#[test]
fn a_spec_without_a_picture_is_a_job_by_itself_after_a_while() {
    let mut bench = Bench::new();
    bench.settings.sidecar_wait = SETTLE * 4;
    let mut looker = bench.looker();
    bench.drop_in("moon.toml", "kind = \"generate\"\nprompt = \"the moon\"\n");
    bench.put("sun.json", r#"{"kind":"generate","prompt":"the sun"}"#);
    assert!(looker.ready().is_empty());
    assert!(looker.after(just_before(SETTLE * 4)).ready().is_empty());
    let ready = looker.after(Duration::from_millis(1)).ready();
    assert_eq!(names(&ready), ["moon.toml", "sun.json"]);
}

#[test]
fn a_spec_whose_picture_is_on_its_way_is_no_job_by_itself() {
    for upload in ["moon.jpg.part", ".moon.jpg.X1y2z3", "moon.jpg"] {
        let bench = Bench::new();
        let mut looker = bench.looker();
        bench.put("moon.toml", "kind = \"generate\"\nprompt = \"the moon\"\n");
        bench.put(upload, "IMG");
        looker.look(true);
        assert!(looker.after(SETTLE * 5).ready().is_empty(), "{upload}");
        fs::remove_file(bench.path(upload)).expect("there");
        assert_eq!(names(&looker.after(GIVE_UP / 2).ready()), ["moon.toml"], "{upload}");
    }
}

#[test]
fn a_spec_that_needs_a_picture_waits_for_it_and_then_fails() {
    let bench = Bench::new();
    let mut looker = bench.looker();
    bench.put("a.jpg.toml", "scale = 4");
    looker.look(true);
    looker.after(just_before(GIVE_UP)).look(true);
    assert!(bench.has("a.jpg.toml"));
    looker.after(Duration::from_millis(1)).look(true);
    let report = bench.report("failed/a.jpg.toml.error.json");
    assert_eq!(report.code, "sidecar_invalid");
    assert!(report.message.contains("needs a picture"), "{report:?}");
}

#[test]
fn a_spec_that_cannot_be_read_fails_with_line_and_key() {
    let bench = Bench::new();
    let mut looker = bench.looker();
    bench.put("x/moon.toml", "kind = \"generate\"\nprompt = \"moon\"\nstep = 4\n");
    bench.put("sun.toml", "kind = \"generate\"\nprompt = \"sun\"\nsteps = 0\n");
    looker.look(true);
    looker.after(SETTLE).look(true);
    for (file, line, key) in [("x/moon.toml", "line 3", "step"), ("sun.toml", "line 3", "steps")] {
        let report = bench.report(&format!("failed/{file}.error.json"));
        assert_eq!(report.code, "sidecar_invalid");
        assert!(report.message.contains(line) && report.message.contains(key), "{report:?}");
    }
}

#[test]
fn a_prompt_alone_is_left_alone_and_said_once() {
    let bench = Bench::new();
    let mut looker = bench.looker();
    bench.put("a.txt", "warm");
    looker.look(true);
    looker.after(just_before(GIVE_UP)).look(true);
    assert_eq!(looker.problem("a.txt"), None);
    looker.after(Duration::from_millis(1)).look(true);
    assert!(looker.problem("a.txt").expect("said").contains("without its picture"));
    looker.after(GIVE_UP * 10).look(true);
    assert!(bench.has("a.txt"));
    bench.drop_in("a.jpg", picture("a"));
    let findings = looker.events_until(|findings, _| !findings.ready.is_empty());
    assert_eq!(sidecars(&findings), [("a.jpg", vec!["a.txt"])]);
}

#[test]
fn a_sidecar_of_a_picture_that_was_just_claimed_calls_it_back() {
    let bench = Bench::new();
    let mut looker = bench.looker();
    let id = bench.intake.new_id();
    looker.recent.claimed("a.jpg".into(), id, looker.now + SETTLE * 2, looker.now);
    looker.recent.admitted(id);
    bench.put("a.jpg.toml", "scale = 4");
    assert!(looker.look(true).recall.is_empty(), "it may not be complete yet");
    assert_eq!(looker.after(SETTLE).look(true).recall, [id]);
    // One that comes later than it may is no sidecar any more.
    fs::remove_file(bench.path("a.jpg.toml")).expect("there");
    looker.after(SETTLE * 3).look(true);
    bench.put("a.json", r#"{"kind":"generate","prompt":"x"}"#);
    looker.look(true);
    let findings = looker.after(SETTLE).look(true);
    assert!(findings.recall.is_empty());
    assert_eq!(sidecars(&findings), [("a.json", vec![])]);
}

//! When a file is ready, and when it is not.

use std::io::Write as _;

use super::*;

#[test]
fn a_picture_that_is_renamed_in_is_ready_at_once() {
    let bench = Bench::new();
    let mut looker = bench.looker();
    bench.drop_in("a.jpg", picture("a"));
    bench.drop_in("sub/b.jpg", picture("b"));
    let findings = looker.events_until(|findings, _| !findings.ready.is_empty());
    assert_eq!(findings.ready[0].rel, "a.jpg");
    // The event for the new folder comes too late for what was put into it first: that takes the slower way.
    looker.events_until(|_, scout| scout.table.get(rel("sub/b.jpg")).is_some());
    looker.after(SETTLE);
    assert_eq!(names(&looker.ready()), ["a.jpg", "sub/b.jpg"]);
    bench.drop_in("sub/c.jpg", picture("c"));
    looker.events_until(|findings, _| findings.ready.iter().any(|ready| ready.rel == "sub/c.jpg"));
}

#[test]
fn what_is_written_in_place_is_ready_when_it_has_stood_still() {
    for watched in [true, false] {
        let mut bench = Bench::new();
        if !watched {
            by_looking(&mut bench);
        }
        let mut looker = bench.looker();
        bench.put("a.jpg", picture("a"));
        assert!(looker.ready().is_empty());
        assert!(looker.after(SETTLE / 2).ready().is_empty());
        bench.put("a.jpg", picture("other"));
        assert!(looker.after(SETTLE / 2).ready().is_empty(), "the change counts, not the first sight");
        assert!(looker.after(just_before(SETTLE)).ready().is_empty());
        assert_eq!(names(&looker.after(Duration::from_millis(1)).ready()), ["a.jpg"]);
    }
}

#[test]
fn a_file_that_a_writer_holds_is_never_ready_however_long_it_stands_still() {
    let bench = Bench::new();
    let mut looker = bench.looker();
    let mut writer = fs::File::create(bench.path("a.jpg")).expect("made");
    writer.write_all(&picture("a")).expect("written");
    for _ in 0..10 {
        assert!(looker.after(SETTLE * 20).ready().is_empty());
    }
    assert_eq!(looker.problem("a.jpg"), None);
    assert!(looker.after(GIVE_UP).ready().is_empty());
    assert!(looker.problem("a.jpg").expect("reported").contains("open for writing"));
    drop(writer);
    let findings = looker.events_until(|findings, _| !findings.ready.is_empty());
    assert_eq!(findings.ready[0].rel, "a.jpg");
    assert_eq!(looker.problem("a.jpg"), None);
}

#[test]
fn a_rename_in_while_the_writer_goes_on_is_not_ready() {
    let bench = Bench::new();
    let mut looker = bench.looker();
    let outside = bench.temp.path().join("outside");
    let mut writer = fs::File::create(&outside).expect("made");
    writer.write_all(&picture("a")).expect("written");
    fs::rename(&outside, bench.path("a.jpg")).expect("moved");
    let seen = |_: &Findings, scout: &mut Scout<_>| scout.next_look().is_some();
    assert!(looker.events_until(seen).ready.is_empty());
    drop(writer);
    looker.after(SETTLE).events_until(|findings, _| !findings.ready.is_empty());
}

#[test]
fn a_truncated_picture_waits_until_it_is_whole() {
    let bench = Bench::new();
    let mut looker = bench.looker();
    let whole = picture("abcdefgh");
    bench.put("a.jpg", &whole[..8]);
    looker.look(true);
    assert!(looker.after(GIVE_UP / 2).ready().is_empty());
    assert!(bench.has("a.jpg"));
    bench.put("a.jpg", &whole[..15]);
    looker.look(true);
    assert!(looker.after(just_before(GIVE_UP)).ready().is_empty());
    assert!(bench.has("a.jpg"), "the clock starts anew with every change");
    bench.put("a.jpg", &whole);
    looker.look(true);
    assert_eq!(names(&looker.after(SETTLE).ready()), ["a.jpg"]);
}

#[test]
fn a_picture_that_stays_unfinished_has_failed_at_last() {
    for (bytes, code) in
        [(&picture("abc")[..10], "image_truncated"), (&[], "image_empty"), (&[0; 64], "image_unsupported")]
    {
        let bench = Bench::new();
        let mut looker = bench.looker();
        bench.put("x/a.jpg", bytes);
        bench.put("x/a.jpg.toml", "scale = 2");
        looker.look(true);
        looker.after(just_before(GIVE_UP)).look(true);
        assert!(bench.has("x/a.jpg"), "{code}");
        looker.after(Duration::from_millis(1)).look(true);
        assert!(bench.has("failed/x/a.jpg") && bench.has("failed/x/a.jpg.toml"), "{code}: {:?}", bench.tree());
        let report = bench.report("failed/x/a.jpg.error.json");
        assert_eq!((report.code.as_str(), report.job, report.attempts), (code, None, 1));
    }
}

#[test]
fn a_file_that_is_no_picture_is_reported_and_out_of_the_way() {
    let bench = Bench::new();
    let mut looker = bench.looker();
    bench.put("letter.doc", "Dear Sir");
    bench.put("README", "read me");
    looker.look(true);
    looker.after(SETTLE).look(true);
    assert_eq!(bench.report("failed/letter.doc.error.json").code, "image_unsupported");
    assert!(bench.has("failed/README.error.json") && bench.has("failed/README"));
}

#[test]
fn temporary_names_are_never_looked_at() {
    let bench = Bench::new();
    let mut looker = bench.looker();
    let whole = picture("abcdefgh");
    let names = [".a.jpg.X1y2Z3", "b.jpg.part", "c.jpg.crdownload", "d.jpg.filepart", "~$e.jpg", "Thumbs.db", "f.jpg~"];
    for name in names {
        bench.put(name, &whole[..10]);
    }
    looker.look(true);
    assert!(looker.after(GIVE_UP * 2).ready().is_empty());
    assert_eq!(bench.tree().len(), names.len());
    // rsync renames when it is done, and so do browsers.
    for (name, done) in [(names[0], "a.jpg"), (names[1], "b.jpg"), (names[2], "c.jpg")] {
        fs::write(bench.path(name), &whole).expect("written");
        fs::rename(bench.path(name), bench.path(done)).expect("moved");
    }
    looker.events_until(|findings, _| findings.ready.len() == 3);
}

#[test]
fn a_browsers_empty_placeholder_waits_for_the_download() {
    let bench = Bench::new();
    let mut looker = bench.looker();
    bench.put("a.jpg", "");
    bench.put("a.jpg.part", &picture("abc")[..5]);
    looker.look(true);
    assert!(looker.after(GIVE_UP / 2).ready().is_empty());
    fs::write(bench.path("a.jpg.part"), picture("abc")).expect("written");
    fs::rename(bench.path("a.jpg.part"), bench.path("a.jpg")).expect("moved over");
    looker.events_until(|findings, _| !findings.ready.is_empty());
}

#[test]
fn clocks_and_dates_of_files_decide_nothing_but_the_order() {
    let bench = Bench::new();
    let mut looker = bench.looker();
    for (name, seconds) in [("future.jpg", 4_000_000_000), ("old.jpg", 1), ("new.jpg", 1_700_000_000)] {
        bench.put(name, picture(name));
        let file = fs::File::options().write(true).open(bench.path(name)).expect("opens");
        file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(seconds)).expect("set");
    }
    assert!(looker.ready().is_empty());
    assert_eq!(names(&looker.after(SETTLE).ready()), ["old.jpg", "new.jpg", "future.jpg"]);
}

#[test]
fn a_budget_takes_the_oldest_and_says_that_there_is_more() {
    let bench = Bench::new();
    let mut looker = bench.looker();
    for n in 0..5 {
        bench.put(format!("{n}.jpg"), picture("x"));
    }
    looker.look(true);
    looker.after(SETTLE);
    let findings = looker.scout.look(looker.now, true, 2);
    assert!(findings.more && findings.ready.len() == 2);
    assert_eq!(findings.ready[0].rel, "0.jpg");
    let findings = looker.scout.look(looker.now, true, 0);
    assert!(findings.more && findings.ready.is_empty());
}

#[test]
fn more_files_than_the_table_holds_all_get_their_turn() {
    let mut bench = Bench::in_memory();
    by_looking(&mut bench);
    for n in 0..500 {
        bench.put(format!("{n}.jpg"), picture("x"));
    }
    for n in 0..100 {
        bench.put(format!("broken{n}.jpg"), "IMG");
    }
    let mut looker = bench.looker();
    looker.scout.limit_table(50);
    let mut claimed = BTreeSet::new();
    for _ in 0..200 {
        for rel in looker.after(SETTLE).ready() {
            looker.scout.forget(&rel);
            fs::remove_file(bench.path(&rel)).expect("there");
            claimed.insert(rel);
        }
        assert!(looker.scout.table.len() <= 100, "{} files are remembered", looker.scout.table.len());
        if claimed.len() == 500 {
            break;
        }
    }
    assert_eq!(claimed.len(), 500);
    assert_eq!(bench.tree().len(), 100, "the unfinished ones wait");
}

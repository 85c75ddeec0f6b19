//! What became of every input, compared with what an undisturbed run makes of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    time::{Duration, Instant},
};

use atelier_testkit::daemon::files_below;
use serde_json::Value;

use crate::{
    books::{self, Books, Entry},
    client::Posted,
    watcher::{Watcher, sha256},
    wishes::{self, Wish},
    yard::{Input, Way, Yard, setup, subfolders},
};

/// What comes of a wish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Files with these hashes.
    Made(Vec<String>),
    /// A job that fails with this code.
    Failed(String),
    /// No job; the source goes to `failed/` with this code.
    Refused(String),
}

/// What comes of every wish when nothing happens in between.
#[derive(Clone, Debug)]
pub(crate) struct Reference {
    pub(crate) wishes: Vec<Wish>,
    pub(crate) outcomes: Vec<Outcome>,
}

impl Reference {
    /// Runs everything once, undisturbed.
    pub(crate) fn run() -> Self {
        let wishes = wishes::all();
        let mut yard = Yard::new(setup(), &wishes);
        assert!(yard.launch(""), "the daemon starts");
        let watcher = Watcher::start(yard.outbox.clone(), BTreeSet::new());
        for (number, wish) in wishes.iter().enumerate() {
            let way = if wish.is_request() { Way::Keyed } else { Way::Moved };
            yard.ask(&format!("reference-{number}"), number, way, None);
        }
        yard.wait_quiet();
        let books = books::read(&yard.daemon.data());
        let outcomes: Vec<_> = yard.inputs.iter().map(|input| outcome(&yard, &books, input)).collect();
        assert_eq!(watcher.complaints(), [""; 0]);
        yard.stop();
        for (wish, outcome) in wishes.iter().zip(&outcomes) {
            assert_eq!(matches!(outcome, Outcome::Made(_)), wish.is_fulfilled(), "{wish:?}: {outcome:?}");
        }
        Self { wishes, outcomes }
    }

    /// The only contents that may be seen in an outbox.
    pub(crate) fn known(&self) -> BTreeSet<String> {
        let made = self.outcomes.iter().filter_map(|outcome| match outcome {
            Outcome::Made(hashes) => Some(hashes.clone()),
            Outcome::Failed(_) | Outcome::Refused(_) => None,
        });
        made.flatten().collect()
    }
}

fn outcome(yard: &Yard, books: &Books, input: &Input) -> Outcome {
    let Some(entry) = books.entries.iter().find(|entry| entry.name == input.name) else {
        let report = yard.daemon.inbox().join("failed").join(format!("{}.error.json", input.name));
        let report = fs::read(&report).unwrap_or_else(|error| panic!("{}: {error}", report.display()));
        let report: Value = serde_json::from_slice(&report).expect("a report is JSON");
        return Outcome::Refused(report["code"].as_str().expect("a code").to_owned());
    };
    match &entry.error {
        Some(code) => Outcome::Failed(code.clone()),
        None => Outcome::Made(entry.outputs.iter().map(|path| sha256(&fs::read(path).expect("an output"))).collect()),
    }
}

/// All is well where the four lists are empty.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) failed: usize,
    pub(crate) duplicates: usize,
    /// Requests without an answer and without a job: the client knows that it does not know.
    pub(crate) unknown: usize,
    pub(crate) lost: Vec<String>,
    pub(crate) twice: Vec<String>,
    pub(crate) different: Vec<String>,
    /// What should have been tidied up.
    pub(crate) left: Vec<String>,
}

impl Verdict {
    pub(crate) fn is_clean(&self) -> bool {
        [&self.lost, &self.twice, &self.different, &self.left].iter().all(|list| list.is_empty())
    }
}

/// Judges a yard that is quiet. What is tidied up after a job's end may take a moment longer.
pub(crate) fn judge(yard: &Yard, reference: &Reference) -> Verdict {
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        let verdict = judge_now(yard, reference);
        if verdict.is_clean() || Instant::now() >= deadline {
            return verdict;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn judge_now(yard: &Yard, reference: &Reference) -> Verdict {
    let books = books::read(&yard.daemon.data());
    let mut verdict = Verdict { inputs: yard.inputs.len(), ..Verdict::default() };
    let mut sources = Sources::default();
    let mut by_name: BTreeMap<&str, Vec<&Entry>> = BTreeMap::new();
    for entry in &books.entries {
        by_name.entry(&entry.name).or_default().push(entry);
    }
    let mut groups: BTreeMap<u32, Vec<(&Input, Vec<&Entry>)>> = BTreeMap::new();
    for input in &yard.inputs {
        let entries = by_name.remove(input.name.as_str()).unwrap_or_default();
        if let Some(group) = input.group {
            groups.entry(group).or_default().push((input, entries));
            continue;
        }
        let expected = &reference.outcomes[input.wish];
        one(&mut verdict, input, &entries, expected);
        sources.expect(yard, input, matches!(expected, Outcome::Made(_)));
    }
    for (group, members) in groups {
        let done: Vec<_> = members.iter().filter(|(_, entries)| !entries.is_empty()).collect();
        match done.as_slice() {
            [(input, entries)] => one(&mut verdict, input, entries, &reference.outcomes[input.wish]),
            [] => verdict.lost.push(format!("group {group}: none was done")),
            more => verdict.twice.push(format!("group {group}: {} were done", more.len())),
        }
        verdict.duplicates += members.len() - done.len().min(members.len());
        for (input, entries) in &members {
            sources.expect(yard, input, true);
            if entries.is_empty() {
                sources.done.insert(format!("{}.duplicate.json", input.name));
            }
        }
    }
    for (name, entries) in by_name {
        verdict.twice.push(format!("{} jobs that nobody asked for, called {name:?}", entries.len()));
    }
    sources.compare(&yard.daemon.inbox(), &mut verdict);
    tidiness(yard, &books, &mut verdict);
    verdict
}

/// One input, with the jobs of its name.
fn one(verdict: &mut Verdict, input: &Input, entries: &[&Entry], expected: &Outcome) {
    let name = &input.name;
    if let Some(Posted::Wrong(why)) = &input.posted {
        verdict.lost.push(why.clone());
    }
    if let Outcome::Refused(_) = expected {
        match entries.len() {
            0 => verdict.failed += 1,
            n => verdict.different.push(format!("{name}: should be refused, and has {n} jobs")),
        }
        return;
    }
    let entry = match entries {
        [entry] => entry,
        [] if input.posted == Some(Posted::Unknown) => {
            verdict.unknown += 1;
            return;
        }
        [] => return verdict.lost.push(format!("{name} ({:?}): no job", input.posted)),
        more => return verdict.twice.push(format!("{name}: {} jobs", more.len())),
    };
    if let Some(Posted::Answered(id)) = &input.posted
        && *id != entry.id
    {
        verdict.lost.push(format!("{name}: was answered with job {id}, and there is {}", entry.id));
    }
    let what = format!("{name} (job {}, attempt {}, {} crashes)", entry.id, entry.attempt, entry.crashes);
    match expected {
        Outcome::Made(hashes) if entry.status == "succeeded" => {
            let made: Vec<_> = entry.outputs.iter().map(|path| fs::read(path).map(|bytes| sha256(&bytes))).collect();
            if let Some(Err(error)) = made.iter().find(|made| made.is_err()) {
                verdict.lost.push(format!("{what}: an output cannot be read: {error}"));
            } else if made.into_iter().filter_map(Result::ok).collect::<Vec<_>>() == *hashes {
                verdict.outputs += hashes.len();
            } else {
                verdict.different.push(format!("{what}: other bytes than undisturbed"));
            }
        }
        Outcome::Failed(code) if entry.status == "failed" && entry.error.as_ref() == Some(code) => {
            verdict.failed += 1;
        }
        Outcome::Made(_) | Outcome::Failed(_) | Outcome::Refused(_) => {
            verdict.different.push(format!("{what}: {} {:?} instead of {expected:?}", entry.status, entry.error));
        }
    }
}

/// Where the sources should lie.
#[derive(Debug, Default)]
struct Sources {
    done: BTreeSet<String>,
    failed: BTreeSet<String>,
}

impl Sources {
    fn expect(&mut self, yard: &Yard, input: &Input, done: bool) {
        let sources = yard.sources(input);
        if done {
            self.done.extend(sources);
        } else if let Some(source) = sources.first() {
            self.failed.insert(format!("{source}.error.json"));
            self.failed.extend(sources);
        }
    }

    fn compare(&self, inbox: &Path, verdict: &mut Verdict) {
        for (folder, expected) in [("done", &self.done), ("failed", &self.failed)] {
            let folder = inbox.join(folder);
            let there: BTreeSet<String> = files_below(&folder)
                .iter()
                .map(|path| path.strip_prefix(&folder).expect("below it").to_string_lossy().into_owned())
                .collect();
            for missing in expected.difference(&there) {
                verdict.lost.push(format!("{missing} is not in {}", folder.display()));
            }
            for strange in there.difference(expected) {
                verdict.twice.push(format!("{strange} should not be in {}", folder.display()));
            }
        }
    }
}

fn tidiness(yard: &Yard, books: &Books, verdict: &mut Verdict) {
    let published: BTreeSet<_> = books.entries.iter().flat_map(|entry| &entry.outputs).cloned().collect();
    for path in files_below(&yard.outbox) {
        if !published.contains(&path) {
            verdict.left.push(format!("{} is no job's output", path.display()));
        }
    }
    let data = yard.daemon.data();
    verdict.left.extend(yard.in_the_inbox().iter().map(|path| format!("{} in the inbox", path.display())));
    verdict.left.extend(files_below(&data.join("spool/.uploads")).iter().map(|path| path.display().to_string()));
    verdict.left.extend(subfolders(&data.join("checkpoints")).iter().map(|path| path.display().to_string()));
    for path in subfolders(&data.join("spool")) {
        let id = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // They serve a retry.
        if !books.entries.iter().any(|entry| entry.id == id && entry.status == "failed") {
            verdict.left.push(path.display().to_string());
        }
    }
    verdict.left.extend(books.pending.iter().filter(|(_, n)| *n != 0).map(|(what, n)| format!("{n} {what}")));
    verdict.left.extend(books.damage.iter().map(|what| format!("the database is damaged: {what}")));
}

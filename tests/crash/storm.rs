//! Kill after kill at random, of the daemon and of its worker, under load from the inbox and over HTTP.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

use crate::{
    hops::HOPS,
    verdict::{Reference, Verdict, judge},
    watcher::Watcher,
    yard::{Start, Way, Yard, setup},
};

/// Kills between two looks at everything.
const EPOCH: u32 = 25;

/// More than this many inputs are not left waiting, so that a storm ends soon after its last kill.
const BACKLOG: u64 = 16;

/// How long an armed daemon may live before it is killed from outside.
const ARMED: Duration = Duration::from_secs(3);

#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) seed: u64,
    pub(crate) at_random: u32,
    pub(crate) in_the_start: u32,
    pub(crate) by_place: BTreeMap<String, u32>,
    pub(crate) of_worker: u32,
    pub(crate) seen: u64,
    pub(crate) seconds: u64,
    pub(crate) verdict: Verdict,
    pub(crate) complaints: Vec<String>,
    pub(crate) starts: Vec<Start>,
}

impl Tally {
    pub(crate) fn of_daemon(&self) -> u32 {
        self.at_random + self.in_the_start + self.by_place.values().sum::<u32>()
    }
}

struct Storm<'a> {
    yard: Yard,
    reference: &'a Reference,
    random: StdRng,
    tally: Tally,
    armed: Option<String>,
    asked: usize,
}

/// Kills `kills` times, about twice the daemon for each time the worker.
pub(crate) fn rage(reference: &Reference, kills: u32, seed: u64) -> Tally {
    let begun = Instant::now();
    // The same content again and again is a job of its own each time: the bytes that come of it are known.
    let yard = Yard::new(setup().set("inbox.duplicates", "run"), &reference.wishes);
    let watcher = Watcher::start(yard.outbox.clone(), reference.known());
    let mut storm = Storm {
        yard,
        reference,
        random: StdRng::seed_from_u64(seed),
        tally: Tally { seed, ..Tally::default() },
        armed: None,
        asked: 0,
    };
    storm.begin();
    let mut done = 0;
    while done < kills {
        storm.feed();
        let killed = if storm.random.random_ratio(1, 3) { storm.kill_worker() } else { storm.kill_daemon() };
        done += u32::from(killed);
        if killed && (done.is_multiple_of(EPOCH) || done == kills) {
            storm.calm(&watcher, done);
        }
    }
    storm.yard.stop();
    let Storm { yard, mut tally, .. } = storm;
    tally.complaints = watcher.complaints();
    tally.seen = watcher.end();
    tally.starts = yard.starts;
    tally.seconds = begun.elapsed().as_secs();
    tally
}

impl Storm<'_> {
    fn begin(&mut self) {
        while !self.start() {
            self.note_death();
        }
    }

    /// Starts the daemon, every other time with a failpoint; `false` where it died of it at once.
    fn start(&mut self) -> bool {
        self.armed = None;
        if self.random.random_bool(0.5) {
            let (name, _) = HOPS.choose(&mut self.random).expect("there are some");
            let most = if *name == "store.commit" { 40 } else { 4 };
            let nth = self.random.random_range(1..=most);
            self.armed = Some((*name).to_owned());
            return self.yard.launch(&format!("{name}=kill@{nth}"));
        }
        self.yard.launch("")
    }

    fn note_death(&mut self) {
        self.yard.bury();
        let place = self.armed.take().expect("only an armed daemon dies by itself");
        *self.tally.by_place.entry(place).or_default() += 1;
    }

    /// Four files and four requests, unless much is waiting already. An armed daemon gets one of each in any case, or
    /// it would never come to where it is to die.
    fn feed(&mut self) {
        let waiting = self.yard.collect() as u64 + self.yard.in_the_inbox().len() as u64;
        let full = waiting + self.yard.live_jobs().unwrap_or(0) > BACKLOG;
        let portions = if full { u32::from(self.armed.is_some()) } else { 4 };
        let (requests, dropped): (Vec<usize>, Vec<usize>) =
            (0..self.yard.wishes.len()).partition(|wish| self.yard.wishes[*wish].is_request());
        for _ in 0..portions {
            let keyed = if self.random.random_ratio(2, 3) { Way::Keyed } else { Way::Once };
            self.ask(&requests, keyed);
            let way = if self.random.random_ratio(2, 3) { Way::Moved } else { Way::Copied };
            self.ask(&dropped, way);
        }
    }

    fn ask(&mut self, among: &[usize], way: Way) {
        let wish = *among.choose(&mut self.random).expect("there are some");
        self.asked += 1;
        self.yard.ask(&format!("input-{:05}", self.asked), wish, way, None);
    }

    fn pause(&mut self, at_most_ms: u64) {
        std::thread::sleep(Duration::from_millis(self.random.random_range(0..=at_most_ms)));
    }

    fn kill_worker(&mut self) -> bool {
        self.pause(300);
        let killed = !self.yard.is_dead() && self.yard.kill_worker();
        self.tally.of_worker += u32::from(killed);
        killed
    }

    fn kill_daemon(&mut self) -> bool {
        if self.armed.is_some() && self.yard.wait_dead(ARMED) {
            self.note_death();
        } else {
            self.pause(500);
            // An armed one may come first after all.
            if self.armed.is_some() && self.yard.is_dead() {
                self.note_death();
            } else {
                self.yard.kill();
                self.tally.at_random += 1;
            }
        }
        if self.random.random_ratio(1, 6) {
            self.yard.spawn("");
            self.pause(150);
            self.yard.kill();
            self.tally.in_the_start += 1;
        }
        self.begin();
        true
    }

    /// Lets everything come to its end, and looks at all of it.
    fn calm(&mut self, watcher: &Watcher, done: u32) {
        // An armed daemon may die of the calm.
        if self.armed.is_some() {
            if self.yard.is_dead() {
                self.note_death();
            } else {
                self.yard.kill();
                self.tally.at_random += 1;
            }
            assert!(self.yard.launch(""), "the daemon does not start again");
            self.armed = None;
        }
        self.yard.wait_quiet();
        self.tally.verdict = judge(&self.yard, self.reference);
        let Tally { verdict, .. } = &self.tally;
        eprintln!(
            "{done} kills (seed {}): {} inputs, {} outputs, {} failed, {} unknown",
            self.tally.seed, verdict.inputs, verdict.outputs, verdict.failed, verdict.unknown
        );
        assert!(verdict.is_clean(), "seed {}: {verdict:#?}", self.tally.seed);
        assert_eq!(watcher.complaints(), [""; 0], "seed {}", self.tally.seed);
    }
}

/// What a storm has come to, for `docs/RELIABILITY.md`.
pub(crate) fn table(tally: &Tally) -> String {
    let Tally { verdict, starts, .. } = tally;
    let percentile = |times: &mut Vec<Duration>, part: f64| {
        times.sort();
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a place in a short list"
        )]
        let index = (times.len().saturating_sub(1) as f64 * part).round() as usize;
        times.get(index).map_or_else(|| "none".to_owned(), |time| format!("{} ms", time.as_millis()))
    };
    let spread = |mut times: Vec<Duration>| {
        let n = times.len();
        let (median, most) = (percentile(&mut times, 0.5), percentile(&mut times, 1.0));
        format!("p50 {median}, p95 {}, max {most} ({n} starts)", percentile(&mut times, 0.95))
    };
    let mut rows = vec![
        ("seed".to_owned(), tally.seed.to_string()),
        ("kills of the daemon".into(), tally.of_daemon().to_string()),
        ("kills of the worker".into(), tally.of_worker.to_string()),
        ("inputs".into(), verdict.inputs.to_string()),
        ("outputs".into(), verdict.outputs.to_string()),
        ("failed, as they should".into(), verdict.failed.to_string()),
        ("requests without key, answer and job".into(), verdict.unknown.to_string()),
        ("lost".into(), verdict.lost.len().to_string()),
        ("done twice".into(), verdict.twice.len().to_string()),
        ("other bytes than undisturbed".into(), verdict.different.len().to_string()),
        ("left behind".into(), verdict.left.len().to_string()),
        ("files seen in the outbox".into(), tally.seen.to_string()),
        ("of these not whole".into(), tally.complaints.len().to_string()),
        ("start to ready".into(), spread(starts.iter().map(|start| start.ready).collect())),
        ("start to running again".into(), spread(starts.iter().filter_map(|start| start.running).collect())),
        ("took".into(), format!("{} s", tally.seconds)),
        ("killed at random times".into(), tally.at_random.to_string()),
        ("killed while starting".into(), tally.in_the_start.to_string()),
    ];
    rows.extend(tally.by_place.iter().map(|(place, n)| (format!("killed at `{place}`"), n.to_string())));
    let rows: Vec<_> = rows.iter().map(|(what, value)| format!("| {what} | {value} |")).collect();
    format!("| | |\n| --- | --- |\n{}\n", rows.join("\n"))
}

//! The whole daemon as a black box, killed with SIGKILL at every named place and at random, together with its worker.
//!
//! Every input must end in exactly one result, the same that an undisturbed run gives; `docs/RELIABILITY.md` says what
//! is promised, and what such a test cannot show.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]
#![allow(unreachable_pub, reason = "modules of a test binary")]

mod books;
mod client;
mod hops;
mod storm;
mod verdict;
mod watcher;
mod wishes;
mod yard;

use std::collections::BTreeSet;

use crate::{
    hops::{ACROSS, ELSEWHERE, HOPS, Place},
    verdict::Reference,
};

#[test]
fn every_place_of_the_sources_is_killed_at() {
    let here = HOPS.iter().chain(ACROSS).map(|(name, _)| *name);
    let listed: BTreeSet<String> = here.chain(ELSEWHERE.iter().copied()).map(str::to_owned).collect();
    assert_eq!(listed, hops::in_the_sources());
}

#[test]
fn a_retry_survives_kills_with_its_source_where_it_was() {
    hops::survive_a_retry();
}

#[test]
fn every_hop_survives_a_kill() {
    hops::survive(&Reference::run(), HOPS, Place::usual);
}

#[test]
fn every_hop_to_an_outbox_on_another_disk_survives_a_kill() {
    hops::survive(&Reference::run(), ACROSS, Place::outbox_elsewhere);
}

#[test]
fn a_small_storm_loses_nothing_and_does_nothing_twice() {
    let tally = storm::rage(&Reference::run(), 8, 1);
    println!("{}", storm::table(&tally));
}

/// `ATELIER_CRASHES` kills (300), from the random numbers of `ATELIER_SEED` (another each time).
#[test]
#[ignore = "long; make crash-test runs it"]
fn crash_storm() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let kills = number("ATELIER_CRASHES").map_or(300, |kills| u32::try_from(kills).expect("a number of kills"));
    let seed = number("ATELIER_SEED").unwrap_or_else(rand::random::<u64>);
    println!("ATELIER_CRASHES={kills} ATELIER_SEED={seed}");
    let tally = storm::rage(&Reference::run(), kills, seed);
    println!("{}", storm::table(&tally));
}

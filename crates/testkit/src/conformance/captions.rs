//! Jobs that write a text: it grows while it is written, and is the same each time.

use atelier_domain::protocol::{Event, Finished, Request, Run, Stop};

use super::{Bench, WorkerUnderTest, check_events, finished};
use crate::driver::Worker;

/// The texts that were told while it ran.
fn texts(events: &[Event]) -> Vec<String> {
    let told = events.iter().filter_map(|event| match event {
        Event::Progress { phase, text, .. } if phase == "run" => Some(text.clone().expect("each step tells the text")),
        _ => None,
    });
    told.collect()
}

fn text_of(finished: &Finished) -> String {
    assert!(finished.outputs.is_empty(), "a text is no file: {:?}", finished.outputs);
    let text = finished.result.as_ref().and_then(|result| result["text"].as_str());
    text.unwrap_or_else(|| panic!("no text in {:?}", finished.result)).to_owned()
}

fn run_to_its_text(bench: &Bench<'_>, process: &mut Worker, run: &Run) -> String {
    text_of(&bench.finish(process, run))
}

pub fn a_text_grows_and_its_end_is_the_result(worker: &WorkerUnderTest) {
    let bench = Bench::new(worker);
    let run = bench.long("job");
    let events = bench.events(&mut bench.ready(), &run);
    let texts = texts(&events);
    let mut last = "";
    for text in &texts {
        assert!(text.starts_with(last), "{text:?} after {last:?}");
        last = text;
    }
    assert_eq!(texts.first().map(String::as_str), Some(""), "nothing is written at first");
    let among = texts.iter().filter(|text| !text.is_empty() && text.as_str() != last).count();
    assert!(among > 0, "nobody saw it grow: {texts:?}");
    let last = last.to_owned();
    assert_eq!(text_of(&finished(events)), last);
}

pub fn two_texts_about_the_same_picture_are_the_same(worker: &WorkerUnderTest) {
    let bench = Bench::new(worker);
    let mut process = bench.ready();
    let first = run_to_its_text(&bench, &mut process, &bench.short("first"));
    let mut other = bench.short("other");
    other.params = worker.other_params.clone();
    run_to_its_text(&bench, &mut process, &other);
    assert_eq!(run_to_its_text(&bench, &mut process, &bench.short("second")), first);
    assert_eq!(run_to_its_text(&bench, &mut bench.ready(), &bench.short("third")), first);
}

pub fn a_text_is_called_off_between_two_tokens(worker: &WorkerUnderTest) {
    let bench = Bench::new(worker);
    let mut process = bench.ready();
    let run = bench.long("called-off");
    let seen = bench.run_into_the_middle(&mut process, &run);
    process.stop(run.job, Stop::Cancel).expect("the worker takes requests");
    let events = process.receive_to_end(run.job, worker.patience).expect("a terminal event");
    match events.last() {
        Some(Event::Stopped { how: Stop::Cancel, step, .. }) => assert!(*step >= seen, "{step} after {seen}"),
        other => panic!("cancelled, it answered {other:?}"),
    }
    run_to_its_text(&bench, &mut process, &bench.short("next"));

    let run = bench.long("never-begun");
    let requests = [Request::Run(Box::new(run.clone())), Request::Stop { job: run.job, how: Stop::Cancel }];
    process.send_all(&requests).expect("the worker takes requests");
    let events = process.receive_to_end(run.job, worker.patience).expect("a terminal event");
    check_events(&run, &events);
    assert!(
        matches!(events.last(), Some(Event::Stopped { how: Stop::Cancel, step: 0 | 1, .. })),
        "{:?}",
        events.last()
    );
}

pub fn a_text_that_was_interrupted_comes_out_the_same(worker: &WorkerUnderTest) {
    let bench = Bench::new(worker);
    let undisturbed = run_to_its_text(&bench, &mut bench.ready(), &bench.long("undisturbed"));
    let mut process = bench.ready();
    let run = bench.long("job");
    bench.run_into_the_middle(&mut process, &run);
    process.stop(run.job, Stop::Checkpoint).expect("the worker takes requests");
    let events = process.receive_to_end(run.job, worker.patience).expect("a terminal event");
    assert!(matches!(events.last(), Some(Event::Stopped { how: Stop::Checkpoint, .. })), "{:?}", events.last());
    let again = Run { attempt: 2, ..run };
    assert_eq!(run_to_its_text(&bench, &mut bench.ready(), &again), undisturbed);
    // Once it is there, it is answered at once, also by another worker.
    assert_eq!(run_to_its_text(&bench, &mut bench.ready(), &again), undisturbed);
}

//! Pictures that are not as they should be.

use std::fs;

use atelier_domain::{
    ErrorCode, ErrorInfo, OutputFormat,
    protocol::{Event, Run},
};

use super::{Bench, WorkerUnderTest, output_bytes, output_like};
use crate::{driver::Worker, exif::Exif, pictures};

pub fn a_bad_picture_fails_its_job_and_the_worker_lives_on(worker: &WorkerUnderTest) {
    use ErrorCode as E;
    let bench = Bench::new(worker);
    let mut process = bench.ready();
    let photo = pictures::photo_like(worker.short.width, worker.short.height, 1);
    let (png, jpeg) = (pictures::png(&photo), pictures::jpeg(&photo, 90));
    // Where the picture breaks off in the middle of its data, a decoder may see either.
    let broken: &[ErrorCode] = &[E::ImageTruncated, E::ImageCorrupt];
    let cases: [(_, _, &[_]); 7] = [
        ("missing", None, &[E::InputMissing]),
        ("empty", Some(Vec::new()), &[E::ImageEmpty]),
        ("text", Some(b"To whom it may concern: this is no picture.\n".to_vec()), &[E::ImageUnsupported]),
        ("half-a-png", Some(png[..png.len() / 2].to_vec()), broken),
        ("png-header-only", Some(png[..40].to_vec()), broken),
        ("half-a-jpeg", Some(jpeg[..jpeg.len() / 2].to_vec()), broken),
        ("flipped-bits", Some(flip_the_middle(png)), &[E::ImageCorrupt, E::ImageTruncated]),
    ];
    for (name, bytes, expected) in cases {
        let run = bench.short(name);
        match bytes {
            Some(bytes) => fs::write(run.inputs[0].as_path(), bytes).expect("written"),
            None => fs::remove_file(run.inputs[0].as_path()).expect("removed"),
        }
        let error = failure(&bench, &mut process, &run);
        assert!(expected.contains(&error.code), "{name}: {} ({})", error.code, error.message);
        assert!(!error.message.is_empty());
    }
    let good = bench.short("good");
    output_bytes(&good, &bench.finish(&mut process, &good));
}

fn flip_the_middle(mut bytes: Vec<u8>) -> Vec<u8> {
    let middle = bytes.len() / 2;
    for byte in &mut bytes[middle..middle + 8] {
        *byte ^= 0xFF;
    }
    bytes
}

pub fn a_picture_of_too_many_pixels_is_refused(worker: &WorkerUnderTest) {
    let bench = Bench::new(worker);
    let mut process = bench.ready();
    let pixels = u64::from(worker.short.width) * u64::from(worker.short.height);
    let too_large = Run { max_pixels: pixels - 1, ..bench.short("too-large") };
    assert_eq!(failure(&bench, &mut process, &too_large).code, ErrorCode::ImageTooLarge);
    let just_right = Run { max_pixels: pixels, ..bench.short("just-right") };
    output_bytes(&just_right, &bench.finish(&mut process, &just_right));
}

pub fn an_oriented_picture_comes_out_upright(worker: &WorkerUnderTest) {
    let bench = Bench::new(worker);
    let mut process = bench.ready();
    let photo = pictures::photo_like(worker.short.width + 6, worker.short.height, 1);
    let size = [photo.width(), photo.height()].map(|side| side * worker.scale);
    for (orientation, expected) in [(1, size), (3, size), (6, [size[1], size[0]]), (8, [size[1], size[0]])] {
        let run = bench.short(format!("orientation-{orientation}"));
        let exif = Exif { orientation: Some(orientation), ..Exif::default() };
        let bytes = pictures::with_exif(&photo, OutputFormat::Jpeg, 95, &exif);
        fs::write(run.inputs[0].as_path(), bytes).expect("written");
        let finished = bench.finish(&mut process, &run);
        output_bytes(&run, &finished);
        let output = &finished.outputs[0];
        assert_eq!([output.width, output.height], expected, "orientation {orientation}");
    }
}

#[track_caller]
fn failure(bench: &Bench<'_>, process: &mut Worker, run: &Run) -> ErrorInfo {
    match bench.events(process, run).pop() {
        Some(Event::Failed { error, .. }) => {
            assert_eq!(output_like(run), Vec::<&str>::new(), "a failed job left files");
            error
        }
        other => panic!("it should have failed: {other:?}"),
    }
}

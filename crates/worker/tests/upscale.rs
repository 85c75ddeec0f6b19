//! Upscale jobs from the picture's file to the output's, in this process.
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "tests")]

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use atelier_domain::{
    Denoise, ErrorCode, JobId, JobKind, OutputFormat, Params,
    model::Family,
    protocol::{self, Decoder, Event, Finished, GpsPolicy, ModelRef, OutputSpec, Run, Stop},
};
use atelier_testkit::pictures;
use atelier_worker::{
    context::Context,
    control::Control,
    error::JobError,
    events::{Outbox, Reporter},
    models::{Cache, read_config},
    nn::{Config, Margins, Network},
    torch::InferenceMode,
    upscale,
    weights::Weights,
};
use image::{DynamicImage, GrayImage, ImageBuffer, Luma, Rgb, Rgba, RgbaImage};
use tch::{Device, Tensor};
use tempfile::TempDir;

const JOB: u128 = 7;
const ALL: [&str; 9] = [
    "span-x2",
    "span-x2-ch52",
    "span-x4",
    "span-x4-ch52",
    "waifu2x-photo",
    "waifu2x-photo-denoise0",
    "waifu2x-photo-denoise1",
    "waifu2x-photo-denoise2",
    "waifu2x-photo-denoise3",
];

fn folder(pack: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models").join(pack)
}

fn models(packs: &[&str]) -> Vec<ModelRef> {
    let model = |id: &&str| ModelRef {
        id: (*id).into(),
        family: if id.starts_with("span") { Family::Span } else { Family::UpConv7 },
        path: folder(id).into(),
    };
    packs.iter().map(model).collect()
}

/// A job's folder and its input.
struct Bench {
    root: TempDir,
}

impl Bench {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("job")).unwrap();
        Self { root }
    }

    fn work_dir(&self) -> PathBuf {
        self.root.path().join("job")
    }

    /// A request for `picture`, a file's bytes, with one model or, where several are given, any of them.
    fn run(&self, picture: &[u8], packs: &[&str], params: Params) -> Run {
        let input = self.root.path().join("input");
        fs::write(&input, picture).unwrap();
        Run {
            job: JobId::from_ulid(JOB.into()),
            attempt: 1,
            crashes: 0,
            kind: JobKind::Upscale,
            models: models(packs),
            model_given: packs.len() == 1,
            parts: Vec::new(),
            params,
            inputs: vec![input.into()],
            mask: None,
            work_dir: self.work_dir().into(),
            checkpoint_interval_ms: 3_600_000,
            output: OutputSpec { format: OutputFormat::Png, quality: 90, gps: GpsPolicy::Keep },
            max_pixels: 179_000_000,
        }
    }

    fn files(&self) -> Vec<String> {
        let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<_> = fs::read_dir(self.work_dir()).unwrap().map(name).collect();
        names.sort();
        names
    }
}

/// Reads the events on their way, and asks for a stop once a checkpoint of `stop_after` tiles has been told.
#[derive(Clone, Default)]
struct Daemon {
    seen: Arc<Mutex<(Decoder, Vec<Event>)>>,
    control: Arc<Control>,
    stop: Option<(Stop, u32)>,
}

impl io::Write for Daemon {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut seen = self.seen.lock().unwrap();
        seen.0.push(bytes);
        while let Some(event) = seen.0.next::<Event>().unwrap() {
            match (&event, self.stop) {
                (Event::Checkpointed { job, step }, Some((how, after))) if *step == after => {
                    self.control.stop(*job, how);
                }
                _ => {}
            }
            seen.1.push(event);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Ended {
    result: Result<Finished, JobError>,
    events: Vec<Event>,
}

impl Ended {
    fn finished(self) -> Finished {
        self.result.expect("an output")
    }

    fn refusal(self) -> (ErrorCode, String) {
        let info = self.result.expect_err("a refusal").info("cpu");
        (info.code, info.hint)
    }

    fn resumed_from(&self) -> Option<u32> {
        let started = |event: &Event| match event {
            Event::Started { resumed_from_step, .. } => Some(*resumed_from_step),
            _ => None,
        };
        self.events.iter().find_map(started).expect("it has started")
    }
}

fn work(run: &Run) -> Ended {
    work_until(run, None)
}

fn work_until(run: &Run, stop: Option<(Stop, u32)>) -> Ended {
    work_with(run, stop, &mut Cache::new(Device::Cpu, u64::MAX))
}

fn work_with(run: &Run, stop: Option<(Stop, u32)>, cache: &mut Cache) -> Ended {
    let _inference = InferenceMode::enter();
    let daemon = Daemon { stop, ..Daemon::default() };
    let outbox = Arc::new(Outbox::new(daemon.clone()));
    assert!(daemon.control.begin(run.job));
    let device = protocol::Device { name: "cpu".into(), threads: 2, ..protocol::Device::default() };
    let mut context = Context {
        control: daemon.control.clone(),
        cache,
        reporter: Reporter::new(outbox, run.job),
        device: &device,
        offload: protocol::Offload::Auto,
        on_step: None,
    };
    let result = upscale::run(run, &mut context);
    let events = daemon.seen.lock().unwrap().1.clone();
    Ended { result, events }
}

fn output(bench: &Bench, finished: &Finished) -> DynamicImage {
    image::open(bench.work_dir().join(&finished.outputs[0].file)).unwrap()
}

fn png(picture: impl Into<DynamicImage>) -> Vec<u8> {
    let mut bytes = io::Cursor::new(Vec::new());
    picture.into().write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

fn scale(scale: u32) -> Params {
    Params { scale: Some(scale), ..Params::default() }
}

/// The networks over the whole picture at once, one after the other.
fn untiled(picture: &image::RgbImage, packs: &[&str]) -> Vec<u8> {
    let _inference = InferenceMode::enter();
    let (width, height) = picture.dimensions();
    let values = picture.as_raw().iter().map(|&sample| f32::from(sample) / 255.0).collect::<Vec<_>>();
    let mut hidden = Tensor::from_slice(&values).view([1, height.into(), width.into(), 3]).permute([0, 3, 1, 2]);
    for pack in packs {
        let config = read_config(&folder(pack)).unwrap();
        let weights = Weights::open(&folder(pack).join("model.safetensors"), Device::Cpu).unwrap();
        let network = Network::load(&config, weights).unwrap();
        hidden = network.forward(&hidden, Margins::default()).unwrap().clamp(0.0, 1.0);
    }
    let samples = ((hidden * 255.0).round()).permute([0, 2, 3, 1]).contiguous().to_kind(tch::Kind::Uint8);
    Vec::try_from(samples.flatten(0, -1)).unwrap()
}

#[test]
fn tiles_leave_no_seams() {
    let cases: [(u32, u32, &[&str], u32); 4] = [
        (520, 40, &["span-x2"], 2),
        (40, 520, &["span-x2"], 2),
        (300, 270, &["waifu2x-photo"], 2),
        // waifu2x, then SPAN: the second network sees the first one's tiles.
        (270, 24, &["waifu2x-photo-denoise1", "span-x2"], 4),
    ];
    for (width, height, packs, factor) in cases {
        let picture = pictures::photo_like(width, height, 3);
        let bench = Bench::new();
        let params = match packs {
            [_] => scale(factor),
            _ => Params { denoise: Some(Denoise::Level(1)), ..scale(factor) },
        };
        let finished = work(&bench.run(&pictures::png(&picture), packs, params)).finished();
        let tiles = &finished.manifest["tiles"];
        assert!(tiles["columns"].as_u64().unwrap() * tiles["rows"].as_u64().unwrap() > 1, "{tiles}");
        let tiled = output(&bench, &finished).into_rgb8().into_raw();
        let whole = untiled(&picture, packs);
        assert_eq!(tiled.len(), whole.len());
        let largest = tiled.iter().zip(&whole).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        assert!(largest <= 1, "{packs:?} {width} x {height}: {largest}");
        let differing = tiled.iter().zip(&whole).filter(|(a, b)| a != b).count();
        // Only where rounding sits on the fence.
        assert!(differing * 1000 <= whole.len(), "{packs:?}: {differing} of {} samples differ", whole.len());
    }
}

#[test]
fn a_job_stopped_after_any_tile_goes_on_to_the_same_bytes() {
    let picture = pictures::png(&pictures::photo_like(1300, 16, 1));
    let bench = Bench::new();
    let undisturbed = work(&bench.run(&picture, &["span-x2"], scale(2))).finished();
    let expected = fs::read(bench.work_dir().join("output-0.png")).unwrap();
    assert_eq!(undisturbed.manifest["tiles"]["columns"], 6);

    let bench = Bench::new();
    let run = Run { checkpoint_interval_ms: 0, ..bench.run(&picture, &["span-x2"], scale(2)) };
    let mut before = None;
    for after in 1..=5 {
        let stopped = work_until(&run, Some((Stop::Checkpoint, after)));
        assert_eq!(stopped.resumed_from(), before);
        assert!(matches!(stopped.result, Err(JobError::Stopped { how: Stop::Checkpoint, step }) if step == after));
        assert_eq!(bench.files(), ["checkpoint.json", "rows.raw"]);
        before = Some(after);
    }
    // What lies behind the checkpoint is not trusted.
    let rows = bench.work_dir().join("rows.raw");
    let mut bytes = fs::read(&rows).unwrap();
    for (at, byte) in bytes.iter_mut().enumerate() {
        let x = at % (2600 * 3) / 3;
        // Five tiles of 217 pixels, twice as large.
        if x >= 5 * 217 * 2 {
            *byte ^= 0xFF;
        }
    }
    fs::write(&rows, bytes).unwrap();
    let ended = work(&run);
    assert_eq!(ended.resumed_from(), Some(5));
    let finished = ended.finished();
    assert!(fs::read(bench.work_dir().join("output-0.png")).unwrap() == expected, "other bytes");
    assert_eq!(finished.manifest, undisturbed.manifest);
    assert_eq!(bench.files(), ["finished.json", "output-0.png"]);
}

#[test]
fn a_cancelled_job_leaves_nothing() {
    let picture = pictures::png(&pictures::photo_like(600, 16, 1));
    let bench = Bench::new();
    let run = Run { checkpoint_interval_ms: 0, ..bench.run(&picture, &["span-x2"], scale(2)) };
    let ended = work_until(&run, Some((Stop::Cancel, 1)));
    assert!(matches!(ended.result, Err(JobError::Stopped { how: Stop::Cancel, step: 1 })));
    assert_eq!(bench.files(), Vec::<String>::new());
}

#[test]
fn a_checkpoint_whose_rows_have_gone_is_of_no_use() {
    let picture = pictures::png(&pictures::photo_like(600, 16, 1));
    let bench = Bench::new();
    let run = Run { checkpoint_interval_ms: 0, ..bench.run(&picture, &["span-x2"], scale(2)) };
    let _ = work_until(&run, Some((Stop::Checkpoint, 1)));
    fs::remove_file(bench.work_dir().join("rows.raw")).unwrap();
    let ended = work(&run);
    assert_eq!(ended.resumed_from(), None);
    ended.finished();
}

#[test]
fn grey_stays_grey_sixteen_bits_stay_and_alpha_grows_along() {
    let gray = GrayImage::from_fn(20, 14, |x, y| Luma([u8::try_from(40 + 6 * x + 5 * y).unwrap()]));
    let bench = Bench::new();
    let finished = work(&bench.run(&png(gray.clone()), &["span-x2"], scale(2))).finished();
    let DynamicImage::ImageLuma8(large) = output(&bench, &finished) else { panic!("not grey") };
    assert_eq!(large.dimensions(), (40, 28));
    assert!(large.get_pixel(20, 14)[0].abs_diff(gray.get_pixel(10, 7)[0]) < 12);

    // Between two steps of eight bits, so that a way through eight bits would show.
    let deep: ImageBuffer<Rgb<u16>, _> = ImageBuffer::from_pixel(12, 12, Rgb([30_000, 30_060, 30_120]));
    let bench = Bench::new();
    let mut run = bench.run(&png(deep), &["span-x2"], scale(2));
    let finished = work(&run).finished();
    let DynamicImage::ImageRgb16(large) = output(&bench, &finished) else { panic!("not 16 bits") };
    let middle = large.get_pixel(12, 12);
    assert!(middle.0.iter().any(|sample| sample % 257 != 0), "{middle:?} has passed through 8 bits");
    run.output.format = OutputFormat::Jpeg;
    let finished = work(&run).finished();
    assert!(matches!(output(&bench, &finished), DynamicImage::ImageRgb8(_)));

    let alpha = RgbaImage::from_fn(16, 12, |x, _| Rgba([200, 100, 50, if x < 8 { 255 } else { 0 }]));
    let bench = Bench::new();
    let finished = work(&bench.run(&png(alpha), &["span-x2"], scale(4))).finished();
    let DynamicImage::ImageRgba8(large) = output(&bench, &finished) else { panic!("no alpha") };
    assert_eq!(large.dimensions(), (64, 48));
    assert!((0..48).all(|y| large.get_pixel(4, y)[3] == 255 && large.get_pixel(60, y)[3] == 0));
    assert!((1..255).contains(&large.get_pixel(31, 20)[3]) || (1..255).contains(&large.get_pixel(32, 20)[3]));
}

#[test]
fn auto_measures_the_picture_and_records_what_it_found() {
    let clean = pictures::photo_like(160, 120, 2);
    let mut noisy = clean.clone();
    let mut state = 1_u32;
    for sample in noisy.iter_mut() {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let noise = i32::try_from(state >> 27).unwrap() - 16;
        *sample = u8::try_from((i32::from(*sample) + noise).clamp(0, 255)).unwrap();
    }
    let cases = [
        (pictures::png(&clean), "span-x2", "clean", serde_json::json!("off")),
        (pictures::jpeg(&clean, 50), "waifu2x-photo-denoise1", "compressed", 1.into()),
        (pictures::png(&noisy), "waifu2x-photo-denoise3", "noisy", 3.into()),
    ];
    for (picture, model, advice, denoise) in cases {
        let bench = Bench::new();
        let ended = work(&bench.run(&picture, &ALL, Params { seed: Some(5), ..Params::default() }));
        let started = ended.events.iter().find_map(|event| match event {
            Event::Started { model, .. } => Some(model.clone()),
            _ => None,
        });
        assert_eq!(started.as_deref(), Some(model));
        let finished = ended.finished();
        assert_eq!(finished.model, model);
        let manifest = &finished.manifest;
        assert_eq!(manifest["measurement"]["advice"], advice, "{manifest}");
        assert_eq!(manifest["params"]["denoise"], denoise);
        assert_eq!((&manifest["params"]["scale"], &manifest["params"]["seed"]), (&2.into(), &5.into()));
        assert_eq!(manifest["weights_sha256"].as_str().unwrap().len(), 64);
        assert_eq!(manifest["libtorch"], "2.13.0");
    }
}

#[test]
fn what_cannot_be_done_is_refused_before_any_work() {
    let bench = Bench::new();
    let picture = pictures::png(&pictures::photo_like(24, 16, 1));
    let run = bench.run(&picture, &["span-x4"], scale(2));
    let (code, hint) = work(&run).refusal();
    assert_eq!((code, hint.contains("scale = 4")), (ErrorCode::InvalidParams, true), "{hint}");

    let (code, _) = work(&bench.run(&picture, &["span-x2"], scale(3))).refusal();
    assert_eq!(code, ErrorCode::InvalidParams);

    let denoise = Params { denoise: Some(Denoise::Level(2)), ..Params::default() };
    let (code, _) = work(&bench.run(&picture, &["span-x2", "span-x4"], denoise)).refusal();
    assert_eq!(code, ErrorCode::KindNotSupported);

    let mut two = bench.run(&picture, &["span-x2"], scale(2));
    two.inputs.push(two.inputs[0].clone());
    assert_eq!(work(&two).refusal().0, ErrorCode::InvalidParams);

    let wide = pictures::png(&pictures::photo_like(8200, 1, 1));
    let mut webp = bench.run(&wide, &["span-x2"], scale(2));
    webp.output.format = OutputFormat::Webp;
    let (code, hint) = work(&webp).refusal();
    assert_eq!((code, hint.contains("png")), (ErrorCode::InvalidParams, true), "{hint}");
    assert_eq!(bench.files(), Vec::<String>::new());
}

#[test]
fn a_damaged_model_is_left_out_where_others_do_and_fails_the_job_where_it_was_asked_for() {
    let bench = Bench::new();
    let picture = pictures::png(&pictures::photo_like(24, 16, 1));
    let broken = bench.root.path().join("broken");
    fs::create_dir(&broken).unwrap();
    fs::write(broken.join("config.json"), "{").unwrap();
    let broken = ModelRef { id: "broken".into(), family: Family::Span, path: broken.into() };

    let mut run = bench.run(&picture, &["span-x2"], scale(2));
    run.models.insert(0, broken.clone());
    run.model_given = false;
    assert_eq!(work(&run).finished().model, "span-x2");
    run.models = vec![broken];
    assert_eq!(work(&run).refusal().0, ErrorCode::ModelIncomplete);
}

#[test]
fn a_budget_for_one_model_holds_one_model_and_tells_of_every_change() {
    let bench = Bench::new();
    let picture = pictures::png(&pictures::photo_like(24, 16, 1));
    let mut cache = Cache::new(Device::Cpu, 2_000_000);
    let loaded = |ended: &Ended| -> Vec<Vec<String>> {
        let names = |event: &Event| match event {
            Event::Models { loaded } => Some(loaded.iter().map(|model| model.id.clone()).collect()),
            _ => None,
        };
        ended.events.iter().filter_map(names).collect()
    };
    let span = bench.run(&picture, &["span-x2"], scale(2));
    assert_eq!(loaded(&work_with(&span, None, &mut cache)), [["span-x2"]]);
    let span4 = bench.run(&picture, &["span-x4"], scale(4));
    assert_eq!(loaded(&work_with(&span4, None, &mut cache)), [["span-x4"]]);
    let waifu2x = bench.run(&picture, &["waifu2x-photo"], scale(2));
    let (code, hint) = work_with(&waifu2x, None, &mut cache).refusal();
    assert_eq!((code, hint.contains("worker.memory_budget")), (ErrorCode::OutOfMemory, true), "{hint}");
}

#[test]
fn every_embedded_pack_loads() {
    let mut found: Vec<_> = fs::read_dir(folder("span-x2").parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("config.json").exists())
        .collect();
    found.sort();
    let names: Vec<_> = found.iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    assert_eq!(names, ALL);
    for path in found {
        let config = read_config(&path).unwrap();
        let weights = Weights::open(&path.join("model.safetensors"), Device::Cpu).unwrap();
        Network::load(&config, weights).unwrap_or_else(|error| panic!("{error}"));
        if let Config::UpConv7(config) = config {
            let level = path.to_str().unwrap().rsplit_once("denoise").map(|(_, level)| level.parse().unwrap());
            assert_eq!(config.denoise, level);
        }
    }
}

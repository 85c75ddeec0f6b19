//! A recorded case: the folder of a tiny model, the job that diffusers ran on it, and the tensors it recorded.
//!
//! Names of tensors, for the call `i` of a component: `text_encoder.i.in.0` (positional arguments by number, others by
//! name), `text_encoder.i.out.0`, `unet.i.in.…`, `unet.i.out.0`, `vae.encode.i.{in,mean,logvar}`, `vae.decode.i.{in,out}`,
//! for the step `i` of the sampler `step.i.{t,model_output,sample,prev}`, and `final`: the pictures `(B, H, W, 3)` in 0..1.

#![allow(dead_code, unreachable_pub, reason = "shared by files of tests; a case holds more than each of them reads")]

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::{Value, json};
use tch::{Kind, Tensor};

/// Of a tensor's largest absolute value. For every component, in f32 on the CPU.
pub const TOLERANCE: f64 = 1e-4;
/// Of the range 0 to 1, in the finished picture. A little more than one step of 8 bits for the sake of rounding.
pub const PICTURE_TOLERANCE: f64 = 1.001 / 255.0;

/// What diffusers was asked to do, in Atelier's words. Paths are relative to the case's folder.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// The class of the pipeline in diffusers.
    pub pipeline: String,
    /// For people, in the table of `docs/MODELS.md`.
    pub family: String,
    /// `generate`, `edit`, `inpaint` or `control`.
    pub kind: String,
    /// The model's folder.
    pub model: PathBuf,
    /// The folder of the ControlNet, where there is one: `config.json` and its weights.
    pub controlnet: Option<PathBuf>,
    /// The job's parameters.
    pub params: Value,
    #[serde(default)]
    pub inputs: Vec<PathBuf>,
    pub mask: Option<PathBuf>,
    /// The folders of the LoRAs that `params` names.
    #[serde(default)]
    pub loras: BTreeMap<String, PathBuf>,
    /// The case whose recording holds for this one too.
    recording: Option<PathBuf>,
    /// Tensors equal to another, and that one's name.
    #[serde(default)]
    aliases: BTreeMap<String, String>,
}

pub struct Fixture {
    pub name: String,
    folder: PathBuf,
    job: Option<Job>,
    tensors: BTreeMap<String, Tensor>,
}

/// The folder of all cases: the committed ones, or `ATELIER_PARITY_DIR`.
pub fn root() -> PathBuf {
    std::env::var_os("ATELIER_PARITY_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity"), PathBuf::from)
}

impl Fixture {
    /// The case of this name. Panics where it is missing or damaged: a test without its fixture has not passed.
    pub fn open(name: &str) -> Self {
        Self::read(&root().join(name))
    }

    /// All cases whose recording holds a call of this component, such as `unet` or `vae.decode`. Never none of them.
    pub fn with(component: &str) -> Vec<Self> {
        let mut cases = Self::all();
        cases.retain(|case| case.calls(component) > 0);
        assert!(!cases.is_empty(), "{}: no case holds a call of {component}", root().display());
        cases
    }

    /// All cases, by name. Never none.
    pub fn all() -> Vec<Self> {
        let root = root();
        let entries = fs::read_dir(&root).unwrap_or_else(|error| panic!("{}: {error}", root.display()));
        let mut folders: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        folders.retain(|folder| folder.join("job.json").is_file() || folder.join("parity.safetensors").is_file());
        folders.sort();
        assert!(!folders.is_empty(), "{}: holds no case", root.display());
        folders.iter().map(|folder| Self::read(folder)).collect()
    }

    /// A case without recorded tensors, to compare what a test finds elsewhere.
    pub fn of(name: &str, folder: &Path) -> Self {
        Self { name: name.into(), folder: folder.into(), job: None, tensors: BTreeMap::new() }
    }

    /// The case in this folder.
    pub fn read(folder: &Path) -> Self {
        let path = folder.join("job.json");
        let job: Option<Job> = fs::read(&path)
            .ok()
            .map(|text| serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display())));
        let recording = job.as_ref().and_then(|job| job.recording.as_deref()).unwrap_or_else(|| Path::new("."));
        let path = folder.join(recording).join("parity.safetensors");
        let tensors = Tensor::read_safetensors(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut tensors: BTreeMap<String, Tensor> = tensors.into_iter().collect();
        for (alias, name) in job.iter().flat_map(|job| &job.aliases) {
            let tensor = tensors.get(name).unwrap_or_else(|| panic!("{}: no tensor {name}", path.display()));
            tensors.insert(alias.clone(), tensor.shallow_clone());
        }
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        Self { name, folder: folder.into(), job, tensors }
    }

    /// The same recording under another name, for a folder that holds the model in another layout.
    pub fn named(mut self, name: &str) -> Self {
        self.name = name.into();
        self
    }

    pub fn job(&self) -> &Job {
        self.job.as_ref().unwrap_or_else(|| panic!("{}: job.json is missing", self.folder.display()))
    }

    /// A file or folder that the job names.
    pub fn path(&self, relative: &Path) -> PathBuf {
        self.folder.join(relative)
    }

    /// The model's folder. A case without `job.json` is its own model, as diffusers saves it.
    pub fn model(&self) -> PathBuf {
        self.job.as_ref().map_or_else(|| self.folder.clone(), |job| self.path(&job.model))
    }

    /// The folder of one component; the ControlNet may have a folder of its own.
    pub fn component(&self, name: &str) -> PathBuf {
        match self.job.as_ref().and_then(|job| job.controlnet.as_deref()) {
            Some(path) if name == "controlnet" => self.path(path),
            _ => self.model().join(name),
        }
    }

    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    pub fn tensor(&self, name: &str) -> Tensor {
        let tensor = self.tensors.get(name).unwrap_or_else(|| {
            let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
            let near: Vec<&str> = self.names().filter(|other| other.starts_with(stem)).collect();
            panic!("{}: no tensor {name}; there are {near:?}", self.name)
        });
        tensor.shallow_clone()
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// How many calls of a component were recorded: those from 0 up.
    pub fn calls(&self, component: &str) -> usize {
        (0..1000_u32)
            .take_while(|call| self.names().any(|name| name.starts_with(&format!("{component}.{call}."))))
            .count()
    }

    /// Holds `got` to the recorded tensor `name`.
    pub fn check(&self, name: &str, got: &Tensor) {
        self.compare(name, got, &self.tensor(name), TOLERANCE);
    }

    /// Holds `got` to `want`, which was recorded in another way or computed from what was.
    pub fn compare(&self, name: &str, got: &Tensor, want: &Tensor, tolerance: f64) {
        let (worst, at) = largest_difference(&self.name, name, got, want);
        let scale = want.to_kind(Kind::Double).abs().max().double_value(&[]).max(f64::MIN_POSITIVE);
        self.verdict(name, worst / scale, tolerance, &at);
    }

    /// Holds finished pictures, `(B, H, W, 3)` in 0..1, to the recorded ones.
    pub fn check_pictures(&self, got: &Tensor) {
        let (worst, at) = largest_difference(&self.name, "final", got, &self.tensor("final"));
        self.verdict("final", worst, PICTURE_TOLERANCE, &at);
    }

    /// Holds one finished picture of 8 bits to the recorded one, rounded as Pillow's users round.
    pub fn check_rgb8(&self, index: i64, width: u32, height: u32, pixels: &[u8]) {
        let shape = [i64::from(height), i64::from(width), 3];
        let got = Tensor::f_from_data_size(pixels, &shape, Kind::Uint8).unwrap().to_kind(Kind::Float);
        let want = (self.tensor("final").get(index) * 255.0).round();
        let (worst, at) = largest_difference(&self.name, "final", &got, &want);
        self.verdict("final", worst / 255.0, PICTURE_TOLERANCE, &at);
    }

    /// Holds tokens that were written to those of the reference: every one, and no more.
    pub fn check_tokens(&self, name: &str, got: &[i64], want: &[i64]) {
        let others = got.iter().zip(want).filter(|(got, want)| got != want).count() + got.len().abs_diff(want.len());
        let others = f64::from(u32::try_from(others).unwrap());
        self.verdict(name, others, 0.0, &format!("tokens {got:?} stand for {want:?}"));
    }

    fn verdict(&self, name: &str, worst: f64, tolerance: f64, at: &str) {
        eprintln!("{} {name}: worst difference {worst:.2e} of {tolerance:.0e} allowed", self.name);
        self.note(name, worst, tolerance);
        // A NaN is below nothing.
        assert!(worst <= tolerance, "{} {name}: differs by {worst:.3e}, {tolerance:.0e} is allowed; {at}", self.name);
    }

    /// Adds a line to the report, where one is asked for. Each process has a file of its own.
    fn note(&self, name: &str, worst: f64, tolerance: f64) {
        let Some(folder) = std::env::var_os("ATELIER_PARITY_REPORT").map(PathBuf::from) else { return };
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join(format!("{}.jsonl", std::process::id()));
        let mut file = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        let line = json!({ "case": self.name, "tensor": name, "worst": worst, "tolerance": tolerance });
        file.write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}

/// The largest absolute difference, and where it is, in words.
fn largest_difference(case: &str, name: &str, got: &Tensor, want: &Tensor) -> (f64, String) {
    assert_eq!(got.size(), want.size(), "{case} {name}: the shape");
    assert!(want.numel() > 0, "{case} {name}: an empty tensor shows nothing");
    let (got, want) = (got.to_kind(Kind::Double).reshape([-1]), want.to_kind(Kind::Double).reshape([-1]));
    let difference = (&got - &want).abs();
    // `max` gives NaN where there is one, and argmax its place.
    let index = difference.argmax(0, false).int64_value(&[]);
    let place = |tensor: &Tensor| tensor.double_value(&[index]);
    let at = format!("at element {index} {} stands for {}", place(&got), place(&want));
    (difference.max().double_value(&[]), at)
}

mod tests {
    use super::*;

    fn case(tensors: &[(&str, Tensor)]) -> Fixture {
        let tensors = tensors.iter().map(|(name, tensor)| ((*name).to_owned(), tensor.shallow_clone())).collect();
        Fixture { name: "case".into(), folder: "folder".into(), job: None, tensors }
    }

    fn row() -> Tensor {
        Tensor::from_slice(&[100.0_f32, -200.0, 0.0])
    }

    #[test]
    fn every_case_is_whole() {
        for case in Fixture::all() {
            let Some(job) = &case.job else { continue };
            assert!(case.model().join("model_index.json").is_file(), "{}: {}", case.name, case.model().display());
            let mut files: Vec<PathBuf> = job.inputs.iter().chain(&job.mask).map(|path| case.path(path)).collect();
            files.extend(job.controlnet.iter().map(|path| case.path(path).join("config.json")));
            files.extend(job.loras.values().map(|path| case.path(path).join("pytorch_lora_weights.safetensors")));
            for file in files {
                assert!(file.is_file(), "{}: {}", case.name, file.display());
            }
            let used = job.params["loras"].as_array().map_or(0, Vec::len);
            assert_eq!(used, job.loras.len(), "{}", case.name);
            let pictures = case.tensor("final").size4().unwrap();
            assert_eq!(job.params["num_images"].as_i64().unwrap_or(1), pictures.0, "{}", case.name);
            let steps = (0..1000_u32).take_while(|step| case.has(&format!("step.{step}.prev"))).count();
            assert!(steps > 0 && pictures.3 == 3, "{}: {steps} steps, {pictures:?}", case.name);
        }
    }

    #[test]
    fn a_difference_is_measured_against_the_largest_value() {
        let case = case(&[("unet.0.out.0", row()), ("unet.1.out.0", row()), ("vae.decode.0.out", row())]);
        case.check("unet.0.out.0", &(row() + 0.019));
        assert_eq!((case.calls("unet"), case.calls("vae.decode"), case.calls("vae.encode")), (2, 1, 0));
        assert!(case.has("unet.1.out.0") && !case.has("unet.2.out.0"));
        assert_eq!(case.component("unet"), Path::new("folder/unet"));
    }

    #[test]
    #[should_panic(expected = "case x: differs by 1.050e-4, 1e-4 is allowed")]
    fn a_larger_difference_fails() {
        case(&[("x", row())]).check("x", &(row() + 0.021));
    }

    #[test]
    #[should_panic(expected = "differs by NaN")]
    fn not_a_number_fails() {
        case(&[("x", row())]).check("x", &Tensor::from_slice(&[100.0_f32, f32::NAN, 0.0]));
    }

    #[test]
    #[should_panic(expected = "case x: the shape")]
    fn another_shape_fails() {
        case(&[("x", row())]).check("x", &row().unsqueeze(0));
    }

    #[test]
    #[should_panic(expected = "no tensor unet.0.out.1; there are [\"unet.0.out.0\"]")]
    fn a_missing_tensor_fails_and_names_its_neighbours() {
        case(&[("unet.0.out.0", row())]).check("unet.0.out.1", &row());
    }

    #[test]
    fn tokens_are_the_same_to_the_last() {
        case(&[]).check_tokens("text.greedy", &[3, 1], &[3, 1]);
    }

    #[test]
    #[should_panic(
        expected = "case text.greedy: differs by 2.000e0, 0e0 is allowed; tokens [3, 1] stand for [3, 2, 4]"
    )]
    fn another_token_and_a_missing_one_fail() {
        case(&[]).check_tokens("text.greedy", &[3, 1], &[3, 2, 4]);
    }

    #[test]
    fn a_picture_may_differ_by_one_step_of_8_bits() {
        let wanted = Tensor::from_slice(&[0.0_f32, 0.5, 1.0]).reshape([1, 1, 1, 3]);
        let case = case(&[("final", wanted.shallow_clone())]);
        case.check_pictures(&(wanted + 1.0 / 255.0));
        case.check_rgb8(0, 1, 1, &[1, 128, 254]);
    }

    #[test]
    #[should_panic(expected = "case final: differs by 7.843e-3")]
    fn a_picture_may_not_differ_by_two() {
        case(&[("final", Tensor::zeros([1, 1, 1, 3], (Kind::Float, tch::Device::Cpu)))]).check_rgb8(
            0,
            1,
            1,
            &[0, 2, 0],
        );
    }
}

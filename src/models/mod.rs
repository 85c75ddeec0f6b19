//! Which models are installed: folders that hold a `config.json` or `model_index.json`, and LoRAs.
//!
//! Reads names, small JSON files and sizes only; weights are the worker's business.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use atelier_domain::{JobKind, model::Family};

mod hf_cache;
mod inspect;

pub use hf_cache::expected_sha256;
use inspect::{inspect, lora};

/// A folder that describes a model, complete or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstalledModel {
    /// The folder's name; for `ORG/NAME` folders both parts.
    pub id: String,
    /// `None`: a class that this version does not run.
    pub family: Option<Family>,
    pub class_name: Option<String>,
    pub kinds: Vec<JobKind>,
    pub path: PathBuf,
    pub origin: Origin,
    pub bytes: u64,
    /// Why it cannot be used, in words.
    pub problem: Option<String>,
}

/// Whose a model's files are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Came with Atelier.
    Embedded,
    /// Somebody put or pulled it into a models directory.
    Folder,
    /// Hugging Face's programs keep it; it is only read.
    HfCache,
}

impl Origin {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Folder => "folder",
            Self::HfCache => "hf_cache",
        }
    }
}

/// The models that come with Atelier.
const EMBEDDED: [&str; 10] = [
    "span-x2",
    "span-x2-ch52",
    "span-x4",
    "span-x4-ch52",
    "tiny-edit",
    "waifu2x-photo",
    "waifu2x-photo-denoise0",
    "waifu2x-photo-denoise1",
    "waifu2x-photo-denoise2",
    "waifu2x-photo-denoise3",
];

impl InstalledModel {
    pub fn is_complete(&self) -> bool {
        self.problem.is_none()
    }
}

/// All installed models, as last looked at.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    models: BTreeMap<String, InstalledModel>,
}

impl Registry {
    /// Looks into `dirs`, one and two levels deep, and for LoRAs into their `loras/`. The first folder of a name wins,
    /// in the order of `dirs`.
    pub fn scan(dirs: &[PathBuf]) -> Self {
        let mut models = BTreeMap::new();
        for dir in dirs {
            for (name, path) in lora_files(&dir.join(LORAS)) {
                models.entry(name.clone()).or_insert_with(|| lora(&name, &path));
            }
            for (name, path) in sub_folders(dir).into_iter().filter(|(name, _)| name != LORAS) {
                if hf_cache::is_of_a_cache(&name) {
                    if let Some(model) = hf_cache::model(&name, &path) {
                        models.entry(model.id.clone()).or_insert(model);
                    }
                    continue;
                }
                if let Some(model) = inspect(&name, &path) {
                    models.entry(name).or_insert(model);
                    continue;
                }
                for (inner, path) in sub_folders(&path) {
                    let id = format!("{name}/{inner}");
                    if let Some(model) = inspect(&id, &path) {
                        models.entry(id).or_insert(model);
                    }
                }
            }
        }
        Self { models }
    }

    pub fn list(&self) -> impl Iterator<Item = &InstalledModel> {
        self.models.values()
    }

    pub fn get(&self, id: &str) -> Option<&InstalledModel> {
        self.models.get(id)
    }

    /// Complete models of a family, by name.
    pub fn of_family(&self, family: Family) -> impl Iterator<Item = &InstalledModel> {
        self.models.values().filter(move |model| model.is_complete() && model.family == Some(family))
    }

    /// Complete models that serve `kind`, by name.
    pub fn serving(&self, kind: JobKind) -> impl Iterator<Item = &InstalledModel> {
        self.models.values().filter(move |model| model.is_complete() && model.kinds.contains(&kind))
    }
}

/// What the folder `path` is, under the name `id`; `None` where nothing says that it is a model.
pub fn inspect_folder(id: &str, path: &Path) -> Option<InstalledModel> {
    inspect(id, path)
}

/// Below a models directory: single files of LoRA weights.
const LORAS: &str = "loras";

fn lora_files(dir: &Path) -> Vec<(String, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors") && path.is_file())
        .filter_map(|path| Some((path.file_stem()?.to_str()?.to_owned(), path)))
        .filter(|(name, _)| !name.starts_with('.'))
        .collect()
}

fn sub_folders(dir: &Path) -> Vec<(String, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    entries
        .filter_map(Result::ok)
        .filter(|entry| entry.path().is_dir())
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
        .filter(|(name, _)| !name.starts_with('.'))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_models_that_come_along_are_known_by_name() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
        let registry = Registry::scan(&[dir]);
        let ids: Vec<_> = registry.list().map(|model| (model.id.as_str(), model.origin)).collect();
        assert_eq!(ids, EMBEDDED.map(|id| (id, Origin::Embedded)));
    }

    #[test]
    fn a_folder_tells_what_it_is_and_what_it_lacks() {
        let dir = tempfile::tempdir().expect("temp dir");
        let put = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
            std::fs::write(path, text).expect("write");
        };
        put("good/config.json", r#"{"_class_name":"SPAN"}"#);
        put("good/model.safetensors", "12345");
        put("org/half/config.json", r#"{"_class_name":"SPAN"}"#);
        put("other/model_index.json", r#"{"_class_name":"WhateverPipeline"}"#);
        put("broken/config.json", "{");
        put("nothing/readme.txt", "");
        put("loras/film.safetensors", "123");
        put("org/tuned/pytorch_lora_weights.safetensors", "1");
        put(".hidden/config.json", r#"{"_class_name":"SPAN"}"#);

        let registry = Registry::scan(&[dir.path().to_owned(), dir.path().join("absent")]);
        let ids: Vec<_> = registry.list().map(|m| m.id.as_str()).collect();
        assert_eq!(ids, ["broken", "film", "good", "org/half", "org/tuned", "other"]);
        assert_eq!(registry.get("good").expect("good").bytes, 27);
        assert_eq!(registry.serving(JobKind::Upscale).map(|m| m.id.as_str()).collect::<Vec<_>>(), ["good"]);
        let problem = |id: &str| registry.get(id).and_then(|m| m.problem.clone()).unwrap_or_default();
        assert_eq!(problem("org/half"), "model.safetensors is missing");
        assert!(problem("other").contains("WhateverPipeline"));
        assert!(problem("broken").contains("config.json"));
    }

    #[test]
    fn a_folder_of_transformers_is_known_by_its_architecture() {
        let dir = tempfile::tempdir().expect("temp dir");
        let put = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
            std::fs::write(path, text).expect("write");
        };
        put(
            "org/llava/config.json",
            r#"{"model_type":"llava_next","architectures":["LlavaNextForConditionalGeneration"]}"#,
        );
        put("org/llava/model.safetensors.index.json", r#"{"weight_map":{"a":"model-1.safetensors"}}"#);
        put("org/llava/model-1.safetensors", "");
        put("org/bert/config.json", r#"{"architectures":["BertModel"]}"#);
        let problem = |id: &str| {
            let registry = Registry::scan(&[dir.path().to_owned()]);
            registry.get(id).expect("seen").problem.clone().unwrap_or_default()
        };
        assert_eq!(problem("org/llava"), "tokenizer.json is missing; preprocessor_config.json is missing");
        put("org/llava/vocab.json", "{}");
        assert_eq!(problem("org/llava"), "merges.txt is missing; preprocessor_config.json is missing");
        put("org/llava/tokenizer.json", "{}");
        put("org/llava/preprocessor_config.json", "{}");
        assert_eq!(problem("org/llava"), "");
        let registry = Registry::scan(&[dir.path().to_owned()]);
        assert_eq!(registry.serving(JobKind::Caption).map(|m| m.id.as_str()).collect::<Vec<_>>(), ["org/llava"]);
        assert!(problem("org/bert").contains("BertModel is not a class"));
    }

    /// An InstructPix2Pix folder that has everything, with files of no content.
    fn pix2pix(root: &Path) {
        let put = |path: &str, text: &str| {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
            std::fs::write(path, text).expect("write");
        };
        put(
            "model_index.json",
            r#"{"_class_name":"StableDiffusionInstructPix2PixPipeline","safety_checker":[null,null],
                "unet":["diffusers","UNet2DConditionModel"],"vae":["diffusers","AutoencoderKL"],
                "text_encoder":["transformers","CLIPTextModel"],"tokenizer":["transformers","CLIPTokenizer"],
                "scheduler":["diffusers","EulerDiscreteScheduler"]}"#,
        );
        put("unet/config.json", r#"{"_class_name":"UNet2DConditionModel"}"#);
        put("unet/diffusion_pytorch_model.safetensors.index.json", r#"{"weight_map":{"a":"part-1.safetensors"}}"#);
        put("unet/part-1.safetensors", "");
        put("vae/config.json", "{}");
        put("vae/diffusion_pytorch_model.fp16.safetensors", "");
        put("text_encoder/config.json", "{}");
        put("text_encoder/model.safetensors", "");
        put("tokenizer/vocab.json", "{}");
        put("tokenizer/merges.txt", "");
        put("scheduler/scheduler_config.json", r#"{"_class_name":"EulerDiscreteScheduler"}"#);
    }

    fn problem_after(change: impl FnOnce(&Path)) -> String {
        let dir = tempfile::tempdir().expect("temp dir");
        let root = dir.path().join("org/p2p");
        pix2pix(&root);
        change(&root);
        let registry = Registry::scan(&[dir.path().to_owned()]);
        registry.get("org/p2p").expect("seen").problem.clone().unwrap_or_default()
    }

    #[test]
    fn a_pipelines_folder_is_complete_when_every_part_is_there() {
        assert_eq!(problem_after(|_| {}), "");
        let dir = tempfile::tempdir().expect("temp dir");
        pix2pix(&dir.path().join("p2p"));
        let registry = Registry::scan(&[dir.path().to_owned()]);
        let model = registry.get("p2p").expect("seen");
        assert_eq!((model.family, model.kinds.as_slice()), (Some(Family::InstructPix2Pix), [JobKind::Edit].as_slice()));
    }

    #[test]
    fn what_a_pipelines_folder_lacks_is_named() {
        let remove = |name: &'static str| move |root: &Path| std::fs::remove_file(root.join(name)).expect("removed");
        let cases: [(String, &str); 6] = [
            (problem_after(remove("unet/part-1.safetensors")), "unet/part-1.safetensors is missing"),
            (
                problem_after(remove("vae/diffusion_pytorch_model.fp16.safetensors")),
                "vae/diffusion_pytorch_model.safetensors is missing",
            ),
            (problem_after(remove("tokenizer/merges.txt")), "tokenizer/merges.txt is missing"),
            (problem_after(remove("scheduler/scheduler_config.json")), "scheduler/scheduler_config.json is missing"),
            (
                problem_after(|root| std::fs::remove_dir_all(root.join("text_encoder")).expect("removed")),
                "the folder text_encoder is missing",
            ),
            (
                problem_after(|root| {
                    let index = std::fs::read_to_string(root.join("model_index.json")).expect("read");
                    let index = index.replace("UNet2DConditionModel", "UNet3DConditionModel");
                    std::fs::write(root.join("model_index.json"), index).expect("written");
                }),
                "unet is a UNet3DConditionModel, which this version does not run",
            ),
        ];
        for (problem, expected) in cases {
            assert!(problem.contains(expected), "{problem:?} does not say {expected:?}");
        }
    }

    /// Stable Diffusion 3's folder with these parts in it.
    fn stable_diffusion_3(root: &Path, parts: &[&str]) {
        let put = |name: String, text: &str| {
            let path = root.join(name);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("folder");
            std::fs::write(path, text).expect("file");
        };
        put(
            "model_index.json".into(),
            r#"{"_class_name":"StableDiffusion3Pipeline",
               "text_encoder":["transformers","CLIPTextModelWithProjection"],
               "text_encoder_2":["transformers","CLIPTextModelWithProjection"],
               "text_encoder_3":["transformers","T5EncoderModel"],
               "tokenizer":["transformers","CLIPTokenizer"],"tokenizer_2":["transformers","CLIPTokenizer"],
               "tokenizer_3":["transformers","T5TokenizerFast"],
               "transformer":["diffusers","SD3Transformer2DModel"],"vae":["diffusers","AutoencoderKL"],
               "scheduler":["diffusers","FlowMatchEulerDiscreteScheduler"]}"#,
        );
        put("scheduler/scheduler_config.json".into(), "{}");
        for part in parts {
            put(format!("{part}/config.json"), "{}");
            put(format!("{part}/model.safetensors"), "");
            put(format!("{part}/diffusion_pytorch_model.safetensors"), "");
            put(format!("{part}/tokenizer.json"), "{}");
        }
    }

    #[test]
    fn a_folder_may_do_without_a_part_that_is_not_needed_but_not_with_half_of_it() {
        const NEEDED: [&str; 6] = ["text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "transformer", "vae"];
        let dir = tempfile::tempdir().expect("temp dir");
        stable_diffusion_3(&dir.path().join("without"), &NEEDED);
        stable_diffusion_3(&dir.path().join("whole"), &[&NEEDED[..], &["text_encoder_3", "tokenizer_3"]].concat());
        stable_diffusion_3(&dir.path().join("half"), &NEEDED);
        std::fs::create_dir(dir.path().join("half/text_encoder_3")).expect("folder");
        stable_diffusion_3(&dir.path().join("less"), &NEEDED[1..]);
        let registry = Registry::scan(&[dir.path().to_owned()]);
        let problem = |id: &str| registry.get(id).expect("seen").problem.clone().unwrap_or_default();
        assert_eq!((problem("without"), problem("whole")), (String::new(), String::new()));
        assert!(problem("half").contains("text_encoder_3/config.json is missing"), "{}", problem("half"));
        assert!(problem("less").contains("the folder text_encoder is missing"), "{}", problem("less"));
    }

    #[test]
    fn a_gguf_file_takes_the_place_of_a_transformers_weights_and_of_no_others() {
        const NEEDED: [&str; 6] = ["text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "transformer", "vae"];
        const WEIGHTS: &str = "transformer/diffusion_pytorch_model.safetensors";
        let problem_after = |change: &dyn Fn(&Path)| {
            let dir = tempfile::tempdir().expect("temp dir");
            let root = dir.path().join("sd3");
            stable_diffusion_3(&root, &NEEDED);
            change(&root);
            let registry = Registry::scan(&[dir.path().to_owned()]);
            registry.get("sd3").expect("seen").problem.clone().unwrap_or_default()
        };
        let rename =
            |root: &Path, from: &str, to: &str| std::fs::rename(root.join(from), root.join(to)).expect("renamed");
        assert_eq!(problem_after(&|root| rename(root, WEIGHTS, "transformer/sd3-Q4_K_M.gguf")), "");
        let both = problem_after(&|root| std::fs::write(root.join("transformer/a.gguf"), "").expect("written"));
        assert!(both.contains("transformer/a.gguf and transformer/diffusion_pytorch_model.safetensors"), "{both}");
        let two = problem_after(&|root| {
            rename(root, WEIGHTS, "transformer/b.gguf");
            std::fs::write(root.join("transformer/a.gguf"), "").expect("written");
        });
        assert!(two.contains("transformer/a.gguf and transformer/b.gguf") && two.contains("only one"), "{two}");
        let encoder = problem_after(&|root| rename(root, "text_encoder/model.safetensors", "text_encoder/clip.gguf"));
        assert!(encoder.contains("text_encoder/clip.gguf is not read"), "{encoder}");
    }

    #[test]
    fn pickled_weights_are_named_for_what_they_are() {
        let problem = problem_after(|root| {
            std::fs::remove_file(root.join("text_encoder/model.safetensors")).expect("removed");
            std::fs::write(root.join("text_encoder/pytorch_model.bin"), "").expect("written");
        });
        assert!(problem.contains("safetensors") && problem.contains("pytorch_model.bin"), "{problem}");
    }
}

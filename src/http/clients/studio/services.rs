//! Which installed model serves a route, and what is to be said where none does.

use atelier_domain::JobKind;

use super::super::{
    super::{problem::Problem, status::HttpCode},
    pick,
};
use crate::models::{InstalledModel, Registry};

/// A route of the old service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Service {
    /// The part of the path before the model: `generate`.
    pub(super) group: &'static str,
    /// The last part of the path, and what a model's folder is called by: `sdxl`.
    pub(super) name: &'static str,
    pub(super) kind: JobKind,
    /// Classes of models that are meant.
    classes: &'static [&'static str],
    /// Where such a model is to be had.
    pub(super) hub: &'static str,
}

macro_rules! services {
    ($($group:literal $name:literal $kind:ident $classes:expr, $hub:literal;)+) => {
        pub(super) const SERVICES: &[Service] = &[$(
            Service { group: $group, name: $name, kind: JobKind::$kind, classes: &$classes, hub: $hub },
        )+];
    };
}

services! {
    "generate" "flux" Generate ["FluxPipeline"], "black-forest-labs/FLUX.1-schnell";
    "generate" "sdxl" Generate ["StableDiffusionXLPipeline"], "stabilityai/stable-diffusion-xl-base-1.0";
    "generate" "sd3" Generate ["StableDiffusion3Pipeline"], "stabilityai/stable-diffusion-3-medium-diffusers";
    "generate" "pony" Generate ["AuraFlowPipeline"], "purplesmartai/pony-v7-base";
    "caption" "llava" Caption ["LlavaNextForConditionalGeneration"], "llava-hf/llava-v1.6-mistral-7b-hf";
    "caption" "blip" Caption ["Blip2ForConditionalGeneration"], "Salesforce/blip2-opt-2.7b";
    "caption" "qwen" Caption ["Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"], "Qwen/Qwen2-VL-2B-Instruct";
    "controlnet" "mistoline" Control ["ControlNetModel", "StableDiffusionXLControlNetPipeline"], "TheMistoAI/MistoLine";
    "controlnet" "union" Control ["ControlNetUnionModel", "ControlNetModel_Union", "StableDiffusionXLControlNetUnionPipeline"],
        "xinsir/controlnet-union-sdxl-1.0";
    "video" "svd" Video ["StableVideoDiffusionPipeline"], "stabilityai/stable-video-diffusion-img2vid-xt";
    "video" "animatediff" Video ["AnimateDiffPipeline"], "ByteDance/AnimateDiff-Lightning";
    "video" "wan21" Video ["WanPipeline", "WanImageToVideoPipeline"], "Wan-AI/Wan2.1-T2V-1.3B-Diffusers";
    "talking-head" "infinitetalk" TalkingHead ["InfiniteTalkPipeline"], "MeiGen-AI/InfiniteTalk";
}

impl Service {
    /// The service of a route.
    pub(super) fn of(group: &str, name: &str) -> Result<Self, Problem> {
        let of_group = || SERVICES.iter().filter(|service| service.group == group);
        of_group().find(|service| service.name == name).copied().ok_or_else(|| {
            let shown: String = name.chars().take(64).collect();
            let known: Vec<_> = of_group().map(|service| service.name).collect();
            Problem::not_found(format_args!("/api/{group}/{shown}")).with_hint(format!("one of {}", known.join(", ")))
        })
    }

    pub(super) fn path(self) -> String {
        format!("/api/{}/{}", self.group, self.name)
    }

    fn is_meant(self, model: &InstalledModel) -> bool {
        let plain = |text: &str| -> String {
            text.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
        };
        model.class_name.as_deref().is_some_and(|class| self.classes.contains(&class))
            || plain(pick::last_part(&model.id)).contains(self.name)
    }

    /// The model that serves this route: one whose folder is called like it first.
    ///
    /// # Errors
    /// 503: none is installed, or it is incomplete; with the folder and where to get it.
    pub(super) fn model(self, registry: &Registry) -> Result<&InstalledModel, Problem> {
        let able = |model: &&InstalledModel| model.is_complete() && model.kinds.contains(&self.kind);
        let mut meant: Vec<_> = registry.list().filter(|model| self.is_meant(model)).collect();
        meant.sort_by_key(|model| !pick::last_part(&model.id).eq_ignore_ascii_case(self.name));
        if let Some(model) = meant.iter().copied().find(able) {
            return Ok(model);
        }
        let hub = self.hub;
        let get = format!("`atelier models pull {hub}` fetches it, or put that folder into a models directory");
        let broken = meant.iter().find_map(|model| model.problem.as_ref().map(|problem| (&model.id, problem)));
        let detail = match broken {
            Some((id, problem)) => format!("{}: the model {id:?} cannot be used: {problem}", self.path()),
            None => format!("{}: no such model is installed; the folder models/{hub} is missing", self.path()),
        };
        Err(Problem::http(HttpCode::ModelMissing, detail).with_hint(get))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_finds_its_model_by_class_or_folder_and_says_what_is_missing() {
        let dir = tempfile::tempdir().expect("temp dir");
        let put = |id: &str, config: &str| {
            std::fs::create_dir_all(dir.path().join(id)).expect("mkdir");
            std::fs::write(dir.path().join(id).join("config.json"), config).expect("write");
        };
        let sdxl = Service::of("generate", "sdxl").expect("known");
        let scan = || Registry::scan(&[dir.path().to_owned()]);
        let problem = sdxl.model(&scan()).map(|model| model.id.clone()).expect_err("nothing is installed");
        assert_eq!(problem.code(), "model_missing");
        assert!(problem.detail().contains("models/stabilityai/stable-diffusion-xl-base-1.0 is missing"));
        assert!(problem.hint().contains("atelier models pull stabilityai/stable-diffusion-xl-base-1.0"));

        put("stabilityai/xl", r#"{"_class_name":"StableDiffusionXLPipeline"}"#);
        let problem = sdxl.model(&scan()).map(|model| model.id.clone()).expect_err("it is incomplete");
        assert!(problem.detail().contains("\"stabilityai/xl\" cannot be used"), "{}", problem.detail());

        put("my-sdxl", r#"{"_class_name":"AtelierFake"}"#);
        assert_eq!(sdxl.model(&scan()).expect("installed").id, "my-sdxl");
        put("SDXL", r#"{"_class_name":"AtelierFake"}"#);
        assert_eq!(sdxl.model(&scan()).expect("installed").id, "SDXL");
        assert_eq!(Service::of("generate", "sd9").map(|_| ()).map_err(|p| p.code()), Err("not_found"));
    }
}

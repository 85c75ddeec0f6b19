//! From a wish to a job that can run: presets, models, parameters and files are decided and checked here, the same
//! for a dropped file and for a request.

use std::{fs::File, io::Read as _, path::Path};

use atelier_domain::{
    Denoise, ErrorCode, ErrorInfo, Input, JobKind, JobSpec, Params, model::Family, params::ParamLimits,
    request::nearest,
};
use atelier_imaging::{Limits, probe};
use sha2::{Digest as _, Sha256};

use crate::{
    config::Config,
    hub::RepoId,
    models::{InstalledModel, Registry},
};

/// A wish of which everything is decided that can be decided without the picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolved {
    pub kind: JobKind,
    /// `None`: the worker chooses among those that serve `kind`, by the picture.
    pub model: Option<String>,
    pub priority: i32,
    pub name: Option<String>,
    pub params: Params,
    /// The seed was drawn here, not asked for.
    pub seed_drawn: bool,
}

impl Resolved {
    /// What makes two jobs on the same picture the same job: a drawn seed does not tell them apart.
    pub fn fingerprint(&self) -> String {
        let mut params = self.params.clone();
        if self.seed_drawn {
            params.seed = None;
        }
        let json = serde_json::json!({"kind": self.kind, "model": self.model, "params": params});
        hex(&Sha256::digest(json.to_string().as_bytes()))
    }
}

/// Decides kind, model and parameters. `default_preset` serves where `spec` names neither a kind nor a preset.
///
/// # Errors
/// An unknown preset or model, a model that is incomplete or does something else, a parameter out of bounds.
pub fn resolve(
    spec: JobSpec,
    default_preset: Option<&str>,
    config: &Config,
    registry: &Registry,
) -> Result<Resolved, ErrorInfo> {
    let preset_name = spec.preset.clone().or_else(|| match spec.kind {
        None => default_preset.map(str::to_owned),
        Some(_) => None,
    });
    let spec = match preset_name {
        None => spec,
        Some(name) => layer(spec, &name, config)?,
    };
    let kind = spec.kind.ok_or_else(|| {
        ErrorInfo::new(ErrorCode::InvalidRequest, "the job names neither a kind nor a preset")
            .with_hint(format!("kind is one of {}", JobKind::ALL.map(JobKind::as_str).join(", ")))
    })?;
    let limits = ParamLimits {
        prompt_chars: config.limits.prompt_chars,
        negative_prompt_chars: config.limits.negative_prompt_chars,
    };
    spec.params.validate(kind, limits).map_err(|error| ErrorInfo::new(ErrorCode::InvalidParams, error.to_string()))?;
    let model = choose_model(spec.model, kind, config, registry)?;
    check_parts(model.as_deref(), &spec.params, registry)?;
    let mut params = spec.params;
    let mut seed_drawn = false;
    match kind {
        JobKind::Upscale if model.is_none() => {
            params.scale = params.scale.or(Some(2));
            params.denoise = params.denoise.or(Some(Denoise::Auto));
        }
        // The likeliest words are the same whatever the seed.
        JobKind::Caption if params.temperature.is_none_or(|temperature| temperature <= 0.0) => {}
        JobKind::Upscale => {}
        JobKind::Edit
        | JobKind::Generate
        | JobKind::Inpaint
        | JobKind::Control
        | JobKind::Caption
        | JobKind::Video
        | JobKind::TalkingHead
        | JobKind::Speech => {
            if params.seed.is_none() {
                // Below 2^53, so that it survives a client that reads numbers as doubles.
                params.seed = Some(rand::random_range(0..1 << 53));
                seed_drawn = true;
            }
        }
    }
    Ok(Resolved { kind, model, priority: spec.priority.unwrap_or(0), name: spec.name, params, seed_drawn })
}

fn layer(spec: JobSpec, name: &str, config: &Config) -> Result<JobSpec, ErrorInfo> {
    let Some(preset) = config.presets.get(name) else {
        let error = ErrorInfo::new(ErrorCode::UnknownPreset, format!("there is no preset {name:?}"));
        return Err(match nearest(name, config.presets.keys().map(String::as_str)) {
            Some(near) => error.with_hint(format!("did you mean {near:?}?")),
            None => error.with_hint(format!(
                "presets are {}; add more under [presets.NAME]",
                config.presets.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
            )),
        });
    };
    // Another kind than the preset's has no use for its model and parameters.
    Ok(match (spec.kind, preset.kind) {
        (Some(asked), Some(of_preset)) if asked != of_preset => spec,
        _ => spec.over(preset.clone()),
    })
}

fn choose_model(
    asked: Option<String>,
    kind: JobKind,
    config: &Config,
    registry: &Registry,
) -> Result<Option<String>, ErrorInfo> {
    if let Some(id) = asked {
        let Some(model) = registry.get(&id) else {
            if config.models.auto_pull && id.parse::<RepoId>().is_ok() {
                // What it does is known when it is there.
                return Ok(Some(id));
            }
            let error = ErrorInfo::new(ErrorCode::UnknownModel, format!("the model {id:?} is not installed"));
            return Err(match nearest(&id, registry.list().map(|m| m.id.as_str())) {
                Some(near) => error.with_hint(format!("did you mean {near:?}?")),
                None => error.with_hint("`atelier models list` shows what is installed"),
            });
        };
        if let Some(problem) = &model.problem {
            return Err(ErrorInfo::new(
                ErrorCode::ModelIncomplete,
                format!("the model {id:?} cannot be used: {problem}"),
            )
            .with_hint(format!("look at {}", model.path.display())));
        }
        if !model.kinds.contains(&kind) {
            let kinds: Vec<_> = model.kinds.iter().map(|k| k.as_str()).collect();
            return Err(ErrorInfo::new(ErrorCode::KindNotSupported, format!("the model {id:?} does not do {kind}"))
                .with_hint(format!("it does {}", kinds.join(", "))));
        }
        return Ok(Some(id));
    }
    // A bare ControlNet without a base is the last choice: it says what it needs.
    let has_base = |model: &&InstalledModel| {
        let base = model.family.and_then(Family::needs_base);
        base.is_none_or(|base| registry.of_family(base).next().is_some())
    };
    let Some(first) = registry.serving(kind).find(has_base).or_else(|| registry.serving(kind).next()) else {
        return Err(ErrorInfo::new(ErrorCode::NotAvailable, format!("no installed model does {kind}"))
            .with_hint("put a model's folder into a models directory; `atelier models list` shows what is installed"));
    };
    // An upscale chooses by the picture's noise, in the worker.
    Ok(if kind == JobKind::Upscale { None } else { Some(first.id.clone()) })
}

/// Checks that what the chosen model needs beside it is installed: a base for a bare ControlNet, and every LoRA.
fn check_parts(model: Option<&str>, params: &Params, registry: &Registry) -> Result<(), ErrorInfo> {
    for lora in params.loras.iter().flat_map(|loras| &loras.0) {
        find_part(&lora.name, Family::Lora, registry)?;
    }
    let installed = model.and_then(|id| registry.get(id));
    if model.is_some() && installed.is_none() {
        return Ok(());
    }
    let base = installed.and_then(|model| model.family).and_then(Family::needs_base);
    match (base, &params.base_model) {
        (Some(base), Some(id)) => find_part(id, base, registry),
        (Some(base), None) if registry.of_family(base).next().is_none() => {
            let model = model.unwrap_or_default();
            let class = base.class_names()[0];
            Err(ErrorInfo::new(
                ErrorCode::NotAvailable,
                format!("the model {model:?} works with a {class}, and none is installed"),
            )
            .with_hint("put such a model's folder into a models directory"))
        }
        (None, Some(_)) => Err(ErrorInfo::new(
            ErrorCode::InvalidParams,
            "params.base_model: is for a bare ControlNet, and this model brings its own",
        )
        .with_hint("leave it out")),
        (Some(_) | None, None) => Ok(()),
    }
}

fn find_part(id: &str, family: Family, registry: &Registry) -> Result<(), ErrorInfo> {
    let class = family.class_names()[0];
    let Some(model) = registry.get(id) else {
        let error = ErrorInfo::new(ErrorCode::UnknownModel, format!("{id:?} is not installed; a {class} was to be it"));
        return Err(match nearest(id, registry.of_family(family).map(|model| model.id.as_str())) {
            Some(near) => error.with_hint(format!("did you mean {near:?}?")),
            None => error.with_hint("`atelier models list` shows what is installed"),
        });
    };
    if let Some(problem) = &model.problem {
        return Err(ErrorInfo::new(ErrorCode::ModelIncomplete, format!("{id:?} cannot be used: {problem}"))
            .with_hint(format!("look at {}", model.path.display())));
    }
    if model.family != Some(family) {
        return Err(ErrorInfo::new(ErrorCode::InvalidParams, format!("{id:?} is no {class}")));
    }
    Ok(())
}

/// Checks that a job has as many pictures as its kind can use.
///
/// # Errors
/// None where one is needed, one where none belongs, more than `limits.images`.
pub fn check_images(resolved: &Resolved, images: usize, config: &Config) -> Result<(), ErrorInfo> {
    let kind = resolved.kind;
    if kind.needs_image() && images == 0 {
        return Err(ErrorInfo::new(ErrorCode::InvalidRequest, format!("a job of kind {kind} needs a picture"))
            .with_hint("send it as `images` in JSON or as a part `image`"));
    }
    if images > config.limits.images {
        return Err(ErrorInfo::new(
            ErrorCode::InvalidRequest,
            format!("{images} pictures, at most {} are allowed (limits.images)", config.limits.images),
        ));
    }
    if matches!(kind, JobKind::Upscale | JobKind::Caption) && images > 1 {
        let message = format!("a job of kind {kind} takes one picture, and {images} are given");
        return Err(ErrorInfo::new(ErrorCode::InvalidRequest, message).with_hint("send a job for each"));
    }
    if kind == JobKind::Speech && images > 0 {
        return Err(ErrorInfo::new(
            ErrorCode::InvalidRequest,
            "speech is made from text alone, and a picture came along",
        ));
    }
    Ok(())
}

/// Looks at a file on the disk: what it is by its content, whether it is whole and within the limits, its hash.
/// Blocks.
///
/// # Errors
/// As the picture deserves; the message names the file by `name`.
pub fn inspect(path: &Path, name: &str, config: &Config) -> Result<Input, ErrorInfo> {
    let limits = Limits { max_pixels: config.limits.pixels, max_bytes: config.limits.upload };
    let found = probe(path, &limits).map_err(|error| error.info(name))?;
    let sha256 = hash_file(path).map_err(|error| ErrorInfo::new(ErrorCode::IoError, format!("{name}: {error}")))?;
    Ok(Input {
        name: name.to_owned(),
        media_type: found.media_type.as_str().to_owned(),
        bytes: found.bytes,
        width: found.width,
        height: found.height,
        sha256,
    })
}

fn hash_file(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(&buffer[..n]);
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

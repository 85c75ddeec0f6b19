//! What the crash tests ask for: wishes whose result depends on nothing but the wish, so that the bytes which an
//! undisturbed daemon makes of it are the bytes that every other has to make.

use atelier_testkit::pictures::{photo_like, png};
use serde_json::{Value, json};

/// How long the stand-in's jobs take where the wish does not say: steps, and milliseconds a step.
pub(crate) const WORKER_ARGS: [&str; 4] = ["--steps", "20", "--step-ms", "3"];

/// A preset of the tests' own, for files in the sub-folder of that name.
pub(crate) const PRESET: &str = "retouch";

const NO_PICTURE: &[u8] = b"These are words. They only pretend to be a picture.";
const NEVER: &str = "|never";

#[derive(Clone, Debug)]
pub(crate) enum Wish {
    /// A picture in the inbox; `prompt` lies beside it as `.txt`.
    Picture { bytes: Vec<u8>, prompt: Option<&'static str> },
    /// A picture in the sub-folder of [`PRESET`], with a prompt.
    Preset { bytes: Vec<u8>, prompt: &'static str },
    /// A folder that is moved into the inbox, with a picture and its parameters.
    Folder { bytes: Vec<u8>, toml: &'static str },
    /// A `.json` that is a job by itself.
    Spec(Value),
    /// A request in JSON.
    Json(Value),
    /// A request with a picture, as a form.
    Form { job: Value, bytes: Vec<u8> },
}

impl Wish {
    pub(crate) const fn is_request(&self) -> bool {
        matches!(self, Self::Json(_) | Self::Form { .. })
    }

    /// Whether something comes of it: those that fail as they should say so.
    pub(crate) fn is_fulfilled(&self) -> bool {
        let says_never = match self {
            Self::Picture { bytes, prompt } => {
                bytes == NO_PICTURE || prompt.is_some_and(|prompt| prompt.ends_with(NEVER))
            }
            Self::Preset { prompt, .. } => prompt.ends_with(NEVER),
            Self::Folder { toml, .. } => toml.contains(NEVER),
            Self::Spec(job) | Self::Json(job) | Self::Form { job, .. } => job.to_string().contains(NEVER),
        };
        !says_never
    }
}

fn picture(seed: u64) -> Vec<u8> {
    png(&photo_like(24 + u32::try_from(seed % 5).unwrap_or(0) * 8, 20, seed))
}

/// Pictures, jobs and requests of 10 to 40 steps of 2 to 5 ms; some fail, as they should.
pub(crate) fn all() -> Vec<Wish> {
    let generate = |seed: u64, steps: u32, slow: u32, text: &str| json!({"kind": "generate", "params": {"prompt": format!("fake:slow={slow}|{text}"), "seed": seed, "steps": steps}});
    let mut wishes = Vec::new();
    for seed in 1..=6 {
        wishes.push(Wish::Picture { bytes: picture(seed), prompt: None });
    }
    wishes.extend([
        Wish::Picture { bytes: picture(7), prompt: Some("fake:slow=5|brighter") },
        Wish::Picture { bytes: picture(8), prompt: Some("fake:slow=2|darker") },
        Wish::Preset { bytes: picture(9), prompt: "fake:slow=4|as if it were evening" },
        Wish::Folder {
            bytes: picture(10),
            toml: "kind = \"edit\"\nprompt = \"fake:slow=3|warm\"\nseed = 5\nsteps = 40\n",
        },
        Wish::Folder { bytes: picture(11), toml: "kind = \"upscale\"\nscale = 4\n" },
        Wish::Spec(json!({"kind": "generate", "prompt": "fake:slow=3|a lake", "seed": 0, "steps": 25})),
        // The worker's verdict, after a while.
        Wish::Picture { bytes: picture(12), prompt: Some("fake:fail@9=image_corrupt|never") },
        // Never a job.
        Wish::Picture { bytes: NO_PICTURE.to_vec(), prompt: None },
        Wish::Json(generate(21, 40, 5, "a house")),
        Wish::Json(generate(22, 10, 2, "a tree")),
        Wish::Json(generate(23, 30, 3, "a boat")),
        Wish::Json(json!({"kind": "generate", "params": {
            "prompt": "fake:slow=3|twice", "seed": 24, "steps": 20, "num_images": 2}})),
        Wish::Json(json!({"kind": "generate", "params": {
            "prompt": "fake:slow=3;fail@7=out_of_memory|never", "seed": 25, "steps": 20}})),
        Wish::Form { job: json!({"kind": "upscale", "params": {"scale": 2}}), bytes: picture(13) },
        Wish::Form { job: json!({"kind": "upscale", "params": {"scale": 4, "steps": 30}}), bytes: picture(14) },
        Wish::Form {
            job: json!({"kind": "edit", "params": {"prompt": "fake:slow=4|cold", "seed": 26, "steps": 25}}),
            bytes: picture(15),
        },
        Wish::Form {
            job: json!({"kind": "edit", "params": {
                "prompt": "fake:slow=4;fail@3=image_corrupt|never", "seed": 27, "steps": 25}}),
            bytes: picture(16),
        },
    ]);
    wishes
}

//! A hub, a daemon's folders and the program, together.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use atelier_testkit::daemon::{Daemon, PATIENCE, Setup, files_below, wait_until};
use serde_json::Value;

use crate::loopback::Hub;

pub(crate) const MIB: usize = 1 << 20;
pub(crate) const TOKEN: &str = "hf_secretsecretsecret";

/// A safetensors file of `bytes` bytes with one tensor; no two stretches of it are alike.
pub(crate) fn weights(bytes: usize) -> Vec<u8> {
    let data = bytes - 200;
    let header = format!(r#"{{"w":{{"dtype":"U8","shape":[{data}],"data_offsets":[0,{data}]}}}}"#);
    let mut file = 192_u64.to_le_bytes().to_vec();
    file.extend(format!("{header:<192}").as_bytes());
    let mut state = 7_u32;
    file.extend((0..data).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    }));
    file
}

/// What a command has said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Said {
    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        assert!(!self.stderr.contains("panicked") && !self.stderr.contains(TOKEN), "{self:#?}");
        self
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }

    #[track_caller]
    pub(crate) fn says(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "{text:?} is not said: {self:#?}");
        self
    }
}

pub(crate) struct Scene {
    pub(crate) hub: Hub,
    pub(crate) daemon: Daemon,
}

impl Scene {
    /// The hub has an upscaler `org/net` of 4 MiB and some bytes, among files that nobody needs.
    pub(crate) fn new() -> Self {
        Self::with(|setup| setup)
    }

    pub(crate) fn with(change: impl FnOnce(Setup) -> Setup) -> Self {
        let hub = Hub::start();
        hub.put("org/net", "config.json", r#"{"_class_name":"SPAN"}"#);
        hub.put("org/net", "model.safetensors", weights(4 * MIB + 77));
        for (path, bytes) in [("README.md", 50), ("model.onnx", MIB), ("pytorch_model.bin", MIB), (".gitattributes", 9)]
        {
            hub.put("org/net", path, vec![1; bytes]);
        }
        let setup = Setup::new(env!("CARGO_BIN_EXE_atelier"))
            .set("models.pull_pause", "10ms")
            .set("models.pull_stall", "60s")
            .set("models.pull_retries", 3)
            .set("models.pull_parallel", 2)
            .env("HF_ENDPOINT", hub.url())
            .env("HF_TOKEN", TOKEN)
            .env("NO_PROXY", "*");
        let home = setup.root().display().to_string();
        Self { hub, daemon: change(setup.env("HOME", home)).prepare() }
    }

    pub(crate) fn models(&self) -> PathBuf {
        self.daemon.root().join("models")
    }

    fn command(&self, args: &[&str]) -> Command {
        let config = self.daemon.config_file();
        let mut command = self.daemon.command([args, &["--config", config.to_str().unwrap()]].concat());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(crate) fn spawn(&self, args: &[&str]) -> Child {
        self.command(args).spawn().unwrap()
    }

    pub(crate) fn run(&self, args: &[&str]) -> Said {
        said(self.spawn(args))
    }

    pub(crate) fn pull(&self, more: &[&str]) -> Said {
        self.run(&[&["models", "pull", "org/net"], more].concat())
    }

    /// The model as `models list` tells of it, if it does.
    pub(crate) fn listed(&self, id: &str) -> Option<Value> {
        let list = self.run(&["models", "list", "--json"]).exits(0).json();
        list["models"].as_array().unwrap().iter().find(|model| model["id"] == id).cloned()
    }

    /// The state of a pull of `id` as `models list` tells of it.
    pub(crate) fn pull_state(&self, id: &str) -> Option<String> {
        let list = self.run(&["models", "list", "--json"]).exits(0).json();
        let pull = list["pulls"].as_array().unwrap().iter().find(|pull| pull["id"] == id)?;
        Some(pull["state"].as_str().unwrap().to_owned())
    }

    /// Nothing of the model is to be seen, neither in the list nor in its place.
    #[track_caller]
    pub(crate) fn is_absent(&self) {
        assert_eq!(self.listed("org/net"), None);
        assert!(!self.models().join("org").exists());
    }

    /// The model is there with every byte, and nothing is left beside it.
    #[track_caller]
    pub(crate) fn is_whole(&self) {
        let model = self.listed("org/net").expect("installed");
        assert_eq!(model["complete"], true, "{model}");
        let folder = self.models().join("org/net");
        assert!(fs::read(folder.join("model.safetensors")).unwrap() == weights(4 * MIB + 77), "other bytes");
        let names: Vec<_> =
            files_below(&folder).iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
        assert_eq!(names, [".atelier-pull.json", "config.json", "model.safetensors"]);
        let hidden = fs::read_dir(self.models()).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(hidden.filter(|name| name.to_str().unwrap().starts_with('.')).count(), 0, "leftovers");
        self.run(&["models", "verify", "org/net"]).exits(0);
    }

    /// Waits until so many requests for the weights have come in.
    #[track_caller]
    pub(crate) fn wait_for_requests(&self, part: &str, count: usize) {
        wait_until("requests at the hub", PATIENCE, || (self.hub.seen(part).len() >= count).then_some(()));
    }
}

/// Waits for the end of a command.
pub(crate) fn said(child: Child) -> Said {
    let output = child.wait_with_output().unwrap();
    Said {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

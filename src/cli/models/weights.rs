//! Whether weights are whole: the frame of a safetensors file, the front of a GGUF file, and all parts that an index
//! names.
//!
//! Source of the layout: the safetensors format description (eight bytes of length, a JSON header, the data).

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::File,
    io::{BufReader, Read as _},
    path::{Path, PathBuf},
};

use atelier_gguf::{Architecture, GgufFile};
use serde::Serialize;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

/// Longer headers are refused by the format's own library.
const MAX_HEADER: u64 = 100_000_000;

/// A file that was read to its end.
#[derive(Serialize)]
pub(super) struct Weights {
    pub(super) file: String,
    bytes: u64,
    tensors: usize,
    pub(super) sha256: String,
}

/// Reads all weights of a model's folder; answers what is whole and what is wrong.
pub(super) fn check(folder: &Path) -> (Vec<Weights>, Vec<String>) {
    let mut files = Vec::new();
    collect(folder, 3, &mut files);
    files.sort();
    let mut whole = Vec::new();
    let mut problems = Vec::new();
    for path in &files {
        let name = path.strip_prefix(folder).unwrap_or(path).display().to_string();
        let is_gguf = path.extension() == Some(OsStr::new("gguf"));
        if is_gguf || name.ends_with(".safetensors") {
            match if is_gguf { read_gguf(path) } else { read(path) } {
                Ok((bytes, tensors, sha256)) => whole.push(Weights { file: name, bytes, tensors, sha256 }),
                Err(problem) => problems.push(format!("{name}: {problem}")),
            }
        } else if let Err(problem) = index(path) {
            problems.push(format!("{name}: {problem}"));
        }
    }
    (whole, problems)
}

fn collect(folder: &Path, depth: u32, files: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() && depth > 0 && !name.starts_with('.') {
            collect(&path, depth - 1, files);
        } else if [".safetensors", ".safetensors.index.json", ".gguf"].iter().any(|end| name.ends_with(end)) {
            files.push(path);
        }
    }
}

/// Bytes, tensors and sha256 of a file that is as long as its header says.
fn read(path: &Path) -> Result<(u64, usize, String), String> {
    let io = |error: std::io::Error| error.to_string();
    let file = File::open(path).map_err(io)?;
    let bytes = file.metadata().map_err(io)?.len();
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut digest = Sha256::new();
    let mut length = [0; 8];
    reader.read_exact(&mut length).map_err(|_| "shorter than 8 bytes: no safetensors file".to_owned())?;
    digest.update(length);
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER {
        return Err("its header is too long: no safetensors file".to_owned());
    }
    if length > bytes.saturating_sub(8) {
        return Err(format!("it ends within its header, after {bytes} bytes"));
    }
    let mut header = Vec::new();
    reader.by_ref().take(length).read_to_end(&mut header).map_err(io)?;
    digest.update(&header);
    let header: Map<String, Value> =
        serde_json::from_slice(&header).map_err(|error| format!("its header is not JSON: {error}"))?;
    let (tensors, data) = extent(&header)?;
    let expected = 8 + length + data;
    if expected != bytes {
        let what = if bytes < expected { "it was cut off" } else { "there is more than its tensors" };
        return Err(format!("{bytes} bytes, its header says {expected}: {what}"));
    }
    std::io::copy(&mut reader, &mut HashWriter(&mut digest)).map_err(io)?;
    let sha256 = crate::admission::hex(&digest.finalize());
    Ok((bytes, tensors, sha256))
}

/// As [`read`], of a GGUF file, which is also held to the network that the configuration beside it names.
fn read_gguf(path: &Path) -> Result<(u64, usize, String), String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let bytes = file.metadata().map_err(|error| error.to_string())?.len();
    let front = GgufFile::read(file).map_err(|error| error.to_string())?;
    if let (Some(wanted), said) = (architecture_beside(path), front.architecture.as_deref())
        && !wanted.fits(said)
    {
        let (said, class) = (said.unwrap_or_default(), wanted.class());
        return Err(format!("it is a file for {said:?} networks, and config.json names {class}"));
    }
    Ok((bytes, front.tensors.len(), sha256(path)?))
}

fn architecture_beside(path: &Path) -> Option<Architecture> {
    let config: Value = serde_json::from_slice(&std::fs::read(path.with_file_name("config.json")).ok()?).ok()?;
    Architecture::of_class(config.get("_class_name")?.as_str()?)
}

/// Of any file.
pub(super) fn sha256(path: &Path) -> Result<String, String> {
    let mut file = File::open(path).map_err(|error| error.to_string())?;
    let mut digest = Sha256::new();
    std::io::copy(&mut file, &mut HashWriter(&mut digest)).map_err(|error| error.to_string())?;
    Ok(crate::admission::hex(&digest.finalize()))
}

struct HashWriter<'a>(&'a mut Sha256);

impl std::io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Number of tensors and bytes of their data; they lie side by side without a gap.
fn extent(header: &Map<String, Value>) -> Result<(usize, u64), String> {
    let mut spans = Vec::new();
    for (name, tensor) in header.iter().filter(|(name, _)| *name != "__metadata__") {
        let wrong = || format!("the tensor {name:?} is not described as it should be");
        let number = |value: &Value| value.as_u64();
        let offsets = tensor.get("data_offsets").and_then(Value::as_array).ok_or_else(wrong)?;
        let [from, to] = offsets.as_slice() else { return Err(wrong()) };
        let (from, to) = (number(from).ok_or_else(wrong)?, number(to).ok_or_else(wrong)?);
        let shape = tensor.get("shape").and_then(Value::as_array).ok_or_else(wrong)?;
        let elements =
            shape.iter().try_fold(1_u64, |product, side| product.checked_mul(side.as_u64()?)).ok_or_else(wrong)?;
        let dtype = tensor.get("dtype").and_then(Value::as_str).ok_or_else(wrong)?;
        if let Some(size) = element_bytes(dtype)
            && elements.checked_mul(size) != to.checked_sub(from)
        {
            return Err(wrong());
        }
        spans.push((from, to));
    }
    spans.sort_unstable();
    let mut end = 0;
    for (from, to) in &spans {
        if *from != end || to < from {
            return Err("its tensors overlap or leave gaps".to_owned());
        }
        end = *to;
    }
    Ok((spans.len(), end))
}

/// `None`: a type of less than a byte, or one of the future.
fn element_bytes(dtype: &str) -> Option<u64> {
    match dtype {
        "F64" | "I64" | "U64" => Some(8),
        "F32" | "I32" | "U32" => Some(4),
        "F16" | "BF16" | "I16" | "U16" => Some(2),
        "I8" | "U8" | "BOOL" | "F8_E4M3" | "F8_E5M2" => Some(1),
        _ => None,
    }
}

/// An index names files; all of them are there.
fn index(path: &Path) -> Result<(), String> {
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    let value: Value = serde_json::from_slice(&bytes).map_err(|error| format!("it is not JSON: {error}"))?;
    let map = value.get("weight_map").and_then(Value::as_object).ok_or("it has no weight_map")?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let names: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
    let missing: Vec<&str> = names.into_iter().filter(|name| !folder.join(name).is_file()).collect();
    if missing.is_empty() { Ok(()) } else { Err(format!("{} is missing", missing.join(", "))) }
}

#[cfg(test)]
mod tests {
    use atelier_testkit::gguf::{File as GgufBytes, Tensor};
    use serde_json::json;

    use super::*;

    fn file(header: &Value, data: usize) -> Vec<u8> {
        let header = header.to_string();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 1);
        bytes
    }

    fn problems(bytes: &[u8]) -> Vec<String> {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("model.safetensors"), bytes).expect("written");
        check(folder.path()).1
    }

    fn header() -> Value {
        json!({
            "__metadata__": {"format": "pt"},
            "b": {"dtype": "F16", "shape": [3], "data_offsets": [8, 14]},
            "a": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
        })
    }

    #[test]
    fn a_whole_file_is_fine_and_a_cut_one_is_not() {
        let whole = file(&header(), 14);
        assert_eq!(problems(&whole), Vec::<String>::new());
        for cut in [0, 7, 8, 20, whole.len() - 1] {
            assert_eq!(problems(&whole[..cut]).len(), 1, "cut to {cut}");
        }
        let mut long = whole.clone();
        long.push(0);
        assert!(problems(&long)[0].contains("more than"), "{:?}", problems(&long));
        assert!(problems(b"<!DOCTYPE html><html>")[0].contains("no safetensors file"));
    }

    #[test]
    fn a_header_that_contradicts_itself_is_refused() {
        for (name, tensor) in [
            ("gap", json!({"dtype": "F16", "shape": [3], "data_offsets": [10, 16]})),
            ("overlap", json!({"dtype": "F16", "shape": [3], "data_offsets": [6, 12]})),
            ("wrong size", json!({"dtype": "F16", "shape": [4], "data_offsets": [8, 14]})),
            ("backwards", json!({"dtype": "X", "shape": [], "data_offsets": [8, 7]})),
            ("overflow", json!({"dtype": "F64", "shape": [u64::MAX, 2], "data_offsets": [8, 14]})),
            ("nonsense", json!(7)),
        ] {
            let mut header = header();
            header["b"] = tensor;
            assert_eq!(problems(&file(&header, 14)).len(), 1, "{name}");
        }
    }

    #[test]
    fn a_gguf_file_is_held_to_its_front_and_to_the_network_beside_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let put = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).expect("written");
        let matrix = |kind| Tensor::new("proj.weight", &[64, 3], kind, vec![0; 108]);
        let bytes = GgufBytes::new("flux", vec![matrix(2)]).bytes();
        put("a.gguf", &bytes);
        let (whole, problems) = check(folder.path());
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!((whole[0].file.as_str(), whole[0].bytes, whole[0].tensors), ("a.gguf", bytes.len() as u64, 1));
        assert_eq!(whole[0].sha256, crate::admission::hex(&Sha256::digest(&bytes)));
        put("config.json", br#"{"_class_name":"FluxTransformer2DModel"}"#);
        assert_eq!(check(folder.path()).1, Vec::<String>::new());
        put("config.json", br#"{"_class_name":"QwenImageTransformer2DModel"}"#);
        let problems = check(folder.path()).1;
        assert!(problems[0].starts_with("a.gguf: ") && problems[0].contains("\"flux\""), "{problems:?}");
        put("a.gguf", &bytes[..bytes.len() - 40]);
        assert!(check(folder.path()).1[0].contains("proj.weight"), "{:?}", check(folder.path()).1);
        put("a.gguf", &GgufBytes::new("flux", vec![matrix(16)]).bytes());
        assert!(check(folder.path()).1[0].starts_with("a.gguf: "), "{:?}", check(folder.path()).1);
    }

    #[test]
    fn a_part_that_the_index_names_must_be_there() {
        let folder = tempfile::tempdir().expect("a folder");
        let unet = folder.path().join("unet");
        std::fs::create_dir(&unet).expect("mkdir");
        let index = json!({"weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"}});
        std::fs::write(unet.join("x.safetensors.index.json"), index.to_string()).expect("written");
        std::fs::write(unet.join("x-1.safetensors"), file(&header(), 14)).expect("written");
        let (whole, problems) = check(folder.path());
        assert_eq!(whole.len(), 1);
        assert_eq!(problems, ["unet/x.safetensors.index.json: x-2.safetensors is missing"]);
    }
}

//! The front of a file, read and checked against the file's length.
//!
//! The crate anamnesis reads the format (docs/adr/0008-gguf.md): it refuses what is cut off, overlaps, lies outside of the
//! file or is not aligned, before it allocates for it. Here its answer becomes ours: tensors as torch counts their sides,
//! of the types that are computed.

use std::io::{Read, Seek};

use anamnesis::{GgufFrontMatter, GgufMetadataValue, GgufTensorInfo, ParseLimits};

use crate::Stored;

/// Memory for names and values. A transformer's front takes less than one; a language model's, with its vocabulary, ten.
const MOST_BYTES: u64 = 64 << 20;
/// Of tensors, and of values. The largest transformer has 2,000.
const MOST_ITEMS: u64 = 1 << 16;
/// What ComfyUI's converter writes of a tensor that it had to reshape so that blocks fit, before the tensor's name.
const ORIGINAL_SHAPE: &str = "comfy.gguf.orig_shape.";

/// What is wrong with a file, in words that follow its path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GgufError {
    #[error("not a GGUF file that can be read: {0}")]
    Format(String),
    #[error("{tensor} is stored as {stored}, which is not computed; other files of this model have Q4_K_M or Q8_0")]
    Type { tensor: String, stored: String },
    #[error("{tensor} of {shape:?} does not make whole blocks of {stored}")]
    Shape { tensor: String, shape: Vec<i64>, stored: String },
}

/// What the front of a file says.
#[derive(Clone, Debug)]
pub struct GgufFile {
    /// `general.architecture`
    pub architecture: Option<String>,
    /// In the file's order.
    pub tensors: Vec<Tensor>,
}

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    pub name: String,
    /// The outermost side first. Blocks run along the last one.
    pub shape: Vec<i64>,
    pub stored: Stored,
    /// From the beginning of the file.
    pub offset: u64,
    pub bytes: u64,
}

impl GgufFile {
    /// Reads the front. All tensors lie within the file.
    ///
    /// # Errors
    /// A file that is no GGUF file, or not whole, or contradicts itself; or that holds what is not computed.
    pub fn read(file: impl Read + Seek) -> Result<Self, GgufError> {
        let limits = ParseLimits::default().with_max_total_bytes(MOST_BYTES).with_max_item_count(MOST_ITEMS);
        let front = anamnesis::parse_gguf_front_matter_from_reader_with_limits(file, &limits);
        let front = front.map_err(|error| GgufError::Format(error.to_string()))?;
        let architecture = front.metadata.get("general.architecture").and_then(GgufMetadataValue::as_string);
        let tensors = front.tensor_infos.iter().map(|info| tensor(&front, info)).collect::<Result<_, _>>()?;
        Ok(Self { architecture: architecture.map(str::to_owned), tensors })
    }
}

fn tensor(front: &GgufFrontMatter, info: &GgufTensorInfo) -> Result<Tensor, GgufError> {
    let name = info.name.clone();
    let Some(stored) = Stored::of(info.dtype) else {
        return Err(GgufError::Type { tensor: name, stored: info.dtype.to_string() });
    };
    let too_large = || GgufError::Format(format!("{name} is too large"));
    let sides = info.shape.iter().rev().map(|&side| i64::try_from(side));
    let stored_shape: Vec<i64> = sides.collect::<Result<_, _>>().map_err(|_| too_large())?;
    let count = elements(&stored_shape).ok_or_else(too_large)?;
    let row = stored_shape.last().and_then(|&row| u64::try_from(row).ok()).unwrap_or(0);
    let bytes = stored.bytes_of(count).filter(|_| stored.bytes_of(row).is_some());
    let Some(bytes) = bytes.filter(|&bytes| info.byte_len == Some(bytes)) else {
        return Err(GgufError::Shape { tensor: name, shape: stored_shape, stored: info.dtype.to_string() });
    };
    let shape = match front.metadata.get(&format!("{ORIGINAL_SHAPE}{name}")) {
        None => stored_shape,
        Some(told) => original_shape(told)
            .filter(|shape| elements(shape) == Some(count))
            .ok_or_else(|| GgufError::Format(format!("{ORIGINAL_SHAPE}{name} is not a shape for {count} elements")))?,
    };
    Ok(Tensor { name, shape, stored, offset: info.data_offset, bytes })
}

fn elements(shape: &[i64]) -> Option<u64> {
    shape.iter().try_fold(1_u64, |product, &side| product.checked_mul(u64::try_from(side).ok()?))
}

/// Converters have written the sides in either width.
fn original_shape(told: &GgufMetadataValue) -> Option<Vec<i64>> {
    let sides = told.as_array()?;
    match sides.as_i32_slice() {
        Some(sides) => Some(sides.iter().copied().map(i64::from).collect()),
        None => sides.as_i64_slice().map(<[i64]>::to_vec),
    }
}

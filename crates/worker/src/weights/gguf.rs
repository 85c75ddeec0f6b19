//! Tensors of GGUF files: where they lie, and unpacking them on the device.
//!
//! Packed, a tensor is a row of blocks of so many bytes. Only those bytes travel; what they stand for is worked out where
//! the network is, in pieces, so that it takes little more memory than the result.
//! Source of the layouts: ggml's `ggml-common.h` and `ggml-quants.c`; the numbers are those of gguf 0.19.0
//! (`gguf/quants.py`), in f32 bit by bit.

use std::io::Cursor;

use atelier_gguf::{Architecture, GgufFile, Packing, Stored};
use tch::{Device, Kind, Tensor};

use super::shards::Entry;
use crate::torch::TorchError;

/// What an index of four bits stands for in the IQ4 types.
const IQ4_VALUES: [f32; 16] =
    [-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0];

/// Elements that are unpacked at once, a multiple of all blocks': as many as a processor's cache holds what becomes of them,
/// or enough to keep a graphics card busy.
const fn piece(device: Device) -> i64 {
    if matches!(device, Device::Cpu) { 1 << 20 } else { 1 << 24 }
}

/// The tensors of a mapped file, which are those of a network of this architecture.
///
/// # Errors
/// What is wrong with the file.
pub(super) fn entries(map: &[u8], shard: usize, architecture: Architecture) -> Result<Vec<Entry>, String> {
    let file = GgufFile::read(Cursor::new(map)).map_err(|error| error.to_string())?;
    let said = file.architecture.as_deref();
    if !architecture.fits(said) {
        let (said, wanted, class) = (said.unwrap_or_default(), architecture.as_str(), architecture.class());
        return Err(format!("it is a file for {said:?} networks; a {class} needs one for {wanted:?}"));
    }
    let entry = |tensor: atelier_gguf::Tensor| {
        let (kind, packing) = match tensor.stored {
            Stored::F32 => (Kind::Float, None),
            Stored::F16 => (Kind::Half, None),
            Stored::BF16 => (Kind::BFloat16, None),
            Stored::Packed(packing) => (Kind::Float, Some(packing)),
        };
        let too_large = || format!("{} is too large for this machine", tensor.name);
        let offset = usize::try_from(tensor.offset).map_err(|_| too_large())?;
        let bytes = usize::try_from(tensor.bytes).map_err(|_| too_large())?;
        let plain = Entry::plain(tensor.name, tensor.shape, kind, shard, offset..offset + bytes);
        Ok(Entry { packing, ..plain })
    };
    file.tensors.into_iter().map(entry).collect()
}

/// What `packed` (bytes) stands for, in `kind` and in one row.
pub(super) fn unpack(packed: &Tensor, packing: Packing, kind: Kind) -> Result<Tensor, TorchError> {
    let (elements, bytes) = (of(packing.block_elements()), of(packing.block_bytes()));
    let blocks = packed.f_view([-1, bytes])?;
    let count = blocks.size()[0];
    let piece = piece(packed.device()) / elements;
    if count <= piece {
        return Ok(unpack_piece(&blocks, packing)?.f_to_kind(kind)?.f_reshape([-1])?);
    }
    let whole = Tensor::f_empty([count * elements], (kind, packed.device()))?;
    for start in (0..count).step_by(usize::try_from(piece).unwrap_or(usize::MAX)) {
        let length = piece.min(count - start);
        let unpacked = unpack_piece(&blocks.f_narrow(0, start, length)?, packing)?;
        let mut place = whole.f_narrow(0, start * elements, length * elements)?;
        place.f_copy_(&unpacked.f_reshape([-1])?)?;
    }
    Ok(whole)
}

/// Of a block, which has few.
const fn of(count: u64) -> i64 {
    count.cast_signed()
}

/// (blocks, bytes) → (blocks, elements) in f32
fn unpack_piece(blocks: &Tensor, packing: Packing) -> Result<Tensor, TorchError> {
    let block = Block(blocks);
    match packing {
        Packing::Q40 => block.half(0)?.times(&block.nibbles(2)?.minus(8)?),
        Packing::Q41 => block.half(0)?.times(&block.nibbles(4)?)?.plus(&block.half(2)?),
        Packing::Q50 => block.half(0)?.times(&block.five_bits(2)?.minus(16)?),
        Packing::Q51 => block.half(0)?.times(&block.five_bits(4)?)?.plus(&block.half(2)?),
        Packing::Q80 => block.half(0)?.times(&block.signed(2, 32)?),
        Packing::Q2K => {
            let scales = block.bytes(0, 16)?;
            let scale = block.half(80)?.times(&float(&low(&scales, 15)?)?)?.f_unsqueeze(2)?;
            let least =
                block.half(82)?.times(&float(&scales.f_bitwise_right_shift_tensor_scalar(4)?)?)?.f_unsqueeze(2)?;
            let values = spread(&block.bytes(16, 64)?, 32, 2, 4)?.f_reshape([-1, 16, 16])?;
            float(&values)?.times(&scale)?.f_sub(&least).map_err(Into::into)
        }
        Packing::Q3K => {
            let scale = block.half(108)?.times(&block.six_bit_scales()?)?.f_unsqueeze(2)?;
            let values = spread(&block.bytes(32, 64)?, 32, 2, 4)?.f_reshape([-1, 16, 16])?;
            // A bit that is not set takes 4 away.
            let high = spread(&block.bytes(0, 32)?, 32, 1, 8)?.f_reshape([-1, 16, 16])?;
            joined(&values, &high, 2)?.minus(4)?.times(&scale)
        }
        Packing::Q4K => {
            let values = spread(&block.bytes(16, 128)?, 32, 4, 2)?.f_reshape([-1, 8, 32])?;
            block.scaled_from_least(&float(&values)?)
        }
        Packing::Q5K => {
            let values = spread(&block.bytes(48, 128)?, 32, 4, 2)?.f_reshape([-1, 8, 32])?;
            let high = spread(&block.bytes(16, 32)?, 32, 1, 8)?.f_reshape([-1, 8, 32])?;
            block.scaled_from_least(&joined(&values, &high, 4)?)
        }
        Packing::Q6K => {
            let scale = block.half(208)?.times(&block.signed(192, 16)?)?.f_unsqueeze(2)?;
            let values = spread(&block.bytes(0, 128)?, 64, 4, 2)?.f_reshape([-1, 8, 32])?;
            let high = spread(&block.bytes(128, 64)?, 32, 2, 4)?.f_reshape([-1, 8, 32])?;
            joined(&values, &high, 4)?.minus(32)?.f_reshape([-1, 16, 16])?.times(&scale)
        }
        Packing::Iq4Nl => block.half(0)?.times(&looked_up(&spread(&block.bytes(2, 16)?, 16, 4, 2)?)?),
        Packing::Iq4Xs => {
            let low = spread(&block.bytes(4, 4)?, 1, 4, 2)?.f_reshape([-1, 8])?;
            let high = spread(&block.bytes(2, 2)?, 1, 2, 4)?.f_reshape([-1, 8])?;
            let scale = block.half(0)?.times(&joined(&low, &high, 4)?.minus(32)?)?.f_unsqueeze(2)?;
            let values = spread(&block.bytes(8, 128)?, 16, 4, 2)?;
            looked_up(&values)?.f_reshape([-1, 8, 32])?.times(&scale)
        }
    }
}

/// Blocks (blocks, bytes), and what their bytes are.
struct Block<'a>(&'a Tensor);

impl Block<'_> {
    /// (blocks, count), in one piece of memory.
    fn bytes(&self, start: i64, count: i64) -> Result<Tensor, TorchError> {
        Ok(self.0.f_narrow(1, start, count)?.f_contiguous()?)
    }

    /// A number in half precision: (blocks, 1) in f32
    fn half(&self, start: i64) -> Result<Tensor, TorchError> {
        float(&self.bytes(start, 2)?.f_view_dtype(Kind::Half)?)
    }

    fn signed(&self, start: i64, count: i64) -> Result<Tensor, TorchError> {
        float(&self.bytes(start, count)?.f_view_dtype(Kind::Int8)?)
    }

    /// 32 numbers of four bits: the low halves of 16 bytes, then the high ones.
    fn nibbles(&self, start: i64) -> Result<Tensor, TorchError> {
        float(&spread(&self.bytes(start, 16)?, 16, 4, 2)?.f_reshape([-1, 32])?)
    }

    /// 32 numbers of five bits: their highest ones in four bytes, then the others.
    fn five_bits(&self, start: i64) -> Result<Tensor, TorchError> {
        let high = spread(&self.bytes(start, 4)?, 1, 1, 8)?.f_reshape([-1, 32])?;
        let low = spread(&self.bytes(start + 4, 16)?, 16, 4, 2)?.f_reshape([-1, 32])?;
        joined(&low, &high, 4)
    }

    /// Q3_K's 16 scales: four bits of each, then the other two.
    fn six_bit_scales(&self) -> Result<Tensor, TorchError> {
        let low = spread(&self.bytes(96, 8)?, 8, 4, 2)?.f_reshape([-1, 16])?;
        let high = spread(&self.bytes(104, 4)?, 4, 2, 4)?.f_reshape([-1, 16])?;
        joined(&low, &high, 4)?.minus(32)
    }

    /// As Q4_K and Q5_K have it: the scale times each value, less what the least one is below zero; both of six bits for
    /// each 32 values. `values` is (blocks, 8, 32).
    fn scaled_from_least(&self, values: &Tensor) -> Result<Tensor, TorchError> {
        let (scales, least, rest) = (self.bytes(4, 4)?, self.bytes(8, 4)?, self.bytes(12, 4)?);
        // Of the second four, two bits are above those of the first four.
        let high = |of: &Tensor| of.f_bitwise_right_shift_tensor_scalar(2)?.f_bitwise_and(0x30);
        let rest_high = rest.f_bitwise_right_shift_tensor_scalar(4)?;
        let scales = Tensor::f_cat(&[low(&scales, 63)?, low(&rest, 15)?.f_bitwise_or_tensor(&high(&scales)?)?], 1)?;
        let least = Tensor::f_cat(&[low(&least, 63)?, rest_high.f_bitwise_or_tensor(&high(&least)?)?], 1)?;
        let scale = self.half(0)?.times(&float(&scales)?)?.f_unsqueeze(2)?;
        let least = self.half(2)?.times(&float(&least)?)?.f_unsqueeze(2)?;
        Ok(values.times(&scale)?.f_sub(&least)?)
    }
}

fn float(tensor: &Tensor) -> Result<Tensor, TorchError> {
    Ok(tensor.f_to_kind(Kind::Float)?)
}

fn low(bytes: &Tensor, mask: i64) -> Result<Tensor, TorchError> {
    Ok(bytes.f_bitwise_and(mask)?)
}

/// Takes bytes (blocks, n) apart, each into `parts` numbers of `bits`, the lowest first: (blocks, n / group, parts, group),
/// for a group of bytes their first numbers, then their second.
fn spread(bytes: &Tensor, group: i64, bits: i64, parts: i64) -> Result<Tensor, TorchError> {
    let steps = Tensor::f_arange(parts, (Kind::Uint8, bytes.device()))?.f_mul_scalar(bits)?.f_view([1, 1, parts, 1])?;
    let grouped = bytes.f_view([bytes.size()[0], -1, 1, group])?;
    low(&grouped.f_bitwise_right_shift(&steps)?, (1 << bits) - 1)
}

/// `low` with `high` above its `bits`, in f32. All within a byte.
fn joined(low: &Tensor, high: &Tensor, bits: i64) -> Result<Tensor, TorchError> {
    float(&high.f_bitwise_left_shift_tensor_scalar(bits)?.f_bitwise_or_tensor(low)?)
}

/// (blocks, elements) of indices
fn looked_up(indices: &Tensor) -> Result<Tensor, TorchError> {
    let blocks = indices.size()[0];
    let table = Tensor::f_from_slice(&IQ4_VALUES)?.f_to_device(indices.device())?;
    let indices = indices.f_reshape([-1])?.f_to_kind(Kind::Int)?;
    Ok(table.f_index_select(0, &indices)?.f_reshape([blocks, -1])?)
}

/// Sums that read as the formats' descriptions do.
trait Sums: Sized {
    fn times(&self, other: &Self) -> Result<Self, TorchError>;
    fn plus(&self, other: &Self) -> Result<Self, TorchError>;
    fn minus(&self, number: i64) -> Result<Self, TorchError>;
}

impl Sums for Tensor {
    fn times(&self, other: &Self) -> Result<Self, TorchError> {
        Ok(self.f_mul(other)?)
    }

    fn plus(&self, other: &Self) -> Result<Self, TorchError> {
        Ok(self.f_add(other)?)
    }

    fn minus(&self, number: i64) -> Result<Self, TorchError> {
        Ok(self.f_sub_scalar(number)?)
    }
}

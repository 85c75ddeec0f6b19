//! How tensors are stored: element by element, or packed in blocks that share scales.

use anamnesis::GgufType;

/// What a tensor's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    F32,
    F16,
    BF16,
    Packed(Packing),
}

/// A way of packing. The numbers in the names are bits of an element; those with a K have a scale for a block of scales,
/// those with IQ4 a table instead of even steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Packing {
    Q40,
    Q41,
    Q50,
    Q51,
    Q80,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq4Nl,
    Iq4Xs,
}

impl Packing {
    /// Elements of a block.
    pub const fn block_elements(self) -> u64 {
        match self {
            Self::Q40 | Self::Q41 | Self::Q50 | Self::Q51 | Self::Q80 | Self::Iq4Nl => 32,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K | Self::Iq4Xs => 256,
        }
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> u64 {
        match self {
            Self::Q40 | Self::Iq4Nl => 18,
            Self::Q41 => 20,
            Self::Q50 => 22,
            Self::Q51 => 24,
            Self::Q80 => 34,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
            Self::Iq4Xs => 136,
        }
    }
}

impl Stored {
    /// None where there are such files and they are not read.
    #[expect(clippy::wildcard_enum_match_arm, reason = "ggml's list grows, and what is new is not computed")]
    pub(crate) const fn of(dtype: GgufType) -> Option<Self> {
        Some(match dtype {
            GgufType::F32 => Self::F32,
            GgufType::F16 => Self::F16,
            GgufType::BF16 => Self::BF16,
            GgufType::Q4_0 => Self::Packed(Packing::Q40),
            GgufType::Q4_1 => Self::Packed(Packing::Q41),
            GgufType::Q5_0 => Self::Packed(Packing::Q50),
            GgufType::Q5_1 => Self::Packed(Packing::Q51),
            GgufType::Q8_0 => Self::Packed(Packing::Q80),
            GgufType::Q2_K => Self::Packed(Packing::Q2K),
            GgufType::Q3_K => Self::Packed(Packing::Q3K),
            GgufType::Q4_K => Self::Packed(Packing::Q4K),
            GgufType::Q5_K => Self::Packed(Packing::Q5K),
            GgufType::Q6_K => Self::Packed(Packing::Q6K),
            GgufType::IQ4_NL => Self::Packed(Packing::Iq4Nl),
            GgufType::IQ4_XS => Self::Packed(Packing::Iq4Xs),
            _ => return None,
        })
    }

    /// Bytes of so many elements; none where they do not fill whole blocks, or are too many to count.
    pub const fn bytes_of(self, elements: u64) -> Option<u64> {
        match self {
            Self::F32 => elements.checked_mul(4),
            Self::F16 | Self::BF16 => elements.checked_mul(2),
            Self::Packed(packing) if elements.is_multiple_of(packing.block_elements()) => {
                (elements / packing.block_elements()).checked_mul(packing.block_bytes())
            }
            Self::Packed(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_those_of_whole_blocks() {
        let packed = |packing| Stored::Packed(packing);
        assert_eq!(packed(Packing::Q40).bytes_of(64), Some(36));
        assert_eq!(packed(Packing::Q4K).bytes_of(512), Some(288));
        assert_eq!(packed(Packing::Q4K).bytes_of(128), None);
        assert_eq!((Stored::BF16.bytes_of(3), Stored::F32.bytes_of(u64::MAX)), (Some(6), None));
    }
}

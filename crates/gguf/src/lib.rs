//! What a GGUF file says of itself: whose weights it holds, and of each tensor where it lies and how it is packed.
//!
//! The daemon asks whether a file is whole and fits its folder, the worker where the bytes are. Only the front of a file
//! is read, in so many bytes as it has; whatever is wrong with it is an error, and nothing is allocated on its word alone.
//! Knows no tensors' values, and of models no more than their names.

mod architecture;
mod file;
mod folder;
mod packing;

pub use self::{
    architecture::Architecture,
    file::{GgufError, GgufFile, Tensor},
    folder::gguf_files,
    packing::{Packing, Stored},
};

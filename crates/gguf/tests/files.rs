//! Files as converters write them, and files that are damaged or mean harm: an answer or an error, never more memory than
//! the file has bytes, and no panic.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::Cursor;

use atelier_gguf::{GgufError, GgufFile, Packing, Stored};
use atelier_testkit::gguf::{File, Tensor, Value};
use proptest::prelude::*;

const Q4_0: u32 = 2;
const Q4_K: u32 = 12;
const IQ2_XXS: u32 = 16;

fn read(bytes: &[u8]) -> Result<GgufFile, GgufError> {
    GgufFile::read(Cursor::new(bytes))
}

fn error(file: &File) -> String {
    read(&file.bytes()).expect_err("an error").to_string()
}

/// A norm, and a matrix of 3 rows of 64 in blocks of 18 bytes.
fn usual() -> File {
    let tensors = vec![
        Tensor::floats("norm.weight", &[4], &[1.0, 2.0, 3.0, 4.0]),
        Tensor::new("proj.weight", &[64, 3], Q4_0, (0..108).collect()),
    ];
    File::new("flux", tensors)
}

#[test]
fn a_file_says_whose_its_tensors_are_and_where_they_lie() {
    let bytes = usual().bytes();
    let file = read(&bytes).unwrap();
    assert_eq!(file.architecture.as_deref(), Some("flux"));
    let [norm, proj] = &file.tensors[..] else { panic!("{:?}", file.tensors) };
    assert_eq!((norm.shape.as_slice(), norm.stored, norm.bytes), ([4].as_slice(), Stored::F32, 16));
    assert_eq!((proj.shape.as_slice(), proj.stored), ([3, 64].as_slice(), Stored::Packed(Packing::Q40)));
    let start = usize::try_from(proj.offset).unwrap();
    assert_eq!(bytes[start..start + 108], (0..108).collect::<Vec<u8>>());
}

#[test]
fn a_tensor_that_was_reshaped_for_its_blocks_has_its_own_shape_again() {
    let mut file = File::new("flux", vec![Tensor::new("conv.weight", &[256, 2], Q4_K, vec![0; 288])]);
    file.values.push(("comfy.gguf.orig_shape.conv.weight".into(), Value::Sides(vec![8, 4, 4, 4])));
    assert_eq!(read(&file.bytes()).unwrap().tensors[0].shape, [8, 4, 4, 4]);
    for sides in [vec![8, 4, 4, 5], vec![-8, -64], vec![0], vec![i32::MAX; 9], vec![]] {
        file.values[1].1 = Value::Sides(sides);
        assert!(error(&file).contains("conv.weight"), "{}", error(&file));
    }
    file.values[1].1 = Value::Number(512);
    assert!(error(&file).contains("conv.weight"), "{}", error(&file));
}

#[test]
fn a_file_that_is_cut_off_anywhere_is_refused() {
    let bytes = usual().bytes();
    // What fills the last tensor's place up to the next is not needed.
    let end = bytes.len() - (128 - 108);
    assert!(read(&bytes[..end]).is_ok());
    for length in 0..end {
        assert!(read(&bytes[..length]).is_err(), "{length} of {} bytes", bytes.len());
    }
}

#[test]
fn what_is_not_computed_is_named() {
    let mut file = usual();
    file.tensors[1] = Tensor::new("proj.weight", &[256, 1], IQ2_XXS, vec![0; 66]);
    let told = error(&file);
    assert!(told.contains("proj.weight") && told.contains("IQ2_XXS"), "{told}");
    // A type of the future.
    file.tensors[1].kind = 4711;
    assert!(error(&file).contains("4711"), "{}", error(&file));
    // Gone since 2023.
    file.tensors[1].kind = 4;
    read(&file.bytes()).expect_err("Q4_2");
    let mut file = usual();
    for version in [0, 1, 4, 3_u32.swap_bytes()] {
        file.version = version;
        read(&file.bytes()).expect_err("a version");
    }
    read(b"<!DOCTYPE html><html>").expect_err("no magic");
}

#[test]
fn numbers_that_cannot_be_are_refused() {
    type Change = fn(&mut File);
    let changes: [(&str, Change); 14] = [
        ("more tensors than bytes", |file| file.tensor_count = Some(u64::MAX)),
        ("tensors that are not there", |file| file.tensor_count = Some(3)),
        ("more values than bytes", |file| file.value_count = Some(u64::MAX / 2)),
        ("as many as there may be", |file| file.value_count = Some(1 << 16)),
        ("sides whose product overflows", |file| file.tensors[1].sides = vec![1 << 40, 1 << 40]),
        ("sides that overflow to what fits", |file| file.tensors[1].sides = vec![1 << 63, 2, 64, 3]),
        ("a side of nothing", |file| file.tensors[1].sides = vec![64, 0]),
        ("too many sides", |file| file.tensors[1].sides = vec![1; 1000]),
        ("no sides", |file| file.tensors[0].sides = vec![]),
        ("rows of no whole blocks", |file| file.tensors[1].sides = vec![48, 4]),
        ("outside of the file", |file| file.tensors[1].offset = Some(1 << 20)),
        ("an offset that overflows", |file| file.tensors[1].offset = Some(u64::MAX - 31)),
        ("not aligned", |file| file.tensors[1].offset = Some(33)),
        ("upon another tensor", |file| file.tensors[1].offset = Some(0)),
    ];
    for (what, change) in changes {
        let mut file = usual();
        change(&mut file);
        assert!(read(&file.bytes()).is_err(), "{what}");
    }
    for alignment in [0, 3, 48] {
        let mut file = usual();
        file.values.push(("general.alignment".into(), Value::Number(alignment)));
        assert!(read(&file.bytes()).is_err(), "an alignment of {alignment}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(mut bytes in Just(usual().bytes()), changes in prop::collection::vec((0..220_usize, any::<u8>()), 1..6)) {
        for (place, value) in changes {
            bytes[place] = value;
        }
        if let Ok(file) = read(&bytes) {
            for tensor in file.tensors {
                prop_assert!(tensor.offset + tensor.bytes <= bytes.len() as u64);
            }
        }
    }
}

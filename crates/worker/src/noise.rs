//! A job's own random numbers: drawn on the CPU in f32, whatever the device, so that a seed means the same everywhere.
#![expect(unsafe_code, reason = "calls into C++; each block says why it is sound")]

use std::ffi::c_int;

use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

use crate::torch::{TorchError, check};

/// at::Generator.
#[repr(C)]
struct Raw {
    private: [u8; 0],
}

unsafe extern "C" {
    fn atelier_generator_new(seed: u64, out: *mut *mut Raw) -> c_int;
    fn atelier_generator_free(generator: *mut Raw);
    fn atelier_generator_normal(
        generator: *mut Raw,
        sizes: *const i64,
        dimensions: usize,
        out: *mut *mut C_tensor,
    ) -> c_int;
    fn atelier_generator_choose(generator: *mut Raw, probabilities: *const C_tensor, out: *mut *mut C_tensor) -> c_int;
    fn atelier_generator_state(generator: *mut Raw, out: *mut *mut C_tensor) -> c_int;
    fn atelier_generator_set_state(generator: *mut Raw, state: *const C_tensor) -> c_int;
}

/// What diffusers calls a generator on the CPU. One serves all pictures of a job: diffusers draws for them together, and
/// each takes its share, so that they come out the same one by one.
pub struct Noise {
    generator: *mut Raw,
    pictures: i64,
    picture: i64,
}

impl Noise {
    /// For the picture number `picture` of so many.
    pub fn new(seed: u64, pictures: u32, picture: u32) -> Result<Self, TorchError> {
        let mut generator = std::ptr::null_mut();
        // SAFETY: writes a pointer that `drop` frees.
        check(unsafe { atelier_generator_new(seed, &raw mut generator) })?;
        Ok(Self { generator, pictures: pictures.into(), picture: picture.into() })
    }

    /// Normally distributed numbers in f32 on the CPU.
    pub fn normal(&mut self, sizes: &[i64]) -> Result<Tensor, TorchError> {
        let mut out = std::ptr::null_mut();
        // SAFETY: the generator is alive and only ours; the result is ours.
        check(unsafe { atelier_generator_normal(self.generator, sizes.as_ptr(), sizes.len(), &raw mut out) })?;
        // SAFETY: the shim has made a tensor for us to own.
        Ok(unsafe { Tensor::from_ptr(out) })
    }

    /// Numbers of the shape (1, …) for this picture, out of those that are drawn for all pictures.
    pub fn normal_of_batch(&mut self, sizes: &[i64]) -> Result<Tensor, TorchError> {
        let mut all = sizes.to_vec();
        if let Some(first) = all.first_mut() {
            *first = self.pictures;
        }
        Ok(self.normal(&all)?.f_narrow(0, self.picture, 1)?.f_contiguous()?)
    }

    /// An index into `shares` (N), each as likely as its share; f32 on the CPU.
    ///
    /// # Errors
    /// Shares that are below 0, infinite or no numbers, or none above 0.
    pub fn choose(&mut self, shares: &Tensor) -> Result<i64, TorchError> {
        let mut out = std::ptr::null_mut();
        // SAFETY: the generator is alive and only ours, the shares outlive the call; the result is ours.
        check(unsafe { atelier_generator_choose(self.generator, shares.as_ptr(), &raw mut out) })?;
        // SAFETY: as above.
        let chosen = unsafe { Tensor::from_ptr(out) };
        Ok(chosen.f_int64_value(&[0])?)
    }

    /// All that the next numbers depend on.
    pub fn state(&self) -> Result<Vec<u8>, TorchError> {
        let mut out = std::ptr::null_mut();
        // SAFETY: as in `normal`.
        check(unsafe { atelier_generator_state(self.generator, &raw mut out) })?;
        // SAFETY: as in `normal`.
        let state = unsafe { Tensor::from_ptr(out) };
        let mut bytes = vec![0; state.numel()];
        let length = bytes.len();
        state.f_copy_data_u8(&mut bytes, length)?;
        Ok(bytes)
    }

    /// Goes on where `state` was taken.
    ///
    /// # Errors
    /// Bytes that are no state.
    pub fn restore(&mut self, state: &[u8]) -> Result<(), TorchError> {
        let length = i64::try_from(state.len()).map_err(|error| TorchError::Other(error.to_string()))?;
        let tensor = Tensor::f_from_data_size(state, &[length], Kind::Uint8)?.f_to_device(Device::Cpu)?;
        // SAFETY: both outlive the call.
        check(unsafe { atelier_generator_set_state(self.generator, tensor.as_ptr()) })
    }
}

impl Drop for Noise {
    fn drop(&mut self) {
        // SAFETY: made by `new`, freed once.
        unsafe { atelier_generator_free(self.generator) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.flatten(0, -1)).expect("numbers")
    }

    #[test]
    fn a_seed_gives_torchs_numbers_and_a_state_goes_on_with_them() {
        let mut noise = Noise::new(0, 1, 0).expect("a generator");
        let first = values(&noise.normal(&[1, 4, 4, 4]).expect("numbers"));
        // torch.randn(1, 4, 4, 4, generator=torch.Generator("cpu").manual_seed(0))
        for (got, wanted) in first.iter().zip([-1.125_84, -1.152_36, -0.250_58, -0.433_88]) {
            assert!((got - wanted).abs() < 1e-4, "{first:?}");
        }
        let state = noise.state().expect("a state");
        let second = values(&noise.normal(&[20]).expect("numbers"));
        assert_ne!(first[..20], second[..]);
        let mut other = Noise::new(9, 1, 0).expect("a generator");
        other.restore(&state).expect("a state");
        assert_eq!(values(&other.normal(&[20]).expect("numbers")), second);
        assert!(other.restore(&state[1..]).is_err());
    }

    #[test]
    fn a_choice_is_torchs_and_falls_by_the_shares() {
        let mut noise = Noise::new(3, 1, 0).expect("a generator");
        let shares = Tensor::from_slice(&[0.1_f32, 0.0, 0.6, 0.3]);
        let drawn: Vec<i64> = (0..400).map(|_| noise.choose(&shares).expect("a choice")).collect();
        // [torch.multinomial(shares, 1, generator=g).item() for _ in range(12)], of the seed 3
        assert_eq!(drawn[..12], [0, 2, 2, 3, 3, 2, 2, 3, 0, 2, 2, 2]);
        let count = |index: i64| drawn.iter().filter(|drawn| **drawn == index).count();
        assert_eq!(count(1), 0);
        assert!((200..280).contains(&count(2)) && (85..155).contains(&count(3)), "{} {}", count(2), count(3));
        assert!(noise.choose(&Tensor::from_slice(&[0.0_f32, 0.0])).is_err());
        assert!(noise.choose(&Tensor::from_slice(&[f32::NAN, 0.5])).is_err());
    }

    #[test]
    fn each_picture_takes_its_share_of_what_is_drawn_for_all() {
        let together = Noise::new(3, 1, 0).and_then(|mut noise| noise.normal(&[3, 2, 4, 4])).expect("numbers");
        for picture in 0..3 {
            let mut noise = Noise::new(3, 3, picture).expect("a generator");
            let share = noise.normal_of_batch(&[1, 2, 4, 4]).expect("numbers");
            assert_eq!(values(&share), values(&together.narrow(0, picture.into(), 1)));
        }
    }
}

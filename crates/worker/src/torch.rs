//! The edge to libtorch: errors with short messages, and what tch does not expose, through a C++ shim.
//!
//! All of it belongs to one thread. Every thread that calls torch gets an OpenMP pool of its own.
#![expect(unsafe_code, reason = "calls into C++; each block says why it is sound")]

use std::{
    any::Any,
    ffi::{CStr, c_char, c_int, c_void},
    marker::PhantomData,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
};

use tch::{Kind, TchError, Tensor};
use torch_sys::C_tensor;

unsafe extern "C" {
    fn atelier_last_error() -> *const c_char;
    fn atelier_torch_version() -> *const c_char;
    fn atelier_from_blob(
        data: *mut c_void,
        sizes: *const i64,
        dimensions: usize,
        scalar_type: c_int,
        context: *mut c_void,
        drop: extern "C" fn(*mut c_void),
        out: *mut *mut C_tensor,
    ) -> c_int;
    fn atelier_channels_last(tensor: *const C_tensor, out: *mut *mut C_tensor) -> c_int;
    fn atelier_has_fused_convolution() -> c_int;
    fn atelier_fused_convolution(
        input: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        stride: i64,
        padding: i64,
        activation: *const c_char,
        slope: *const f64,
        out: *mut *mut C_tensor,
    ) -> c_int;
    fn atelier_pack_convolution(
        weight: *const C_tensor,
        stride: i64,
        padding: i64,
        sizes: *const i64,
        out: *mut *mut C_tensor,
    ) -> c_int;
    fn atelier_fused_linear(
        input: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        activation: *const c_char,
        algorithm: *const c_char,
        out: *mut *mut C_tensor,
    ) -> c_int;
    fn atelier_inference_mode_enter() -> *mut c_void;
    fn atelier_inference_mode_exit(guard: *mut c_void);
    fn atelier_exact_cuda() -> c_int;
    fn atelier_accelerator_memory(device: c_int, free_bytes: *mut u64, total_bytes: *mut u64) -> c_int;
    fn atelier_empty_cache() -> c_int;
    fn atelier_fail_allocation(after: i64);
    fn atelier_allocations_left() -> i64;
}

/// An operation of libtorch failed. The message is one sentence or two, without the C++ backtrace.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TorchError {
    #[error("{0}")]
    OutOfMemory(String),
    #[error("{0}")]
    Other(String),
}

impl TorchError {
    fn from_message(message: &str) -> Self {
        let text = short(message);
        // The CPU allocator has no type of its own for this; CUDA's loses its type on the way through tch. oneDNN says
        // no more than that it could not: our shapes are right, so it has found no memory for its compiled kernels.
        let lower = text.to_lowercase();
        let signs = [
            "out of memory",
            "can't allocate memory",
            "not enough memory",
            "bad_alloc",
            "could not create a primitive",
            "could not create a memory",
            "could not execute a primitive",
        ];
        if signs.iter().any(|sign| lower.contains(sign)) { Self::OutOfMemory(text) } else { Self::Other(text) }
    }
}

impl From<TchError> for TorchError {
    fn from(error: TchError) -> Self {
        if let TchError::Torch(message) = &error {
            return Self::from_message(message);
        }
        Self::Other(short(&error.to_string()))
    }
}

/// What `work` gives; a failure of libtorch that reaches us as a panic is an error as well.
///
/// tch 0.26 frees the number that an operation was given before it looks whether the operation failed, and then takes the
/// failure for one of freeing, which panics. All that may run out of memory and be tried once more is to go through here.
///
/// # Errors
/// As `work`.
pub fn caught<T, E: From<TorchError>>(work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| match failure_of(&*panic) {
        Some(error) => Err(error.into()),
        None => resume_unwind(panic),
    })
}

/// What failed, where that is why tch panicked.
fn failure_of(panic: &(dyn Any + Send)) -> Option<TorchError> {
    let (_, debug) = panic.downcast_ref::<String>()?.split_once("an `Err` value: Torch(\"")?;
    Some(TorchError::from_message(&debug.replace("\\n", "\n")))
}

/// The message up to the C++ backtrace, in one line.
fn short(message: &str) -> String {
    let message = message.split("Exception raised from").next().unwrap_or_default();
    let message = message.split("\nframe #").next().unwrap_or_default();
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

pub(crate) fn check(code: c_int) -> Result<(), TorchError> {
    if code == 0 {
        return Ok(());
    }
    // SAFETY: a thread-local std::string that lives until the next failure on this thread.
    let message = unsafe { CStr::from_ptr(atelier_last_error()) }.to_string_lossy();
    Err(match code {
        2 => TorchError::OutOfMemory(short(&message)),
        _ => TorchError::from_message(&message),
    })
}

/// The version of libtorch's headers, which build.rs holds to the library's.
pub fn version() -> String {
    // SAFETY: a string literal.
    unsafe { CStr::from_ptr(atelier_torch_version()) }.to_string_lossy().into_owned()
}

/// c10's numbers, which are stored in files and do not change; tch keeps its own table private.
#[expect(clippy::wildcard_enum_match_arm, reason = "what no weights file holds")]
const fn scalar_type(kind: Kind) -> Option<c_int> {
    Some(match kind {
        Kind::Uint8 => 0,
        Kind::Int8 => 1,
        Kind::Int16 => 2,
        Kind::Int => 3,
        Kind::Int64 => 4,
        Kind::Half => 5,
        Kind::Float => 6,
        Kind::Double => 7,
        Kind::Bool => 11,
        Kind::BFloat16 => 15,
        Kind::Float8e5m2 => 23,
        Kind::Float8e4m3fn => 24,
        _ => return None,
    })
}

extern "C" fn drop_owner(owner: *mut c_void) {
    // SAFETY: made by Box::into_raw in `tensor_over`, and called once.
    drop(unsafe { Box::from_raw(owner.cast::<Box<dyn Any + Send + Sync>>()) });
}

/// A tensor on the CPU over memory that `owner` keeps alive, without a copy. Writing to it is up to what the memory is.
///
/// # Safety
/// `data` must hold as many elements of `kind` as `sizes` says, aligned, for as long as `owner` lives.
pub unsafe fn tensor_over(
    data: *const u8,
    sizes: &[i64],
    kind: Kind,
    owner: Box<dyn Any + Send + Sync>,
) -> Result<Tensor, TorchError> {
    let scalar_type = scalar_type(kind).ok_or_else(|| TorchError::Other(format!("{kind:?} is not supported")))?;
    let context: *mut c_void = Box::into_raw(Box::new(owner)).cast();
    let mut out = std::ptr::null_mut();
    // SAFETY: the caller vouches for the memory; `context` is dropped exactly once, here or by the deleter.
    let code = unsafe {
        atelier_from_blob(
            data.cast_mut().cast(),
            sizes.as_ptr(),
            sizes.len(),
            scalar_type,
            context,
            drop_owner,
            &raw mut out,
        )
    };
    if code != 0 {
        drop_owner(context);
    }
    check(code)?;
    // SAFETY: the shim has made a tensor for us to own.
    Ok(unsafe { Tensor::from_ptr(out) })
}

/// A tensor on the CPU over `values`.
///
/// # Errors
/// A number of values that does not fit `sizes`.
pub fn from_vec(values: Vec<f32>, sizes: &[i64]) -> Result<Tensor, TorchError> {
    let elements = sizes.iter().try_fold(1usize, |n, &size| n.checked_mul(usize::try_from(size).ok()?));
    if elements != Some(values.len()) {
        return Err(TorchError::Other(format!("{} values do not make a tensor of {sizes:?}", values.len())));
    }
    let data = values.as_ptr().cast();
    // SAFETY: the vector holds that many elements, and moving it into the box does not move them.
    unsafe { tensor_over(data, sizes, Kind::Float, Box::new(values)) }
}

/// (B, C, H, W), stored as (B, H, W, C): the layout in which convolutions are quickest on the CPU.
pub fn channels_last(tensor: &Tensor) -> Result<Tensor, TorchError> {
    let mut out = std::ptr::null_mut();
    // SAFETY: both sides only borrow; the result is ours.
    check(unsafe { atelier_channels_last(tensor.as_ptr(), &raw mut out) })?;
    // SAFETY: as above.
    Ok(unsafe { Tensor::from_ptr(out) })
}

/// What a convolution does with each result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    None,
    /// x · sigmoid(x)
    Silu,
    /// x, or this much of it below 0.
    LeakyRelu(f64),
}

impl Activation {
    /// In a pass of its own.
    pub fn apply(self, mut tensor: Tensor) -> Result<Tensor, TorchError> {
        match self {
            Self::None => Ok(tensor),
            Self::Silu => Ok(tensor.f_silu_()?),
            Self::LeakyRelu(slope) => Ok(tensor.f_maximum(&tensor.f_mul_scalar(slope)?)?),
        }
    }
}

/// Whether this libtorch has oneDNN with fused convolutions and linear layers.
pub fn has_fused_convolution() -> bool {
    // SAFETY: takes nothing and catches everything.
    unsafe { atelier_has_fused_convolution() != 0 }
}

/// A convolution of tensors on the CPU, with the activation in the same pass over memory. `weight` may be packed.
pub fn fused_convolution(
    input: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    (stride, padding): (i64, i64),
    activation: Activation,
) -> Result<Tensor, TorchError> {
    let (name, slope) = match activation {
        Activation::None => (c"none", None),
        Activation::Silu => (c"swish", None),
        Activation::LeakyRelu(slope) => (c"leaky_relu", Some(slope)),
    };
    let slope = slope.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let mut out = std::ptr::null_mut();
    // SAFETY: all pointers outlive the call; the result is ours.
    check(unsafe {
        atelier_fused_convolution(
            input.as_ptr(),
            weight.as_ptr(),
            bias.as_ptr(),
            stride,
            padding,
            name.as_ptr(),
            slope,
            &raw mut out,
        )
    })?;
    // SAFETY: as above.
    Ok(unsafe { Tensor::from_ptr(out) })
}

/// A convolution's weight (out, in, kernel, kernel), on the CPU, in the order in which oneDNN reads it for an input of
/// `sizes` (B, C, H, W). Otherwise every convolution reorders it anew, which takes longer than the convolution itself
/// where pictures are small. Only [`fused_convolution`] takes such a tensor, for other inputs too, but may be slow.
pub fn pack_convolution(weight: &Tensor, (stride, padding): (i64, i64), sizes: [i64; 4]) -> Result<Tensor, TorchError> {
    let _mappings = OwnMappings::enter();
    let mut out = std::ptr::null_mut();
    // SAFETY: only borrows; the result is ours.
    check(unsafe { atelier_pack_convolution(weight.as_ptr(), stride, padding, sizes.as_ptr(), &raw mut out) })?;
    // SAFETY: as above.
    Ok(unsafe { Tensor::from_ptr(out) })
}

/// What a linear layer does with each result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinearActivation {
    None,
    Gelu,
    GeluTanh,
}

/// A linear layer of tensors on the CPU through oneDNN, with the activation in the same pass over memory.
pub fn fused_linear(
    input: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    activation: LinearActivation,
) -> Result<Tensor, TorchError> {
    let (name, algorithm) = match activation {
        LinearActivation::None => (c"none", c""),
        LinearActivation::Gelu => (c"gelu", c"none"),
        LinearActivation::GeluTanh => (c"gelu", c"tanh"),
    };
    let bias = bias.map_or(std::ptr::null(), Tensor::as_ptr);
    let (input, weight) = (input.as_ptr(), weight.as_ptr());
    let mut out = std::ptr::null_mut();
    // SAFETY: all pointers outlive the call, and no bias is null; the result is ours.
    check(unsafe { atelier_fused_linear(input, weight, bias, name.as_ptr(), algorithm.as_ptr(), &raw mut out) })?;
    // SAFETY: as above.
    Ok(unsafe { Tensor::from_ptr(out) })
}

/// No gradients and no version counters on this thread while it lives.
pub struct InferenceMode {
    guard: *mut c_void,
    not_send: PhantomData<*const ()>,
}

impl InferenceMode {
    #[must_use]
    pub fn enter() -> Self {
        // SAFETY: makes a guard that `drop` deletes on the same thread, since this type is not Send.
        Self { guard: unsafe { atelier_inference_mode_enter() }, not_send: PhantomData }
    }
}

impl Drop for InferenceMode {
    fn drop(&mut self) {
        // SAFETY: made by `enter`, dropped once.
        unsafe { atelier_inference_mode_exit(self.guard) }
    }
}

/// Loads CUDA's half of libtorch, if there is a driver. To be called before any other call of torch: the first one
/// that asks whether there is CUDA settles it for the process.
///
/// # Errors
/// Why there is no CUDA, as the end of a sentence.
pub fn load_cuda() -> Result<(), String> {
    // The driver first: libtorch_cuda costs 265 MiB, which a machine without a card need not pay.
    open_library(c"libcuda.so.1", libc::RTLD_NOW).map_err(|_| "there is no NVIDIA driver (libcuda.so.1)".to_owned())?;
    open_library(c"libtorch_cuda.so", libc::RTLD_NOW | libc::RTLD_GLOBAL)
        .map_err(|error| format!("CUDA's part of libtorch does not load: {error}"))
}

fn open_library(name: &CStr, flags: c_int) -> Result<(), String> {
    // SAFETY: the names are ours, and both libraries are made to be loaded at run time. They stay loaded.
    let handle = unsafe { libc::dlopen(name.as_ptr(), flags) };
    if !handle.is_null() {
        return Ok(());
    }
    // SAFETY: dlerror answers a string after a failed dlopen, valid until the next call on this thread.
    let error = unsafe { libc::dlerror() };
    if error.is_null() {
        return Err(format!("{} cannot be loaded", name.to_string_lossy()));
    }
    // SAFETY: as above.
    Err(unsafe { CStr::from_ptr(error) }.to_string_lossy().into_owned())
}

/// The card's own name, from the driver. After [`load_cuda`].
pub fn cuda_name(index: u32) -> Option<String> {
    type Init = unsafe extern "C" fn(u32) -> c_int;
    type Get = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
    type Name = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
    let symbol = |name: &CStr| {
        // SAFETY: looks a name up in a library that is loaded and stays so.
        let address = unsafe {
            let library = libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD);
            if library.is_null() { library } else { libc::dlsym(library, name.as_ptr()) }
        };
        (!address.is_null()).then_some(address)
    };
    let (init, get, name) = (symbol(c"cuInit")?, symbol(c"cuDeviceGet")?, symbol(c"cuDeviceGetName")?);
    // SAFETY: the signatures of CUDA's driver API, which is stable.
    let (init, get, name) = unsafe {
        (
            std::mem::transmute::<*mut c_void, Init>(init),
            std::mem::transmute::<*mut c_void, Get>(get),
            std::mem::transmute::<*mut c_void, Name>(name),
        )
    };
    let mut text: [c_char; 256] = [0; 256];
    let mut device = 0;
    // SAFETY: the last byte of the buffer stays 0.
    unsafe {
        let index = c_int::try_from(index).ok()?;
        if init(0) != 0 || get(&raw mut device, index) != 0 || name(text.as_mut_ptr(), 255, device) != 0 {
            return None;
        }
        Some(CStr::from_ptr(text.as_ptr()).to_string_lossy().into_owned())
    }
}

/// f32 is computed in f32, and the same input gives the same output.
pub fn exact_cuda() -> Result<(), TorchError> {
    // SAFETY: sets flags.
    check(unsafe { atelier_exact_cuda() })
}

/// Free and total bytes of a CUDA device.
pub fn accelerator_memory(device: u32) -> Result<(u64, u64), TorchError> {
    let (mut free, mut total) = (0, 0);
    let device = c_int::try_from(device).map_err(|error| TorchError::Other(error.to_string()))?;
    // SAFETY: writes two integers.
    check(unsafe { atelier_accelerator_memory(device, &raw mut free, &raw mut total) })?;
    Ok((free, total))
}

/// While it lives, what is allocated is mapped on its own, but for small things. For what stays, such as weights: among
/// activations, which come and go, it would leave gaps that nothing fits.
pub struct OwnMappings(());

impl OwnMappings {
    const ON: c_int = 64 << 10;
    /// What malloc raises its threshold to by itself, in time: activations are not mapped anew, page by page.
    const OFF: c_int = 32 << 20;

    #[must_use]
    pub fn enter() -> Self {
        // SAFETY: sets two numbers of malloc's.
        unsafe {
            libc::mallopt(libc::M_TRIM_THRESHOLD, 2 * Self::OFF);
            libc::mallopt(libc::M_MMAP_THRESHOLD, Self::ON);
        }
        Self(())
    }
}

impl Drop for OwnMappings {
    fn drop(&mut self) {
        // SAFETY: sets a number of malloc's.
        unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, Self::OFF) };
    }
}

/// Makes the allocation of a tensor's memory on the CPU fail, once, after so many others of this thread: what a test of too
/// little memory asks for. Nothing of it is there until it is called.
pub struct FailedAllocation(());

impl FailedAllocation {
    #[must_use]
    pub fn after(allocations: u32) -> Self {
        // SAFETY: sets a number, and an allocator that hands everything on to the one before it.
        unsafe { atelier_fail_allocation(i64::from(allocations)) };
        Self(())
    }

    /// Whether it has come to that.
    pub fn has_happened(&self) -> bool {
        // SAFETY: reads a number.
        unsafe { atelier_allocations_left() < 0 }
    }
}

impl Drop for FailedAllocation {
    fn drop(&mut self) {
        // SAFETY: sets a number.
        unsafe { atelier_fail_allocation(-1) };
    }
}

/// Gives memory that torch and malloc hold in reserve back.
pub fn trim() -> Result<(), TorchError> {
    // SAFETY: both only return unused memory.
    let code = unsafe {
        libc::malloc_trim(0);
        atelier_empty_cache()
    };
    check(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_ends_before_the_backtrace() {
        let error = Tensor::f_ones([2, 3], (Kind::Float, tch::Device::Cpu))
            .and_then(|a| a.f_matmul(&a))
            .map_err(TorchError::from)
            .expect_err("shapes that do not multiply");
        let text = error.to_string();
        assert!(text.contains("cannot be multiplied"), "{text}");
        assert!(!text.contains("frame #") && !text.contains("Exception raised") && text.len() < 200, "{text}");
    }

    #[test]
    fn a_tensor_that_does_not_fit_memory_is_out_of_memory() {
        let error = Tensor::f_zeros([1 << 46], (Kind::Float, tch::Device::Cpu)).map_err(TorchError::from);
        assert!(matches!(error, Err(TorchError::OutOfMemory(_))), "{error:?}");
    }

    #[test]
    fn a_failure_that_tch_panics_with_is_an_error() {
        let tensor = Tensor::f_zeros([1 << 20], (Kind::Float, tch::Device::Cpu)).expect("4 MiB");
        let multiply = || {
            let _failure = FailedAllocation::after(0);
            tensor.f_mul_scalar(2.0).map_err(TorchError::from)
        };
        let error = caught(multiply).expect_err("no memory");
        assert!(matches!(&error, TorchError::OutOfMemory(text) if text.len() < 200), "{error:?}");
        let panic = catch_unwind(|| caught(|| -> Result<(), TorchError> { panic!("a bug") }));
        assert_eq!(panic.expect_err("not ours").downcast_ref::<&str>(), Some(&"a bug"));
    }

    #[test]
    fn onednns_want_of_memory_is_out_of_memory() {
        let error = TorchError::from_message("could not create a primitive");
        assert!(matches!(error, TorchError::OutOfMemory(_)), "{error:?}");
    }

    #[test]
    fn the_owner_lives_as_long_as_the_last_view() {
        let owner = std::sync::Arc::new(vec![3.0_f32; 8]);
        let data = owner.as_ptr().cast();
        // SAFETY: eight elements, kept alive by the owner.
        let tensor = unsafe { tensor_over(data, &[8], Kind::Float, Box::new(owner.clone())) }.expect("a tensor");
        let view = tensor.narrow(0, 2, 3);
        drop(tensor);
        assert_eq!(std::sync::Arc::strong_count(&owner), 2);
        assert_eq!(Vec::<f32>::try_from(&view).expect("values"), [3.0; 3]);
        drop(view);
        assert_eq!(std::sync::Arc::strong_count(&owner), 1);
    }

    #[test]
    fn values_that_do_not_fill_the_shape_are_refused() {
        assert!(from_vec(vec![0.0; 5], &[2, 3]).is_err());
        assert!(from_vec(vec![0.0; 6], &[2, -3]).is_err());
    }
}

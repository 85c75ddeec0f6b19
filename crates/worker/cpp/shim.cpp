// What tch does not expose. Links against libtorch_cpu and libc10 only, so that one program runs with and without
// CUDA's libraries. Every function answers 0, or a code with the message in atelier_last_error.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/InferenceMode.h>
#include <torch/headeronly/version.h>

#include <exception>
#include <optional>
#include <string>
#include <vector>

static thread_local std::string last_error;

enum Code { kOk = 0, kError = 1, kOutOfMemory = 2 };

template <typename F>
static int guarded(F &&f) {
  try {
    f();
    return kOk;
  } catch (const c10::OutOfMemoryError &e) {
    last_error = e.what_without_backtrace();
    return kOutOfMemory;
  } catch (const c10::Error &e) {
    last_error = e.what_without_backtrace();
    return kError;
  } catch (const std::bad_alloc &e) {
    last_error = e.what();
    return kOutOfMemory;
  } catch (const std::exception &e) {
    last_error = e.what();
    return kError;
  } catch (...) {
    last_error = "an exception that is no std::exception";
    return kError;
  }
}

static std::optional<c10::OperatorHandle> find(const char *name) {
  return at::globalContext().hasMKLDNN() ? c10::Dispatcher::singleton().findSchema({name, ""}) : std::nullopt;
}

static std::optional<c10::OperatorHandle> fused_convolution() {
  static const auto op = find("mkldnn::_convolution_pointwise");
  return op;
}

static std::optional<c10::OperatorHandle> fused_linear() {
  static const auto op = find("mkldnn::_linear_pointwise");
  return op;
}

static std::optional<c10::OperatorHandle> pack_convolution() {
  static const auto op = find("mkldnn::_reorder_convolution_weight");
  return op;
}

extern "C" {

const char *atelier_last_error() { return last_error.c_str(); }

const char *atelier_torch_version() { return TORCH_VERSION; }

// A tensor over memory that `context` owns; `drop` is called with it once no view is left. On failure the caller
// still owns `context`.
int atelier_from_blob(void *data, const int64_t *sizes, size_t dimensions, int scalar_type, void *context,
                      void (*drop)(void *), at::Tensor **out) {
  return guarded([&] {
    *out = new at::Tensor(at::from_blob(data, at::IntArrayRef(sizes, dimensions), [context, drop](void *) { drop(context); },
                                        at::TensorOptions().dtype(at::ScalarType(scalar_type))));
  });
}

// (B, C, H, W), stored as (B, H, W, C).
int atelier_channels_last(const at::Tensor *tensor, at::Tensor **out) {
  return guarded([&] { *out = new at::Tensor(tensor->contiguous(at::MemoryFormat::ChannelsLast)); });
}

int atelier_has_fused_convolution() {
  try {
    return fused_convolution().has_value() && fused_linear().has_value() && pack_convolution().has_value() ? 1 : 0;
  } catch (...) {
    return 0;
  }
}

// A 2-D convolution on the CPU, and the activation while its result is still in the cache.
// `activation` is oneDNN's name in torch: none, swish or leaky_relu.
int atelier_fused_convolution(const at::Tensor *input, const at::Tensor *weight, const at::Tensor *bias, int64_t stride,
                              int64_t padding, const char *activation, const double *slope, at::Tensor **out) {
  return guarded([&] {
    c10::List<std::optional<at::Scalar>> scalars;
    if (slope != nullptr) {
      scalars.push_back(at::Scalar(*slope));
    }
    const std::vector<int64_t> paddings{padding, padding}, strides{stride, stride}, ones{1, 1};
    torch::jit::Stack stack;
    stack.reserve(10);
    stack.emplace_back(*input);
    stack.emplace_back(*weight);
    stack.emplace_back(*bias);
    stack.emplace_back(paddings);
    stack.emplace_back(strides);
    stack.emplace_back(ones);
    stack.emplace_back(int64_t{1});
    stack.emplace_back(std::string(activation));
    stack.emplace_back(scalars);
    stack.emplace_back(std::string());
    fused_convolution().value().callBoxed(stack);
    *out = new at::Tensor(std::move(stack.at(0)).toTensor());
  });
}

// A generator of its own on the CPU: the global one would be shared by all jobs, and tch has no other.
int atelier_generator_new(uint64_t seed, at::Generator **out) {
  return guarded([&] { *out = new at::Generator(at::detail::createCPUGenerator(seed)); });
}
void atelier_generator_free(at::Generator *generator) { delete generator; }

// Normal numbers in f32, as torch.randn(..., generator=...) draws them.
int atelier_generator_normal(at::Generator *generator, const int64_t *sizes, size_t dimensions, at::Tensor **out) {
  return guarded([&] {
    *out = new at::Tensor(at::randn(at::IntArrayRef(sizes, dimensions), *generator, at::TensorOptions().dtype(at::kFloat)));
  });
}

// One index for each row of probabilities.
int atelier_generator_choose(at::Generator *generator, const at::Tensor *probabilities, at::Tensor **out) {
  return guarded([&] { *out = new at::Tensor(at::multinomial(*probabilities, 1, false, *generator)); });
}

// The state as a tensor of bytes, and back.
int atelier_generator_state(at::Generator *generator, at::Tensor **out) {
  return guarded([&] { *out = new at::Tensor(generator->get_state()); });
}
int atelier_generator_set_state(at::Generator *generator, const at::Tensor *state) {
  return guarded([&] { generator->set_state(*state); });
}

// A convolution's weight in oneDNN's own order for an input of these four sizes.
int atelier_pack_convolution(const at::Tensor *weight, int64_t stride, int64_t padding, const int64_t *sizes,
                             at::Tensor **out) {
  return guarded([&] {
    const std::vector<int64_t> paddings{padding, padding}, strides{stride, stride}, ones{1, 1};
    torch::jit::Stack stack;
    stack.emplace_back(*weight);
    stack.emplace_back(paddings);
    stack.emplace_back(strides);
    stack.emplace_back(ones);
    stack.emplace_back(int64_t{1});
    stack.emplace_back(std::vector<int64_t>(sizes, sizes + 4));
    pack_convolution().value().callBoxed(stack);
    *out = new at::Tensor(std::move(stack.at(0)).toTensor());
  });
}

// A linear layer on the CPU. `bias` may be null. `activation` and `algorithm` are oneDNN's names in torch: none, or
// gelu by none (exact) or tanh.
int atelier_fused_linear(const at::Tensor *input, const at::Tensor *weight, const at::Tensor *bias,
                         const char *activation, const char *algorithm, at::Tensor **out) {
  return guarded([&] {
    torch::jit::Stack stack;
    stack.emplace_back(*input);
    stack.emplace_back(*weight);
    stack.emplace_back(bias == nullptr ? c10::IValue() : c10::IValue(*bias));
    stack.emplace_back(std::string(activation));
    stack.emplace_back(c10::List<std::optional<at::Scalar>>());
    stack.emplace_back(std::string(algorithm));
    fused_linear().value().callBoxed(stack);
    *out = new at::Tensor(std::move(stack.at(0)).toTensor());
  });
}

void *atelier_inference_mode_enter() { return new c10::InferenceMode(true); }
void atelier_inference_mode_exit(void *guard) { delete static_cast<c10::InferenceMode *>(guard); }

// f32 stays f32, and the same input gives the same output.
int atelier_exact_cuda() {
  return guarded([] {
    at::globalContext().setAllowTF32CuBLAS(false);
    at::globalContext().setAllowTF32CuDNN(false);
    at::globalContext().setBenchmarkCuDNN(false);
    at::globalContext().setDeterministicCuDNN(true);
  });
}

// Free and total bytes of an accelerator.
int atelier_accelerator_memory(int device, uint64_t *free_bytes, uint64_t *total_bytes) {
  return guarded([&] {
    const auto info = at::accelerator::getMemoryInfo(static_cast<c10::DeviceIndex>(device));
    *free_bytes = info.first;
    *total_bytes = info.second;
  });
}

// Gives cached blocks back to the accelerator, where there is one.
int atelier_empty_cache() {
  return guarded([] {
    if (at::accelerator::getAccelerator(false).has_value() && at::accelerator::deviceCount() > 0) {
      at::accelerator::emptyCache();
    }
  });
}
}

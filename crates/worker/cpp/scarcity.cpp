// An allocator that can be made to fail once, as the real one does. Put before libtorch's own when it is first asked for.

#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>

#include <mutex>

namespace {

// Allocations of this thread until the one that fails; below 0 none does.
thread_local int64_t left = -1;

struct Scarce final : c10::Allocator {
  c10::Allocator *inner = nullptr;

  c10::DataPtr allocate(size_t bytes) override {
    if (left >= 0 && left-- == 0) {
      TORCH_CHECK(false, "DefaultCPUAllocator: can't allocate memory: you tried to allocate ", bytes,
                  " bytes. A test has made it fail.");
    }
    return inner->allocate(bytes);
  }
  c10::DeleterFnPtr raw_deleter() const override { return inner->raw_deleter(); }
  void copy_data(void *to, const void *from, size_t bytes) const override { inner->copy_data(to, from, bytes); }
};

Scarce scarce;
std::once_flag placed;

}  // namespace

extern "C" {

void atelier_fail_allocation(int64_t after) {
  std::call_once(placed, [] {
    scarce.inner = c10::GetCPUAllocator();
    c10::SetCPUAllocator(&scarce, 255);
  });
  left = after;
}

int64_t atelier_allocations_left() { return left; }
}

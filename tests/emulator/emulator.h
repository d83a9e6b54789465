// CUDA's execution model on a CPU, with a checker: what kernel sources (through primitives_emulated.h) and the Python
// module see. One fiber per CUDA thread, all in one OS thread; see README.md for the rules that are checked.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <source_location>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace fusedlstm::cuda {
struct LaunchConfig;
}

namespace emulator {

using Site = std::source_location;  // the place in the kernel source

// The cudaError_t of the launches to come, or of other calls, one after another, 0 for those that run; when none are
// left, all run.
struct LaunchErrors {
  std::deque<int> next;
  // That of the call that asks, which is then over.
  operator int() {
    if (next.empty()) return 0;
    const int error = next.front();
    next.pop_front();
    return error;
  }
};

struct Options {
  uint64_t seed = 0;           // order of threads: 0 as numbered, 1 reversed, others random; also when stores land
  double preempt = 0;          // probability of a switch at a plain memory access
  int sm_count = 132;          // co-residency limit of a cooperative launch, one CTA per SM
  size_t smem_limit = 232448;  // bytes of dynamic shared memory per CTA
  int max_cluster_size = 16;
  int device = 0;  // the current one
  LaunchErrors launch_error;
  LaunchErrors attribute_error;  // of the calls that set an attribute of a kernel
  int stream_order = 0;          // of what streams may run at once, see streams.h
  bool time_passes = false;      // where all threads wait, twice before that ends the launch: a minute
  double approximation = 0;      // errors of approximate functions, in those that the hardware is documented to make
  int fault = 0;                 // which of those that planted_faults.py has planted is on
};
Options& options();

// Whether that fault is on: what the sources are asked where tests have planted one.
bool fault_is_on(int fault);
constexpr bool planted(int fault) {
  return !std::is_constant_evaluated() && fault_is_on(fault);
}

// Any fault of a kernel or a launch. The launch is abandoned; buffers keep what was written so far.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Device memory: once registered, a kernel may touch nothing else. An uninitialised buffer must be written before it
// is read.
void register_buffer(const void* p, size_t bytes, const std::string& name, bool initialised);
void unregister_buffer(const void* p);

// What the host does between launches, as a copy or a product would on the GPU: an access of its own to registered
// memory. Throws Error outside every buffer, and for a read of what nothing has written.
enum class HostAccess { kRead, kWrite };
void check_host_access(const void* p, size_t bytes, HostAccess access);

// How many attributes of kernels were set so far.
int attribute_calls();
// Why a kernel may not be launched so on the current device, as far as its attributes go; "" if it may.
std::string lacking_attribute(const void* kernel, size_t smem_bytes, unsigned cluster_size);

// A parameter of a kernel, as the host passes it.
struct Parameter {
  const void* value;
  size_t bytes;
};
// What every thread of a launch runs in place of a kernel (tests/ptx), asked for at each launch. Nothing: the kernel.
using Substitute = std::function<std::function<void()>(const void* kernel, const std::vector<Parameter>& parameters)>;
Substitute& substitute();

// entry(closure) is what a thread runs: the kernel, with these parameters.
void run_launch(const void* kernel, const fusedlstm::cuda::LaunchConfig& config,
                const std::vector<Parameter>& parameters, void (*entry)(void*), void* closure);

// ---- called by CUDA threads -------------------------------------------------------------------------------------

uint3 thread_index();
uint3 block_index();
dim3 block_dimensions();
dim3 grid_dimensions();
unsigned lane_index();
char* dynamic_shared_memory();

enum class Access { kRead, kWrite, kRelaxedRead, kRelaxedWrite, kConstantRead };
void load(void* value, uintptr_t address, size_t bytes, Access access, Site site);
void store(uintptr_t address, const void* value, size_t bytes, Access access, Site site);

void prefetch(uintptr_t address, Site site);
void gpu_fence();

uint32_t timer_high();  // units of 4.3 s
[[noreturn]] void give_up(const char* text, const char* kernel, Site site);

void block_sync(Site site);
void warp_sync(Site site);

// Every lane of the warp calls it at the same site; the last one runs `compute` on the operands of all lanes.
void warp_collective(const char* what, void* operands, void (*compute)(void* const* lanes), Site site);

int cluster_rank();
int cluster_size();
uintptr_t map_cluster_address(uintptr_t address, int rank, Site site);
void cluster_sync(Site site);

void mbarrier_init(uintptr_t barrier, int arrivals, Site site);
void mbarrier_init_fence();
void mbarrier_arrive_expect(uintptr_t barrier, int bytes, Site site);
// Says no only where time passes (Options): a wait that nothing else ends is a deadlock.
bool mbarrier_try_wait(uintptr_t barrier, int parity, bool cluster_scope, Site site);
void store_async(uintptr_t address, const void* value, size_t bytes, uintptr_t barrier, Site site);
void bulk_copy(uintptr_t to, uintptr_t from, int bytes, uintptr_t barrier, Site site);
void bulk_copy_fence();

// ---- tensor core operations on the operands of all 32 lanes, in the fragment layouts of PTX ------------------------

struct MmaOperands {
  float* d;
  uint32_t a[4], b[2];
};
enum class MmaKind { kBf16, kF16, kF16K8, kTf32 };
template <MmaKind kKind>
void compute_mma(void* const* lanes);  // MmaOperands*

}  // namespace emulator

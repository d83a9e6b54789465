// Launches: what a device refuses, the CTAs and their shared memory, and what a kernel asks of where it runs.
#include <cxxabi.h>
#include <dlfcn.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "machine.h"

namespace emulator {
namespace {

constexpr size_t kPageBytes = 4096;

std::string kernel_name(const void* kernel) {
  Dl_info info;
  if (!dladdr(kernel, &info) || !info.dli_sname) return "kernel";
  int status = 0;
  char* demangled = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, &status);
  std::string name = demangled ? demangled : info.dli_sname;
  std::free(demangled);
  if (name.starts_with("void ")) name = name.substr(5);
  return name.substr(0, name.find('('));
}

// Shared memory ends at a page that may not be touched, and is filled with NaN in every floating-point type.
char* allocate_shared(size_t bytes) {
  constexpr size_t kAlignment = 128;
  const size_t pages = (bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
  char* p = static_cast<char*>(mmap(nullptr, pages + kPageBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (p == MAP_FAILED) throw Error("no memory for the shared memory of an emulated CTA");
  mprotect(p, pages, PROT_READ | PROT_WRITE);
  p += (pages - bytes) / kAlignment * kAlignment;
  memset(p, 0xFF, bytes);
  return p;
}
void free_shared(uintptr_t p, size_t bytes) {
  const size_t pages = (bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
  munmap(reinterpret_cast<void*>(p / kPageBytes * kPageBytes), pages + kPageBytes);
}

// The CTAs of the cluster that starts at block `first`.
std::unique_ptr<Cluster> new_cluster(uint3 first) {
  const LaunchConfig& config = machine->config;
  const uint32_t threads = config.block.x * config.block.y * config.block.z;
  auto cluster = std::make_unique<Cluster>();
  const auto nothing = std::make_shared<Clock>(machine->clock_size, 0u);
  for (uint32_t z = 0; z < config.cluster.z; ++z)
    for (uint32_t y = 0; y < config.cluster.y; ++y)
      for (uint32_t x = 0; x < config.cluster.x; ++x) {
        auto cta = std::make_unique<Cta>();
        cta->block = uint3{first.x + x, first.y + y, first.z + z};
        cta->first_thread = ((cta->block.z * config.grid.y + cta->block.y) * config.grid.x + cta->block.x) * threads;
        cta->rank = static_cast<int>(cluster->ctas.size());
        cta->cluster = cluster.get();
        if (config.smem_bytes) {
          const std::string name = thread_name(cta->first_thread);
          const auto p = reinterpret_cast<uintptr_t>(allocate_shared(config.smem_bytes));
          cta->shared = std::make_unique<Region>(p, config.smem_bytes,
                                                 "shared memory of " + name.substr(0, name.find(' ')), cta.get(), true);
          add_region(cta->shared.get());
        }
        cta->warps.resize((threads + 31) / 32);
        for (uint32_t t = 0; t < threads; ++t) {
          cta->fibers.push_back(new_fiber(cta.get(), t, nothing));
          make_ready(cta->fibers.back());
        }
        machine->live += threads;
        cluster->ctas.push_back(std::move(cta));
      }
  return cluster;
}

void free_cluster(Cluster& cluster) {
  for (auto& cta : cluster.ctas) {
    for (Fiber* fiber : cta->fibers) free_fiber(fiber);
    if (cta->shared) {
      remove_region(cta->shared.get());
      free_shared(cta->shared->begin, machine->config.smem_bytes);
    }
  }
}

void check_launch(const void* kernel, const LaunchConfig& config, const std::string& name) {
  const auto product = [](dim3 d) { return size_t(d.x) * d.y * d.z; };
  const auto refuse = [&](const std::string& why) { throw Error(name + ": launch refused: " + why); };
  const size_t threads = product(config.block), ctas = product(config.grid), cluster = product(config.cluster);
  if (threads == 0 || threads > 1024) refuse("block of " + std::to_string(threads) + " threads, limit 1024");
  if (threads % 32) refuse("block of " + std::to_string(threads) + " threads, expected whole warps");
  if (ctas == 0 || config.grid.y > 65535 || config.grid.z > 65535)
    refuse("grid of " + std::to_string(config.grid.x) + " x " + std::to_string(config.grid.y) + " x " +
           std::to_string(config.grid.z));
  if (cluster == 0 || cluster > size_t(options().max_cluster_size))
    refuse("cluster of " + std::to_string(cluster) + " CTAs, limit " + std::to_string(options().max_cluster_size));
  if (config.grid.x % config.cluster.x || config.grid.y % config.cluster.y || config.grid.z % config.cluster.z)
    refuse("the grid is not a multiple of the cluster");
  if (config.smem_bytes > options().smem_limit)
    refuse(std::to_string(config.smem_bytes) + " bytes of shared memory, limit " +
           std::to_string(options().smem_limit));
  const std::string lacking = lacking_attribute(kernel, config.smem_bytes, config.cluster_size());
  if (!lacking.empty()) refuse(lacking);
  if (config.cooperative && ctas > size_t(options().sm_count))
    refuse("a cooperative grid of " + std::to_string(ctas) + " CTAs cannot be co-resident on " +
           std::to_string(options().sm_count) + " SMs");
}

}  // namespace

Substitute& substitute() {
  static Substitute value;
  return value;
}

void run_launch(const void* kernel, const LaunchConfig& config, const std::vector<Parameter>& parameters,
                void (*entry)(void*), void* closure) {
  const std::string name = kernel_name(kernel);
  check_launch(kernel, config, name);
  std::function<void()> in_its_place;
  if (substitute()) in_its_place = substitute()(kernel, parameters);
  if (in_its_place) {
    entry = [](void* f) { (*static_cast<std::function<void()>*>(f))(); };
    closure = &in_its_place;
  }
  Machine m;
  m.config = config;
  m.kernel_name = name;
  m.entry = entry;
  m.closure = closure;
  m.host_stack = reinterpret_cast<uintptr_t>(__builtin_frame_address(0));
  m.random = (options().seed + 1) * 0x9E3779B97F4A7C15;
  m.thread_count =
      size_t(config.block.x) * config.block.y * config.block.z * config.grid.x * config.grid.y * config.grid.z;
  const bool clustered = config.cluster.x * config.cluster.y * config.cluster.z > 1;
  m.clock_size = (clustered ? 2 : 1) * m.thread_count;  // the second half: asynchronous accesses of each thread
  machine = &m;
  forget_accesses();

  std::vector<uint3> order;  // first blocks of the clusters
  for (uint32_t z = 0; z < config.grid.z; z += config.cluster.z)
    for (uint32_t y = 0; y < config.grid.y; y += config.cluster.y)
      for (uint32_t x = 0; x < config.grid.x; x += config.cluster.x) order.push_back(uint3{x, y, z});
  if (options().seed == 1) std::reverse(order.begin(), order.end());
  if (options().seed >= 2)
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random_bits() % i]);

  // A cooperative grid is resident as a whole. Any other grid runs one cluster at a time, so that a kernel which
  // counts on co-residency without asking for it deadlocks here, and not on a busy GPU.
  const size_t wave = config.cooperative ? order.size() : 1;
  for (size_t at = 0; at < order.size() && !m.failed; at += wave) {
    for (size_t i = at; i < std::min(order.size(), at + wave); ++i) m.clusters.push_back(new_cluster(order[i]));
    run_resident();
    if (!m.failed) deliver_all();
    for (auto& cluster : m.clusters) free_cluster(*cluster);
    m.clusters.clear();
    m.ready.clear();
    m.spinning.clear();
  }
  machine = nullptr;
  current = nullptr;
  in_kernel_code = false;
  if (m.failed) throw Error(m.error + " [schedule seed " + std::to_string(options().seed) + "]");
}

uint3 thread_index() {
  return current->thread;
}
uint3 block_index() {
  return current->cta->block;
}
dim3 block_dimensions() {
  return machine->config.block;
}
dim3 grid_dimensions() {
  return machine->config.grid;
}
unsigned lane_index() {
  return current->index % 32;
}
char* dynamic_shared_memory() {
  if (!current->cta->shared) fail("shared_memory() in a launch without shared memory by " + name_of(current));
  return reinterpret_cast<char*>(current->cta->shared->begin);
}

}  // namespace emulator

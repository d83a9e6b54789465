#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fusedlstm::cpu {
namespace {

struct Kernels {
  const char* isa;
  // Null: those of the next narrower set.
  const DtypeKernels* dtype[kDtypes];           // by Dtype
  const VariedKernels* varied[2];               // in float32, in float64
  const QuantizedKernels *quantized, *reduced;  // reduced: for weights of reduced range, where they are faster
};

constexpr Kernels kBaseline{"baseline",
                            {&kFloat32Baseline, &kFloat64Baseline, &kBFloat16Baseline, &kFloat16Baseline},
                            {&kVariedFloat32Baseline, &kVariedFloat64Baseline},
                            &kQuantizedBaseline,
                            nullptr};
#if !defined(FUSEDLSTM_PORTABLE) && defined(__aarch64__)
constexpr Kernels kNeon{"neon",
                        {&kFloat32Neon, &kFloat64Neon, &kBFloat16Neon, &kFloat16Neon},
                        {&kVariedFloat32Neon, &kVariedFloat64Neon},
                        nullptr,
                        nullptr};
#endif
#if !defined(FUSEDLSTM_PORTABLE) && defined(__x86_64__)
constexpr Kernels kAvx2{"avx2",
                        {&kFloat32Avx2, &kFloat64Avx2, &kBFloat16Avx2, &kFloat16Avx2},
                        {&kVariedFloat32Avx2, &kVariedFloat64Avx2},
                        &kQuantizedAvx2,
                        &kQuantizedAvx2Reduced};
constexpr Kernels kAvx512{"avx512",
                          {&kFloat32Avx512, &kFloat64Avx512, &kBFloat16Avx512, &kFloat16Avx512},
                          {&kVariedFloat32Avx512, &kVariedFloat64Avx512},
                          nullptr,
                          nullptr};
// Their instructions multiply bytes, or bfloat16, and nothing else.
constexpr Kernels kAvxVnni{"avx_vnni", {}, {}, &kQuantizedAvxVnni, nullptr};
constexpr Kernels kAvx512Vnni{"avx512_vnni", {}, {}, &kQuantizedAvx512Vnni, nullptr};
constexpr Kernels kAvx512Bf16{"avx512_bf16", {nullptr, nullptr, &kBFloat16Avx512Bf16, nullptr}, {}, nullptr, nullptr};
constexpr Kernels kAvx512Amx{
    "avx512_amx", {nullptr, nullptr, &kBFloat16Avx512Amx, nullptr}, {}, &kQuantizedAvx512Amx, nullptr};

// Whether this process may use the tile registers of AMX, which it has to ask for: signal frames grow by 8 KiB.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr unsigned kWanted = 1u << 22 | 1u << 24 | 1u << 25;  // bfloat16, tiles, int8
  unsigned eax, ebx, ecx, edx = 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (edx & kWanted) != kWanted) return false;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // asm/prctl.h has the first since Linux 5.16
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

struct Candidate {
  const Kernels* kernels;
  bool runs_here;
};

// Narrowest first.
const std::vector<Candidate>& candidates() {
  static const std::vector<Candidate> all = [] {
    std::vector<Candidate> found{{&kBaseline, true}};
#if !defined(FUSEDLSTM_PORTABLE) && defined(__aarch64__)
    found.push_back({&kNeon, true});
#endif
#if !defined(FUSEDLSTM_PORTABLE) && defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    found.push_back({&kAvx2, avx2});
    found.push_back({&kAvxVnni, avx2 && __builtin_cpu_supports("avxvnni")});
    found.push_back({&kAvx512, avx512});
    const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
    found.push_back({&kAvx512Vnni, vnni});
    const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
    found.push_back({&kAvx512Bf16, bf16});
    found.push_back({&kAvx512Amx, vnni && bf16 && may_use_tiles()});
#endif
    return found;
  }();
  return all;
}

const Kernels& by_name(std::string_view name) {
  for (const Candidate& c : candidates())
    if (c.runs_here && name == c.kernels->isa) return *c.kernels;
  std::string names;
  for (const char* isa : runnable_isas()) names += std::string(names.empty() ? "" : ", ") + isa;
  throw std::runtime_error("fusedlstm: expected a CPU instruction set of this machine (" + names + "), got '" +
                           std::string(name) + "'");
}

const Kernels& widest() {
  const Kernels* best = &kBaseline;
  for (const Candidate& c : candidates())
    if (c.runs_here) best = c.kernels;
  return *best;
}

const char* environment_isa() {
  const char* name = std::getenv("FUSEDLSTM_CPU_ISA");
  return name && *name ? name : nullptr;
}

// Without anybody's asking: the same for the whole life of the process.
struct Automatic {
  const Kernels& kernels;
  const char* reason;
};

const Automatic& automatic() {
  static const Automatic chosen = [] {
    const char* name = environment_isa();
    return name ? Automatic{by_name(name), "named by FUSEDLSTM_CPU_ISA"}
                : Automatic{widest(), "the widest that this processor has"};
  }();
  return chosen;
}

// What was asked for by name; calls under way in other threads see it or what stood there before.
std::atomic<const Kernels*> forced_kernels{nullptr};  // null: automatic

const Kernels& active() {
  const Kernels* forced = forced_kernels;
  return forced ? *forced : automatic().kernels;
}

// What of(set) points to in the widest set of this machine up to `named` for which it is not null: the narrowest set
// has everything.
template <class Of>
const auto& widest_of(const Kernels& named, Of of) {
  decltype(of(named)) found = nullptr;
  for (const Candidate& c : candidates()) {
    if (const auto* own = c.runs_here ? of(*c.kernels) : nullptr) found = own;
    if (c.kernels == &named) break;
  }
  return *found;
}

}  // namespace

std::vector<const char*> runnable_isas() {
  std::vector<const char*> found;
  for (const Candidate& c : candidates())
    if (c.runs_here) found.push_back(c.kernels->isa);
  return found;
}

const char* active_isa() {
  return active().isa;
}

const char* reason_of_isa() {
  return forced_kernels.load() ? "forced by name" : automatic().reason;
}

void force_isa(const std::string& isa) {
  forced_kernels = isa.empty() ? nullptr : &by_name(isa);
}

const LayerKernels& kernels_of(std::string_view isa, CellKind cell, Dtype dtype) {
  return widest_of(by_name(isa), [&](const Kernels& set) { return set.dtype[int(dtype)]; }).cell[int(cell)];
}

const QuantizedLayerKernels& active_quantized_kernels(CellKind cell, bool is_reduced) {
  const auto of = [&](const Kernels& set) { return is_reduced && set.reduced ? set.reduced : set.quantized; };
  return widest_of(active(), of).cell[int(cell)];
}

const RecurrenceKernels& active_recurrence_kernels(VariedKind kind, Dtype acc) {
  const auto of = [&](const Kernels& set) { return set.varied[acc == Dtype::kFloat64]; };
  return widest_of(active(), of).cell[int(kind)];
}

}  // namespace fusedlstm::cpu

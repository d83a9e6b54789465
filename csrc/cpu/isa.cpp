#include "isa.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <optional>
#include <stdexcept>
#include <vector>

#include "team.h"
#include "usable_cpus.h"

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
  std::string runnable;
  for (const Candidate& c : candidates())
    if (c.runs_here) runnable += std::string(runnable.empty() ? "" : ", ") + c.kernels->isa;
  throw std::runtime_error("fusedlstm: expected a CPU instruction set of this machine (" + runnable + "), got '" +
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

struct ForcedPlan {
  const char* name;
  std::optional<bool> direct;
  std::optional<Split> split;
};
constexpr ForcedPlan kForcedPlans[] = {
    {"", {}, {}},
    {"direct", true, {}},
    {"packed", false, {}},
    {"direct:rows", true, Split::kRows},
    {"direct:units", true, Split::kUnits},
    {"packed:rows", false, Split::kRows},
    {"packed:units", false, Split::kUnits},
    {"abreast", {}, {}},
};

// What was asked for by name; calls under way in other threads see it or what stood there before.
std::atomic<const Kernels*> forced_kernels{nullptr};  // null: automatic
std::atomic<const ForcedPlan*> forced_plan{&kForcedPlans[0]};
std::atomic<int> forced_last_meeting{0};

// A team's meeting costs about as much as this many multiply-adds of one thread; below it a thread works alone.
constexpr double kTeamWork = 4e5;  // of a whole call
constexpr double kMeetWork = 5e4;  // of one time step, where the team meets every step
// What such a meeting adds to a thread's part of a step. With int8 weights each thread makes bytes of all of h.
constexpr double meeting_work(Pass pass) {
  return pass == Pass::kQuantized ? 4.5e4 : 1.2e4;
}
// Time steps from which on layers may run abreast; and what each then takes, of what it takes by itself.
constexpr int64_t kAbreastSteps = 64;
constexpr double kAbreastWork = 1.12;
// Recurrent weights that stay in a core's own cache while its rows are few.
constexpr double kCacheBytes = 768 << 10;
// Readings of the weights where they are that cost less than bringing them into panels: from the cache, and beyond it.
constexpr int64_t kDirectPasses = 2, kDirectPassesLarge = 8;

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

// What a multiply-add of the forward pass takes, in those of float32.
constexpr double cost_of(Pass pass) {
  return pass == Pass::kQuantized ? 0.5 : 1;
}

// Of a direction, as if of float32.
double recurrent_bytes(const Shape& shape, Pass pass) {
  return double(shape.gates * shape.hidden) * double(shape.recurrent()) * (pass == Pass::kQuantized ? 1 : 4);
}

// Multiply-adds of the recurrence in one time step.
double step_work(const Shape& shape, Pass pass) {
  const double weights = double(shape.gates * shape.hidden) * double(shape.recurrent());
  return weights * double(shape.batch * shape.directions) * cost_of(pass);
}

// Those of a call.
double layer_work(const Shape& shape, int64_t row_count, Pass pass) {
  const double per_row =
      double(shape.gates * shape.hidden) * double(shape.input + shape.recurrent()) * double(shape.directions);
  return per_row * double(row_count) * (pass == Pass::kBackward ? 3 : cost_of(pass));
}

}  // namespace

const char* active_isa() {
  return active().isa;
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

void force(const std::string& isa, const std::string& plan) {
  const size_t digits = plan.find_first_of("0123456789");
  const std::string name = plan.substr(0, digits == std::string::npos ? digits : digits - 1);
  for (const ForcedPlan& known : kForcedPlans) {
    if (name != known.name || (digits != std::string::npos && !known.split)) continue;
    forced_kernels = isa.empty() ? nullptr : &by_name(isa);
    forced_plan = &known;
    insist_on_threads(name == "abreast");
    forced_last_meeting = digits == std::string::npos ? 0 : std::atoi(plan.c_str() + digits);
    return;
  }
  throw std::runtime_error("fusedlstm: expected a CPU plan direct or packed, with :rows or :units, or abreast, got '" +
                           plan + "'");
}

Plan choose_plan(const Shape& shape, int64_t row_count, Pass pass, int threads) {
  const double step = step_work(shape, pass), work = layer_work(shape, row_count, pass);
  const bool cached = recurrent_bytes(shape, pass) <= kCacheBytes;
  const int64_t passes = shape.steps * ((shape.batch + 3) / 4);
  Plan plan{passes <= (cached ? kDirectPasses : kDirectPassesLarge), Split::kRows, 1};
  const int64_t groups = (threads + shape.directions - 1) / shape.directions;
  const bool many_rows = shape.batch >= 4 * groups;  // every thread has good tiles of its own
  // In a single step weights are read once: better by one thread each part than by every thread all.
  const bool reuses = shape.steps > 1;
  plan.split = groups == 1 || (many_rows && cached && reuses) ? Split::kRows : Split::kUnits;
  if (work >= kTeamWork && plan.split == Split::kUnits && step < kMeetWork && many_rows && reuses)
    plan.split = Split::kRows;
  if (work >= kTeamWork && (plan.split == Split::kRows || step >= kMeetWork)) plan.threads = threads;
  // Of few rows each direction has a thread, where more of them would lose by meeting what they gain.
  const bool is_better_apart = step / 2 <= step / threads + kMeetWork;
  if (work >= kTeamWork && shape.directions == 2 && plan.split == Split::kUnits && is_better_apart) {
    plan.split = Split::kRows;
    plan.threads = 2;
  }
  const ForcedPlan& forced = *forced_plan;
  if (forced.direct) plan.direct = *forced.direct;
  if (pass == Pass::kFrozen || pass == Pass::kQuantized) plan.direct = false;
  if (forced.split) {
    plan.split = *forced.split;
    plan.threads = threads;
  }
  if (plan.threads == 1) plan.split = Split::kRows;
  return plan;
}

EnsemblePlan choose_ensemble_plan(const Shape& shape, int64_t row_count, int64_t members, Pass pass, int threads) {
  const bool is_enough = double(members) * layer_work(shape, row_count, pass) >= kTeamWork;
  // To count the CPUs takes as long as a short step.
  if (!forced_plan.load()->split) threads = is_enough && threads > 1 ? std::min(threads, usable_cpus()) : 1;
  const Plan of_team = choose_plan(shape, row_count, pass, threads);
  if (members == 1) return {of_team.threads, 0, {}, of_team, forced_last_meeting};
  const Plan of_thread = choose_plan(shape, row_count, pass, 1);
  if (of_team.threads == threads)
    return {threads, members / threads * threads, of_thread, of_team, forced_last_meeting};
  return {members < threads ? int(members) : threads, members, of_thread, {}};
}

size_t layers_abreast(const Shape& shape, int64_t row_count, Pass pass, size_t layers, int threads) {
  if (layers == 1 || threads == 1 || shape.directions == 2) return 1;
  const size_t abreast = std::min(size_t(threads), layers);
  const std::string_view forced = forced_plan.load()->name;
  if (forced == "abreast") return abreast;
  // Many rows divide better, since no thread waits for another one's first chunk.
  if (!forced.empty() || shape.batch >= 4 * int64_t(threads) || shape.steps < kAbreastSteps ||
      double(layers) * layer_work(shape, row_count, pass) < kTeamWork)
    return 1;
  // By time step and layer: by itself, by threads that meet or by one; and beside others, where each is a chunk behind
  // the one before it.
  const double step = step_work(shape, pass);
  const bool meets = choose_plan(shape, row_count, pass, threads).threads > 1;
  const double by_itself = meets ? step / threads + meeting_work(pass) : step;
  const int64_t chunk = awaited_steps(shape.steps, shape.batch), chunks = (shape.steps + chunk - 1) / chunk;
  const double behind = double(abreast - 1) / double(chunks);
  return kAbreastWork * step * (1 + behind) / double(abreast) < by_itself ? abreast : 1;
}

size_t layers_abreast(const Shape& shape, int64_t row_count, Pass pass, size_t layers) {
  const int most = pool_threads();
  const size_t abreast = layers_abreast(shape, row_count, pass, layers, most);
  // To count the CPUs takes as long as a short step.
  if (abreast == 1 || *forced_plan.load()->name) return abreast;
  return layers_abreast(shape, row_count, pass, layers, std::min(most, usable_cpus()));
}

int threads_of_steps(int64_t elements) {
  constexpr int64_t kElements = 1 << 14;  // of a thread, at least: some fifty microseconds
  return int(std::clamp<int64_t>(elements / kElements, 1, std::min(pool_threads(), usable_cpus())));
}

std::string describe_plan(const std::string& kind, const std::vector<int64_t>& sizes, int64_t layers, int64_t threads) {
  constexpr std::pair<std::string_view, Pass> kPasses[] = {{"forward", Pass::kForward},
                                                           {"frozen", Pass::kFrozen},
                                                           {"quantized", Pass::kQuantized},
                                                           {"backward", Pass::kBackward}};
  const auto* named =
      std::find_if(std::begin(kPasses), std::end(kPasses), [&](auto& own) { return own.first == kind; });
  if (named == std::end(kPasses) || sizes.size() != 7 || layers < 1 || threads < 1)
    throw std::runtime_error(
        "fusedlstm: expected forward, frozen, quantized or backward, 7 sizes, and layers and threads >= 1, got '" +
        kind + "', " + std::to_string(sizes.size()) + " sizes, " + std::to_string(layers) + " and " +
        std::to_string(threads));
  const Shape shape{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6]};
  const int64_t rows = shape.steps * shape.batch;
  const size_t abreast = layers_abreast(shape, rows, named->second, size_t(layers), int(threads));
  const Plan plan = choose_plan(shape, rows, named->second, abreast > 1 ? 1 : int(threads));
  std::string words = abreast > 1 ? std::to_string(abreast) + " layers abreast, " : "";
  words += plan.direct ? "direct" : "packed";
  if (plan.threads == 1) return words;
  return words + (plan.split == Split::kRows ? ":rows" : ":units") + " by " + std::to_string(plan.threads) + " threads";
}

std::string describe() {
  const char* reason = forced_kernels.load() ? "forced by name" : automatic().reason;
  const char* plan = forced_plan.load()->name;
  const bool reduces_range =
      &active_quantized_kernels(CellKind::kLstm, true) != &active_quantized_kernels(CellKind::kLstm, false);
  std::string available;
  for (const Candidate& c : candidates())
    if (c.runs_here) available += std::string(available.empty() ? "\"" : ", \"") + c.kernels->isa + "\"";
  return std::string("{\"isa\": \"") + active_isa() + "\", \"reason\": \"" + reason + "\", \"available\": [" +
         available + "], \"reduces_range\": " + (reduces_range ? "true" : "false") + ", \"plan\": \"" +
         (*plan ? plan : "automatic") + "\", \"threads\": " + std::to_string(std::min(pool_threads(), usable_cpus())) +
         "}";
}

}  // namespace fusedlstm::cpu

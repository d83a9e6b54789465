#include "plan.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <optional>
#include <stdexcept>
#include <string_view>

#include "isa.h"
#include "team.h"
#include "usable_cpus.h"

namespace fusedlstm::cpu {
namespace {

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

void force(const std::string& isa, const std::string& plan) {
  const size_t digits = plan.find_first_of("0123456789");
  const std::string name = plan.substr(0, digits == std::string::npos ? digits : digits - 1);
  for (const ForcedPlan& known : kForcedPlans) {
    if (name != known.name || (digits != std::string::npos && !known.split)) continue;
    force_isa(isa);
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
  const char* plan = forced_plan.load()->name;
  const bool reduces_range =
      &active_quantized_kernels(CellKind::kLstm, true) != &active_quantized_kernels(CellKind::kLstm, false);
  std::string available;
  for (const char* isa : runnable_isas()) available += std::string(available.empty() ? "\"" : ", \"") + isa + "\"";
  return std::string("{\"isa\": \"") + active_isa() + "\", \"reason\": \"" + reason_of_isa() + "\", \"available\": [" +
         available + "], \"reduces_range\": " + (reduces_range ? "true" : "false") + ", \"plan\": \"" +
         (*plan ? plan : "automatic") + "\", \"threads\": " + std::to_string(std::min(pool_threads(), usable_cpus())) +
         "}";
}

}  // namespace fusedlstm::cpu

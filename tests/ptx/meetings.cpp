// Barriers, and the instructions of a warp that exchange registers.
#include <cstring>

#include "launch.h"

namespace ptx {

using emulator::current;

void Launch::wait_at(const char* what, int line) {
  std::string& name = waits_[{what, line}];
  if (name.empty()) name = std::string(what) + " of line " + std::to_string(line);
  emulator::block(name.c_str(), emulator::Site::current());
}

namespace {

void complete(Meeting& meeting) {
  ++emulator::machine->progress;
  meeting.arrived = 0;
  ++meeting.round;
  emulator::wake(meeting.waiting);
}

}  // namespace

void Launch::bar_sync(int line, uint32_t barrier) {
  if (barrier != 0) fail(line, "bar.sync of barrier " + std::to_string(barrier) + ", expected 0,");
  Meeting& meeting = of_cta_[current->cta];
  if (++meeting.arrived == current->cta->fibers.size()) return complete(meeting);
  meeting.waiting.push_back(current);
  wait_at("bar.sync", line);
}

void Launch::cluster_arrive(int line) {
  const emulator::Cluster* cluster = current->cta->cluster;
  Meeting& meeting = of_cluster_[cluster];
  const auto [arrival, is_new] = cluster_round_.try_emplace(current, meeting.round);
  if (!is_new) fail(line, "barrier.cluster.arrive without a wait since the last one");
  if (++meeting.arrived == cluster->ctas.size() * current->cta->fibers.size()) complete(meeting);
}

void Launch::cluster_wait(int line) {
  Meeting& meeting = of_cluster_[current->cta->cluster];
  const auto arrival = cluster_round_.find(current);
  if (arrival == cluster_round_.end()) fail(line, "barrier.cluster.wait without an arrive");
  if (arrival->second == meeting.round) {
    meeting.waiting.push_back(current);
    wait_at("barrier.cluster.wait", line);
  }
  cluster_round_.erase(current);
}

void Launch::gather(const char* what, int line, bool is_aligned, uint32_t lanes, void* operands,
                    void (*compute)(void* const*)) {
  if (lanes != ~0u) fail(line, std::string(what) + " of some lanes, expected all 32,");
  Gathering& gathering = of_warp_[{current->cta, current->index / 32}];
  if (!gathering.what) {
    gathering.what = what;
    gathering.line = line;
  } else if (std::strcmp(gathering.what, what) || (is_aligned && gathering.line != line)) {
    fail(line, std::string(what) + " while other lanes are at " + gathering.what + " of line " +
                   std::to_string(gathering.line) + ",");
  }
  gathering.operands[current->index % 32] = operands;
  if (gathering.waiting.size() < 31) {
    gathering.waiting.push_back(current);
    return wait_at(what, line);
  }
  compute(gathering.operands);
  gathering.what = nullptr;
  emulator::wake(gathering.waiting);
}

void Launch::bar_warp_sync(int line, uint32_t lanes) {
  gather("bar.warp.sync", line, false, lanes, nullptr, [](void* const*) {});
}

uint32_t Launch::shfl_bfly(int line, uint32_t value, uint32_t mask, uint32_t clamp, uint32_t lanes) {
  struct Operands {
    uint32_t value, mask, clamp, result;
  } mine{value, mask, clamp, 0};
  gather("shfl.sync", line, false, lanes, &mine, [](void* const* lanes) {
    for (uint32_t l = 0; l < 32; ++l) {
      auto& own = *static_cast<Operands*>(lanes[l]);
      // Segments of lanes, and the last one of a segment: bits 8 to 12 and 0 to 4 of the last operand.
      const uint32_t segment = own.clamp >> 8 & 31, last = (l & segment) | (own.clamp & 31 & ~segment);
      const uint32_t from = l ^ (own.mask & 31);
      own.result = static_cast<Operands*>(lanes[from <= last ? from : l])->value;
    }
  });
  return mine.result;
}

bool Launch::vote_any(int line, bool predicate, uint32_t lanes) {
  gather("vote.sync.any", line, false, lanes, &predicate, [](void* const* lanes) {
    bool any = false;
    for (int l = 0; l < 32; ++l) any |= *static_cast<bool*>(lanes[l]);
    for (int l = 0; l < 32; ++l) *static_cast<bool*>(lanes[l]) = any;
  });
  return predicate;
}

}  // namespace ptx

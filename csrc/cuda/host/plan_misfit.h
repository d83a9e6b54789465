// Why a kernel does not fit: a value while plans are made, and words only where somebody asks.
//
// Plain C++.
#pragma once
#include <array>
#include <cstdint>
#include <string>

namespace fusedlstm::cuda {

enum class Reason : uint8_t {
  kNone,  // it fits
  // Of a transport, whatever the shape.
  kFloat64,
  kCapability,
  kNoCooperativeLaunch,
  kOneStep,
  kNoneCompiled,
  kNotCompiled,
  kNotCompiledForK,
  // Of one shape.
  kK,
  kSharedMemory,
  kRefused,
  kUnits,
  kClusterTooSmall,
  kClusterTooLarge,
  kNoRoomForClusters,
  kMoreCtasThanSms,
  kMoreClustersThanRun,
};

struct Misfit {
  Reason reason = Reason::kNone;
  std::array<int64_t, 3> numbers{};  // expected and got, in the order of the sentence; the rest is 0
};

// "expected at most 128 of K on the chip, got 200 (H = 200)"; "" for kNone.
std::string to_string(const Misfit& misfit);

}  // namespace fusedlstm::cuda

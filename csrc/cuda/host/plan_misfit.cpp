#include "plan_misfit.h"

#include <cstdio>

namespace fusedlstm::cuda {
namespace {

// With a %lld for each of the misfit's numbers.
const char* sentence(Reason reason) {
  switch (reason) {
    case Reason::kNone:
      return "";
    case Reason::kFloat64:
      return "expected a 16-bit or 32-bit dtype, got float64";
    case Reason::kCapability:
      return "expected sm_%lld or later, got sm_%lld";
    case Reason::kNoCooperativeLaunch:
      return "expected a device with cooperative launch, got one without";
    case Reason::kOneStep:
      return "expected at least 2 time steps, got 1: there is nothing to exchange";
    case Reason::kNoneCompiled:
      return "expected a kernel of this cell, pass and arithmetic, got none compiled";
    case Reason::kNotCompiled:
      return "expected a shape of %lld units x %lld rows, got none compiled";
    case Reason::kNotCompiledForK:
      return "expected a shape of %lld units x %lld rows x %lld of K, got none compiled";
    case Reason::kK:
      return "expected at most %lld of K on the chip, got %lld (H = %lld)";
    case Reason::kSharedMemory:
      return "expected at most %lld bytes of shared memory, got %lld";
    case Reason::kRefused:
      return "expected a kernel that the device launches, got one that it has refused";
    case Reason::kUnits:
      return "expected at most %lld hidden units, got %lld";
    case Reason::kClusterTooSmall:
      return "expected at least 2 CTAs of %lld units, got 1";
    case Reason::kClusterTooLarge:
      return "expected a cluster of at most %lld CTAs, got %lld";
    case Reason::kNoRoomForClusters:
      return "expected room for clusters of %lld CTAs, got none";
    case Reason::kMoreCtasThanSms:
      return "expected at most %lld CTAs, one per SM, got %lld";
    case Reason::kMoreClustersThanRun:
      return "expected at most %lld clusters of %lld CTAs, which run at once, got %lld";
  }
  return "";
}

}  // namespace

std::string to_string(const Misfit& misfit) {
  const auto number = [&](size_t i) { return static_cast<long long>(misfit.numbers[i]); };
  std::array<char, 256> buffer;
  std::snprintf(buffer.data(), buffer.size(), sentence(misfit.reason), number(0), number(1), number(2));
  return buffer.data();
}

}  // namespace fusedlstm::cuda

// What planted_faults.py asks in sources that a program of its own is linked of: FAULT in its environment is the number
// of the fault that is awake.
#pragma once
#include <cstdlib>

namespace emulator {

inline bool planted(int fault) {
  const char* awake = std::getenv("FAULT");
  return awake && std::atoi(awake) == fault;
}

}  // namespace emulator

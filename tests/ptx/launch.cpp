#include "launch.h"

namespace ptx {

using emulator::current;

void Launch::fail(int line, const std::string& what) {
  emulator::fail(what + " by " + emulator::name_of(current) + ", line " + std::to_string(line) + " of the PTX");
}

Special Launch::special() {
  const auto index = [](auto v) { return Index{v.x, v.y, v.z}; };
  const emulator::LaunchConfig& config = emulator::machine->config;
  return {index(current->thread),
          index(config.block),
          index(current->cta->block),
          index(config.grid),
          static_cast<uint32_t>(current->cta->rank),
          static_cast<uint32_t>(current->cta->cluster->ctas.size())};
}

uint32_t Launch::globaltimer_hi(int) {
  emulator::give_way(emulator::State::kSpinning);  // who looks at the clock waits for something
  return emulator::timer_high();
}

void Launch::assert_failed(int line, const char* text, const char* function) {
  fail(line, std::string(function) + ": " + text);
}

}  // namespace ptx

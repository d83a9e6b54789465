#include "usable_cpus.h"

#include <sched.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

namespace fusedlstm::cpu {
namespace {

constexpr int kMostCpus = 8192;

int cpus_of_thread() {
  alignas(cpu_set_t) char memory[CPU_ALLOC_SIZE(kMostCpus)];
  auto* set = reinterpret_cast<cpu_set_t*>(memory);
  if (sched_getaffinity(0, sizeof memory, set) != 0) return kMostCpus;
  return CPU_COUNT_S(sizeof memory, set);
}

// Whole CPUs' worth of time that a control group's file grants; no limit where the file says none, or is not there.
// Files of version 2 hold "quota period", those of version 1 one number each; -1 and "max" are no limit.
double granted(const std::string& quota_file, const std::string& period_file) {
  double quota = -1, period = 0;
  std::ifstream file(quota_file);
  file >> quota;
  if (period_file.empty())
    file >> period;
  else
    std::ifstream(period_file) >> period;
  return file && quota > 0 && period > 0 ? quota / period : std::numeric_limits<double>::infinity();
}

// The least that the process's group and those around it are granted. In a container the root is often the process's
// own group, whatever path the kernel tells.
double quota_of_process() {
  const std::string root = "/sys/fs/cgroup";
  double least = std::min(granted(root + "/cpu.max", ""),
                          granted(root + "/cpu/cpu.cfs_quota_us", root + "/cpu/cpu.cfs_period_us"));
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // "0::/path", or "4:cpu,cpuacct:/path"
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = std::string(",").append(line, first + 1, second - first - 1).append(",");
    const bool is_version_2 = controllers == ",,";
    if (!is_version_2 && controllers.find(",cpu,") == std::string::npos) continue;
    for (std::string path = line.substr(second + 1); path.size() > 1; path.resize(path.rfind('/'))) {
      const std::string folder = root + (is_version_2 ? "" : "/cpu") + path;
      least = std::min(least, is_version_2 ? granted(folder + "/cpu.max", "")
                                           : granted(folder + "/cpu.cfs_quota_us", folder + "/cpu.cfs_period_us"));
    }
  }
  return least;
}

}  // namespace

int usable_cpus() {
  static const int quota = int(std::clamp(quota_of_process(), 1.0, double(kMostCpus)));
  return std::max(1, std::min(quota, cpus_of_thread()));
}

}  // namespace fusedlstm::cpu

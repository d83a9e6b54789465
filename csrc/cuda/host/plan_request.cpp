#include "plan_request.h"

#include <cstdio>
#include <stdexcept>

namespace fusedlstm::cuda {
namespace {

// "cluster", "cluster:16x8", "cluster:16x8x256". False: something else.
bool parse_kernel(const std::string& kernel, Request& parsed) {
  const size_t colon = kernel.find(':');
  const std::string name = kernel.substr(0, colon);
  for (int i = 0; i < kTransports; ++i)
    if (name == transport_name(static_cast<Transport>(i))) parsed.transport = static_cast<Transport>(i);
  if (!parsed.transport || colon == std::string::npos) return parsed.transport.has_value();
  const char* sizes = kernel.c_str() + colon;
  int used = 0;
  std::sscanf(sizes, ":%dx%d%n", &parsed.units, &parsed.batch_rows, &used);
  if (std::sscanf(sizes, ":%*dx%*dx%d%n", &parsed.k, &used) == 1 && parsed.k <= 0) used = 0;
  return colon + static_cast<size_t>(used) == kernel.size() && parsed.units > 0 && parsed.batch_rows > 0 &&
         parsed.transport != Transport::kStream;
}

// "/4x8".
bool parse_layers(const std::string& layers, Request& parsed) {
  int used = 0;
  std::sscanf(layers.c_str(), "/%dx%d%n", &parsed.abreast, &parsed.parts, &used);
  return static_cast<size_t>(used) == layers.size() && parsed.abreast > 0 && parsed.parts > 0;
}

}  // namespace

Request parse_request(const std::string& request) {
  Request parsed;
  if (request.empty()) return parsed;
  const size_t slash = request.find('/');
  const std::string kernel = request.substr(0, slash);
  const bool has_layers = slash != std::string::npos;
  if ((has_layers && !parse_layers(request.substr(slash), parsed)) ||
      (!(has_layers && kernel.empty()) && !parse_kernel(kernel, parsed)))
    throw std::invalid_argument(
        "FUSEDLSTM_PLAN: expected stream, local, cluster, grid, mesh or bulk, all but stream perhaps with :UNITSxROWS "
        "or :UNITSxROWSxK, and for stacks perhaps /LAYERSxPARTS, got '" +
        request + "'");
  return parsed;
}

}  // namespace fusedlstm::cuda

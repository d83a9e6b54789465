// The Python module _emulated: the runtime's switches, its self-tests, and the project's host code on CPU memory.
// Pointers travel as integers; tests/emulator/__init__.py makes them from tensors.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bind.h"
#include "bind_host.h"
#include "emulator.h"

namespace py = pybind11;

namespace emulator {
void run_selftest(const std::string& name, uint32_t* out);
int longest_chain();
int waits();
}  // namespace emulator
extern "C" int fusedlstm_run_primitive(const char* name, const uint32_t* in, uint32_t* out);

PYBIND11_MODULE(_emulated, m) {
  using namespace emulator;
  static py::exception<Error> error(m, "EmulationError", PyExc_RuntimeError);
  py::register_local_exception_translator([](std::exception_ptr p) {
    try {
      std::rethrow_exception(p);
    } catch (const Error& e) {
      py::set_error(error, e.what());
    }
  });
  py::class_<Options>(m, "Options", py::module_local())
      .def_readwrite("seed", &Options::seed)
      .def_readwrite("preempt", &Options::preempt)
      .def_readwrite("sm_count", &Options::sm_count)
      .def_readwrite("smem_limit", &Options::smem_limit)
      .def_readwrite("max_cluster_size", &Options::max_cluster_size)
      .def_property(
          "launch_errors", [](const Options& o) { return o.launch_error.next; },
          [](Options& o, const std::deque<int>& errors) { o.launch_error.next = errors; })
      .def_readwrite("stream_order", &Options::stream_order)
      .def_readwrite("device", &Options::device)
      .def_property(
          "attribute_errors", [](const Options& o) { return o.attribute_error.next; },
          [](Options& o, const std::deque<int>& errors) { o.attribute_error.next = errors; })
      .def_readwrite("time_passes", &Options::time_passes)
      .def_readwrite("approximation", &Options::approximation)
      .def_readwrite("fault", &Options::fault);
  m.def("options", &options, py::return_value_policy::reference);
  m.def("attribute_calls", &attribute_calls);
  m.def("register_buffer", [](uintptr_t p, size_t bytes, const std::string& name, bool initialised) {
    register_buffer(reinterpret_cast<void*>(p), bytes, name, initialised);
  });
  m.def("unregister_buffer", [](uintptr_t p) { unregister_buffer(reinterpret_cast<void*>(p)); });
  m.def("longest_chain", &longest_chain);
  m.def("waits", &waits);
  m.def("run_selftest",
        [](const std::string& name, uintptr_t out) { run_selftest(name, reinterpret_cast<uint32_t*>(out)); });
  m.def("run_primitive", [](const std::string& name, uintptr_t in, uintptr_t out) {
    return fusedlstm_run_primitive(name.c_str(), reinterpret_cast<const uint32_t*>(in),
                                   reinterpret_cast<uint32_t*>(out));
  });
  emulator::bind_host(m);
  ptx::bind(m);
}

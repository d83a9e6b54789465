#include "bind.h"

#include <dlfcn.h>
#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include <memory>

#include "launch.h"

namespace ptx {

void bind(pybind11::module_& m) {
  // Asked at every launch for the translation of a kernel: the address of a Kernel of thread.h, or 0 for the kernel
  // itself. By its place in this library, in bytes from its start, and the sizes of its parameters.
  using Find = std::function<uintptr_t(uintptr_t, const std::vector<size_t>&)>;
  m.def("substitute_kernels", [](const Find& find) {
    emulator::substitute() = [find](const void* kernel,
                                    const std::vector<emulator::Parameter>& parameters) -> std::function<void()> {
      Dl_info info;
      dladdr(kernel, &info);
      std::vector<size_t> sizes;
      std::vector<const void*> values;
      for (const emulator::Parameter& parameter : parameters) {
        sizes.push_back(parameter.bytes);
        values.push_back(parameter.value);
      }
      const auto translated = reinterpret_cast<Kernel>(
          find(reinterpret_cast<uintptr_t>(kernel) - reinterpret_cast<uintptr_t>(info.dli_fbase), sizes));
      if (!translated) return nullptr;
      auto launch = std::make_shared<Launch>(parameters);
      return [=] { translated(*launch, values.data()); };
    };
  });
  m.def("restore_kernels", [] { emulator::substitute() = nullptr; });
}

}  // namespace ptx

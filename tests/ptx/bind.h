// The functions of the module _emulated that put translated kernels in the place of those of the emulator.
#pragma once
#include <pybind11/pybind11.h>

namespace ptx {

void bind(pybind11::module_& m);

}  // namespace ptx

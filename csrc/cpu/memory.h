// Scratch memory of the kernels.
#pragma once

#include <cstdint>

namespace fusedlstm::cpu {

// This thread's scratch memory of at least `bytes`, 64-byte aligned, uninitialised; valid until the next call.
// Blocks up to 128 MiB are kept for the thread's next call, which then neither allocates nor touches new pages.
//
// Large blocks ask for huge pages. Tensors do not: where a hypervisor takes huge pages back as soon as they are free,
// each new one costs more than its small pages would.
char* scratch_memory(int64_t bytes);

// Returns a large block at once; call it when the scratch memory is no longer used.
void release_scratch_memory();

}  // namespace fusedlstm::cpu

// Scratch memory and large tensors: pages.
#pragma once

#include <cstdint>

namespace fusedlstm::cpu {

// Asks for huge pages under memory that was just allocated and not yet written: first touch of a large block then costs
// a five hundredth of the page faults. A hint only; small blocks are left as they are.
void prefer_huge_pages(void* data, int64_t bytes);

// This thread's scratch memory of at least `bytes`, 64-byte aligned, uninitialised; valid until the next call.
// Blocks up to 128 MiB are kept for the thread's next call, which then neither allocates nor touches new pages.
char* scratch_memory(int64_t bytes);

// Returns a large block at once; call it when the scratch memory is no longer used.
void release_scratch_memory();

}  // namespace fusedlstm::cpu

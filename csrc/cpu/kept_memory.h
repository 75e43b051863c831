// Memory for the large tensors that an op makes: y, dx, what is saved, weight gradients, workspace.
//
// The system zeroes memory before it hands it out, which for a large result takes longer than the
// whole layer, even in huge pages, and glibc hands back every block above 32 MB as soon as it is
// freed. But a network asks for the same sizes step after step. So what is freed is kept for the
// next tensor of its size, and marked so that the system takes it back when memory is short
// (MADV_FREE). The blocks, in use and kept, never take more than was in use at one time.
#pragma once

#include <cstdint>

namespace seblock::cpu {

// At least `bytes` bytes, not zeroed, at the start of a huge page (2 MB); or null: the caller's
// usual memory serves small tensors, systems other than Linux, and SEBLOCK_KEEP_MEMORY=0.
void* take_memory(int64_t bytes);

// From take_memory(). Any thread may call either.
void give_back_memory(void* memory);

}  // namespace seblock::cpu

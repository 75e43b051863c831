// Huge pages for large results.
//
// Memory that the allocator has fresh from the system costs one page fault per 4 KB when it is
// first written, which for large results is more than the layer itself (benchmarks/results:
// `system` beside `keep`). In huge pages of 2 MB it costs 512 times fewer.
#pragma once

#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace seblock::cpu {

// Asks for huge pages under the whole ones among `bytes` bytes at `data`; a wish, never an error.
inline void ask_for_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHugePage = uintptr_t{2} << 20;
  const auto address = reinterpret_cast<uintptr_t>(data);
  const uintptr_t begin = (address + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (address + static_cast<uintptr_t>(bytes)) / kHugePage * kHugePage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace seblock::cpu

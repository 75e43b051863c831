// The blocks that are in use and those that are kept.
#include "kept_memory.h"

#ifdef __linux__
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string_view>
#include <vector>

namespace seblock::cpu {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kLeast = size_t{1} << 20;
constexpr size_t kStep = size_t{64} << 10;  // sizes of blocks are multiples of this

// A new block at the start of a huge page, or null.
void* map(size_t bytes) {
  void* mapped =
      mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  char* const begin = static_cast<char*>(mapped);
  const size_t before = -reinterpret_cast<uintptr_t>(mapped) % kHugePage;
  if (before) munmap(begin, before);
  munmap(begin + before + bytes, kHugePage - before);
  madvise(begin + before, bytes, MADV_HUGEPAGE);  // a wish
  return begin + before;
}

class Blocks {
 public:
  void* take(size_t bytes) {
    const std::lock_guard lock(mutex_);
    most_used_ = std::max(most_used_, used_ + bytes);
    void* data = nullptr;
    const auto fits = [&](const Block& block) { return block.bytes == bytes; };
    if (const auto found = std::find_if(kept_.rbegin(), kept_.rend(), fits);
        found != kept_.rend()) {
      data = found->data;
      kept_.erase(found.base() - 1);
    } else {
      make_room(bytes);
      data = map(bytes);
      if (!data) return nullptr;
      mapped_ += bytes;
    }
    used_ += bytes;
    sizes_[data] = bytes;
    return data;
  }

  void give_back(void* data) {
    const std::lock_guard lock(mutex_);
    const auto found = sizes_.find(data);
    const size_t bytes = found->second;
    sizes_.erase(found);
    used_ -= bytes;
    madvise(data, bytes, MADV_FREE);  // before Linux 4.5 it fails, and the block is just kept
    kept_.push_back({data, bytes});
  }

 private:
  struct Block {
    void* data;
    size_t bytes;
  };

  // Unmaps what has been kept longest, until `bytes` more are not too much.
  void make_room(size_t bytes) {
    auto end = kept_.begin();
    for (; end != kept_.end() && mapped_ + bytes > most_used_; ++end) {
      munmap(end->data, end->bytes);
      mapped_ -= end->bytes;
    }
    kept_.erase(kept_.begin(), end);
  }

  std::mutex mutex_;
  std::map<void*, size_t> sizes_;  // of the blocks in use
  std::vector<Block> kept_;        // the one kept longest first
  size_t used_ = 0, mapped_ = 0, most_used_ = 0;
};

bool switched_off() {
  static const char* const wanted = std::getenv("SEBLOCK_KEEP_MEMORY");
  return wanted && std::string_view(wanted) == "0";
}

Blocks& blocks() {
  static Blocks& all = *new Blocks;  // tensors may outlive what is destroyed at exit
  return all;
}

}  // namespace

void* take_memory(int64_t bytes) {
  if (static_cast<size_t>(bytes) < kLeast || switched_off()) return nullptr;
  return blocks().take((static_cast<size_t>(bytes) + kStep - 1) / kStep * kStep);
}

void give_back_memory(void* memory) { blocks().give_back(memory); }

}  // namespace seblock::cpu

#else

namespace seblock::cpu {

void* take_memory(int64_t) { return nullptr; }
void give_back_memory(void*) {}

}  // namespace seblock::cpu

#endif

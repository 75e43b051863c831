// Counts requests: first and repeated bytes, sectors, bank conflicts. See memory.h.
#include "memory.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "trace.h"

namespace simt {
namespace {

constexpr size_t kSector = 32;
constexpr size_t kCalls = 4096;  // slots for the call sites of one launch
constexpr unsigned kBanks = 32;
constexpr unsigned kBankBytes = 4;

std::unique_ptr<Recording>& current() {
  thread_local std::unique_ptr<Recording> recording;
  return recording;
}

[[noreturn]] void fail(Access access, size_t bytes, const std::string& what) {
  throw std::runtime_error((access == Access::read ? "reads " : "writes ") + std::to_string(bytes) +
                           " bytes " + what);
}

// "of x, 2 bytes beyond its end"
std::string outside(const std::vector<Tensor>& tensors, uintptr_t address) {
  std::string text = "outside every tensor";
  uintptr_t nearest = ~uintptr_t{0};
  for (const Tensor& tensor : tensors) {
    const bool before = address < tensor.address;
    const uintptr_t end = tensor.address + tensor.bytes;
    const uintptr_t gap = before ? tensor.address - address : address - std::min(address, end);
    if (gap >= nearest) continue;
    nearest = gap;
    text = "outside every tensor: at byte " + std::string(before ? "-" : "") +
           std::to_string(before ? gap : address - tensor.address) + " of " + tensor.name + " (" +
           std::to_string(tensor.bytes) + " bytes)";
  }
  return text;
}

}  // namespace

void start_recording(std::vector<Tensor> tensors) {
  current() = std::make_unique<Recording>(std::move(tensors));
}

std::vector<LaunchTraffic> stop_recording() {
  if (!current()) throw std::logic_error("simt: nothing is being recorded");
  const std::unique_ptr<Recording> ended = std::move(current());
  return ended->take_launches();
}

Recording* recording() { return current().get(); }

Recording::Recording(std::vector<Tensor> tensors) : tensors_(std::move(tensors)) {
  for (const Tensor& tensor : tensors_) {
    cells_.emplace_back(tensor.bytes / tensor.element);
    if (tensor.output) continue;
    for (Cell& cell : cells_.back()) cell.writer.launch = ~0u;  // before the first
  }
}

void Recording::start_launch(const Launch& launch) {
  launches_.push_back({launch.kernel, launch.blocks, launch.shared_bytes, {}, {}});
  launches_.back().tensors.resize(tensors_.size());
  flags_.clear();
  calls_.assign(kCalls, {});
  sites_ = 0;
}

unsigned Recording::check(uintptr_t address, size_t bytes, Access access, const BlockTrace& block,
                          unsigned thread) {
  const auto holds = [&](const Tensor& tensor) {
    return address >= tensor.address && address + bytes <= tensor.address + tensor.bytes;
  };
  if (recent_ >= tensors_.size() || !holds(tensors_[recent_])) {
    const auto found = std::find_if(tensors_.begin(), tensors_.end(), holds);
    if (found == tensors_.end()) fail(access, bytes, outside(tensors_, address));
    recent_ = static_cast<unsigned>(found - tensors_.begin());
  }
  const Tensor& tensor = tensors_[recent_];
  const size_t offset = address - tensor.address;
  const std::string where = "at byte " + std::to_string(offset) + " of " + tensor.name;
  if (address % bytes || offset % tensor.element || bytes % tensor.element) {
    fail(access, bytes, where + ": misaligned");
  }
  if (access == Access::write && !tensor.output) fail(access, bytes, where + ", an input");
  const auto launch = static_cast<uint32_t>(launches_.size());
  for (size_t i = offset / tensor.element; i < (offset + bytes) / tensor.element; i++) {
    Cell& cell = cells_[recent_][i];
    Writer& writer = cell.writer;
    if (writer.launch == launch && !block.follows(writer, thread)) {
      fail(access, bytes,
           where + ", which thread " + std::to_string(writer.thread) + " of block " +
               std::to_string(writer.block) + " wrote: nothing orders the two");
    }
    if (access == Access::write) writer = block.writer(launch, thread);
    if (writer.launch == 0) fail(access, bytes, where + ", which nobody has written");
  }
  return recent_;
}

unsigned Recording::site_of(const void* caller, const Kind& kind) {
  const uint64_t hash =
      (reinterpret_cast<uintptr_t>(caller) * 64 + kind.tensor) * 0x9e3779b97f4a7c15;
  for (size_t slot = hash >> 52;; slot = (slot + 1) % kCalls) {
    Call& call = calls_[slot];
    if (call.caller == caller && call.kind == kind) return call.site;
    if (call.caller) continue;
    if (sites_ == kCalls / 2) throw std::logic_error("simt: too many call sites");
    call = {caller, kind, sites_++};
    return call.site;
  }
}

void Recording::count(const Kind& kind, const Request& request) {
  kind.tensor == shared_tensor() ? count_shared(kind, request) : count_global(kind, request);
}

void Recording::count_global(const Kind& kind, const Request& request) {
  uintptr_t address[kWarpThreads];
  std::copy_n(request.address, request.lanes, address);
  if (!std::is_sorted(address, address + request.lanes)) {
    std::sort(address, address + request.lanes);
  }
  TensorTraffic& traffic = launches_.back().tensors[kind.tensor];
  uint64_t moved = 0, fresh = 0, sectors = 0;
  uintptr_t next_sector = 0;  // the first that is not counted
  for (unsigned i = 0; i < request.lanes;) {
    const uintptr_t begin = address[i];
    uintptr_t end = begin + kind.bytes;
    for (i++; i < request.lanes && address[i] <= end; i++) end = address[i] + kind.bytes;
    fresh += touch(kind.tensor, begin, end, kind.access);
    moved += end - begin;
    sectors += (end - 1) / kSector + 1 - std::max(next_sector, begin / kSector);
    next_sector = (end - 1) / kSector + 1;
  }
  clock_ += fresh;
  traffic.sectors += sectors;
  traffic.least_sectors += (moved + kSector - 1) / kSector;
}

// Returns how many of the bytes advance the clock.
uint64_t Recording::touch(unsigned tensor, uintptr_t begin, uintptr_t end, Access access) {
  TensorTraffic& traffic = launches_.back().tensors[tensor];
  const unsigned element = tensors_[tensor].element;
  const auto launch = static_cast<uint32_t>(launches_.size());
  uint64_t repeated = 0;
  Cell* cell = &cells_[tensor][(begin - tensors_[tensor].address) / element];
  for (uintptr_t at = begin; at < end; at += element, cell++) {
    if (cell->last_touch) {
      traffic.largest_distance = std::max(traffic.largest_distance, clock_ - cell->last_touch);
    }
    cell->last_touch = clock_;
    if (access == Access::write) {
      traffic.written += element;
      continue;
    }
    if (cell->last_read == launch) {
      repeated += element;
    } else {
      (cell->last_read ? traffic.read_again : traffic.first_read) += element;
      cell->last_read = launch;
    }
  }
  traffic.read_repeatedly += repeated;
  return end - begin - repeated;
}

// Lanes that ask for the same word share it; wider accesses go 128 bytes at a time.
void Recording::count_shared(const Kind& kind, const Request& request) {
  SharedTraffic& traffic = launches_.back().shared;
  const unsigned lanes_at_once = kBanks * kBankBytes / std::max(kind.bytes, kBankBytes);
  uintptr_t words[kBanks];
  for (unsigned first = 0; first < request.lanes; first += lanes_at_once) {
    unsigned count = 0;
    for (unsigned i = first; i < std::min(first + lanes_at_once, request.lanes); i++) {
      const uintptr_t end = request.address[i] + kind.bytes;
      for (uintptr_t at = request.address[i]; at < end; at += kBankBytes) {
        const uintptr_t word = at / kBankBytes;
        if (count == 0 || words[count - 1] != word) words[count++] = word;
      }
    }
    traffic.requests++;
    if (!std::is_sorted(words, words + count)) {
      std::sort(words, words + count);
      count = static_cast<unsigned>(std::unique(words, words + count) - words);
    }
    if (words[count - 1] - words[0] == count - 1) continue;  // neighbours
    unsigned turns[kBanks] = {}, most = 0;
    for (unsigned i = 0; i < count; i++) most = std::max(most, ++turns[words[i] % kBanks]);
    traffic.conflicts += most - 1;
  }
}

}  // namespace simt

// A recording: checks every access, groups accesses into requests, counts those. Part
// of simt.cpp, which tells it of accesses and meetings.
#pragma once

#include <algorithm>
#include <map>
#include <sstream>
#include <stdexcept>
#include <tuple>
#include <utility>

#include "simt.h"

namespace simt {

template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

// What a block does between two barriers has a number in the recording, from 1. 0: what nobody has
// done yet.
using Epoch = uint32_t;

// By block: its epochs before this one are known.
using Clock = std::map<unsigned, Epoch>;

// Who has accessed an element last, or that several threads have in that epoch.
constexpr unsigned kSeveral = kMaxBlockThreads;
struct Stamp {
  Epoch epoch = 0;
  unsigned thread = 0;
};

struct Cell {
  Stamp written, read;
  uint32_t launch_read = 0;  // the last launch that has read it, from 1
  uint64_t touched = 0;      // when: on the clock of largest_distance
};

// A tensor, or the shared memory of a block.
struct Region {
  Tensor tensor;
  size_t index;
  std::vector<Cell> cells = std::vector<Cell>(tensor.bytes / tensor.element);
};

// What the lanes of a warp ask for together: an address each, as many as take part.
using Request = std::vector<uintptr_t>;

// A call site, the region, the bytes of a lane, and what for.
using Call = std::tuple<const void*, Region*, size_t, Access>;

// The requests of a warp by one call, since its lanes last met.
struct Site {
  Call call;
  unsigned taken[kWarpThreads] = {};  // by each lane
  std::vector<Request> requests = {};
};

// Of a block.
struct Trace {
  unsigned block;
  Region shared;
  Epoch epoch = 0;
  Clock known = {};                       // to all of its threads
  std::map<unsigned, Clock> learnt = {};  // by a thread, since the last barrier
  std::vector<Site> warps[kMaxBlockThreads / kWarpThreads] = {};
};

struct Recording {
  explicit Recording(const std::vector<Tensor>& tensors) : shared_index(tensors.size()) {
    regions.insert({0, Region{{"null", 0, 0, 1, false}, 0}});  // below every address
    for (size_t i = 0; i < tensors.size(); i++) {
      regions.insert_or_assign(tensors[i].address, Region{tensors[i], i});
    }
  }

  void start_launch(const Launch& launch) {
    launch_start = static_cast<Epoch>(blocks.size());
    launches.push_back({launch, std::vector<TensorTraffic>(shared_index)});
  }

  Trace start_block(unsigned block, const void* shared, size_t bytes) {
    // The smallest type that kernels keep there has 2 bytes.
    const auto address = reinterpret_cast<uintptr_t>(shared);
    Trace trace = {block, {{"shared memory", address, bytes, 2, true}, shared_index}};
    barrier(trace);
    return trace;
  }

  void barrier(Trace& trace) {
    for (std::vector<Site>& warp : trace.warps) lanes_met(warp);
    for (const auto& [thread, clock] : trace.learnt) join(trace.known, clock);
    trace.learnt.clear();
    trace.epoch = trace.known[trace.block] = static_cast<Epoch>(blocks.size());
    blocks.push_back(trace.block);
  }

  void lanes_met(std::vector<Site>& warp) {
    for (const Site& site : warp) {
      for (const Request& request : site.requests) count(site.call, request);
    }
    warp.clear();
  }

  void access(Trace& trace, unsigned thread, uintptr_t address, Call call) {
    auto& [caller, region, bytes, access] = call;
    if (access == Access::acquire) return join(trace.learnt[thread], flags[address]);
    if (access == Access::release) {
      join(flags[address], trace.known);
      return join(flags[address], trace.learnt[thread]);
    }
    region = &std::prev(regions.upper_bound(address))->second;
    const uintptr_t shared = trace.shared.tensor.address;
    if (region->tensor.address < shared && shared <= address) region = &trace.shared;
    const size_t offset = address - region->tensor.address;
    const std::string fault = check(trace, thread, offset, call);
    if (!fault.empty()) {
      throw std::runtime_error(text(access == Access::read ? "reads " : "writes ", bytes,
                                    " bytes at byte ", offset, " of ", region->tensor.name, fault));
    }
    std::vector<Site>& sites = trace.warps[thread / kWarpThreads];
    auto site = std::find_if(sites.begin(), sites.end(), [&](Site& s) { return s.call == call; });
    if (site == sites.end()) site = sites.insert(site, {call});
    const unsigned turn = site->taken[thread % kWarpThreads]++;
    if (turn == site->requests.size()) site->requests.emplace_back().reserve(kWarpThreads);
    site->requests[turn].push_back(address);
  }

  static void join(Clock& clock, const Clock& other) {
    for (const auto& [block, epoch] : other) clock[block] = std::max(clock[block], epoch);
  }

  bool ordered(const Stamp& before, Trace& trace, unsigned thread) const {
    if (before.epoch < launch_start) return true;
    if (before.epoch == trace.epoch) return before.thread == thread;
    const unsigned block = blocks[before.epoch];
    return before.epoch < trace.known[block] || before.epoch < trace.learnt[thread][block];
  }

  // What is wrong with an access, or nothing.
  std::string check(Trace& trace, unsigned thread, size_t offset, const Call& call) const {
    const auto& [caller, region, bytes, access] = call;
    const auto& [name, address, size, element, output] = region->tensor;
    const bool read = access == Access::read;
    if (offset + bytes > size) return text(", which has ", size, " bytes");
    if ((address + offset) & (bytes - 1) || bytes % element) return ": misaligned";
    if (!output) return read ? "" : ", an input";  // nobody writes it
    for (size_t i = offset / element; i < (offset + bytes) / element; i++) {
      Cell& cell = region->cells[i];
      const bool overwrites = !read && ordered(cell.written, trace, thread);
      const Stamp& other = overwrites ? cell.read : cell.written;
      if (!ordered(other, trace, thread)) {
        return text(overwrites ? ", read by " : ", written by ",
                    other.thread == kSeveral ? "several threads" : text("thread ", other.thread),
                    " of block ", blocks[other.epoch], ": nothing orders the two");
      }
      if (read && cell.written.epoch == 0) return ", which nobody has written";
      Stamp& mine = read ? cell.read : cell.written;
      const bool several = mine.epoch == trace.epoch && mine.thread != thread;
      mine = {trace.epoch, several ? kSeveral : thread};
    }
    return "";
  }

  // The units of `size` bytes that lanes touch together, each once, in order.
  static std::vector<uintptr_t> units(const Request& lanes, size_t bytes, size_t size) {
    std::vector<uintptr_t> all;
    for (const uintptr_t lane : lanes) {
      for (uintptr_t unit = lane / size; unit * size < lane + bytes; unit++) all.push_back(unit);
    }
    if (!std::is_sorted(all.begin(), all.end())) std::sort(all.begin(), all.end());
    all.erase(std::unique(all.begin(), all.end()), all.end());
    return all;
  }

  void count(const Call& call, const Request& request) {
    const auto& [caller, region, bytes, access] = call;
    if (region->index == shared_index) return count_shared(request, bytes);
    const unsigned element = region->tensor.element;
    const std::vector<uintptr_t> elements = units(request, bytes, element);
    TensorTraffic& traffic = launches.back().tensors[region->index];
    const uint64_t then = now;
    for (const uintptr_t unit : elements) {
      Cell& cell = region->cells[unit - region->tensor.address / element];
      const uint64_t distance = cell.touched ? then - cell.touched : 0;
      traffic.largest_distance = std::max(traffic.largest_distance, distance);
      cell.touched = then;
      uint64_t& sum = access == Access::write               ? traffic.written
                      : cell.launch_read == launches.size() ? traffic.read_repeatedly
                      : cell.launch_read > 0                ? traffic.read_again
                                                            : traffic.first_read;
      sum += element;
      const bool had = access == Access::read && cell.written.epoch >= launch_start && launch_start;
      if (&sum != &traffic.read_repeatedly && !had) now += element;
      if (access == Access::read) cell.launch_read = static_cast<uint32_t>(launches.size());
    }
    traffic.sectors += units(request, bytes, kSector).size();
    traffic.least_sectors += (elements.size() * element + kSector - 1) / kSector;
  }

  // Lanes that ask for the same word share it; wider accesses go 128 bytes at a time.
  void count_shared(const Request& request, size_t bytes) {
    const size_t at_once = kBanks * kBankBytes / std::max(bytes, kBankBytes);
    for (size_t i = 0; i < request.size(); i += at_once) {
      const auto first = request.begin() + i, end = first + std::min(at_once, request.size() - i);
      unsigned turns[kBanks] = {};
      for (const uintptr_t word : units({first, end}, bytes, kBankBytes)) turns[word % kBanks]++;
      launches.back().shared_requests++;
      launches.back().bank_conflicts += *std::max_element(turns, turns + kBanks) - 1;
    }
  }

  // Bytes, but for the number of banks.
  static constexpr size_t kSector = 32, kBanks = 32, kBankBytes = 4;

  const size_t shared_index;  // of shared memory: after the tensors
  std::vector<LaunchTraffic> launches = {};
  std::map<uintptr_t, Region> regions;  // by address
  std::map<uintptr_t, Clock> flags;     // what is known by who sees one set
  std::vector<unsigned> blocks = {0};   // of the epochs
  Epoch launch_start = 0;
  uint64_t now = 1;  // advances by one per byte
};

}  // namespace simt

// How one sample is divided into tasks: by its shape, layout and dtype alone. So a sum is made of
// the same parts in the same order for every batch, driver and plan.
//
// A vector is 16 bytes, counted from the sample's first element (nhwc: from the row's). A task is
// one block's work on kVectors of them per thread, 16 KB at most:
//
//   strip   what one block squeezes, and in nhwc scales too
//           nhwc   `lanes` vectors of a row x `rows` rows
//           nchw   `planes` whole planes, or 8 chunks of one plane
//   run     what one block scales in nchw: neighbouring vectors, wherever planes begin
//
// A sum over space that several strips share has `parts`; whoever reads them adds them in order.
#pragma once

#include <algorithm>
#include <cstdint>

#include "division.h"
#include "se_types.h"

namespace seblock {

constexpr int kBlockThreads = 256;  // of every kernel
constexpr int kWarp = 32;
constexpr int kWarps = kBlockThreads / kWarp;
constexpr int kAccessBytes = 16;  // the widest global access
constexpr int kVectors = 4;       // per thread and task, loaded before the first is used
constexpr int kTaskVectors = kVectors * kBlockThreads;

// nhwc: 256 bytes of a row at most. Narrower rows cost bandwidth, wider ones write more partial
// sums: a strip of 16 KB has 4 bytes of them per channel.
constexpr int kRowVectors = 16;

// nchw: planes of fewer vectors pass through shared memory, so many bytes at a time: lanes that
// read so few neighbouring vectors would touch every sector several times.
constexpr int kSmallPlane = 8;
constexpr int kStagedBytes = 8 * 1024;

SEBLOCK_HOST_DEVICE constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t power_of_two_at_least(int64_t value) {
  int64_t power = 1;
  while (power < value) power *= 2;
  return power;
}

struct Tiling {
  Layout layout;  // nhwc wherever S = 1: there the two are one
  int vec;        // elements of a vector
  int lanes;      // threads side by side: on a row's vectors (nhwc), on a plane's (nchw; 0: small)
  int groups;     // nhwc: of threads above each other
  int rows;       // nhwc: of a strip, the last one may have fewer
  int planes;     // nchw: of a strip, the last one may have fewer
  int staged;     // nchw, small planes: that pass through shared memory at a time
  int chunks;     // nchw: pieces of kVectors * lanes vectors that a plane is summed in, one a warp
  int parts;      // of a sum
  int inner;      // strips next to each other: nhwc side by side, nchw the parts of a sum
  int strips;     // of a sample
  int runs;       // of a sample; nhwc: its strips
  // What a thread needs to find its place.
  Divisor32 by_lanes, by_inner, by_chunks, by_strips, by_runs;
  Divisor32 by_plane;  // S, for elements below 2^31
  Divisor64 by_plane_64;

  explicit Tiling(const Problem& problem) {
    const Shape& shape = problem.shape;
    const int64_t size = bytes_of(problem.dtype);
    layout = shape.s == 1 ? Layout::nhwc : problem.layout;
    vec = static_cast<int>(kAccessBytes / size);
    groups = rows = planes = staged = chunks = 1;
    if (layout == Layout::nhwc) {
      divide_rows(shape);
      runs = strips;
    } else {
      divide_planes(shape, size);
      runs = static_cast<int>(ceil_div(ceil_div(shape.c * shape.s, vec), kTaskVectors));
    }
    by_lanes = Divisor32(std::max(lanes, 1));
    by_inner = Divisor32(inner);
    by_chunks = Divisor32(chunks);
    by_strips = Divisor32(strips);
    by_runs = Divisor32(runs);
    by_plane = Divisor32(std::min<int64_t>(shape.s, INT32_MAX));
    by_plane_64 = Divisor64(shape.s);
  }

  SEBLOCK_HOST_DEVICE bool small_planes() const { return layout == Layout::nchw && lanes == 0; }

 private:
  void divide_rows(const Shape& shape) {
    const int64_t vectors = ceil_div(shape.c, vec);
    const int64_t wide = ceil_div(vectors, ceil_div(vectors, kRowVectors));
    lanes = static_cast<int>(vectors % 2 ? wide : wide + wide % 2);  // whole sectors of 32 bytes
    groups = kBlockThreads / lanes;
    rows = static_cast<int>(ceil_div(shape.s, ceil_div(shape.s, int64_t{kVectors} * groups)));
    parts = static_cast<int>(ceil_div(shape.s, rows));
    inner = static_cast<int>(ceil_div(vectors, lanes));
    strips = parts * inner;
  }

  void divide_planes(const Shape& shape, int64_t size) {
    // The most vectors that a plane touches.
    const int64_t vectors = shape.s % vec ? (shape.s + vec - 2) / vec + 1 : shape.s / vec;
    parts = 1;
    if (vectors < kSmallPlane) {
      lanes = 0;
      staged = static_cast<int>((kStagedBytes / size - 2 * vec) / shape.s);
      planes = 2 * staged;
    } else {
      lanes = static_cast<int>(
          std::min<int64_t>(power_of_two_at_least(ceil_div(vectors, kVectors)), kWarp));
      const int64_t pieces = ceil_div(vectors, kVectors * lanes);
      chunks = static_cast<int>(std::min<int64_t>(pieces, kWarps));
      parts = static_cast<int>(ceil_div(pieces, kWarps));
      planes = lanes < kWarp ? kBlockThreads / lanes : kWarps / chunks;
    }
    inner = parts;
    strips = static_cast<int>(parts * ceil_div(shape.c, planes));
  }
};

// How a product W in, W of [height, width] by rows or of [width, height] by columns, is dealt to
// the threads of a block: by its shape alone, so that a sum is the same for any number of samples.
//
//   rows      2^shift lanes share a row, each takes 4 neighbours of every 4 * 2^shift
//   columns   2^shift lanes side by side take 4 columns each, 256 / 2^shift groups of threads
//             above each other take every so many inputs
//
// A thread has up to 4 loads of a row of 512 inputs, up to 8 of a column of 256.
enum class Order { rows, columns };

struct Deal {
  Order order;
  int shift;
  int last_lane;  // 2^shift - 1

  Deal(Order how, int64_t width, int64_t height) : order(how) {
    int64_t lanes = std::clamp<int64_t>(power_of_two_at_least(ceil_div(width, 16)), 1, kWarp);
    if (order == Order::columns) {
      const int64_t groups = power_of_two_at_least(ceil_div(width, 8));
      lanes = std::min(kBlockThreads / std::min<int64_t>(groups, 32),
                       power_of_two_at_least(ceil_div(height, 4)));
    }
    shift = 0;
    while (1 << shift < lanes) ++shift;
    last_lane = (1 << shift) - 1;
  }

  // Outputs that a block has at a time.
  SEBLOCK_HOST_DEVICE int outputs(int samples) const {
    if (order == Order::columns) return 4 << shift;
    return (kBlockThreads >> shift) * rows_of_thread(samples);
  }
  int tiles(int64_t height, int samples) const {
    return static_cast<int>(ceil_div(height, outputs(samples)));
  }

  // With several samples to a weight a thread has several rows to an input.
  SEBLOCK_HOST_DEVICE static constexpr int rows_of_thread(int samples) {
    return samples == 1 ? 1 : 4;
  }
};

}  // namespace seblock

// Stage squeeze: the sum over space of x (forward) or of dy * x (backward), strip by strip.
//
//   block   a strip of one sample (csrc/tiling.h)
//   reads   x; backward: dy, x and the mask. writes [parts, N, C] sums; with a mask, dresidual
//
// A Source says what is summed.
#pragma once

#include "device/math.cuh"
#include "device/vec.cuh"
#include "tiling.h"

namespace seblock::cuda {

// ---- Sources ----

template <typename scalar>
struct Input {  // x
  using scalar_t = scalar;
  static constexpr const char* kName = "squeeze(x)";
  static constexpr int kInFlight = kVectors;  // vectors of each tensor
  const scalar_t* x;                          // [N, C, S] or [N, S, C]

  struct Loaded {
    Vector<scalar_t> x;
    SEBLOCK_DEVICE const Vector<scalar_t>& kept() const { return x; }
  };
  // For the sample whose first element is `start`, whose first vector is `vector`.
  SEBLOCK_DEVICE Input at(int64_t start, int64_t) const { return {x + start}; }
  template <bool kAligned>
  SEBLOCK_DEVICE Loaded load(const Place<offset_of<kAligned>>& place) const {
    return {load_vector<kAligned, Use::again>(x, place)};
  }
  // The terms of the sum. Of the threads that load a vector one is the owner.
  template <bool kAligned>
  SEBLOCK_DEVICE void terms(Loaded& loaded, const Place<offset_of<kAligned>>&, bool,
                            acc_of<scalar_t> (&out)[kVec<scalar_t>]) const {
    widen(loaded.x, out);
  }
};

template <typename scalar, bool kMasked>
struct InputTimesGradient {  // dy * x; kMasked: dy where it passes the tail's ReLU
  using scalar_t = scalar;
  static constexpr const char* kName = "squeeze(dy * x)";
  static constexpr int kInFlight = kMasked ? kVectors / 2 : kVectors;
  const scalar_t* x;    // [N, C, S] or [N, S, C]
  const scalar_t* dy;   // like x
  const uint8_t* mask;  // a byte per vector; kMasked: or null, if all of dy passes
  scalar_t* dresidual;  // like x: dy where it passes, 0 elsewhere; with a mask

  struct Loaded {
    Vector<scalar_t> x, dy;
    unsigned bits;
    SEBLOCK_DEVICE const Vector<scalar_t>& kept() const { return dy; }
  };
  SEBLOCK_DEVICE InputTimesGradient at(int64_t start, int64_t vector) const {
    return {x + start, dy + start, mask ? mask + vector : nullptr,
            dresidual ? dresidual + start : nullptr};
  }
  template <bool kAligned>
  SEBLOCK_DEVICE Loaded load(const Place<offset_of<kAligned>>& place) const {
    Loaded loaded;
    loaded.x = load_vector<kAligned, Use::last>(x, place);
    loaded.dy = load_vector<kAligned, kMasked ? Use::last : Use::again>(dy, place);
    if (kMasked && mask) loaded.bits = seblock::cuda::load<unsigned>(mask + place.vector);
    return loaded;
  }
  template <bool kAligned>
  SEBLOCK_DEVICE void terms(Loaded& loaded, const Place<offset_of<kAligned>>& place, bool owner,
                            acc_of<scalar_t> (&out)[kVec<scalar_t>]) const {
    if (kMasked && mask) {
      keep(loaded.dy, loaded.bits);
      if (owner) store_vector<kAligned, Use::again>(dresidual, place, loaded.dy);
    }
    acc_of<scalar_t> gradient[kVec<scalar_t>];
    widen(loaded.x, out);
    widen(loaded.dy, gradient);
#pragma unroll
    for (int e = 0; e < kVec<scalar_t>; ++e) out[e] *= gradient[e];
  }
};

// ---- The stage ----

// Where the sums of a strip go.
template <typename acc_t>
struct Sums {
  acc_t* data;  // [parts, N, C]
  int64_t n, c;

  SEBLOCK_DEVICE void put(int64_t part, int64_t sample, int64_t channel, acc_t sum) const {
    store(data + (part * n + sample) * c + channel, sum);
  }
  SEBLOCK_DEVICE acc_t get(int part, int64_t index) const {  // of [N, C]
    return load<acc_t>(data + part * n * c + index);
  }
};

template <bool kAligned, typename Source>
class Squeeze {
 public:
  using scalar_t = typename Source::scalar_t;
  using acc_t = acc_of<scalar_t>;
  using offset_t = offset_of<kAligned>;
  using Loaded = typename Source::Loaded;
  static constexpr int kL = kVec<scalar_t>;
  // Speed is no concern without whole vectors; the size of the code is.
  static constexpr int kInFlight = kAligned ? Source::kInFlight : 1;
  static constexpr int kUnroll = kAligned ? kVectors / kInFlight : 1;

  // `source` is that of the sample.
  SEBLOCK_DEVICE Squeeze(const Source& source, const Shape& shape, const Tiling& tiling,
                         const Sums<acc_t>& sums, int64_t sample)
      : source_(source), shape_(shape), tiling_(tiling), sums_(sums), sample_(sample) {}

  // Every thread must call. Uses shared memory, without a barrier at the begin or the end.
  template <Layout kLayout>
  SEBLOCK_DEVICE void run(int strip) const {
    if constexpr (kLayout == Layout::nhwc) {
      rows(strip);
    } else {
      tiling_.small_planes() ? small_planes(strip) : planes(strip);
    }
  }

 private:
  // use(u, terms) for each of this thread's kVectors vectors; those that are not `inside` are
  // zeros. `owns` the vector: of the threads that load it, this one writes what goes with it.
  template <typename Inside, typename PlaceOf, typename UseOf, typename Owns>
  SEBLOCK_DEVICE void for_vectors(const Inside& inside, const PlaceOf& place_of, const UseOf& use,
                                  const Owns& owns) const {
#pragma unroll kUnroll
    for (int first = 0; first < kVectors; first += kInFlight) {
      Loaded loaded[kInFlight];
#pragma unroll
      for (int u = 0; u < kInFlight; ++u) {
        loaded[u] = {};
        if (inside(first + u)) loaded[u] = source_.template load<kAligned>(place_of(first + u));
      }
#pragma unroll
      for (int u = 0; u < kInFlight; ++u) {
        acc_t term[kL];
        source_.template terms<kAligned>(loaded[u], place_of(first + u),
                                         inside(first + u) && owns(first + u), term);
        use(first + u, term);
      }
    }
  }

  // Thread (group, lane) takes every groups-th row of the strip. The groups' sums meet in shared
  // memory, in quads [kL / quad, groups, lanes], and are added in chains, a thread a channel.
  SEBLOCK_DEVICE void rows(int strip) const {
    const int part = tiling_.by_inner.divide(strip);
    const int column = strip - part * tiling_.inner;
    const int lanes = tiling_.lanes, groups = tiling_.groups, thread = thread_index();
    const int group = tiling_.by_lanes.divide(thread), lane = thread - group * lanes;
    const int64_t row_vectors = ceil_div(shape_.c, kL);
    const offset_t column_vector = static_cast<offset_t>(column) * lanes + lane;
    const int64_t first_row = int64_t{part} * tiling_.rows;
    const int64_t left = shape_.s - first_row;
    const int rows = left < tiling_.rows ? static_cast<int>(left) : tiling_.rows;
    const bool active = group < groups && column_vector < row_vectors;
    const int mine = active ? rows - group : 0;  // rows from this group's first on

    const auto place_of = [&](int u) {
      const offset_t row = static_cast<offset_t>(first_row) + group + u * groups;
      return place(row * static_cast<offset_t>(row_vectors) + column_vector,
                   row * shape_.c + static_cast<int64_t>(column_vector) * kL,
                   shape_.c - static_cast<int64_t>(column_vector) * kL);
    };
    acc_t sum[kL] = {};
    for_vectors([&](int u) { return u * groups < mine; }, place_of,
                [&](int, const acc_t(&term)[kL]) {
#pragma unroll
                  for (int e = 0; e < kL; ++e) sum[e] += term[e];
                },
                [](int) { return true; });
    constexpr int kQuad = Quad<acc_t>::kCount, kQuads = kL / kQuad;
    const auto quads = shared_memory<Quad<acc_t>>();
    const int pitch = groups * lanes;
    if (group < groups)
      in_quads(sum, [&](int q, const Quad<acc_t>& quad) { quads[q * pitch + thread] = quad; });
    sync_threads();
    const auto flat = shared_memory<acc_t>();
    const int width = lanes * kQuad;  // a thread a channel: first those of the vectors' first quads
    const int q = kQuads > 1 && thread >= width ? 1 : 0, i = thread - q * width;
    const int64_t channel = (int64_t{column} * lanes + i / kQuad) * kL + q * kQuad + i % kQuad;
    if (i < width && channel < shape_.c) {
      sums_.put(part, sample_, channel, sum_in_chains<acc_t>(groups, [&](int g) {
                  return flat[(q * pitch + g * lanes) * kQuad + i];
                }));
    }
  }

  // A plane's vectors, and which of its end vectors hold elements of its neighbours.
  struct Plane {
    offset_t begin, end;   // elements
    offset_t first, last;  // vectors
  };
  SEBLOCK_DEVICE Plane plane_of(int64_t plane) const {
    const auto s = static_cast<offset_t>(shape_.s);
    const offset_t begin = static_cast<offset_t>(plane) * s, end = begin + s;
    return {begin, end, begin / kL, (end - 1) / kL};
  }
  SEBLOCK_DEVICE Place<offset_t> place(int64_t vector, int64_t offset, int64_t left) const {
    if constexpr (kAligned) return {static_cast<offset_t>(vector), 0, kL};
    return {static_cast<offset_t>(vector), static_cast<offset_t>(offset),
            left < kL ? static_cast<int>(left) : kL};
  }
  SEBLOCK_DEVICE Place<offset_t> place_in_plane(offset_t vector) const {
    return place(vector, int64_t{vector} * kL, shape_.c * shape_.s - int64_t{vector} * kL);
  }

  // `lanes` threads take a chunk of a plane, kVectors vectors each; only a plane's end vectors are
  // masked. A plane of one chunk is done then, the others meet in shared memory [8].
  SEBLOCK_DEVICE void planes(int strip) const {
    const int outer = tiling_.by_inner.divide(strip);
    const int part = strip - outer * tiling_.inner;
    const int64_t first_plane = int64_t{outer} * tiling_.planes;
    const int lanes = tiling_.lanes, thread = thread_index(), lane = thread & (lanes - 1);
    const int piece = tiling_.by_lanes.divide(thread);  // of the strip
    const int nth = tiling_.by_chunks.divide(piece);    // plane of the strip
    const int chunk = piece - nth * tiling_.chunks;
    const int64_t plane = first_plane + nth;
    const bool active = plane < shape_.c && nth < tiling_.planes;
    const Plane p = plane_of(active ? plane : 0);
    const offset_t start =
        p.first + (static_cast<offset_t>(part) * kWarps + chunk) * kVectors * lanes + lane;
    const bool ragged = shape_.s % kL != 0;  // planes begin within vectors

    acc_t sum = 0;
    const auto vector_of = [&](int u) { return start + u * lanes; };
    for_vectors([&](int u) { return active && vector_of(u) <= p.last; },
                [&](int u) { return place_in_plane(vector_of(u)); },
                [&](int u, acc_t(&term)[kL]) {
                  const offset_t vector = vector_of(u);
                  if (ragged && (vector == p.first || vector == p.last)) {
#pragma unroll
                    for (int e = 0; e < kL; ++e) {
                      if (vector * kL + e < p.begin || vector * kL + e >= p.end) term[e] = 0;
                    }
                  }
                  sum += pairwise_sum(term);
                },
                [&](int u) { return vector_of(u) * kL >= p.begin; });
    sum = group_sum(sum, lanes);
    if (tiling_.chunks == 1) {
      if (active && lane == 0) sums_.put(part, sample_, plane, sum);
      return;
    }
    const auto scratch = shared_memory<acc_t>();
    if (lane == 0) scratch[piece] = sum;
    sync_threads();
    const int64_t mine = first_plane + thread;
    if (thread < tiling_.planes && mine < shape_.c) {
      acc_t total = 0;
      for (int i = 0; i < tiling_.chunks; ++i) total += scratch[thread * tiling_.chunks + i];
      sums_.put(part, sample_, mine, total);
    }
  }

  // The strip's planes pass through shared memory as terms, half of them at a time; a thread sums a
  // plane.
  SEBLOCK_DEVICE void small_planes(int strip) const {
    constexpr int kPerRound = kVectors / 2, kQuads = kL / Quad<acc_t>::kCount;
    const auto terms = shared_memory<Quad<acc_t>>();  // [vectors of a round, kQuads]
    const auto flat = shared_memory<acc_t>();
    const int thread = thread_index(), staged = tiling_.staged, s = static_cast<int>(shape_.s);
    const int64_t end = int64_t{strip + 1} * tiling_.planes;
    const int64_t end_plane = end < shape_.c ? end : shape_.c;
#pragma unroll 1
    for (int64_t begin = int64_t{strip} * tiling_.planes; begin < end_plane; begin += staged) {
      const int64_t left = end_plane - begin;
      const int planes = left < staged ? static_cast<int>(left) : staged;
      const Plane first = plane_of(begin);
      const offset_t last = plane_of(begin + planes - 1).last;
      if (begin > int64_t{strip} * tiling_.planes) sync_threads();
      Loaded loaded[kPerRound];
#pragma unroll
      for (int u = 0; u < kPerRound; ++u) {
        const offset_t vector = first.first + u * kBlockThreads + thread;
        loaded[u] = {};
        if (vector <= last) loaded[u] = source_.template load<kAligned>(place_in_plane(vector));
      }
#pragma unroll
      for (int u = 0; u < kPerRound; ++u) {
        const int at = u * kBlockThreads + thread;
        const offset_t vector = first.first + at;
        if (vector > last) continue;
        acc_t term[kL];
        source_.template terms<kAligned>(loaded[u], place_in_plane(vector),
                                         vector * kL >= first.begin, term);
        in_quads(term, [&](int q, const Quad<acc_t>& quad) { terms[at * kQuads + q] = quad; });
      }
      sync_threads();
      const int lead = static_cast<int>(first.begin - first.first * kL);
      for (int i = thread; i < planes; i += kBlockThreads) {
        acc_t sum = 0;
        if (s % 8 != 0) {
#pragma unroll 8
          for (int j = 0; j < s; ++j) sum += flat[lead + i * s + j];
        } else {  // planes begin in few banks: their elements are taken in other orders
          const int swap = i * s / kWarp % 8;
#pragma unroll 1
          for (int j = 0; j < s; ++j) sum += flat[i * s + (j ^ swap)];
        }
        sums_.put(0, sample_, begin + i, sum);
      }
    }
  }

  const Source& source_;
  const Shape& shape_;
  const Tiling& tiling_;
  const Sums<acc_t>& sums_;
  int64_t sample_;
};

// Of shared memory, at most.
constexpr int kSqueezeShared = 2 * kStagedBytes;

}  // namespace seblock::cuda

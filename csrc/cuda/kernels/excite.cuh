// Strategy S, excite: the two small projections, batched over N, and their mirror image in the
// backward pass.
//
//   forward   hidden [N, R] = act(pooled W1^T + b1)     project_rows      W1 [R, C] by rows
//             gate   [N, C] = gate(hidden W2^T + b2)    project_rows      W2 [C, R] by rows
//   backward  dz1    [N, R] = (dz2 W2) * act'           project_columns   W2 [C, R] by columns
//             shift  [N, C] = (dz1 W1) / S              project_columns   W1 [R, C] by columns
//
// Both walk the weights as PyTorch stores them, coalesced; a block serves kSamples samples, so
// weights are read once per kSamples samples. A Stage says what goes in, what is worth keeping of
// it, and what comes out.
#pragma once

#include "activation.h"
#include "device/math.cuh"
#include "device/vec.cuh"

namespace seblock::cuda {

constexpr int kWarps = kBlockThreads / kWarp;  // 8
constexpr int kRowsPerWarp = 2;                // rows of W a warp takes at once in project_rows
constexpr int kChunk = kBlockThreads;          // inputs per sample held in shared memory at a time

// Sum of the squeeze's parts, in order: partial [splits, N, C] -> element `index` of [N, C].
template <typename acc_t>
SEBLOCK_DEVICE acc_t sum_of_parts(const acc_t* partial, int splits, int64_t index, int64_t count) {
  acc_t sum = 0;
  for (int split = 0; split < splits; ++split) sum += load<acc_t>(partial + split * count + index);
  return sum;
}

// ---- Stages. `width` inputs and `height` outputs per sample; i and o count them. ----

template <typename weight, typename acc>
struct ReduceStage {  // pooled -> z1
  using weight_t = weight;
  using acc_t = acc;
  static constexpr const char* kName = "excite: reduce";
  Problem problem;
  int splits;
  acc_t positions;         // S
  const weight_t* matrix;  // W1 [R, C]
  const weight_t* bias;    // b1 [R], or null
  const acc_t* partial;    // [splits, N, C]
  acc_t* pooled;           // [N, C]
  acc_t* z1;               // [N, R]

  SEBLOCK_HOST_DEVICE int64_t width() const { return problem.shape.c; }
  SEBLOCK_HOST_DEVICE int64_t height() const { return problem.shape.r; }
  SEBLOCK_DEVICE acc_t input(int64_t n, int64_t i) const {
    const Shape& shape = problem.shape;
    return sum_of_parts(partial, splits, n * shape.c + i, shape.n * shape.c) / positions;
  }
  SEBLOCK_DEVICE void keep(int64_t n, int64_t i, acc_t value) const {
    store(pooled + n * width() + i, value);
  }
  SEBLOCK_DEVICE void output(int64_t n, int64_t o, acc_t sum) const {
    store(z1 + n * height() + o, bias ? sum + load<acc_t>(bias + o) : sum);
  }
};

template <typename weight, typename acc>
struct ExpandStage {  // z1 -> gate
  using weight_t = weight;
  using acc_t = acc;
  static constexpr const char* kName = "excite: expand";
  Problem problem;
  const weight_t* matrix;  // W2 [C, R]
  const weight_t* bias;    // b2 [C], or null
  const acc_t* z1;         // [N, R]
  acc_t* gate;             // [N, C]

  SEBLOCK_HOST_DEVICE int64_t width() const { return problem.shape.r; }
  SEBLOCK_HOST_DEVICE int64_t height() const { return problem.shape.c; }
  SEBLOCK_DEVICE acc_t input(int64_t n, int64_t i) const {
    return activate(problem.activation, load<acc_t>(z1 + n * width() + i)).value;
  }
  SEBLOCK_DEVICE void keep(int64_t, int64_t, acc_t) const {}
  SEBLOCK_DEVICE void output(int64_t n, int64_t o, acc_t sum) const {
    const acc_t z2 = bias ? sum + load<acc_t>(bias + o) : sum;
    store(gate + n * height() + o, gate_of(problem.gate, z2));
  }
};

template <typename weight, typename acc>
struct ExpandGradientStage {  // dgate -> dz2 -> dz1
  using weight_t = weight;
  using acc_t = acc;
  static constexpr const char* kName = "excite: expand gradient";
  Problem problem;
  int splits;
  const weight_t* matrix;  // W2 [C, R]
  const acc_t* partial;    // [splits, N, C], the parts of dgate
  const acc_t* gate;       // [N, C]
  const acc_t* z1;         // [N, R]
  acc_t* dz2;              // [N, C]
  acc_t* dz1;              // [N, R]

  SEBLOCK_HOST_DEVICE int64_t width() const { return problem.shape.c; }
  SEBLOCK_HOST_DEVICE int64_t height() const { return problem.shape.r; }
  SEBLOCK_DEVICE acc_t input(int64_t n, int64_t i) const {
    const int64_t index = n * width() + i;
    const acc_t dgate = sum_of_parts(partial, splits, index, problem.shape.n * width());
    return through_slope(problem.gate, dgate, gate_slope(problem.gate, load<acc_t>(gate + index)));
  }
  SEBLOCK_DEVICE void keep(int64_t n, int64_t i, acc_t value) const {
    store(dz2 + n * width() + i, value);
  }
  SEBLOCK_DEVICE void output(int64_t n, int64_t o, acc_t dhidden) const {
    const int64_t index = n * height() + o;
    const acc_t slope = activate(problem.activation, load<acc_t>(z1 + index)).slope;
    store(dz1 + index, through_slope(problem.activation, dhidden, slope));
  }
};

template <typename weight, typename acc>
struct ReduceGradientStage {  // dz1 -> shift = dpooled / S
  using weight_t = weight;
  using acc_t = acc;
  static constexpr const char* kName = "excite: reduce gradient";
  Problem problem;
  acc_t positions;         // S
  const weight_t* matrix;  // W1 [R, C]
  const acc_t* dz1;        // [N, R]
  acc_t* shift;            // [N, C]

  SEBLOCK_HOST_DEVICE int64_t width() const { return problem.shape.r; }
  SEBLOCK_HOST_DEVICE int64_t height() const { return problem.shape.c; }
  SEBLOCK_DEVICE acc_t input(int64_t n, int64_t i) const {
    return load<acc_t>(dz1 + n * width() + i);
  }
  SEBLOCK_DEVICE void keep(int64_t, int64_t, acc_t) const {}
  SEBLOCK_DEVICE void output(int64_t n, int64_t o, acc_t dpooled) const {
    store(shift + n * height() + o, dpooled / positions);
  }
};

// ---- Kernels ----

// Fills inputs [kSamples, kChunk] with inputs `begin`.. of samples `sample`.., zeros beyond the
// edges. One block per group of samples keeps what the stage wants kept. Ends with a barrier.
template <typename Stage>
SEBLOCK_DEVICE void stage_inputs(const Stage& stage, int64_t sample, int64_t begin, bool keeper,
                                 Shared<typename Stage::acc_t> inputs) {
  const int64_t i = begin + thread_index();
  for (int g = 0; g < kSamples; ++g) {
    typename Stage::acc_t value = 0;
    if (sample + g < stage.problem.shape.n && i < stage.width()) {
      value = stage.input(sample + g, i);
      if (keeper) stage.keep(sample + g, i, value);
    }
    inputs[g * kChunk + thread_index()] = value;
  }
  sync_threads();
}

// out[n, o] = sum_i in[n, i] W[o, i]. Block = (kSamples samples, 16 rows of W); a warp takes 2
// rows, its lanes stride along them. Reads W once per kSamples samples, the inputs once per 16
// rows.
template <typename Stage>
SEBLOCK_KERNEL project_rows_kernel(Stage stage) {
  using acc_t = typename Stage::acc_t;
  constexpr int kRows = kWarps * kRowsPerWarp;
  const int tiles = static_cast<int>(ceil_div(stage.height(), kRows));
  const int tile = block_index() % tiles;
  const int64_t sample = int64_t{block_index() / tiles} * kSamples;
  const int lane = thread_index() % kWarp;
  const int64_t row = int64_t{tile} * kRows + thread_index() / kWarp * kRowsPerWarp;
  const auto inputs = shared_memory<acc_t>();  // [kSamples, kChunk]

  // 1. Each lane's part of the dot products.
  acc_t sum[kRowsPerWarp][kSamples] = {};
  for (int64_t begin = 0; begin < stage.width(); begin += kChunk) {
    sync_threads();
    stage_inputs(stage, sample, begin, tile == 0, inputs);
    for (int i = lane; i < kChunk && begin + i < stage.width(); i += kWarp) {
#pragma unroll
      for (int k = 0; k < kRowsPerWarp; ++k) {
        if (row + k >= stage.height()) break;
        const acc_t w = load<acc_t>(stage.matrix + (row + k) * stage.width() + begin + i);
#pragma unroll
        for (int g = 0; g < kSamples; ++g) sum[k][g] += w * inputs[g * kChunk + i];
      }
    }
  }
  // 2. Add up the lanes; lane g writes sample g.
#pragma unroll
  for (int k = 0; k < kRowsPerWarp; ++k) {
#pragma unroll
    for (int g = 0; g < kSamples; ++g) {
      const acc_t dot = group_sum(sum[k][g], kWarp);
      if (lane == g && sample + g < stage.problem.shape.n && row + k < stage.height()) {
        stage.output(sample + g, row + k, dot);
      }
    }
  }
}

// out[n, o] = sum_i in[n, i] W[i, o]. Block = (kSamples samples, 32 columns of W); lanes stand side
// by side on the columns, the 8 warps take every eighth row. Reads W once per kSamples samples.
template <typename Stage>
SEBLOCK_KERNEL project_columns_kernel(Stage stage) {
  using acc_t = typename Stage::acc_t;
  const int tiles = static_cast<int>(ceil_div(stage.height(), kWarp));
  const int tile = block_index() % tiles;
  const int64_t sample = int64_t{block_index() / tiles} * kSamples;
  const int lane = thread_index() % kWarp;
  const int warp = thread_index() / kWarp;
  const int64_t column = int64_t{tile} * kWarp + lane;
  const auto inputs = shared_memory<acc_t>();  // [kSamples, kChunk]

  // 1. Each warp's part of the sums.
  acc_t sum[kSamples] = {};
  for (int64_t begin = 0; begin < stage.width(); begin += kChunk) {
    sync_threads();
    stage_inputs(stage, sample, begin, tile == 0, inputs);
    for (int i = warp; i < kChunk && begin + i < stage.width(); i += kWarps) {
      if (column >= stage.height()) break;
      const acc_t w = load<acc_t>(stage.matrix + (begin + i) * stage.height() + column);
#pragma unroll
      for (int g = 0; g < kSamples; ++g) sum[g] += w * inputs[g * kChunk + i];
    }
  }
  // 2. Add up the warps in order; the inputs' shared memory becomes [kWarps, kSamples, 32]. Warp g
  // writes sample g.
  static_assert(kWarps == kSamples && kWarps * kWarp == kChunk,
                "the parts fill the inputs' shared memory");
  sync_threads();
#pragma unroll
  for (int g = 0; g < kSamples; ++g) inputs[(warp * kSamples + g) * kWarp + lane] = sum[g];
  sync_threads();
  if (sample + warp < stage.problem.shape.n && column < stage.height()) {
    acc_t dot = 0;
    for (int part = 0; part < kWarps; ++part)
      dot += inputs[(part * kSamples + warp) * kWarp + lane];
    stage.output(sample + warp, column, dot);
  }
}

// ---- Launchers ----

template <typename Stage>
constexpr size_t kExciteSharedBytes = kSamples * kChunk * sizeof(typename Stage::acc_t);

template <typename Stage>
void launch_project_rows(const Stage& stage, void* stream) {
  const int64_t blocks =
      ceil_div(stage.height(), kWarps * kRowsPerWarp) * ceil_div(stage.problem.shape.n, kSamples);
  launch(Stage::kName, project_rows_kernel<Stage>, blocks, kExciteSharedBytes<Stage>, stream,
         stage);
}

template <typename Stage>
void launch_project_columns(const Stage& stage, void* stream) {
  const int64_t blocks =
      ceil_div(stage.height(), kWarp) * ceil_div(stage.problem.shape.n, kSamples);
  launch(Stage::kName, project_columns_kernel<Stage>, blocks, kExciteSharedBytes<Stage>, stream,
         stage);
}

}  // namespace seblock::cuda

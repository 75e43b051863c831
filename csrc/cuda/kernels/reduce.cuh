// Stage reduce, from C to R: z1 = W1 pooled + b1 (forward), dz1 = (W2^T dz2) * act' (backward).
//
//   block   a group of samples x a tile of outputs, all of C
//   reads   sums [parts, N, C] and W1 by rows; backward: sums, gate, z1 and W2 by columns
//   writes  pooled [N, C] and z1 [N, R]; backward: dz2 [N, C] and dz1 [N, R]
#pragma once

#include "activation.h"
#include "product.cuh"
#include "squeeze.cuh"

namespace seblock::cuda {

template <typename scalar>
struct Reduce {
  using scalar_t = scalar;
  using acc_t = acc_of<scalar>;
  static constexpr const char* kName = "reduce";
  static constexpr Order kOrder = Order::rows;
  Shape shape;
  Deal deal;
  int tiles;  // with one sample to a weight
  int parts;
  Weight<scalar> matrix;  // W1 [R, C]
  Weight<scalar> bias;    // b1 [R], or null
  Sums<acc_t> sums;       // [parts, N, C] of x
  acc_t* pooled;          // [N, C]
  acc_t* z1;              // [N, R]

  SEBLOCK_HOST_DEVICE int64_t width() const { return shape.c; }
  SEBLOCK_HOST_DEVICE int64_t height() const { return shape.r; }
  SEBLOCK_DEVICE acc_t input(int64_t n, int64_t i) const {
    const int64_t index = n * shape.c + i;
    return sum_in_chains<acc_t>(parts, [&](int part) { return sums.get(part, index); }) /
           static_cast<acc_t>(shape.s);
  }
  SEBLOCK_DEVICE void keep(int64_t n, int64_t i, acc_t value) const {
    store(pooled + n * shape.c + i, value);
  }
  SEBLOCK_DEVICE void output(int64_t n, int64_t o, acc_t sum) const {
    store(z1 + n * shape.r + o, bias ? sum + bias.at(o) : sum);
  }
};

template <typename scalar>
struct ReduceGradient {
  using scalar_t = scalar;
  using acc_t = acc_of<scalar>;
  static constexpr const char* kName = "reduce gradient";
  static constexpr Order kOrder = Order::columns;
  Shape shape;
  Deal deal;
  int tiles;  // with one sample to a weight
  int parts;
  Activation activation;
  Gate gate_function;
  Weight<scalar> matrix;  // W2 [C, R]
  Sums<acc_t> sums;       // [parts, N, C] of dy * x
  const acc_t* gate;      // [N, C]
  const acc_t* z1;        // [N, R]
  acc_t* dz2;             // [N, C]
  acc_t* dz1;             // [N, R]

  SEBLOCK_HOST_DEVICE int64_t width() const { return shape.c; }
  SEBLOCK_HOST_DEVICE int64_t height() const { return shape.r; }
  SEBLOCK_DEVICE acc_t input(int64_t n, int64_t i) const {
    const int64_t index = n * shape.c + i;
    const acc_t dgate =
        sum_in_chains<acc_t>(parts, [&](int part) { return sums.get(part, index); });
    const acc_t slope = gate_slope(gate_function, load<acc_t>(gate + index));
    return through_slope(gate_function, dgate, slope);
  }
  SEBLOCK_DEVICE void keep(int64_t n, int64_t i, acc_t value) const {
    store(dz2 + n * shape.c + i, value);
  }
  SEBLOCK_DEVICE void output(int64_t n, int64_t o, acc_t dhidden) const {
    const int64_t index = n * shape.r + o;
    const acc_t slope = activate(activation, load<acc_t>(z1 + index)).slope;
    store(dz1 + index, through_slope(activation, dhidden, slope));
  }
};

}  // namespace seblock::cuda

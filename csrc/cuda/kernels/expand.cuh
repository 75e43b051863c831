// Stage expand, from R to C: gate = gate_function(W2 hidden + b2) (forward), shift = (W1^T dz1) / S
// (backward).
//
//   block   a group of samples x a tile of outputs, all of R
//   reads   z1 [N, R] and W2 by rows; backward: dz1 [N, R] and W1 by columns
//   writes  gate [N, C]; backward: shift [N, C]
#pragma once

#include "activation.h"
#include "product.cuh"

namespace seblock::cuda {

template <typename scalar>
struct Expand {
  using scalar_t = scalar;
  using acc_t = acc_of<scalar>;
  static constexpr const char* kName = "expand";
  static constexpr Order kOrder = Order::rows;
  Shape shape;
  Deal deal;
  int tiles;  // with one sample to a weight
  Activation activation;
  Gate gate_function;
  Weight<scalar> matrix;  // W2 [C, R]
  Weight<scalar> bias;    // b2 [C], or null
  const acc_t* z1;        // [N, R]
  acc_t* gate;            // [N, C]

  SEBLOCK_HOST_DEVICE int64_t width() const { return shape.r; }
  SEBLOCK_HOST_DEVICE int64_t height() const { return shape.c; }
  SEBLOCK_DEVICE acc_t input(int64_t n, int64_t i) const {
    return activate(activation, load<acc_t>(z1 + n * shape.r + i)).value;
  }
  SEBLOCK_DEVICE void keep(int64_t, int64_t, acc_t) const {}
  SEBLOCK_DEVICE void output(int64_t n, int64_t o, acc_t sum) const {
    const acc_t z2 = bias ? sum + bias.at(o) : sum;
    store(gate + n * shape.c + o, gate_of(gate_function, z2));
  }
};

template <typename scalar>
struct ExpandGradient {
  using scalar_t = scalar;
  using acc_t = acc_of<scalar>;
  static constexpr const char* kName = "expand gradient";
  static constexpr Order kOrder = Order::columns;
  Shape shape;
  Deal deal;
  int tiles;              // with one sample to a weight
  Weight<scalar> matrix;  // W1 [R, C]
  const acc_t* dz1;       // [N, R]
  acc_t* shift;           // [N, C]

  SEBLOCK_HOST_DEVICE int64_t width() const { return shape.r; }
  SEBLOCK_HOST_DEVICE int64_t height() const { return shape.c; }
  SEBLOCK_DEVICE acc_t input(int64_t n, int64_t i) const {
    return load<acc_t>(dz1 + n * shape.r + i);
  }
  SEBLOCK_DEVICE void keep(int64_t, int64_t, acc_t) const {}
  SEBLOCK_DEVICE void output(int64_t n, int64_t o, acc_t dpooled) const {
    store(shift + n * shape.c + o, dpooled / static_cast<acc_t>(shape.s));
  }
};

}  // namespace seblock::cuda

// Activations and gates with their derivatives: the one place, for the CPU, the GPU and the SIMT
// harness.
//
// Comparisons are written so that NaN passes through, as it does in PyTorch: `z <= 0 ? 0 : z` keeps
// a NaN, `max(z, 0)` would swallow it.
#pragma once

#include <cmath>

#include "se_types.h"

namespace seblock {

template <typename T>
struct ValueAndSlope {
  T value;
  T slope;
};

template <typename T>
SEBLOCK_HOST_DEVICE T sigmoid(T z) {
  return T(1) / (T(1) + std::exp(-z));
}

// hidden = activation(z1), and d hidden / d z1.
template <typename T>
SEBLOCK_HOST_DEVICE ValueAndSlope<T> activate(Activation kind, T z) {
  switch (kind) {
    case Activation::relu:
      return {z <= 0 ? T(0) : z, z <= 0 ? T(0) : T(1)};
    case Activation::leaky_relu:  // slope 0.01, PyTorch's default
      return {z > 0 ? z : z * T(0.01), z > 0 ? T(1) : T(0.01)};
    case Activation::silu: {
      const T s = sigmoid(z);
      return {z * s, s * (T(1) + z * (T(1) - s))};
    }
    case Activation::gelu: {  // the exact form, with erf
      const T cdf = T(0.5) * (T(1) + std::erf(z * T(0.70710678118654752440)));
      const T pdf = T(0.39894228040143267794) * std::exp(T(-0.5) * z * z);
      return {z * cdf, cdf + z * pdf};
    }
    case Activation::hardswish: {
      const T ramp = z <= -3 ? T(0) : z >= 3 ? T(6) : z + T(3);
      return {z * ramp / T(6), z <= -3 ? T(0)
                               : z < 3 ? z / T(3) + T(0.5)
                                       : T(1)};  // NaN: 1, as in PyTorch
    }
    case Activation::identity:  // a gate of one projection: EffectiveSE
      return {z, T(1)};
  }
  return {z, T(1)};
}

// gate = gate_function(z2).
template <typename T>
SEBLOCK_HOST_DEVICE T gate_of(Gate kind, T z) {
  switch (kind) {
    case Gate::sigmoid:
      return sigmoid(z);
    case Gate::hardsigmoid:
      return (z <= -3 ? T(0) : z >= 3 ? T(6) : z + T(3)) / T(6);
    case Gate::relu:
      return z <= 0 ? T(0) : z;
  }
  return z;
}

// d gate / d z2, from the gate itself: z2 is not saved.
template <typename T>
SEBLOCK_HOST_DEVICE T gate_slope(Gate kind, T gate) {
  switch (kind) {
    case Gate::sigmoid:
      return gate * (T(1) - gate);
    case Gate::hardsigmoid:
      return gate > 0 && gate < 1 ? T(1) / T(6) : T(0);
    case Gate::relu:
      return gate <= 0 ? T(0) : T(1);
  }
  return T(1);
}

// Where PyTorch's derivative selects between 0 and the gradient instead of multiplying by the
// slope, a slope of 0 stops even an infinite or NaN gradient.
SEBLOCK_HOST_DEVICE bool selects(Activation kind) {
  return kind == Activation::relu || kind == Activation::hardswish;
}
SEBLOCK_HOST_DEVICE bool selects(Gate kind) {
  return kind == Gate::hardsigmoid || kind == Gate::relu;
}

// The chain rule for one element.
template <typename Kind, typename T>
SEBLOCK_HOST_DEVICE T through_slope(Kind kind, T gradient, T slope) {
  return selects(kind) && slope == 0 ? T(0) : gradient * slope;
}

}  // namespace seblock

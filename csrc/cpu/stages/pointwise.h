// The elementwise steps between squeeze and scale, on runs of acc_t: divisions, activation, gate.
#pragma once

#include <type_traits>

#include "../vec/math.h"
#include "../vec/memory.h"
#include "activation.h"

namespace seblock::cpu {
namespace {

template <typename acc_t>
void divide(acc_t* values, int64_t count, acc_t divisor) {
  for (int64_t i = 0; i < count; ++i) values[i] /= divisor;
}

// body(kind) with the kind as a constant, so that it is not asked for every element: there are N C
// gates. (Activations are few.)
template <Gate kind>
using Constant = std::integral_constant<Gate, kind>;

template <typename Body>
SEBLOCK_INLINE void with_constant(Gate kind, const Body& body) {
  switch (kind) {
    case Gate::sigmoid:
      return body(Constant<Gate::sigmoid>{});
    case Gate::hardsigmoid:
      return body(Constant<Gate::hardsigmoid>{});
    case Gate::relu:
      return body(Constant<Gate::relu>{});
  }
}

template <typename acc_t>
void apply_activation(Activation kind, const acc_t* z1, int64_t count, acc_t* hidden) {
  for (int64_t i = 0; i < count; ++i) hidden[i] = activate(kind, z1[i]).value;
}

// dz1, which comes in as dhidden; and hidden once more, for the weight gradient.
template <typename acc_t>
void apply_activation_slope(Activation kind, const acc_t* z1, int64_t count, acc_t* dz1,
                            acc_t* hidden) {
  for (int64_t i = 0; i < count; ++i) {
    const ValueAndSlope<acc_t> h = activate(kind, z1[i]);
    hidden[i] = h.value;
    dz1[i] = through_slope(kind, dz1[i], h.slope);
  }
}

// gate, which comes in as z2.
template <typename acc_t>
void apply_gate(Gate kind, acc_t* gate, int64_t count) {
  if constexpr (sizeof(acc_t) == sizeof(float)) {
    constexpr int64_t K = kLanes<float>;
    if (kind == Gate::sigmoid) {
      int64_t i = 0;
      for (; i + K <= count; i += K) store(gate + i, sigmoid(load<float>(gate + i)));
      const int64_t rest = count - i;
      if (rest) store_front(gate + i, sigmoid(load_front<float>(gate + i, rest, rest)), rest);
      return;
    }
  }
  with_constant(kind, [&](auto kind) SEBLOCK_LAMBDA {
    for (int64_t i = 0; i < count; ++i) gate[i] = gate_of(kind(), gate[i]);
  });
}

// dz2, which comes in as dgate.
template <typename acc_t>
void apply_gate_slope(Gate kind, const acc_t* gate, int64_t count, acc_t* dz2) {
  with_constant(kind, [&](auto kind) SEBLOCK_LAMBDA {
    for (int64_t i = 0; i < count; ++i) {
      dz2[i] = through_slope(kind(), dz2[i], gate_slope(kind(), gate[i]));
    }
  });
}

}  // namespace
}  // namespace seblock::cpu

// What the forward and the backward pass do at each step of a slice: strategies stream and resident
// (slice.cuh) are written once, in terms of these.
//
//            squeeze sums    squeezed            hidden                factor        result
//   forward  x               pooled = sum / S    act(z1)               gate          y
//   backward dy * x          dz2                 dz1                   gate, shift   dx
//
// With a tail, y = relu(x * gate + residual), and dy passes where the mask says so: the backward's
// squeeze writes what passed to dresidual, which its scale then reads in dy's place.
#pragma once

#include "activation.h"
#include "project.cuh"
#include "se_types.h"

namespace seblock::cuda {

// One vector of x, and what comes with it.
template <typename scalar>
struct Loaded {
  Packed<scalar> x;      // backward: dy
  Packed<scalar> other;  // forward with a tail: residual; backward: x
  unsigned bits;         // backward with a tail: the mask
};

// The tail's ReLU; the bits say which elements pass: those that are not <= 0 as they are stored.
template <typename scalar>
SEBLOCK_DEVICE unsigned relu(Packed<scalar>& packed) {
  constexpr int kVec = kWidest<scalar>;
  float values[kVec];
  widen(packed, values);
  unsigned bits = 0;
#pragma unroll
  for (int e = 0; e < kVec; ++e) bits |= values[e] <= 0 ? 0u : 1u << e;
  keep(packed, bits);
  return bits;
}

template <typename scalar, bool kTail>
struct ForwardPass {
  using scalar_t = scalar;
  static constexpr bool kShifts = false;
  static constexpr int kSqueezeTensors = 1;            // that the squeeze reads
  static constexpr int kScaleTensors = kTail ? 2 : 1;  // that the scale reads
  static constexpr int kVec = kWidest<scalar>;
  Problem problem;
  Weight<scalar> reduce, expand, reduce_bias, expand_bias;
  const scalar* x;         // [N, C, S] or [N, S, C]
  const scalar* residual;  // like x; tail only
  scalar* y;               // like x
  uint8_t* mask;           // tail and ReLU only
  float* pooled;           // [N, C]
  float* z1;               // [N, R]
  float* gate;             // [N, C]

  // ---- squeeze
  SEBLOCK_DEVICE void load_term(int64_t i, Loaded<scalar>& loaded) const {
    loaded.x = load_packed<Use::again>(x + i);
  }
  // Element by element what is summed; `loaded.x` becomes what the scale starts from.
  SEBLOCK_DEVICE void terms(int64_t, bool, Loaded<scalar>& loaded, float (&term)[kVec]) const {
    widen(loaded.x, term);
  }
  SEBLOCK_DEVICE float squeezed(int64_t, float sum) const {
    return sum / static_cast<float>(problem.shape.s);
  }
  SEBLOCK_DEVICE void keep_squeezed(int64_t channel, float value) const {
    store(pooled + channel, value);
  }

  // ---- excite
  template <typename Out>
  SEBLOCK_DEVICE void project_in(int first, int channels, int samples, Shared<float> in, int stride,
                                 Shared<float>, const Out& out) const {
    const auto w1 = [&](int r, int c) {
      return reduce.at(r * static_cast<int>(problem.shape.c) + first + c);
    };
    project_rows(w1, static_cast<int>(problem.shape.r), channels, samples, in, stride, out);
  }
  SEBLOCK_DEVICE float hidden(int64_t index, int r, float sum, bool keep) const {
    const float z = reduce_bias.data ? sum + reduce_bias.at(r) : sum;
    if (keep) store(z1 + index, z);
    return activate(problem.activation, z).value;
  }
  template <typename Out>
  SEBLOCK_DEVICE void project_out(int first, int channels, int samples, Shared<float> in,
                                  int stride, Shared<float>, const Out& out) const {
    const auto w2 = [&](int c, int r) {
      return expand.at((first + c) * static_cast<int>(problem.shape.r) + r);
    };
    project_rows(w2, channels, static_cast<int>(problem.shape.r), samples, in, stride, out);
  }
  SEBLOCK_DEVICE float factor(int64_t index, int channel, float sum, bool keep) const {
    const float g = gate_of(problem.gate, expand_bias.data ? sum + expand_bias.at(channel) : sum);
    if (keep) store(gate + index, g);
    return g;
  }

  // ---- scale
  SEBLOCK_DEVICE void load_input(int64_t i, Loaded<scalar>& loaded) const {
    loaded.x = load_packed<Use::last>(x + i);
  }
  SEBLOCK_DEVICE void load_rest(int64_t i, Loaded<scalar>& loaded) const {
    if constexpr (kTail) loaded.other = load_packed<Use::last>(residual + i);
  }
  SEBLOCK_DEVICE void scale(int64_t i, const Loaded<scalar>& loaded, const float (&gates)[kVec],
                            const float (&)[kVec]) const {
    float values[kVec];
    widen(loaded.x, values);
#pragma unroll
    for (int e = 0; e < kVec; ++e) values[e] *= gates[e];
    if constexpr (kTail) {
      float added[kVec];
      widen(loaded.other, added);
#pragma unroll
      for (int e = 0; e < kVec; ++e) values[e] += added[e];
    }
    Packed<scalar> out = narrow<scalar>(values);
    if constexpr (kTail) {
      if (mask) store(mask + i / kVec, static_cast<uint8_t>(relu(out)));
    }
    store_packed<Use::last>(y + i, out);
  }
};

template <typename scalar, bool kTail>
struct BackwardPass {
  using scalar_t = scalar;
  static constexpr bool kShifts = true;
  static constexpr int kSqueezeTensors = 2;
  static constexpr int kScaleTensors = 1;
  static constexpr int kVec = kWidest<scalar>;
  Problem problem;
  Weight<scalar> reduce, expand;
  const scalar* dy;     // like x
  const scalar* x;      // [N, C, S] or [N, S, C]
  const uint8_t* mask;  // tail only
  const float* z1;      // [N, R]
  const float* gate;    // [N, C]
  scalar* dx;           // like x
  scalar* dresidual;    // like x; tail only
  float* dz1;           // [N, R]
  float* dz2;           // [N, C]

  // ---- squeeze
  SEBLOCK_DEVICE void load_term(int64_t i, Loaded<scalar>& loaded) const {
    loaded.x = load_packed<kTail ? Use::last : Use::again>(dy + i);
    loaded.other = load_packed<Use::last>(x + i);
    if constexpr (kTail) loaded.bits = load<unsigned>(mask + i / kVec);
  }
  // `owner`: of the threads that load this vector, the one that writes what passed the mask.
  SEBLOCK_DEVICE void terms(int64_t i, bool owner, Loaded<scalar>& loaded,
                            float (&term)[kVec]) const {
    float gradient[kVec];
    if constexpr (kTail) {
      keep(loaded.x, loaded.bits);
      if (owner) store_packed<Use::again>(dresidual + i, loaded.x);
    }
    widen(loaded.x, gradient);
    widen(loaded.other, term);
#pragma unroll
    for (int e = 0; e < kVec; ++e) term[e] *= gradient[e];
  }
  SEBLOCK_DEVICE float squeezed(int64_t channel, float dgate) const {
    const float slope = gate_slope(problem.gate, load<float>(gate + channel));
    return through_slope(problem.gate, dgate, slope);
  }
  SEBLOCK_DEVICE void keep_squeezed(int64_t channel, float value) const {
    store(dz2 + channel, value);
  }

  // ---- excite
  template <typename Out>
  SEBLOCK_DEVICE void project_in(int first, int channels, int samples, Shared<float> in, int stride,
                                 Shared<float> scratch, const Out& out) const {
    const auto w2 = [&](int r, int c) {
      return expand.at((first + c) * static_cast<int>(problem.shape.r) + r);
    };
    project_columns(w2, static_cast<int>(problem.shape.r), channels, samples, in, stride, scratch,
                    out);
  }
  SEBLOCK_DEVICE float hidden(int64_t index, int, float dhidden, bool keep) const {
    const float slope = activate(problem.activation, load<float>(z1 + index)).slope;
    const float value = through_slope(problem.activation, dhidden, slope);
    if (keep) store(dz1 + index, value);
    return value;
  }
  template <typename Out>
  SEBLOCK_DEVICE void project_out(int first, int channels, int samples, Shared<float> in,
                                  int stride, Shared<float> scratch, const Out& out) const {
    const auto w1 = [&](int c, int r) {
      return reduce.at(r * static_cast<int>(problem.shape.c) + first + c);
    };
    project_columns(w1, channels, static_cast<int>(problem.shape.r), samples, in, stride, scratch,
                    out);
  }
  SEBLOCK_DEVICE float factor(int64_t index, int, float, bool) const {
    return load<float>(gate + index);
  }
  SEBLOCK_DEVICE float shift(float dpooled) const {
    return dpooled / static_cast<float>(problem.shape.s);
  }

  // ---- scale
  SEBLOCK_DEVICE void load_input(int64_t i, Loaded<scalar>& loaded) const {
    loaded.x = load_packed<Use::last>((kTail ? dresidual : dy) + i);
  }
  SEBLOCK_DEVICE void load_rest(int64_t, Loaded<scalar>&) const {}
  SEBLOCK_DEVICE void scale(int64_t i, const Loaded<scalar>& loaded, const float (&gates)[kVec],
                            const float (&shifts)[kVec]) const {
    float values[kVec];
    widen(loaded.x, values);
#pragma unroll
    for (int e = 0; e < kVec; ++e) values[e] = values[e] * gates[e] + shifts[e];
    const Packed<scalar> out = narrow<scalar>(values);
    store_packed<Use::last>(dx + i, out);
  }
};

}  // namespace seblock::cuda

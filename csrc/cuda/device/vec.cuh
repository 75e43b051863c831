// Global memory access: every load and store of a tensor goes through here.
//
// A vector is 16 bytes of a tensor as they lie in memory, kept in words: a processor that keeps
// single 16-bit elements gives each a register of its own.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>

#include "platform.cuh"

namespace seblock::cuda {

// What sums over scalar_t are held in.
template <typename scalar_t>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
template <typename scalar_t>
using acc_of = typename Accumulate<scalar_t>::type;

// ---- single elements, and few neighbouring ones ----

template <typename acc_t, typename scalar_t>
SEBLOCK_DEVICE acc_t load(const scalar_t* address) {
  before_load(address);
  return static_cast<acc_t>(*address);
}

template <typename scalar_t, typename acc_t>
SEBLOCK_DEVICE void store(scalar_t* address, acc_t value) {
  before_store(address);
  *address = static_cast<scalar_t>(value);
}

// Four neighbours, moved together.
template <typename scalar_t>
struct alignas(sizeof(scalar_t) * 4) Four {
  scalar_t value[4];
};

template <typename scalar_t>
SEBLOCK_DEVICE Four<scalar_t> load_four(const scalar_t* address) {
  const auto* from = reinterpret_cast<const Four<scalar_t>*>(address);
  before_load(from);
  return *from;
}

// The same as words: a processor that keeps single 16-bit elements would take them apart at once,
// and wait for the load.
template <typename scalar_t>
struct alignas(sizeof(scalar_t) * 4) FourWords {
  uint32_t words[sizeof(scalar_t)];
};

template <typename scalar_t>
SEBLOCK_DEVICE FourWords<scalar_t> load_four_words(const scalar_t* address) {
  const auto* from = reinterpret_cast<const FourWords<scalar_t>*>(address);
  before_load(from);
  return *from;
}

// ---- vectors ----

template <typename scalar_t>
constexpr int kVec = kAccessBytes / static_cast<int>(sizeof(scalar_t));

template <typename scalar_t>
struct alignas(kAccessBytes) Vector {
  uint32_t words[4];
};

SEBLOCK_DEVICE float float_of_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

template <typename pair_t>
SEBLOCK_DEVICE uint32_t word_of(const pair_t& pair) {
  uint32_t word;
  memcpy(&word, &pair, sizeof word);
  return word;
}

SEBLOCK_DEVICE void widen(const Vector<__nv_bfloat16>& vector, float (&out)[8]) {
#pragma unroll
  for (int word = 0; word < 4; ++word) {
    out[2 * word] = float_of_bits(vector.words[word] << 16);
    out[2 * word + 1] = float_of_bits(vector.words[word] & 0xffff0000u);
  }
}

SEBLOCK_DEVICE void widen(const Vector<__half>& vector, float (&out)[8]) {
#pragma unroll
  for (int word = 0; word < 4; ++word) {
    __half2 pair;
    memcpy(static_cast<void*>(&pair), &vector.words[word], sizeof pair);
    out[2 * word] = __low2float(pair);
    out[2 * word + 1] = __high2float(pair);
  }
}

SEBLOCK_DEVICE void widen(const Vector<float>& vector, float (&out)[4]) {
#pragma unroll
  for (int e = 0; e < 4; ++e) out[e] = float_of_bits(vector.words[e]);
}

SEBLOCK_DEVICE void widen(const Vector<double>& vector, double (&out)[2]) {
  memcpy(out, vector.words, sizeof out);
}

SEBLOCK_DEVICE Vector<__nv_bfloat16> narrow(const float (&in)[8], __nv_bfloat16) {
  Vector<__nv_bfloat16> vector;
#pragma unroll
  for (int word = 0; word < 4; ++word)
    vector.words[word] = word_of(__floats2bfloat162_rn(in[2 * word], in[2 * word + 1]));
  return vector;
}

SEBLOCK_DEVICE Vector<__half> narrow(const float (&in)[8], __half) {
  Vector<__half> vector;
#pragma unroll
  for (int word = 0; word < 4; ++word)
    vector.words[word] = word_of(__floats2half2_rn(in[2 * word], in[2 * word + 1]));
  return vector;
}

SEBLOCK_DEVICE Vector<float> narrow(const float (&in)[4], float) {
  Vector<float> vector;
#pragma unroll
  for (int e = 0; e < 4; ++e) vector.words[e] = word_of(in[e]);
  return vector;
}

SEBLOCK_DEVICE Vector<double> narrow(const double (&in)[2], double) {
  Vector<double> vector;
  memcpy(vector.words, in, sizeof in);
  return vector;
}

// Elements whose bit is not set become 0.
template <typename scalar_t>
SEBLOCK_DEVICE void keep(Vector<scalar_t>& vector, unsigned bits) {
  constexpr int kElementBytes = static_cast<int>(sizeof(scalar_t));
#pragma unroll
  for (int word = 0; word < 4; ++word) {
    if constexpr (kElementBytes == 2) {
      const uint32_t low = bits >> (2 * word) & 1 ? 0xffffu : 0u;
      const uint32_t high = bits >> (2 * word + 1) & 1 ? 0xffff0000u : 0u;
      vector.words[word] &= low | high;
    } else {
      if (!(bits >> (word * 4 / kElementBytes) & 1)) vector.words[word] = 0;
    }
  }
}

// Where a vector lies: see csrc/tiling.h. Offsets are from the first element of the sample.
template <typename offset_t>
struct Place {
  offset_t vector;  // its number
  offset_t offset;  // of its first element
  int valid;        // elements of it that exist
};

// kAligned: every vector starts at a multiple of 16 bytes and is whole, and a sample has fewer than
// 2^31 elements. Otherwise a vector is that many single elements: the same lanes, the same order.
template <bool kAligned>
using offset_of = std::conditional_t<kAligned, int32_t, int64_t>;

// `last`: nobody will touch it again soon.
enum class Use { again, last };

template <bool kAligned, Use kUse, typename scalar_t>
SEBLOCK_DEVICE Vector<scalar_t> load_vector(const scalar_t* tensor,
                                            const Place<offset_of<kAligned>>& place) {
  if constexpr (kAligned) {
    const auto* from = reinterpret_cast<const Vector<scalar_t>*>(tensor) + place.vector;
    before_load(from);
    if constexpr (kUse == Use::last) return load_streaming(from);
    return *from;
  } else {
    scalar_t elements[kVec<scalar_t>];
#pragma unroll
    for (int e = 0; e < kVec<scalar_t>; ++e) {
      elements[e] = scalar_t(0.0f);
      if (e >= place.valid) continue;
      before_load(tensor + place.offset + e);
      elements[e] = tensor[place.offset + e];
    }
    Vector<scalar_t> vector;
    memcpy(vector.words, static_cast<const void*>(elements), sizeof elements);
    return vector;
  }
}

template <bool kAligned, Use kUse, typename scalar_t>
SEBLOCK_DEVICE void store_vector(scalar_t* tensor, const Place<offset_of<kAligned>>& place,
                                 const Vector<scalar_t>& vector) {
  if constexpr (kAligned) {
    auto* to = reinterpret_cast<Vector<scalar_t>*>(tensor) + place.vector;
    before_store(to);
    if constexpr (kUse == Use::last) {
      store_streaming(to, vector);
    } else {
      *to = vector;
    }
  } else {
    scalar_t elements[kVec<scalar_t>];
    memcpy(static_cast<void*>(elements), vector.words, sizeof elements);
#pragma unroll
    for (int e = 0; e < kVec<scalar_t>; ++e) {
      if (e >= place.valid) continue;
      before_store(tensor + place.offset + e);
      tensor[place.offset + e] = elements[e];
    }
  }
}

}  // namespace seblock::cuda

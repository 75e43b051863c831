// Global memory access: every load and store of a tensor goes through here.
// Vec<scalar_t, kVec> is kVec neighbouring elements moved in one access (16 bytes at the widest).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>

#include "platform.cuh"

namespace seblock::cuda {

template <typename scalar_t, int kVec>
struct alignas(sizeof(scalar_t) * kVec) Vec {
  static_assert(sizeof(scalar_t) * kVec <= kAccessBytes, "wider than the widest access");
  scalar_t value[kVec];
};

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

template <typename acc_t, typename scalar_t, int kVec>
SEBLOCK_DEVICE void widen(const Vec<scalar_t, kVec>& vec, acc_t (&out)[kVec]) {
#pragma unroll
  for (int e = 0; e < kVec; ++e) out[e] = static_cast<acc_t>(vec.value[e]);
}

template <typename acc_t, typename scalar_t, int kVec>
SEBLOCK_DEVICE void narrow(const acc_t (&in)[kVec], Vec<scalar_t, kVec>& vec) {
#pragma unroll
  for (int e = 0; e < kVec; ++e) vec.value[e] = static_cast<scalar_t>(in[e]);
}

template <typename acc_t, typename scalar_t, int kVec>
SEBLOCK_DEVICE void load(const scalar_t* address, acc_t (&out)[kVec]) {
  const auto* from = reinterpret_cast<const Vec<scalar_t, kVec>*>(address);
  before_load(from);
  const Vec<scalar_t, kVec> vec = *from;  // widened from memory, it would be loaded by elements
  widen(vec, out);
}

template <typename acc_t, typename scalar_t>
SEBLOCK_DEVICE acc_t load(const scalar_t* address) {
  before_load(address);
  return static_cast<acc_t>(*address);
}

template <typename scalar_t, typename acc_t, int kVec>
SEBLOCK_DEVICE void store(scalar_t* address, const acc_t (&in)[kVec]) {
  Vec<scalar_t, kVec> vec;
  narrow(in, vec);
  auto* to = reinterpret_cast<Vec<scalar_t, kVec>*>(address);
  before_store(to);
  *to = vec;
}

template <typename scalar_t, typename acc_t>
SEBLOCK_DEVICE void store(scalar_t* address, acc_t value) {
  before_store(address);
  *address = static_cast<scalar_t>(value);
}

// 16 bytes of a tensor as they lie in memory: what strategies stream and resident move. In words,
// as a processor that keeps single 16-bit elements gives each a register of its own.
template <typename scalar_t>
constexpr int kWidest = kAccessBytes / static_cast<int>(sizeof(scalar_t));

template <typename scalar_t>
struct alignas(kAccessBytes) Packed {
  static constexpr int kPerWord = 4 / static_cast<int>(sizeof(scalar_t));
  uint32_t words[4];
};

template <typename scalar_t>
SEBLOCK_DEVICE void widen(const Packed<scalar_t>& packed, float (&out)[kWidest<scalar_t>]) {
  constexpr int kPerWord = Packed<scalar_t>::kPerWord;
#pragma unroll
  for (int word = 0; word < 4; ++word) {
    scalar_t parts[kPerWord];
    memcpy(static_cast<void*>(parts), &packed.words[word], 4);
#pragma unroll
    for (int k = 0; k < kPerWord; ++k) out[word * kPerWord + k] = static_cast<float>(parts[k]);
  }
}

template <typename scalar_t>
SEBLOCK_DEVICE Packed<scalar_t> narrow(const float (&in)[kWidest<scalar_t>]) {
  constexpr int kPerWord = Packed<scalar_t>::kPerWord;
  Packed<scalar_t> packed;
#pragma unroll
  for (int word = 0; word < 4; ++word) {
    scalar_t parts[kPerWord];
#pragma unroll
    for (int k = 0; k < kPerWord; ++k) parts[k] = static_cast<scalar_t>(in[word * kPerWord + k]);
    memcpy(&packed.words[word], parts, 4);
  }
  return packed;
}

// Elements whose bit is not set become 0.
template <typename scalar_t>
SEBLOCK_DEVICE void keep(Packed<scalar_t>& packed, unsigned bits) {
  constexpr int kPerWord = Packed<scalar_t>::kPerWord;
  constexpr uint32_t kElement = kPerWord == 1 ? ~0u : 0xffffu;
#pragma unroll
  for (int e = 0; e < 4 * kPerWord; ++e) {
    if (!(bits >> e & 1)) packed.words[e / kPerWord] &= ~(kElement << e % kPerWord * 16);
  }
}

// `last`: nobody will touch it again soon.
enum class Use { again, last };

template <Use kUse, typename scalar_t>
SEBLOCK_DEVICE Packed<scalar_t> load_packed(const scalar_t* address) {
  const auto* from = reinterpret_cast<const Packed<scalar_t>*>(address);
  before_load(from);
  if constexpr (kUse == Use::last) return load_streaming(from);
  return *from;
}

template <Use kUse, typename scalar_t>
SEBLOCK_DEVICE void store_packed(scalar_t* address, const Packed<scalar_t>& packed) {
  auto* to = reinterpret_cast<Packed<scalar_t>*>(address);
  before_store(to);
  if constexpr (kUse == Use::last) {
    store_streaming(to, packed);
  } else {
    *to = packed;
  }
}

}  // namespace seblock::cuda

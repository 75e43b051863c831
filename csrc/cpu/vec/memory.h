// Loads and stores between memory of any dtype and Vec<acc_t>. Addresses need no alignment beyond
// the element's own.
#pragma once

#include <type_traits>

#include "half.h"
#include "vec.h"

namespace seblock::cpu {
namespace {

template <typename acc_t, typename scalar_t>
SEBLOCK_INLINE Vec<acc_t> load(const scalar_t* from) {
  typename RawVec<typename Format<scalar_t>::Element, kLanes<acc_t>>::Type stored;
  __builtin_memcpy(&stored, from, sizeof stored);
  return {Format<scalar_t>::template widen<typename Vec<acc_t>::Raw>(stored)};
}

// The elements as they are in memory.
template <typename scalar_t, typename acc_t>
SEBLOCK_INLINE auto stored(Vec<acc_t> v) {
  using Stored = typename RawVec<typename Format<scalar_t>::Element, kLanes<acc_t>>::Type;
  return Format<scalar_t>::template narrow<Stored>(v.raw);
}

template <typename acc_t, typename scalar_t>
SEBLOCK_INLINE void store(scalar_t* to, Vec<acc_t> v) {
  const auto elements = stored<scalar_t>(v);
  __builtin_memcpy(to, &elements, sizeof elements);
}

#ifdef __AVX2__
// The first `count` elements, the other lanes 0; no others are read.
SEBLOCK_INLINE Vec<float> load_masked(const float* from, int64_t count) {
#ifdef __AVX512F__
  return {(Vec<float>::Raw)_mm512_maskz_loadu_ps(__mmask16((1u << count) - 1), from)};
#else
  return {(Vec<float>::Raw)_mm256_maskload_ps(from, (__m256i)front_lanes<float>(count))};
#endif
}
SEBLOCK_INLINE Vec<double> load_masked(const double* from, int64_t count) {
#ifdef __AVX512F__
  return {(Vec<double>::Raw)_mm512_maskz_loadu_pd(__mmask8((1u << count) - 1), from)};
#else
  return {(Vec<double>::Raw)_mm256_maskload_pd(from, (__m256i)front_lanes<double>(count))};
#endif
}
#endif

// The first `count` elements, the other lanes 0. `readable` elements from here on may be read:
// where a whole register fits, it is read and the surplus masked, much faster than lane by lane.
template <typename acc_t, typename scalar_t>
SEBLOCK_INLINE Vec<acc_t> load_front(const scalar_t* from, int64_t count, int64_t readable) {
  if (readable >= kLanes<acc_t>) return keep_front(load<acc_t>(from), count);
#ifdef __AVX2__
  if constexpr (std::is_same_v<scalar_t, acc_t>) return load_masked(from, count);
#endif
  scalar_t lanes[kLanes<acc_t>] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = from[i];
  return load<acc_t>(lanes);
}

template <typename acc_t, typename scalar_t>
SEBLOCK_INLINE void store_front(scalar_t* to, Vec<acc_t> v, int64_t count) {
  scalar_t lanes[kLanes<acc_t>];
  store(lanes, v);
  for (int64_t i = 0; i < count; ++i) to[i] = lanes[i];
}

// One element, through the same conversion.
template <typename acc_t, typename scalar_t>
SEBLOCK_INLINE acc_t load_one(const scalar_t* from) {
  return load_front<acc_t>(from, 1, 1).raw[0];
}

// Fetches the line that lies `bytes` beyond element `i` of a tensor; beyond the end it does
// nothing.
template <int64_t bytes, typename scalar_t>
SEBLOCK_INLINE void fetch_ahead(const scalar_t* tensor, int64_t i) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(tensor) + uintptr_t(i) * sizeof(scalar_t);
  __builtin_prefetch(reinterpret_cast<const void*>(address + bytes));
}

// Fetches element `i` of a tensor to the second cache; i may lie beyond the end.
template <typename scalar_t>
SEBLOCK_INLINE void fetch(const scalar_t* tensor, int64_t i) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(tensor) + uintptr_t(i) * sizeof(scalar_t);
  __builtin_prefetch(reinterpret_cast<const void*>(address), 0, 2);
}

}  // namespace
}  // namespace seblock::cpu

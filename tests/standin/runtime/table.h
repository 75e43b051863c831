// A table of kernels by name, each with its argument's type. tests/standin/build.py writes the
// entries, from the names in the objects that nvcc has made.
#pragma once

#include <cstring>
#include <string_view>
#include <type_traits>

#include "kernels.h"
#include "simt.h"

struct Entry {
  const char* name;
  size_t bytes;
  void (*clear_padding)(void* argument);
  void (*run)(const simt::Launch& launch, const void* argument);
};

template <typename Params, void (*kernel)(Params)>
constexpr Entry entry(const char* name) {
  static_assert(std::is_trivially_copyable_v<Params>);
  return {name, sizeof(Params),
          [](void* argument) { __builtin_clear_padding(static_cast<Params*>(argument)); },
          [](const simt::Launch& launch, const void* argument) {
            simt::launch(launch, [&] { kernel(*static_cast<const Params*>(argument)); });
          }};
}

extern const Entry kEntries[];
extern const size_t kCount;

inline const Entry* find_entry(const char* name) {
  for (size_t i = 0; i < kCount; i++) {
    if (std::string_view(kEntries[i].name) == name) return &kEntries[i];
  }
  return nullptr;
}

extern "C" __attribute__((visibility("default"))) const StandinKernels standin_kernels;
const StandinKernels standin_kernels = {
    [](const char* name) {
      const Entry* entry = find_entry(name);
      return entry ? entry->bytes : 0;
    },
    [](const char* name, void* argument) { find_entry(name)->clear_padding(argument); },
    [](const char* name, unsigned blocks, unsigned threads, size_t shared, const void* argument) {
      find_entry(name)->run({name, blocks, threads, shared}, argument);
    }};

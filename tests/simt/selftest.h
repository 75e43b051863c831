// What the two halves of the SIMT harness's self-test share.
#pragma once

#include <functional>
#include <map>
#include <stdexcept>
#include <string>

#include "simt.h"

namespace selftest {

// A case returns "ok", the report of an error, or a number.
using Cases = std::map<std::string, std::function<std::string()>>;

Cases sound_cases();   // selftest.cpp: kernels that are right
Cases memory_cases();  // selftest_memory.cpp: what is counted and refused
Cases faulty_cases();  // selftest_faults.cpp: kernels that are wrong on purpose

inline void expect(bool condition, const std::string& what) {
  if (!condition) throw std::runtime_error("expected: " + what);
}

// The message of the error that a launch ends with.
inline std::string report(const simt::Launch& shape, const std::function<void()>& body) {
  try {
    simt::launch(shape, body);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace selftest

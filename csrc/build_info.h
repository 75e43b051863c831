// What the library was built with. setup.py writes build_info_generated.h into the build folder.
#pragma once

#include <string>
#include <vector>

#include "build_info_generated.h"

namespace seblock {

struct BuildInfo {
  bool cuda;                               // CUDA kernels are inside
  std::string cuda_version;                // "13.0", empty without CUDA
  std::vector<std::string> architectures;  // "9.0" machine code, "12.0+PTX" with PTX beside it
  std::string compiler;                    // the host compiler's own words
  std::string flags;                       // host flags, then nvcc's
  std::string torch_version;               // the torch whose headers were used
};

inline BuildInfo build_info() {
  return {SEBLOCK_BUILD_CUDA != 0, SEBLOCK_BUILD_CUDA_VERSION, {SEBLOCK_BUILD_ARCHITECTURES},
          SEBLOCK_BUILD_COMPILER,  SEBLOCK_BUILD_FLAGS,        SEBLOCK_BUILD_TORCH_VERSION};
}

}  // namespace seblock

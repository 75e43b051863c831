// How the backward pass divides its workspace.
#pragma once

#include "se_types.h"

namespace seblock::cuda {

template <typename acc_t>
struct BackwardWorkspace {
  acc_t* dz2;      // [N, C]
  acc_t* dz1;      // [N, R]
  acc_t* rest;     // strategy stream: StreamWorkspace of plan.h; split: the two below
  acc_t* shift;    // [N, C]          dpooled / S
  acc_t* partial;  // [splits, N, C]  parts of dgate

  explicit BackwardWorkspace(const BackwardParams& p) {
    const Shape& shape = p.problem.shape;
    dz2 = static_cast<acc_t*>(p.workspace);
    dz1 = dz2 + shape.n * shape.c;
    rest = dz1 + shape.n * shape.r;
    shift = rest;
    partial = shift + shape.n * shape.c;
  }
};

}  // namespace seblock::cuda

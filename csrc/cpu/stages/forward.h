// The forward: squeeze, excite, scale.
#pragma once

#include "dispatch.h"
#include "pointwise.h"
#include "product.h"
#include "scale.h"
#include "squeeze.h"

namespace seblock::cpu {
namespace {

template <typename scalar_t, typename weight_t, typename acc_t>
struct Forward {
  const Problem& problem;
  const Shape& shape;
  Squeeze<SumOfX<scalar_t, acc_t>> squeeze;
  Scale<TimesGate<acc_t>, scalar_t> scale;
  Matrix<weight_t> reduce;      // [R, C]
  Matrix<weight_t> expand;      // [C, R]
  const weight_t* reduce_bias;  // [R] or null
  const weight_t* expand_bias;  // [C] or null
  acc_t* pooled;                // [N, C]
  acc_t* z1;                    // [N, R]
  acc_t* hidden;                // [N, R]
  acc_t* gate;                  // [N, C]

  Forward(const ForwardParams& p, const ForwardWorkspace& workspace)
      : problem(p.problem),
        shape(p.problem.shape),
        reduce{static_cast<const weight_t*>(p.weights.reduce), shape.r, shape.c},
        expand{static_cast<const weight_t*>(p.weights.expand), shape.c, shape.r},
        reduce_bias(static_cast<const weight_t*>(p.weights.reduce_bias)),
        expand_bias(static_cast<const weight_t*>(p.weights.expand_bias)),
        pooled(static_cast<acc_t*>(p.pooled)),
        z1(static_cast<acc_t*>(p.z1)),
        hidden(static_cast<acc_t*>(workspace.hidden)),
        gate(static_cast<acc_t*>(p.gate)) {
    const scalar_t* x = static_cast<const scalar_t*>(p.x);
    const int64_t size = shape.n * shape.c * shape.s;
    acc_t* block_sums = static_cast<acc_t*>(workspace.block_sums);
    squeeze = {{x, size}, shape, problem.layout, pooled, block_sums};
    scale = {{gate},
             shape,
             problem.layout,
             x,
             static_cast<scalar_t*>(p.y),
             kCanStream && size * int64_t(sizeof(scalar_t)) >= kStreamBytes};
  }

  // pooled, which comes in as the sums over space, and rows [begin, end) of z1 and hidden.
  void reduce_rows(int64_t begin, int64_t end, int64_t n, int64_t n_end) const {
    multiply_rows(reduce, reduce_bias, begin, end, pooled, z1, n, n_end);
    for (int64_t m = n; m < n_end; ++m) {
      const int64_t at = m * shape.r + begin;
      apply_activation(problem.activation, z1 + at, end - begin, hidden + at);
    }
  }

  // Rows [begin, end) of the gate.
  void expand_rows(int64_t begin, int64_t end, int64_t n, int64_t n_end) const {
    multiply_rows(expand, expand_bias, begin, end, hidden, gate, n, n_end);
    for (int64_t m = n; m < n_end; ++m) {
      apply_gate(problem.gate, gate + m * shape.c + begin, end - begin);
    }
  }

  // Samples [n, n_end) through all stages, on this thread.
  void samples(int64_t n, int64_t n_end) const {
    for (int64_t m = n; m < n_end; ++m) squeeze.sample(m);
    divide(pooled + n * shape.c, (n_end - n) * shape.c, acc_t(shape.s));
    reduce_rows(0, shape.r, n, n_end);
    expand_rows(0, shape.c, n, n_end);
    for (int64_t m = n_end; m-- > n;) scale.sample(m);
  }

  // All samples, stage by stage, on all threads.
  void stages(const ThreadPool& pool) const {
    squeeze.all(pool);
    divide(pooled, shape.n * shape.c, acc_t(shape.s));
    parallel(pool, 0, shape.r, grain_of(shape.n * shape.c),
             [&](int64_t begin, int64_t end) { reduce_rows(begin, end, 0, shape.n); });
    parallel(pool, 0, shape.c, grain_of(shape.n * shape.r),
             [&](int64_t begin, int64_t end) { expand_rows(begin, end, 0, shape.n); });
    scale.all(pool);
  }
};

void run_forward(const ForwardParams& params, const ThreadPool& pool) {
  const Shape& shape = params.problem.shape;
  if (shape.n == 0) return;
  dispatch(params.problem, [&](auto scalar, auto weight, auto acc) {
    using scalar_t = typename decltype(scalar)::Type;
    const Forward<scalar_t, typename decltype(weight)::Type, typename decltype(acc)::Type> forward(
        params, ForwardWorkspace(params.problem, params.workspace));
    const Schedule plan = schedule(params.problem, pool);
    if (!plan.by_sample) return forward.stages(pool);
    parallel(pool, 0, shape.n, plan.grain, [&](int64_t first, int64_t last) {
      for (int64_t n = first; n < last; n += plan.group) {
        forward.samples(n, at_most(n + plan.group, last));
      }
    });
  });
}

}  // namespace
}  // namespace seblock::cpu

// The backward: the forward's walk in reverse (squeeze dy * x, the two transposed products, scale
// dy), then the weight gradients. Where a ReLU followed, dy is masked first; what is left of it is
// the residual's gradient, and takes dy's place.
#pragma once

#include "dispatch.h"
#include "pointwise.h"
#include "product.h"
#include "scale.h"
#include "squeeze.h"
#include "weight_grad.h"

namespace seblock::cpu {
namespace {

template <typename scalar_t, typename weight_t, typename acc_t>
struct Backward {
  const Problem& problem;
  const Shape& shape;
  Squeeze<SumOfDyX<scalar_t, acc_t>> squeeze;
  Scale<TimesGatePlusShift<scalar_t, acc_t>> scale;
  const scalar_t* unmasked_dy;  // like x
  const uint8_t* mask;          // of a ReLU, or null
  scalar_t* dresidual;          // like x, or null
  Matrix<weight_t> reduce;      // [R, C]
  Matrix<weight_t> expand;      // [C, R]
  const acc_t* z1;              // [N, R]
  const acc_t* gate;            // [N, C]
  acc_t* hidden;                // [N, R]
  acc_t* dz1;                   // [N, R]
  acc_t* dz2;                   // [N, C]
  acc_t* shift;                 // [N, C]

  Backward(const BackwardParams& p, const BackwardWorkspace& workspace)
      : problem(p.problem),
        shape(p.problem.shape),
        unmasked_dy(static_cast<const scalar_t*>(p.dy)),
        mask(static_cast<const uint8_t*>(p.mask)),
        dresidual(static_cast<scalar_t*>(p.dresidual)),
        reduce{static_cast<const weight_t*>(p.weights.reduce), shape.r, shape.c},
        expand{static_cast<const weight_t*>(p.weights.expand), shape.c, shape.r},
        z1(static_cast<const acc_t*>(p.z1)),
        gate(static_cast<const acc_t*>(p.gate)),
        hidden(static_cast<acc_t*>(workspace.hidden)),
        dz1(static_cast<acc_t*>(workspace.dz1)),
        dz2(static_cast<acc_t*>(workspace.dz2)),
        shift(static_cast<acc_t*>(workspace.shift)) {
    const scalar_t* dy = mask ? dresidual : unmasked_dy;
    const scalar_t* x = static_cast<const scalar_t*>(p.x);
    const int64_t size = shape.n * shape.c * shape.s;
    acc_t* block_sums = static_cast<acc_t*>(workspace.block_sums);
    squeeze = {{dy, x, size}, shape, problem.layout, dz2, block_sums};
    scale = {{dy, gate, shift},       shape, problem.layout, static_cast<scalar_t*>(p.dx), nullptr,
             worth_streaming(problem)};
  }

  // Elements [begin, end) of dresidual.
  void through_relu(int64_t begin, int64_t end) const {
    if (mask) apply_mask<acc_t>(unmasked_dy, mask, begin, end, dresidual);
  }

  // dz2, which comes in as dgate.
  void through_gate(int64_t n, int64_t n_end) const {
    const int64_t at = n * shape.c;
    apply_gate_slope(problem.gate, gate + at, (n_end - n) * shape.c, dz2 + at);
  }

  // Columns [begin, end) of dhidden = W2^T dz2, then of dz1.
  void through_expand(int64_t begin, int64_t end, int64_t n, int64_t n_end) const {
    multiply_columns(Strided<acc_t>{dz2, shape.c, 1}, n, n_end, expand, begin, end, dz1);
    for (int64_t m = n; m < n_end; ++m) {
      const int64_t at = m * shape.r + begin;
      apply_activation_slope(problem.activation, z1 + at, end - begin, dz1 + at, hidden + at);
    }
  }

  // Columns [begin, end) of dpooled = W1^T dz1, divided by S.
  void through_reduce(int64_t begin, int64_t end, int64_t n, int64_t n_end) const {
    multiply_columns(Strided<acc_t>{dz1, shape.r, 1}, n, n_end, reduce, begin, end, shift);
    for (int64_t m = n; m < n_end; ++m) {
      divide(shift + m * shape.c + begin, end - begin, acc_t(shape.s));
    }
  }

  // Samples [n, n_end) through all stages, on this thread.
  void samples(int64_t n, int64_t n_end) const {
    for (int64_t m = n; m < n_end; ++m) {
      through_relu(m * shape.c * shape.s, (m + 1) * shape.c * shape.s);
      squeeze.sample(m);
    }
    through_gate(n, n_end);
    through_expand(0, shape.r, n, n_end);
    through_reduce(0, shape.c, n, n_end);
    Fetch<scalar_t> next;
    if (worth_fetching(shape)) {
      next = {unmasked_dy, squeeze.source.x, (n_end - n) * shape.c * shape.s};
    }
    for (int64_t m = n_end; m-- > n;) scale.sample(m, next);
  }

  // All samples, stage by stage, on all threads.
  void stages(const ThreadPool& pool) const {
    parallel(pool, 0, shape.n * shape.c * shape.s, kGrain,
             [&](int64_t begin, int64_t end) { through_relu(begin, end); });
    squeeze.all(pool);
    through_gate(0, shape.n);
    parallel(pool, 0, shape.r, grain_of(shape.n * shape.c),
             [&](int64_t begin, int64_t end) { through_expand(begin, end, 0, shape.n); });
    parallel(pool, 0, shape.c, grain_of(shape.n * shape.r),
             [&](int64_t begin, int64_t end) { through_reduce(begin, end, 0, shape.n); });
    scale.all(pool);
  }
};

template <typename scalar_t, typename weight_t, typename acc_t>
void backward(const BackwardParams& p, const ThreadPool& pool) {
  const Shape& shape = p.problem.shape;
  const BackwardWorkspace workspace(p.problem, p.workspace);
  const Backward<scalar_t, weight_t, acc_t> stage(p, workspace);
  if (shape.n > 0) {
    const Schedule plan = schedule(p.problem, pool);
    if (plan.by_sample) {
      parallel(pool, 0, shape.n, plan.grain, [&](int64_t first, int64_t last) {
        for (int64_t n = first; n < last; n += plan.group) {
          stage.samples(n, at_most(n + plan.group, last));
        }
      });
    } else {
      stage.stages(pool);
    }
  }
  const acc_t* pooled = static_cast<const acc_t*>(p.pooled);
  weight_gradient(pool, stage.dz2, shape.n, shape.c, stage.hidden, shape.r,
                  static_cast<weight_t*>(p.dexpand), static_cast<weight_t*>(p.dexpand_bias));
  weight_gradient(pool, stage.dz1, shape.n, shape.r, pooled, shape.c,
                  static_cast<weight_t*>(p.dreduce), static_cast<weight_t*>(p.dreduce_bias));
}

void run_backward(const BackwardParams& params, const ThreadPool& pool) {
  dispatch(params.problem, [&](auto scalar, auto weight, auto acc) {
    backward<typename decltype(scalar)::Type, typename decltype(weight)::Type,
             typename decltype(acc)::Type>(params, pool);
  });
}

}  // namespace
}  // namespace seblock::cpu

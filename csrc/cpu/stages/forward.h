// The forward: squeeze, excite, scale.
#pragma once

#include <type_traits>

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
  template <typename Op>
  void samples(const Scale<Op>& scale, int64_t n, int64_t n_end) const {
    for (int64_t m = n; m < n_end; ++m) squeeze.sample(m);
    divide(pooled + n * shape.c, (n_end - n) * shape.c, acc_t(shape.s));
    reduce_rows(0, shape.r, n, n_end);
    expand_rows(0, shape.c, n, n_end);
    Fetch<scalar_t> next;
    if (worth_fetching(shape)) next = {squeeze.source.x, nullptr, (n_end - n) * shape.c * shape.s};
    for (int64_t m = n_end; m-- > n;) scale.sample(m, next);
  }

  // All samples, stage by stage, on all threads.
  template <typename Op>
  void stages(const Scale<Op>& scale, const ThreadPool& pool) const {
    squeeze.all(pool);
    divide(pooled, shape.n * shape.c, acc_t(shape.s));
    parallel(pool, 0, shape.r, grain_of(shape.n * shape.c),
             [&](int64_t begin, int64_t end) { reduce_rows(begin, end, 0, shape.n); });
    parallel(pool, 0, shape.c, grain_of(shape.n * shape.r),
             [&](int64_t begin, int64_t end) { expand_rows(begin, end, 0, shape.n); });
    scale.all(pool);
  }
};

// body(op): what the scale makes of x.
template <typename scalar_t, typename acc_t, typename Body>
void with_scale_op(const ForwardParams& p, const Body& body) {
  const TimesGate<scalar_t, acc_t> op{static_cast<const scalar_t*>(p.x),
                                      static_cast<const acc_t*>(p.gate)};
  const scalar_t* residual = static_cast<const scalar_t*>(p.residual);
  switch (p.problem.tail) {
    case Tail::none:
      return body(op);
    case Tail::add:
      return body(TimesGatePlusResidual<scalar_t, acc_t, false>{op, residual});
    case Tail::add_relu:
      return body(TimesGatePlusResidual<scalar_t, acc_t, true>{op, residual});
  }
}

template <typename scalar_t, typename weight_t, typename acc_t>
void forward(const ForwardParams& p, const ThreadPool& pool) {
  const Shape& shape = p.problem.shape;
  const Forward<scalar_t, weight_t, acc_t> stage(p, ForwardWorkspace(p.problem, p.workspace));
  uint8_t* mask = static_cast<uint8_t*>(p.mask);
  if (mask) __builtin_memset(mask, 0, size_t(mask_bytes(p.problem)));
  with_scale_op<scalar_t, acc_t>(p, [&](const auto& op) {
    const Scale<std::decay_t<decltype(op)>> scale{
        op, shape, p.problem.layout, static_cast<scalar_t*>(p.y), mask, worth_streaming(p.problem)};
    const Schedule plan = schedule(p.problem, pool);
    if (!plan.by_sample) return stage.stages(scale, pool);
    parallel(pool, 0, shape.n, plan.grain, [&](int64_t first, int64_t last) {
      for (int64_t n = first; n < last; n += plan.group) {
        stage.samples(scale, n, at_most(n + plan.group, last));
      }
    });
  });
}

void run_forward(const ForwardParams& params, const ThreadPool& pool) {
  if (params.problem.shape.n == 0) return;
  dispatch(params.problem, [&](auto scalar, auto weight, auto acc) {
    forward<typename decltype(scalar)::Type, typename decltype(weight)::Type,
            typename decltype(acc)::Type>(params, pool);
  });
}

}  // namespace
}  // namespace seblock::cpu

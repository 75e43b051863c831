// Strategies T (stream) and R (resident): squeeze, excite and scale in one launch.
//
// A task is a slice (slice.cuh) of a group of samples. Squeezing it gives its channels' sums and,
// as the first product is linear in them, its part of the product: R numbers per sample, to which
// all slices of the group are added. From those numbers each slice has its own gates.
//
// T. Blocks take tickets. A block with ticket t squeezes task t, publishes its R numbers, then
// scales task t - lag, once all slices of that group are published. It waits for tickets lower than
// its own only, each taken by a block that publishes before it waits: some block can always go on,
// whatever number of blocks is resident. x is read from memory by the squeeze and from L2 by the
// scale, as long as what `lag` tasks touch fits there. Forward: |x| + |x| from L2 in, |x| out;
// backward: 2|x| + |x| from L2 in, |x| out (with a masked tail, dresidual besides).
//
// R. A block squeezes and scales one group of whole samples and keeps them in shared memory in
// between: nothing to publish, x is read once.
//
// Weights are read once per group (and row slice). Parts are added in the order of their slices,
// whoever comes first.
#pragma once

#include "slice.cuh"

namespace seblock::cuda {

template <typename Pass>
struct StreamParams {
  SliceParams<Pass> slice;
  uint32_t* counters;  // [1 + groups]: the next ticket; slices published, per group. Zero at first
  float* partial;      // [tasks, samples, R]
  float* sums;         // [row slices, N, C], or unused if there is one row slice
};

// One task on one block.
template <typename Pass, Layout kLayout>
class Task {
 public:
  SEBLOCK_DEVICE Task(const StreamParams<Pass>& p, int task)
      : p_(p), pass_(p.slice.pass), plan_(p.slice.plan), task_(task) {
    const Shape& shape = pass_.problem.shape;
    const int slices = plan_.channel_slices * plan_.row_slices;
    const int part = task % slices;
    group_ = task / slices;
    first_task_ = task - part;
    row_part_ = part / plan_.channel_slices;
    slice_.sample = int64_t{group_} * plan_.samples;
    slice_.channel = part % plan_.channel_slices * plan_.channels;
    slice_.row = row_part_ * plan_.rows;
    slice_.samples = smaller(shape.n - slice_.sample, plan_.samples);
    slice_.channels = smaller(shape.c - slice_.channel, plan_.channels);
    slice_.rows = smaller(shape.s - slice_.row, plan_.rows);
    r_ = static_cast<int>(shape.r);
  }

  SEBLOCK_DEVICE int group() const { return group_; }

  // Ends before a barrier.
  SEBLOCK_DEVICE void squeeze() const {
    SliceWork<Pass, kLayout>(p_.slice, slice_).squeeze();
    const auto sums = shared_memory<float>() + p_.slice.shared.sums;
#pragma unroll 1
    for (int item = thread_index(); item < slice_.samples * slice_.channels;
         item += kBlockThreads) {
      const int g = item / slice_.channels;
      const int c = item % slice_.channels;
      const int64_t channel = channel_of(g, c);
      float value = sums[g * plan_.channels + c];
      if (plan_.row_slices > 1) store(p_.sums + row_part_ * row_stride() + channel, value);
      value = pass_.squeezed(channel, value);
      if (plan_.row_slices == 1) pass_.keep_squeezed(channel, value);
      sums[g * plan_.channels + c] = value;
    }
    sync_threads();
    project_in();
  }

  SEBLOCK_DEVICE void excite() const {
    if (!p_.slice.resident) add_parts();
    sync_threads();
    project_out();
    sync_threads();
  }

  SEBLOCK_DEVICE void scale() const { SliceWork<Pass, kLayout>(p_.slice, slice_).scale(); }

 private:
  SEBLOCK_DEVICE static int smaller(int64_t a, int b) { return a < b ? static_cast<int>(a) : b; }
  SEBLOCK_DEVICE int64_t channel_of(int g, int c) const {  // in [N, C]
    return (slice_.sample + g) * pass_.problem.shape.c + slice_.channel + c;
  }
  SEBLOCK_DEVICE int64_t row_stride() const {
    return pass_.problem.shape.n * pass_.problem.shape.c;
  }

  SEBLOCK_DEVICE Shared<float> hidden() const {
    return shared_memory<float>() + p_.slice.shared.hidden;
  }
  SEBLOCK_DEVICE Shared<float> scratch() const {
    return shared_memory<float>() + p_.slice.shared.scratch;
  }
  SEBLOCK_DEVICE void put_hidden(int g, int r, float sum, bool keep) const {
    hidden()[g * r_ + r] = pass_.hidden((slice_.sample + g) * r_ + r, r, sum, keep);
  }

  // This slice's part of the first product: to whoever scales the group, or at once.
  SEBLOCK_DEVICE void project_in() const {
    const auto sums = shared_memory<float>() + p_.slice.shared.sums;
    const auto out = [&](int r, int g, float sum) {
      if (p_.slice.resident) {
        put_hidden(g, r, sum, true);
      } else {
        store(p_.partial + (int64_t{task_} * plan_.samples + g) * r_ + r, sum);
      }
    };
    pass_.project_in(slice_.channel, slice_.channels, slice_.samples, sums, plan_.channels,
                     scratch(), out);
  }

  // The group's first product, from its parts; and what is kept of it, by the group's first task.
  SEBLOCK_DEVICE void add_parts() const {
    const auto add = [&](int item, int part, float (&sum)[1]) {
      const int64_t task = first_task_ + part;
      sum[0] += load<float>(p_.partial + task * plan_.samples * r_ + item);
    };
    const auto out = [&](int item, int, float sum) {
      put_hidden(item / r_, item % r_, sum, task_ == first_task_);
    };
    sum_columns<1>(add, slice_.samples * r_, plan_.channel_slices * plan_.row_slices, 1, scratch(),
                   out);
    if (plan_.row_slices == 1 || row_part_ != 0) return;
#pragma unroll 1
    for (int item = thread_index(); item < slice_.samples * slice_.channels;
         item += kBlockThreads) {
      const int64_t channel = channel_of(item / slice_.channels, item % slice_.channels);
      float sum = 0;
#pragma unroll 4
      for (int part = 0; part < plan_.row_slices; ++part)
        sum += load<float>(p_.sums + part * row_stride() + channel);
      pass_.keep_squeezed(channel, pass_.squeezed(channel, sum));
    }
  }

  // The factors of this slice's channels.
  SEBLOCK_DEVICE void project_out() const {
    const SliceWork<Pass, kLayout> work(p_.slice, slice_);
    const auto factors = shared_memory<float>() + p_.slice.shared.factors;
    const auto shifts = shared_memory<float>() + p_.slice.shared.sums;
    const auto out = [&](int c, int g, float sum) {
      const int at = g * plan_.channels + work.slot(c);
      factors[at] = pass_.factor(channel_of(g, c), slice_.channel + c, sum, row_part_ == 0);
      if constexpr (Pass::kShifts) shifts[at] = pass_.shift(sum);
    };
    pass_.project_out(slice_.channel, slice_.channels, slice_.samples, hidden(), r_, scratch(),
                      out);
  }

  const StreamParams<Pass>& p_;
  const Pass& pass_;
  const SlicePlan& plan_;
  const int task_;
  int group_, first_task_, row_part_, r_;
  Slice slice_;
};

// stream: block = tickets, until there are none. resident: block = one group, squeezed and scaled.
template <typename Pass, Layout kLayout>
SEBLOCK_KERNEL_OF(kBlocksPerMultiprocessor)
stream_kernel(StreamParams<Pass> p) {
  const SlicePlan& plan = p.slice.plan;
  const bool alone = p.slice.resident;
  const auto shared_ticket = shared_memory<int>() + p.slice.shared.ticket;
  int ticket = block_index();
  do {
    if (!alone) {
      if (thread_index() == 0) shared_ticket[0] = static_cast<int>(take_ticket(p.counters));
      sync_threads();
      ticket = shared_ticket[0];
    }
    if (ticket < plan.tasks) {
      const Task<Pass, kLayout> ahead(p, ticket);
      ahead.squeeze();
      sync_threads();
      if (!alone && thread_index() == 0) publish(p.counters + 1 + ahead.group());
    }
    if (ticket >= plan.lag && ticket < plan.tasks + plan.lag) {
      const Task<Pass, kLayout> behind(p, ticket - plan.lag);
      if (!alone && thread_index() == 0) {
        await(p.counters + 1 + behind.group(), plan.channel_slices * plan.row_slices);
      }
      sync_threads();
      behind.excite();
      behind.scale();
    }
    sync_threads();
  } while (!alone && ticket < plan.tasks + plan.lag);
}

template <typename Pass>
void launch_stream(const Pass& pass, const SePlan& plan, const char* name, void* workspace,
                   void* stream) {
  const Problem& problem = pass.problem;
  const StreamWorkspace parts(problem.shape, plan.slice);
  float* const partial = static_cast<float*>(workspace) + parts.counters / sizeof(float);
  const StreamParams<Pass> params{{pass, plan.slice, SliceShared(problem.shape, plan.slice),
                                   Divisor32(problem.shape.s), plan.strategy == Strategy::resident},
                                  static_cast<uint32_t*>(workspace),
                                  partial,
                                  partial + parts.partial / sizeof(float)};
  if (!params.slice.resident) clear(params.counters, parts.counters, stream);
  const auto kernel = problem.layout == Layout::nchw ? stream_kernel<Pass, Layout::nchw>
                                                     : stream_kernel<Pass, Layout::nhwc>;
  launch(name, kernel, plan.slice.blocks, plan.slice.shared_bytes, stream, params);
}

}  // namespace seblock::cuda

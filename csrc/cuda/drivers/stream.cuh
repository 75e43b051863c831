// Driver stream: one launch of as many blocks as the device holds. They take tickets
// (csrc/tickets.h) for squeeze and scale tasks; the scale of a sample follows its squeeze while x
// is still in L2. The block whose squeeze is the last of a sample runs its products.
#pragma once

#include <algorithm>
#include <utility>

#include "drivers.h"
#include "passes.cuh"
#include "tickets.h"

namespace seblock::cuda {

template <typename AnyPass>
struct StreamParams {
  AnyPass pass;
  Tickets tickets;
  uint32_t* next;      // ticket
  uint32_t* squeezed;  // [N] strips that are done
  uint32_t* ready;     // [N] 1: the gates (backward: the shifts) are there
};

template <Layout kLayout, typename AnyPass>
SEBLOCK_KERNEL_OF(4)
stream_kernel(StreamParams<AnyPass> p) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800  // else the plan refuses
  const auto board = shared_memory<uint32_t>() + kScratchBytes / int{sizeof(uint32_t)};
  if (thread_index() == 0) board[0] = take_ticket(p.next);
#pragma unroll 1
  for (;;) {
    sync_threads();  // what the last task has in shared memory is done with
    const uint32_t number = board[0];
    if (number >= p.tickets.total()) return;
    uint32_t next = 0;  // thread 0's: on its way while the task loads
    if (thread_index() == 0) next = take_ticket(p.next + thread_index());
    const auto keep_ticket = [&] {  // behind a barrier: every thread has read the one before
      if (thread_index() == 0) board[0] = next;
    };

    const AnyPass& pass = p.pass;
    const Tiling& tiling = pass.tiling;
    const Ticket ticket = p.tickets.decode(number);
    const int64_t sample = ticket.sample;
    if (ticket.scales) {
      const auto map = pass.map_of(sample);
      const Scale<true, decltype(AnyPass::map)> scale(map, pass.shape, tiling);
      scale.template run<kLayout>(ticket.task, [&] {
        if (thread_index() == 0) await(p.ready + sample, 1);
        sync_threads();
        keep_ticket();
      });
      continue;
    }
    const auto source = pass.source_of(sample);
    const Squeeze<true, decltype(AnyPass::source)> squeeze(source, pass.shape, tiling, pass.sums,
                                                           sample);
    squeeze.template run<kLayout>(ticket.task);
    sync_threads();
    keep_ticket();
    if (thread_index() == 0) board[1] = arrive(p.squeezed + sample);
    sync_threads();
    if (board[1] + 1 < static_cast<uint32_t>(tiling.strips)) continue;
    products_of_sample(pass.reduce, pass.expand, sample);
    if (thread_index() == 0) publish(p.ready + sample);
  }
#endif
}

template <typename Params>
void run_stream(const char* name, const Params& params, const Plan& plan, void* stream) {
  dispatch_pass(params, plan, [&](const auto& pass) {
    using AnyPass = std::decay_t<decltype(pass)>;
    uint32_t* counters = WorkspaceOf<float>(params.workspace, plan.workspace).counters;
    clear(counters, static_cast<size_t>(plan.workspace.counters), stream);
    const StreamParams<AnyPass> all{
        pass, Tickets(pass.shape.n, plan.lag, pass.tiling.strips, pass.tiling.runs), counters,
        counters + 1, counters + 1 + pass.shape.n};
    const auto kernel = pass.tiling.layout == Layout::nchw ? stream_kernel<Layout::nchw, AnyPass>
                                                           : stream_kernel<Layout::nhwc, AnyPass>;
    launch(name, kernel, plan.blocks, kScratchBytes + kTicketBytes, stream, all);
  });
}

// Of the kernels for this dtype and direction, the fewest.
template <typename scalar, typename Params>
int fewest_blocks() {
  const auto of = [](auto pass_type) {
    using AnyPass = typename decltype(pass_type)::type;
    constexpr size_t kShared = kScratchBytes + kTicketBytes;
    return std::min(blocks_per_multiprocessor(stream_kernel<Layout::nchw, AnyPass>, kShared),
                    blocks_per_multiprocessor(stream_kernel<Layout::nhwc, AnyPass>, kShared));
  };
  return std::min(
      of(Type<decltype(pass_of<scalar, true>(std::declval<Params>(), std::declval<Plan>()))>{}),
      of(Type<decltype(pass_of<scalar, false>(std::declval<Params>(), std::declval<Plan>()))>{}));
}

}  // namespace seblock::cuda

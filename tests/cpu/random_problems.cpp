// Runs the CPU kernels on random problems whose tensors have no byte to spare: for sanitizers.
// Compiled for one instruction set, as the flags say.
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <memory>
#include <random>
#include <vector>

#include "kernels.h"
#include "stages/backward.h"
#include "stages/forward.h"

using namespace seblock;
using namespace seblock::cpu;

namespace {

std::mt19937 generator(1);

int64_t one_of(std::initializer_list<int64_t> values) {
  return *(values.begin() + generator() % values.size());
}

// Pieces of the loop one after the other.
void in_pieces(int64_t begin, int64_t end, int64_t grain, ThreadPool::Body body, void* context) {
  const int64_t step = at_least(grain, ceil_div(end - begin, 3));
  for (int64_t i = begin; i < end; i += step) body(i, at_most(i + step, end), context);
}

// Memory of exact sizes, zeroed.
struct Tensors {
  std::vector<std::unique_ptr<char[]>> all;
  void* operator()(int64_t bytes) {
    all.push_back(std::make_unique<char[]>(bytes));
    return all.back().get();
  }
};

void run(const Shape& shape) {
  const auto dtype = static_cast<DType>(generator() % 4);
  const Problem problem{shape,
                        static_cast<Layout>(generator() % 2),
                        dtype,
                        generator() % 2 ? dtype : DType::float32,
                        static_cast<Activation>(generator() % 6),
                        static_cast<Gate>(generator() % 3),
                        static_cast<Tail>(generator() % 3)};
  const ThreadPool pool{static_cast<int>(one_of({1, 2, 4})), in_pieces};
  const auto& [n, c, s, r] = shape;
  const int64_t map = n * c * s * bytes_of(dtype), acc = acc_bytes_of(dtype);
  const int64_t weight = bytes_of(problem.weight_dtype);
  const bool masked = problem.tail == Tail::add_relu;

  Tensors make;
  const Weights weights{make(r * c * weight), make(c * r * weight), make(r * weight),
                        make(c * weight)};
  const void* const x = make(map);
  void* const mask = masked ? make(mask_bytes(problem)) : nullptr;
  void *const pooled = make(n * c * acc), *const z1 = make(n * r * acc),
              *const gate = make(n * c * acc);
  run_forward({problem, weights, x, problem.tail == Tail::none ? nullptr : make(map), make(map),
               mask, pooled, z1, gate, make(ForwardWorkspace(problem, nullptr).bytes)},
              pool);
  run_backward(
      {problem, weights, make(map), x, mask, pooled, z1, gate, make(map),
       masked ? make(map) : nullptr, make(r * c * weight), make(c * r * weight), make(r * weight),
       make(c * weight), make(BackwardWorkspace(problem, nullptr).bytes)},
      pool);
}

}  // namespace

int main(int, char** arguments) {
  const int count = std::atoi(arguments[1]);
  for (int i = 0; i < count; ++i) {
    run({one_of({1, 2, 3, 5}), one_of({1, 2, 3, 5, 7, 8, 15, 16, 17, 24, 31, 33, 64, 75, 120}),
         one_of({1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 25, 31, 33, 49, 64, 81, 130, 196, 361, 1025}),
         one_of({1, 2, 3, 8, 17})});
  }
  for (int i = 0; i < 24; ++i) run({3, one_of({73, 96}), 14641, 4});  // streamed
  std::printf("%d problems\n", count + 24);
}

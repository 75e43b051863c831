"""What is compared: this package, plain PyTorch, torch.compile, the same in CUDA graphs, a copy.

`fused_graph` and `compile_graph` are this package and torch.compile's code captured whole in one
CUDA graph, inputs in place: what the kernels of a small layer take when the host does not hold them
up. For torch.compile that is its best case, without the copies into static buffers that
`mode="reduce-overhead"` makes of new inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.problems import Problem
from benchmarks.timing import Call
from seblock_cuda import reference, squeeze_excitation

DIRECTIONS = ("forward", "backward", "both")
Provider = Callable[[Problem], Tensor]  # y, differentiable
Layer = Callable[..., Tensor]


def plain_layer(
    x: Tensor,
    reduce_weight: Tensor,
    expand_weight: Tensor,
    reduce_bias: Tensor | None,
    expand_bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    gate: str,
) -> Tensor:
    """The block of 1x1 convolutions that models paste, and the end of a residual block."""
    pooled = F.adaptive_avg_pool2d(x, 1)
    z1 = F.conv2d(pooled, reduce_weight, reduce_bias)
    hidden = reference.ACTIVATIONS[activation][0](z1)
    z2 = F.conv2d(hidden, expand_weight, expand_bias)
    y = x * reference.GATES[gate][0](z2)
    return y if residual is None else F.relu(y + residual)


def of_layer(layer: Layer) -> Provider:
    """The provider that calls a layer with the signature of `plain_layer`."""

    def provider(problem: Problem) -> Tensor:
        return layer(
            problem.x,
            problem.reduce_weight,
            problem.expand_weight,
            problem.reduce_bias,
            problem.expand_bias,
            problem.residual,
            problem.workload.activation,
            problem.workload.gate,
        )

    return provider


plain = of_layer(plain_layer)
compiled = of_layer(torch.compile(plain_layer, dynamic=False, fullgraph=True))


def fused(problem: Problem) -> Tensor:
    """This package."""
    return squeeze_excitation(
        problem.x,
        problem.reduce_weight,
        problem.expand_weight,
        problem.reduce_bias,
        problem.expand_bias,
        activation=problem.workload.activation,
        gate=problem.workload.gate,
        residual=problem.residual,
        residual_activation=None if problem.residual is None else "relu",
    )


# In the order of tables; the copy is no layer: see `copy_call`.
PROVIDERS: dict[str, Provider] = {
    "fused": fused,
    "fused_graph": fused,
    "plain": plain,
    "compile": compiled,
    "compile_graph": compiled,
}
# A backward that is timed alone runs many times after one forward: what that has saved must stay.
torch._functorch.config.donated_buffer = False

GRAPHS = ("fused_graph", "compile_graph")  # on CUDA only


def direction_call(provider: Provider, problem: Problem, direction: str) -> Call:
    """What one timed call does: inference, backward alone, or a training step's both."""
    inputs = list(problem.inputs.values())
    if direction == "forward":
        return torch.no_grad()(lambda: provider(problem))
    if direction == "backward":
        y = provider(problem)
        return lambda: torch.autograd.grad(y, inputs, problem.dy, retain_graph=True)
    return lambda: torch.autograd.grad(provider(problem), inputs, problem.dy)


def graph_call(provider: Provider, problem: Problem, direction: str) -> Call:
    """The same as one replay of a CUDA graph."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # a backward runs on the stream of its forward, and of the
        leaves = {  # first use of its leaves: these are of no other call
            name: tensor.detach().requires_grad_() for name, tensor in problem.inputs.items()
        }
        problem = replace(problem, **leaves)
        call = direction_call(provider, problem, direction)
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph, stream=stream):
        results = call()

    def replay(_read_by_the_graph: object = call) -> object:  # what its forward has saved
        graph.replay()
        return results

    return replay


def timed_call(name: str, problem: Problem, direction: str) -> Call:
    """What is timed for a provider, by its name."""
    make = graph_call if name in GRAPHS else direction_call
    return make(PROVIDERS[name], problem, direction)


def copy_call(problem: Problem) -> Call:
    """The limit: x read once, written once, into memory that is already there."""
    source = problem.x.detach()
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def limit_bytes(problem: Problem, direction: str) -> int:
    """The least traffic over x-sized tensors.

    Forward reads x and writes y; backward reads x and dy and writes dx. A residual is one more to
    read forward and one more to write backward, and which elements the ReLU passed is one bit each,
    written by a forward that trains and read by the backward. A copy is one read and one write.
    """
    x_bytes, mask_bytes = problem.x.numel() * problem.x.itemsize, problem.x.numel() // 8
    residual = problem.residual is not None and direction != "copy"
    passes = {"forward": 2, "backward": 3, "both": 5, "copy": 2}[direction]
    extra = {"forward": 1, "backward": 1, "both": 2, "copy": 0}[direction]
    masks = {"forward": 0, "backward": 1, "both": 2, "copy": 0}[direction]
    return passes * x_bytes + residual * (extra * x_bytes + masks * mask_bytes)

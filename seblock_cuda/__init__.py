"""Squeeze-and-Excitation at the cost of its memory traffic: fused CPU and CUDA kernels for PyTorch.

>>> from seblock_cuda import SEBlock
>>> layer = SEBlock(256, 1 / 16)
"""

from seblock_cuda._ops import explain
from seblock_cuda.functional import SEBlockFunction, squeeze_excitation
from seblock_cuda.layers import SEBlock, SEResidual

__version__ = "0.1.0"
__all__ = ["SEBlock", "SEBlockFunction", "SEResidual", "explain", "squeeze_excitation"]

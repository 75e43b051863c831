"""Squeeze-and-Excitation at the cost of its memory traffic: fused CPU and CUDA kernels for PyTorch.

>>> from seblock_cuda import SEBlock
>>> layer = SEBlock(256, 1 / 16)
"""

from seblock_cuda import _ops, plan_files
from seblock_cuda._formulas import decompositions
from seblock_cuda.convert import (
    Conversion,
    ConversionReport,
    convert_se_modules,
    revert_se_modules,
)
from seblock_cuda.functional import SEBlockFunction, squeeze_excitation, use_fused_se
from seblock_cuda.gates import plot_gates, record_gates
from seblock_cuda.layers import EffectiveSE, SEBlock, SEResidual, SqueezeExcitation
from seblock_cuda.plans import explain
from seblock_cuda.tuning import tune, tune_op

__version__ = "0.1.0"
__all__ = [
    "Conversion",
    "ConversionReport",
    "EffectiveSE",
    "SEBlock",
    "SEBlockFunction",
    "SEResidual",
    "SqueezeExcitation",
    "convert_se_modules",
    "decompositions",
    "explain",
    "plot_gates",
    "record_gates",
    "revert_se_modules",
    "squeeze_excitation",
    "tune",
    "tune_op",
    "use_fused_se",
]

if _ops.BUILT_WITH_CUDA:
    plan_files.load()

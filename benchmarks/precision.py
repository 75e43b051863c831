"""float32 that is float32: without TF32, which rounds the factors of every product to 11 bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_float32() -> Iterator[None]:
    """No TF32 inside, for comparisons with float64 or between two ways to compute the same.

    cuDNN uses TF32 for convolutions unless told otherwise, cuBLAS where the user or a container's
    environment has asked for it. By the older names of these switches, which torch.compile reads.
    """
    switches = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = False
        yield
    finally:
        for switch, allowed in zip(switches, before):
            switch.allow_tf32 = allowed

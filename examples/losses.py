"""The losses that `--loss` names: of logits, or of embeddings and class centres."""

from __future__ import annotations

import math

import torch
from partial_fc import PartialFC
from pytorch_metric_learning.losses import ArcFaceLoss, CosFaceLoss
from ranks import Ranks
from torch import Tensor, nn

NAMES = ("ce", "arcface", "cosface", "partialfc")
# as in the papers: Deng et al., arXiv:1801.07698, and Wang et al., arXiv:1801.09414
MARGINS = {"arcface": 0.5, "cosface": 0.35, "partialfc": 0.5}


def build(
    name: str,
    *,
    classes: int,
    embedding: int,
    scale: float,
    margin: float | None,
    sample_rate: float,
    seed: int,
    ranks: Ranks,
) -> nn.Module:
    """(outputs [B, D], labels [B]) -> the mean loss.

    Args:
        scale: of the cosines, for the margin losses.
        margin: in radians, for cosface in cosine; None is the paper's.
    """
    if name == "ce":
        return nn.CrossEntropyLoss()
    margin = MARGINS[name] if margin is None else margin
    if name == "partialfc":
        return PartialFC(
            classes,
            embedding,
            sample_rate=sample_rate,
            scale=scale,
            margin=margin,
            rank=ranks.rank,
            world=ranks.world,
            seed=seed,
        )
    if name == "arcface":
        return ArcFaceLoss(classes, embedding, margin=math.degrees(margin), scale=scale)
    return CosFaceLoss(classes, embedding, margin=margin, scale=scale)


def class_centres(loss: nn.Module, ranks: Ranks) -> Tensor:
    """[classes, D] of a margin loss, on the first process; an empty tensor on the others."""
    if isinstance(loss, PartialFC):
        return torch.cat([torch.empty(0), *ranks.gather(loss.centres.detach().cpu())])
    return loss.W.detach().cpu().T

"""IR-SE50, the face-recognition network of ArcFace, with a choice of the SE layer.

Deng et al., ArcFace, arXiv:1801.07698: an "improved" ResNet-50 for 112x112 faces, two 3x3
convolutions per block, SE with ratio 1/16 before the shortcut is added, a 512-number embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

SEFactory = Callable[[int, float], nn.Module]  # (channels, reduction ratio) -> SE layer

RATIO = 1 / 16
WIDTHS = (64, 128, 256, 512)
DEPTHS = (3, 4, 14, 3)


class IRSEBlock(nn.Module):
    """BN, conv, PReLU, conv, BN, SE, plus the shortcut: [N, inputs, H, W] -> [N, outputs, ...]."""

    def __init__(self, inputs: int, outputs: int, stride: int, se_factory: SEFactory) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.se = se_factory(outputs, RATIO)
        if inputs == outputs:
            self.shortcut: nn.Module = nn.MaxPool2d(1, stride)
        else:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.se(self.branch(inputs)) + self.shortcut(inputs)


class IRSE50(nn.Module):
    """Faces [N, 3, 112, 112] to embeddings [N, 512].

    Args:
        se_factory: makes one SE layer from (channels, ratio), e.g. `SEBlock`.
        depths: blocks in each stage; every stage halves the plane.
        size: height and width of the faces, a multiple of 16.
    """

    def __init__(
        self, se_factory: SEFactory, *, depths: Sequence[int] = DEPTHS, size: int = 112
    ) -> None:
        super().__init__()
        first = WIDTHS[0]
        conv = nn.Conv2d(3, first, 3, padding=1, bias=False)
        self.stem = nn.Sequential(conv, nn.BatchNorm2d(first), nn.PReLU(first))
        blocks: list[nn.Module] = []
        inputs = first
        for outputs, depth in zip(WIDTHS, depths, strict=True):
            for index in range(depth):
                blocks.append(IRSEBlock(inputs, outputs, 2 if index == 0 else 1, se_factory))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        features = inputs * (size // 16) ** 2
        self.embedding = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(features, 512),
            nn.BatchNorm1d(512),
        )

    def forward(self, faces: Tensor) -> Tensor:
        return self.embedding(self.blocks(self.stem(faces)))

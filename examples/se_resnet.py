"""SE-ResNets: Squeeze-and-Excitation in every residual block.

The blocks are the SE paper's (Hu et al., arXiv:1709.01507, figure 3): SE stands after the last
BatchNorm of the branch; behind it the shortcut is added and ReLU applied. `SEResidual` does these
three in one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from seblock_cuda.reference import PlainSEBlock

# (channels, reduction ratio) -> a module of branch and shortcut, e.g. `SEResidual`
SEFactory = Callable[[int, float], nn.Module]


class PlainSEResidual(PlainSEBlock):
    """What `SEResidual` computes, in plain PyTorch."""

    def forward(self, inputs: Tensor, shortcut: Tensor) -> Tensor:  # type: ignore[override]
        return F.relu(super().forward(inputs) + shortcut)


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution without bias, "same" padding, then BatchNorm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class SEBasicBlock(nn.Module):
    """Two 3x3 convolutions, SE and shortcut: [N, inputs, H, W] -> [N, width, H', W']."""

    expansion = 1

    def __init__(
        self, inputs: int, width: int, stride: int, se_factory: SEFactory, ratio: float
    ) -> None:
        super().__init__()
        self.conv1 = conv_bn(inputs, width, 3, stride)
        self.conv2 = conv_bn(width, width, 3)
        self.se = se_factory(width, ratio)
        same_shape = inputs == width and stride == 1
        self.shortcut = nn.Identity() if same_shape else conv_bn(inputs, width, 1, stride)

    def forward(self, inputs: Tensor) -> Tensor:
        branch = self.conv2(F.relu(self.conv1(inputs)))
        return self.se(branch, self.shortcut(inputs))


class SEBottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, SE and shortcut: [N, inputs, H, W] -> [N, 4 width, H', W']."""

    expansion = 4

    def __init__(
        self, inputs: int, width: int, stride: int, se_factory: SEFactory, ratio: float
    ) -> None:
        super().__init__()
        outputs = self.expansion * width
        self.conv1 = conv_bn(inputs, width, 1)
        self.conv2 = conv_bn(width, width, 3, stride)
        self.conv3 = conv_bn(width, outputs, 1)
        self.se = se_factory(outputs, ratio)
        same_shape = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same_shape else conv_bn(inputs, outputs, 1, stride)

    def forward(self, inputs: Tensor) -> Tensor:
        branch = self.conv3(F.relu(self.conv2(F.relu(self.conv1(inputs)))))
        return self.se(branch, self.shortcut(inputs))


class SEResNet(nn.Module):
    """Stem, stages of SE blocks (every stage but the first halves the plane), mean, classifier.

    Args:
        se_factory: makes one SE layer from (channels, ratio), e.g. `SEResidual`.
        block: `SEBasicBlock` or `SEBottleneck`.
        widths: the blocks' width in each stage.
        depths: blocks in each stage.
        ratio: hidden channels of an SE layer over its channels.
        in_channels: channels of the images [N, in_channels, H, W].
        num_classes: logits are [N, num_classes].
        large_images: the stem of ResNet for photographs, a quarter of the plane's height and width.
    """

    def __init__(
        self,
        se_factory: SEFactory,
        *,
        block: type[SEBasicBlock] | type[SEBottleneck] = SEBasicBlock,
        widths: Sequence[int] = (32, 64, 128),
        depths: Sequence[int] = (1, 1, 1),
        ratio: float = 1 / 8,
        in_channels: int = 1,
        num_classes: int = 10,
        large_images: bool = False,
    ) -> None:
        super().__init__()
        self.stem = conv_bn(in_channels, widths[0], *((7, 2) if large_images else (3, 1)))
        self.pool = nn.MaxPool2d(3, 2, padding=1) if large_images else nn.Identity()
        blocks: list[nn.Module] = []
        inputs = widths[0]
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(block(inputs, width, stride, se_factory, ratio))
                inputs = block.expansion * width
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(inputs, num_classes)

    def se_layers(self) -> dict[str, nn.Module]:
        """The SE layer of every block, by the block's name."""
        return {
            f"block {number}": block.se
            for number, block in enumerate(self.blocks, start=1)
            if isinstance(block, (SEBasicBlock, SEBottleneck))
        }

    def forward(self, images: Tensor) -> Tensor:
        features = self.blocks(self.pool(F.relu(self.stem(images))))
        return self.classifier(features.mean(dim=(2, 3)))

"""A small SE-ResNet: Squeeze-and-Excitation in every residual block.

The block is the SE paper's (Hu et al., arXiv:1709.01507, figure 3): SE stands after the last
BatchNorm of the branch and before the shortcut is added.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

SEFactory = Callable[[int, float], nn.Module]  # (channels, reduction ratio) -> SE layer


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution without bias, "same" padding, then BatchNorm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class SEBasicBlock(nn.Module):
    """Two 3x3 convolutions, SE, then the shortcut: [N, inputs, H, W] -> [N, outputs, H', W']."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, se_factory: SEFactory, ratio: float
    ) -> None:
        super().__init__()
        self.conv1 = conv_bn(inputs, outputs, 3, stride)
        self.conv2 = conv_bn(outputs, outputs, 3)
        self.se = se_factory(outputs, ratio)
        same_shape = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same_shape else conv_bn(inputs, outputs, 1, stride)

    def forward(self, inputs: Tensor) -> Tensor:
        branch = self.conv2(F.relu(self.conv1(inputs)))
        return F.relu(self.se(branch) + self.shortcut(inputs))


class SEResNet(nn.Module):
    """Stem, stages of SE blocks (every stage but the first halves the plane), mean, classifier.

    Args:
        se_factory: makes one SE layer from (channels, ratio), e.g. `SEBlock`.
        widths: channels of each stage.
        depths: blocks in each stage.
        ratio: hidden channels of an SE layer over its channels.
        in_channels: channels of the images [N, in_channels, H, W].
        num_classes: logits are [N, num_classes].
    """

    def __init__(
        self,
        se_factory: SEFactory,
        *,
        widths: Sequence[int] = (32, 64, 128),
        depths: Sequence[int] = (1, 1, 1),
        ratio: float = 1 / 8,
        in_channels: int = 1,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        self.stem = conv_bn(in_channels, widths[0], 3)
        blocks: list[nn.Module] = []
        inputs = widths[0]
        for stage, (outputs, depth) in enumerate(zip(widths, depths, strict=True)):
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(SEBasicBlock(inputs, outputs, stride, se_factory, ratio))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(inputs, num_classes)

    def se_layers(self) -> dict[str, nn.Module]:
        """The SE layer of every block, by the block's name."""
        return {
            f"block {number}": block.se
            for number, block in enumerate(self.blocks, start=1)
            if isinstance(block, SEBasicBlock)
        }

    def forward(self, images: Tensor) -> Tensor:
        features = self.blocks(F.relu(self.stem(images)))
        return self.classifier(features.mean(dim=(2, 3)))

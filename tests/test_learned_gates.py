"""SE learns which channels to turn up: an experiment in which it is known which ones help."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gates import class_gates
from torch import Tensor, nn

from seblock_cuda import SEBlock, record_gates
from seblock_cuda.reference import PlainSEBlock

pytest.importorskip("sklearn")

from data import Digits

pytestmark = pytest.mark.usefixtures("one_thread")
HELPFUL, NOISE, HARMFUL = slice(0, 8), slice(8, 16), slice(16, 24)
CHANNELS, STEPS, BATCH = 24, 300, 64


def mixtures(digits: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Images [N, 24, 8, 8]: the digit 8 times, noise 8 times, and 8 times a digit of other images.

    The harmful channels look like helpful ones, but tell of another image's class.
    """
    shape = (len(digits), 8, 8, 8)
    others = digits[torch.randperm(len(digits), generator=generator)]
    parts = [digits.expand(shape), torch.zeros(shape), others.expand(shape)]
    images = torch.cat(parts, dim=1)
    noise = torch.rand(images.shape, generator=generator)
    scale = torch.full((CHANNELS, 1, 1), 0.3)
    scale[NOISE] = 1.0
    return images + scale * noise


class SumOfChannels(nn.Module):
    """SE, then the sum of the channels, then a linear classifier.

    Only the gates can tell one channel from another.
    """

    def __init__(self, se_layer: type[SEBlock] | type[PlainSEBlock]) -> None:
        super().__init__()
        self.se = se_layer(CHANNELS, 1 / 4)
        self.classifier = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.se(images).sum(dim=1).flatten(1))


@pytest.mark.parametrize("se_layer", [SEBlock, PlainSEBlock])
@pytest.mark.parametrize("seed", [0, 1])
def test_helpful_channels_are_opened_and_harmful_ones_closed(
    se_layer: type[SEBlock] | type[PlainSEBlock], seed: int
) -> None:
    data = Digits.load()
    train, test = (
        (images - data.train_images.min()) / 4  # pixels from 0 to about 1
        for images in (data.train_images, data.test_images)
    )
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = SumOfChannels(se_layer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    shown = mixtures(test, data.test_labels, generator)

    def gates() -> np.ndarray:
        return class_gates(model, [(shown, data.test_labels)], classes=10)["se"]

    before = gates()
    assert np.abs(before - 0.5).max() < 0.2
    for _ in range(STEPS):
        batch = torch.randint(len(train), (BATCH,), generator=generator)
        labels = data.train_labels[batch]
        loss = F.cross_entropy(model(mixtures(train[batch], labels, generator)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    after = gates()  # [10, 24]
    helpful, noise, harmful = (after[:, part] for part in (HELPFUL, NOISE, HARMFUL))
    assert helpful.min() > 0.8, "of every class and every channel"
    assert harmful.max() < 0.2
    assert noise.mean() < helpful.mean() - 0.3
    right = model(shown).argmax(dim=1) == data.test_labels
    assert right.float().mean() > 0.9


def test_gates_of_a_class_are_the_mean_over_its_images() -> None:
    torch.manual_seed(0)
    model = SumOfChannels(SEBlock)
    images, labels = torch.rand(9, CHANNELS, 8, 8), torch.tensor([0, 1, 3] * 3)
    batches = [(images[:4], labels[:4]), (images[4:], labels[4:])]
    means = class_gates(model, batches, classes=4)["se"]
    with record_gates(model) as gates:
        model(images[labels == 3])
    torch.testing.assert_close(torch.from_numpy(means[3]), gates["se"][0].mean(dim=0))
    assert np.isnan(means[2]).all()
    first = class_gates(model, batches, classes=2)["se"]
    np.testing.assert_array_equal(first, means[:2])

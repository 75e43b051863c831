"""Trains a network of timm with Hugging Face's accelerate: one process or many.

    accelerate launch examples/start/accelerate_loop.py photos --model regnety_016

photos/<class>/<image>. The SE layers are converted before `prepare`, which may wrap the model.
"""

import argparse
from collections.abc import Sequence

import timm
import torch
import torchvision
from accelerate import Accelerator
from torchvision.transforms import v2

from seblock_cuda import convert_se_modules


def main(argv: Sequence[str] | None = None) -> list[float]:
    """Returns the loss of every step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--model", default="regnety_016")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args(argv)
    accelerator = Accelerator(mixed_precision="bf16")

    steps = [v2.ToImage(), v2.RandomResizedCrop(options.size)]
    dataset = torchvision.datasets.ImageFolder(
        options.data, v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True)])
    )
    loader = torch.utils.data.DataLoader(dataset, options.batch_size, shuffle=True, num_workers=2)
    model = timm.create_model(options.model, num_classes=len(dataset.classes))
    accelerator.print(convert_se_modules(model, fuse_residual=True))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

    losses = []
    for epoch in range(options.epochs):
        for images, labels in loader:
            loss = torch.nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            losses.append(loss.item())
        accelerator.print(f"epoch {epoch}: loss {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()

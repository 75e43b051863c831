"""Trains a network of timm with timm's own loader, optimiser and schedule.

    python examples/start/timm_loop.py photos --model seresnet50   # photos/<class>/<image>

What is not timm's is one line: convert_se_modules.
"""

import argparse
from collections.abc import Sequence

import timm
import torch
from timm.data import create_dataset, create_loader
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch.nn.functional import cross_entropy

from seblock_cuda import convert_se_modules


def main(argv: Sequence[str] | None = None) -> list[float]:
    """Returns the loss of every step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--model", default="seresnet50")
    parser.add_argument("--pretrained", action="store_true")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    dataset = create_dataset("", root=options.data)
    loader = create_loader(
        dataset, options.size, options.batch_size, is_training=True, device=device
    )  # fmt: skip
    classes = len(dataset.reader.class_to_idx)
    model = timm.create_model(options.model, pretrained=options.pretrained, num_classes=classes)
    print(convert_se_modules(model, fuse_residual=True))
    model.to(device, memory_format=torch.channels_last).train()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
    schedule, epochs = create_scheduler_v2(optimizer, num_epochs=options.epochs)

    losses = []
    for epoch in range(epochs):
        for images, labels in loader:
            with torch.autocast(device.type, torch.bfloat16):
                loss = cross_entropy(model(images.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        schedule.step(epoch + 1)
        print(f"epoch {epoch}: loss {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()

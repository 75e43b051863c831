"""Trains a network of torchvision as its references do.

    python examples/start/torchvision_references.py photos --model efficientnet_b0

photos/<class>/<image>. What is not torchvision's is one line: convert_se_modules.
"""

import argparse
from collections.abc import Sequence

import torch
import torchvision
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.transforms import v2

from seblock_cuda import convert_se_modules


def main(argv: Sequence[str] | None = None) -> list[float]:
    """Returns the loss of every step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--model", default="efficientnet_b0")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    steps = [v2.ToImage(), v2.RandomResizedCrop(options.size), v2.RandomHorizontalFlip()]
    steps += [
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.485, 0.456, 0.406], [0.225] * 3),
    ]
    dataset = torchvision.datasets.ImageFolder(options.data, v2.Compose(steps))
    loader = torch.utils.data.DataLoader(dataset, options.batch_size, shuffle=True, num_workers=2)
    model = torchvision.models.get_model(options.model, num_classes=len(dataset.classes))
    print(convert_se_modules(model))
    model.to(device, memory_format=torch.channels_last).train()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)

    losses = []
    for epoch in range(options.epochs):
        for images, labels in loader:
            with torch.autocast(device.type, torch.bfloat16):
                loss = criterion(model(images.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.update_parameters(model)
            losses.append(loss.item())
        schedule.step()
        print(f"epoch {epoch}: loss {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()

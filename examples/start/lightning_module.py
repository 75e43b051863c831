"""Trains a network of timm with Lightning.

    python examples/start/lightning_module.py photos --model mobilenetv3_large_100

photos/<class>/<image>. The SE layers are converted where the module makes its network, so that
checkpoints, devices and precision are Lightning's business as before.
"""

import argparse
from collections.abc import Sequence

import lightning
import timm
import torch
import torchvision
from torch import Tensor
from torchvision.transforms import v2

from seblock_cuda import convert_se_modules


class Classifier(lightning.LightningModule):
    """A network of timm with fused SE layers."""

    def __init__(self, model: str, classes: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = timm.create_model(model, num_classes=classes)
        print(convert_se_modules(self.network, fuse_residual=True))

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        images, labels = batch
        loss = torch.nn.functional.cross_entropy(self.network(images), labels)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.05)


def main(argv: Sequence[str] | None = None) -> Classifier:
    """Returns the trained module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--model", default="mobilenetv3_large_100")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args(argv)
    steps = [v2.ToImage(), v2.RandomResizedCrop(options.size)]
    dataset = torchvision.datasets.ImageFolder(
        options.data, v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True)])
    )
    loader = torch.utils.data.DataLoader(dataset, options.batch_size, shuffle=True, num_workers=2)
    classifier = Classifier(options.model, len(dataset.classes))
    trainer = lightning.Trainer(max_epochs=options.epochs, precision="bf16-mixed")
    trainer.fit(classifier, loader)
    return classifier


if __name__ == "__main__":
    main()

"""Trains SE networks: for classes or identities, on one device or many.

    python examples/train.py                              the demo: fused against plain SE
    python examples/train.py --data folder:photos         your images, one folder per class
    torchrun --nproc_per_node=8 examples/train.py --data folder:faces --model irse50 --loss arcface

docs/train.md explains the options and what is written. Run again with --resume it continues.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import networks
import torch
from problem import Problem
from ranks import Ranks

from seblock_cuda._ops import cuda_unusable_reason

DEMO = ("epochs", "batch_size", "lr", "seed", "device", "threads", "output", "quick")
LR = 0.1  # for 256 images in a step, Goyal et al., arXiv:1706.02677


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Trains SE networks. With none of the options, or only with those marked by a "
        "*, it is the demo: a small SE-ResNet on digits, fused against plain.",
    )
    add = parser.add_argument_group("what to train").add_argument
    add("--model", type=_model, help=f"{', '.join(networks.NAMES)} or timm:<name>")
    add("--data", type=_data, help="digits, or folder:<path> with one folder per class or identity")
    add("--loss", choices=["ce", "arcface", "cosface", "partialfc"])
    add("--se", choices=["fused", "plain"])
    add("--norm", choices=["batch", "group", "sync"], default="batch", help="sync needs GPUs")
    add("--size", type=int, help="height and width of the images")
    add("--embedding", type=int, default=512, help="numbers of an embedding, for margin losses")
    add("--scale", type=float, default=64.0, help="of the cosines, for margin losses")
    add("--margin", type=float, help="default: the paper's")
    add("--sample-rate", type=float, default=1.0, help="partialfc: the part of the centres in use")

    add = parser.add_argument_group("how").add_argument
    add("--epochs", type=int, default=15, help="*")
    add("--batch-size", type=int, default=64, help="* of all processes together")
    add("--lr", type=float, help=f"* the highest learning rate; {LR} * batch size / 256")
    add("--se-lr", type=float, default=1.0, help="times --lr for the SE layers")
    add("--weight-decay", type=float, default=5e-4)
    add("--warmup", type=int, default=20, help="steps to the highest rate; a cosine follows")
    add("--ema", type=float, default=0.0, help="decay of a moving average of the weights; 0: none")
    add("--seed", type=int, default=0, help="* of the weights and of the order of the batches")
    add("--amp", choices=["off", "bf16", "fp16"], default="off")
    add("--channels-last", action="store_true")
    add("--compile", action="store_true", help="torch.compile")
    add("--deterministic", action="store_true", help="the same bits in every run on a GPU")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="*")
    add("--threads", type=int, help="* on the CPU; the small network takes 1")
    add("--workers", type=int, default=4, help="processes that read images")
    add("--bad-files", choices=["stop", "skip"], default="stop")

    add = parser.add_argument_group("what is written").add_argument
    add("--output", type=Path, help="* the folder; for the demo the picture")
    add("--resume", nargs="?", const="latest", metavar="CHECKPOINT", help="continue a training")
    add("--log-every", type=int, default=20, metavar="STEPS")
    add("--save-every", type=int, metavar="STEPS", help="default: an epoch")
    add("--eval-every", type=int, default=1, metavar="EPOCHS")
    add("--quick", action="store_true", help="* the demo in a few steps, to see that it works")
    options = parser.parse_args(arguments)
    options.demo = all(
        value == parser.get_default(name)
        for name, value in vars(options).items()
        if name not in DEMO
    )
    if options.quick and not options.demo:
        parser.error("--quick is for the demo")
    _fill_in(options)
    return options


def _model(name: str) -> str:
    if name not in networks.NAMES and not name.startswith("timm:"):
        raise argparse.ArgumentTypeError(f"{', '.join(networks.NAMES)} or timm:<name>, got {name}")
    return name


def _data(name: str) -> str:
    if name != "digits" and not name.startswith("folder:"):
        raise argparse.ArgumentTypeError(f"digits or folder:<path>, got {name}")
    return name


def _fill_in(options: argparse.Namespace) -> None:
    """The defaults that depend on other options."""
    if options.demo:
        options.threads = options.threads or 1  # more gain little on a net this small
        options.output = options.output or Path("out/demo.png")
        options.lr = options.lr or 0.03
        return
    options.data = options.data or "digits"
    options.model = options.model or ("small" if options.data == "digits" else "seresnet18")
    options.loss = options.loss or "ce"
    options.se = options.se or "fused"
    options.output = options.output or Path("out/train")
    options.threads = options.threads or (1 if options.model == "small" else None)
    options.lr = options.lr or LR * options.batch_size / 256


def choose_device(name: str, ranks: Ranks) -> torch.device:
    """`auto` is CUDA where the kernels can run; every process of a machine has its own GPU."""
    reason = cuda_unusable_reason()
    if name == "cuda" and reason:
        raise Problem(f"--device cuda: {reason}")
    if name == "cpu" or reason:
        return torch.device("cpu")
    if ranks.local_rank >= torch.cuda.device_count():
        raise Problem(f"{torch.cuda.device_count()} GPUs here, none for process {ranks.local_rank}")
    torch.cuda.set_device(ranks.local_rank)
    return torch.device("cuda", ranks.local_rank)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    ranks = Ranks.from_environment()
    try:
        device = choose_device(options.device, ranks)
        if options.demo:
            import demo

            return demo.run(options, device)
        if options.norm == "sync" and device.type != "cuda":
            raise Problem("--norm sync needs GPUs; on CPUs --norm group does not mix images either")
        if options.threads:
            torch.set_num_threads(options.threads)
        if device.type == "cuda":
            torch.backends.cudnn.deterministic = options.deterministic
            torch.backends.cudnn.benchmark = not options.deterministic
        ranks.join(device)
        from training import Training

        Training(options, device, ranks).run()
    except Problem as problem:
        if ranks.first:
            print(problem, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        if ranks.first:
            print("\ninterrupted", file=sys.stderr)
        return 130
    finally:
        ranks.leave()
    return 0


if __name__ == "__main__":
    sys.exit(main())

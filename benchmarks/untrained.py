"""How far methods that need no training move a network's answers: docs/results.md.

::

    python benchmarks/untrained.py VAL --model NAME --checkpoint WEIGHTS

For each method and budget the KL divergence from the dense answers, the share of images whose
answer is the dense one's, and top-1. In fp32.
"""

from __future__ import annotations

import argparse

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from dynamicvit import load_dense
from dynamicvit.backbones import backbone_for
from dynamicvit.costs import count_macs
from dynamicvit.data import ImageData, Loader, class_map_for, eval_transform
from dynamicvit.methods import at_macs


@torch.inference_mode()
def answers(network: nn.Module, loader: Loader) -> tuple[Tensor, Tensor]:
    """Log-probabilities ``(images, classes)`` and labels ``(images,)``."""
    found = [(network(batch.images).log_softmax(dim=1), batch.labels) for batch in loader]
    logs, labels = zip(*found, strict=True)
    return torch.cat(logs), torch.cat(labels)


def row(given: Tensor, dense: Tensor, labels: Tensor) -> list[str]:
    """The cells of a network whose answers are compared with the dense one's."""
    divergence = (dense.exp() * (dense - given)).sum(dim=1).mean()
    answer = given.argmax(dim=1)
    agreement, top1 = (answer == dense.argmax(dim=1)), (answer == labels)
    return [f"{divergence:.4f}", *(f"{100 * x.float().mean():.2f} %" for x in (agreement, top1))]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Methods that need no training.")
    parser.add_argument("images", help="a source of labeled images")
    parser.add_argument("--model", required=True, help="timm's name of the dense network")
    parser.add_argument("--checkpoint", help="its weights; by default timm's")
    parser.add_argument("--methods", nargs="+", default=["lookahead", "tome"])
    parser.add_argument("--macs", nargs="+", type=float, default=[0.64, 0.48])
    parser.add_argument("--crop-pct", type=float)
    arguments = parser.parse_args()
    network = load_dense(arguments.model, arguments.checkpoint).eval()
    transform = eval_transform(network, crop_pct=arguments.crop_pct)
    data = ImageData(arguments.images).with_transform(transform)
    class_map = class_map_for(data, backbone_for(network).num_classes)
    loader = Loader(data.with_class_map(class_map.index), batch_size=50)
    dense, labels = answers(network, loader)
    table = Table("method", "of dense MACs", "KL", "agreement", "top-1")
    table.add_row("dense", "1", *row(dense, dense, labels))
    for fraction in arguments.macs:
        for name in arguments.methods:
            model = at_macs(name, network, fraction).eval()
            share = count_macs(model) / count_macs(network)
            table.add_row(name, f"{share:.3f}", *row(answers(model, loader)[0], dense, labels))
    Console().print(table)


if __name__ == "__main__":
    main()

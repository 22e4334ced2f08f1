"""How far an image's kept patches and logits hang on batch, precision and runtime: docs/export.md.

::

    python benchmarks/same_answer.py IMAGES --checkpoint deit_tiny_patch16_224.safetensors
    python benchmarks/same_answer.py IMAGES --checkpoint ... --policy removed --file model.xml

The model is DeiT-Tiny with a method that needs no training, at ρ = 0.7. Each image alone in fp32 is
what the others are compared with.
"""

from __future__ import annotations

import argparse
from itertools import islice

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from dynamicvit import load_dense, sparsify
from dynamicvit.core.classifier import PrunedClassifier
from dynamicvit.core.networks import core_of
from dynamicvit.data import ImageData, Loader, eval_transform
from dynamicvit.runtimes import load_exported
from dynamicvit.utils.precision import autocast, autocast_dtype


def images_of(source: str, count: int, model: torch.nn.Module) -> Tensor:
    """The first images of a source, ``(B, 3, height, width)``."""
    data = ImageData(source, labeled=False).with_transform(eval_transform(model))
    batches = islice(Loader(data, batch_size=32), -(-count // 32))
    return torch.cat([batch.images for batch in batches])[:count]


def outputs(
    model: PrunedClassifier, images: Tensor, batch: int, precision: str = "fp32"
) -> tuple[Tensor, list[Tensor]]:
    """Logits ``(B, classes)``, and for each stage the kept patches ``(B, N)``."""
    with torch.inference_mode(), autocast("cpu", autocast_dtype(precision)):
        found = [model.forward_pruned(part) for part in images.split(batch)]
    kept = zip(*(part.kept for part in found), strict=True)
    return torch.cat([part.logits.float() for part in found]), [torch.cat(each) for each in kept]


def row(own: tuple[Tensor, list[Tensor]], other: tuple[Tensor, list[Tensor]]) -> list[str]:
    """The cells of a comparison."""
    pairs = list(zip(own[1], other[1], strict=True))
    same = torch.stack([(mine == theirs).all(dim=1) for mine, theirs in pairs]).all(dim=0)
    shared = [((mine & theirs).sum(1) / mine.sum(1)).mean() for mine, theirs in pairs]
    moved = (own[0] - other[0]).abs().amax(dim=1)
    answers = (own[0].argmax(dim=1) == other[0].argmax(dim=1)).float().mean()
    return [
        f"{int((~same).sum())} of {len(same)}",
        ", ".join(f"{share:.1%}" for share in shared),
        f"{answers:.1%}",
        f"{moved.median():.1g}",
        f"{moved.max():.1g}",
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Kept patches and logits.")
    parser.add_argument("images", help="a source of images")
    parser.add_argument("--checkpoint", required=True, help="DeiT-Tiny's weights")
    parser.add_argument("--method", default="class-attention")
    parser.add_argument("--policy", nargs="+", default=["removed", "merged"])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--file", nargs="*", default=[], help="exported files of the same model")
    arguments = parser.parse_args()
    table = Table("policy", "", "other sets", "shared, by stage", "answers", "median", "largest")
    for policy in arguments.policy:
        dense = load_dense("deit_tiny_patch16_224", arguments.checkpoint)
        model = core_of(sparsify(dense, 0.7, None, policy, method=arguments.method)).eval()
        images = images_of(arguments.images, arguments.count, model)
        own = outputs(model, images, 1)
        table.add_row(policy, "32 at once", *row(own, outputs(model, images, 32)))
        table.add_row(policy, "bf16", *row(own, outputs(model, images, 32, "bf16")))
        for name in arguments.file:
            file = load_exported(name)
            table.add_row(policy, name, *row(own, outputs(file, images, 32)))
    Console().print(table)


if __name__ == "__main__":
    main()

"""Which patches matter: how far an untrained pruned network is from the dense one, by the oracle.

Every oracle has seen the dense network run on the image and ranks its patches for each stage; the
best are kept by the schedule, and the answers compared with the dense ones. Nothing is trained, so
this says which ranking is worth learning::

    python benchmarks/ranking.py IMAGES --checkpoint deit_tiny_patch16_224.safetensors --images 200
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dynamicvit import sparsify
from dynamicvit.data import ImageData, Loader, eval_transform
from dynamicvit.loading import load_backbone
from dynamicvit.model import DynamicViT
from dynamicvit.teacher import dense_teacher, weigh_patches

Scores = list[Tensor]
"""For each stage ``(B, N)``, what a patch is worth."""


def attention(teacher: DynamicViT, images: Tensor) -> list[Tensor]:
    """``(B, H, T, T)`` for each block of a timm ViT: the weights of its attention."""
    weights: list[Tensor] = []
    blocks: Any = teacher.blocks
    for block in blocks:
        block.attn.fused_attn = False  # unfused, they pass through a dropout module
    hooks = [
        block.attn.attn_drop.register_forward_hook(lambda *call: weights.append(call[-1]))
        for block in blocks
    ]
    teacher.backbone(images)
    for hook in hooks:
        hook.remove()
    return weights


def by_chance(teacher: DynamicViT, images: Tensor) -> Scores:
    """Any patches."""
    patches = teacher.stem(images, depth=0).tokens.patches
    return [torch.rand(patches.shape[:2]) for _ in teacher.schedule.stages]


def by_class_attention(teacher: DynamicViT, images: Tensor) -> Scores:
    """What the class token attends to in the last third of the blocks."""
    last = attention(teacher, images)[2 * teacher.depth // 3 :]
    score = torch.stack([weight[:, :, 0] for weight in last]).mean(dim=(0, 2))
    return [score[:, teacher.num_prefix_tokens :]] * len(teacher.schedule.stages)


def by_attention_received(teacher: DynamicViT, images: Tensor) -> Scores:
    """What all tokens attend to in the last third of the blocks."""
    last = attention(teacher, images)[2 * teacher.depth // 3 :]
    score = torch.stack(last).mean(dim=(0, 2, 3))
    return [score[:, teacher.num_prefix_tokens :]] * len(teacher.schedule.stages)


def by_importance(teacher: DynamicViT, images: Tensor) -> Scores:
    """What the dense answer hangs on: the guidance of training."""
    importance = weigh_patches(teacher, images).importance
    assert importance is not None
    return list(importance)


ORACLES: dict[str, Callable[[DynamicViT, Tensor], Scores]] = {
    "chance": by_chance,
    "attention of the class token": by_class_attention,
    "attention received": by_attention_received,
    "importance": by_importance,
}


def keep_best(scores: Scores, kept: tuple[int, ...]) -> Scores:
    """The decisions that keep the best of those still there."""
    alive = torch.ones_like(scores[0])
    decisions = []
    for score, budget in zip(scores, kept, strict=True):
        best = score.masked_fill(alive < 0.5, float("-inf")).topk(budget, dim=1).indices
        alive = torch.zeros_like(alive).scatter(1, best, 1.0)
        decisions.append(alive)
    return decisions


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="folder of class folders")
    parser.add_argument("--model", default="deit_tiny_patch16_224", help="a timm ViT")
    parser.add_argument("--checkpoint", help="its weights; timm's by default")
    parser.add_argument("--keep-ratio", type=float, default=0.7)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    backbone = load_backbone(options.model, options.checkpoint)
    model = sparsify(backbone, options.keep_ratio).eval()
    teacher = dense_teacher(model)
    data = ImageData(options.data).with_transform(eval_transform(model))
    loader = Loader(data, options.batch_size, shuffle=True)
    divergence: dict[str, float] = defaultdict(float)
    agreed: dict[str, int] = defaultdict(int)
    seen = 0
    with torch.no_grad():
        for batch in islice(loader, -(-options.images // options.batch_size)):
            dense = teacher.forward_dense(batch.images).logits.log_softmax(dim=-1)
            kept = model.schedule.kept(teacher.stem(batch.images, depth=0).tokens.num_patches)
            for name, oracle in ORACLES.items():
                decisions = keep_best(oracle(teacher, batch.images), kept)
                pruned = model.forward_pruned(batch.images, decisions).logits.log_softmax(dim=-1)
                divergence[name] += F.kl_div(pruned, dense, log_target=True, reduction="sum").item()
                agreed[name] += int((pruned.argmax(-1) == dense.argmax(-1)).sum())
            seen += len(batch)
    print(f"{options.model}, keep ratio {options.keep_ratio}, {seen} images")
    print(f"{'oracle':32}{'KL':>8}{'agreement':>12}")
    for name in ORACLES:
        print(f"{name:32}{divergence[name] / seen:8.4f}{100 * agreed[name] / seen:10.1f} %")


if __name__ == "__main__":
    main()

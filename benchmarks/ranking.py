"""Which patches matter: how far an untrained pruned network is from the dense one, by the oracle.

Every oracle has seen the dense network run on the image and ranks its patches for each stage; the
best are kept by the schedule, the others removed or merged into them, and the answers compared with
the dense ones. Nothing is trained, so this says which ranking is worth learning, and what becomes
best of the rest::

    python benchmarks/ranking.py IMAGES --checkpoint deit_tiny_patch16_224.safetensors --images 200
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable
from itertools import islice
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from dynamicvit import sparsify
from dynamicvit.checkpoints.dense import load_dense
from dynamicvit.core import merging
from dynamicvit.core.method import Choice
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.schedule import Policy
from dynamicvit.core.teacher import dense_teacher, weigh_patches
from dynamicvit.data import ImageData, Loader, eval_transform
from dynamicvit.layers.tokens import Tokens

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
    patches = teacher.first_blocks(images).patches
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


class Oracle(Choice):
    """Keeps the patches that an oracle ranks highest in the images at hand."""

    def __init__(self) -> None:
        super().__init__()
        self.worth = torch.zeros(0)

    def keep_scores(self, tokens: Tokens) -> Tensor:
        """What the oracle said of the held patches."""
        worth = self.worth if tokens.index is None else self.worth.gather(1, tokens.index)
        return worth.clamp(min=torch.finfo(worth.dtype).tiny).log()


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="folder of class folders")
    parser.add_argument("--model", default="deit_tiny_patch16_224", help="a timm ViT")
    parser.add_argument("--checkpoint", help="its weights; timm's by default")
    parser.add_argument("--keep-ratio", type=float, default=0.7)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--crop-pct", type=float, default=0.875)
    parser.add_argument(
        "--unlikeness-power",
        type=float,
        default=merging.UNLIKENESS_POWER,
        help="how much the choice minds likeness where dropped tokens merge; 0: not at all",
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    merging.UNLIKENESS_POWER = options.unlikeness_power
    backbone = load_dense(options.model, options.checkpoint)
    models = {
        policy: DynamicViT(backbone, schedule, [Oracle() for _ in schedule.stages])
        for policy in get_args(Policy)
        for schedule in [
            sparsify(backbone, options.keep_ratio, policy=policy, method="dynamicvit").schedule
        ]
    }
    teacher = dense_teacher(models["removed"].eval())
    data = ImageData(options.data).with_transform(
        eval_transform(teacher, crop_pct=options.crop_pct)
    )
    loader = Loader(data, options.batch_size, shuffle=True)
    divergence: dict[tuple[str, str], float] = defaultdict(float)
    agreed: dict[tuple[str, str], int] = defaultdict(int)
    seen = 0
    with torch.no_grad():
        for batch in islice(loader, -(-options.images // options.batch_size)):
            dense = teacher.forward_dense(batch.images).logits.log_softmax(dim=-1)
            for name, oracle in ORACLES.items():
                scores = oracle(teacher, batch.images)
                for policy, model in models.items():
                    for module, worth in zip(model.predictors, scores, strict=True):
                        module.worth = worth
                    pruned = model.eval()(batch.images).log_softmax(dim=-1)
                    divergence[name, policy] += F.kl_div(
                        pruned, dense, log_target=True, reduction="sum"
                    ).item()
                    agreed[name, policy] += int((pruned.argmax(-1) == dense.argmax(-1)).sum())
            seen += len(batch)
    print(f"{options.model}, keep ratio {options.keep_ratio}, {seen} images: KL, agreement")
    print(f"{'oracle':32}" + "".join(f"{'dropped ' + policy:>20}" for policy in models))
    for name in ORACLES:
        cells = (
            f"{divergence[name, policy] / seen:11.4f}{100 * agreed[name, policy] / seen:7.1f} %"
            for policy in models
        )
        print(f"{name:32}" + "".join(cells))


if __name__ == "__main__":
    main()

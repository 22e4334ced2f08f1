"""Small ConvNeXt and Swin on the demo's scenes: dense, then with cheap paths, scored and timed.

    python benchmarks/hierarchical.py convnext FOLDER

The images are the scenes' halves around the digit: 48 px, 3 x 3 positions in ConvNeXt's third stage
and 6 x 6 in Swin's (such networks pool over all of a scene, and learn to find a digit in it from
many more images). FOLDER keeps the dense model, the fine-tuned one and what was measured; what is
there is not done again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from dynamicvit import DynamicViT, Schedule, count_macs, sparsify
from dynamicvit.demo.experiment import SceneLoader
from dynamicvit.demo.scenes import (
    GRID,
    IMAGE_SIZE,
    MEAN,
    NUM_CLASSES,
    PATCH_SIZE,
    STD,
    SceneBatch,
    Scenes,
)
from dynamicvit.demo.train_dense import learning_rate, top1
from dynamicvit.evaluation.bench import bench
from dynamicvit.training import fit, load_recipe

NETWORKS = {
    "convnext": (
        "convnext_tiny",
        {"dims": (16, 32, 64, 128), "depths": (1, 1, 6, 1), "patch_size": 2, "ls_init_value": 1.0},
    ),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {
            **{"embed_dim": 16, "depths": (1, 1, 6, 1), "num_heads": (1, 2, 4, 8)},
            **{"patch_size": 2, "window_size": 6, "img_size": 48, "drop_path_rate": 0.0},
        },
    ),
}
RATIOS = (0.9, 0.7, 0.5)
SIDE = IMAGE_SIZE // 2


class Closeups(Scenes):
    """The halves of the scenes' sides around their digits: ``(B, 3, 48, 48)``."""

    def batch(self, indices: Sequence[int], *, with_digit: bool = True) -> SceneBatch:
        """The same scenes, cropped."""
        scene = super().batch(indices, with_digit=with_digit)
        found = []
        rows = scene.digit_patches.unflatten(1, (GRID, GRID))
        for image, row in zip(scene.images, rows, strict=True):
            top, left = (PATCH_SIZE * int(row.any(axis).int().argmax()) for axis in (1, 0))
            top, left = (min(max(edge - PATCH_SIZE, 0), IMAGE_SIZE - SIDE) for edge in (top, left))
            found.append(image[:, top : top + SIDE, left : left + SIDE])
        return scene._replace(images=torch.stack(found))


def dense_network(name: str, images: int, rate: float) -> nn.Module:
    """Trained on scenes whose clutter grows."""
    torch.manual_seed(0)
    model_name, arguments = NETWORKS[name]
    model = timm.create_model(model_name, num_classes=NUM_CLASSES, global_pool="max", **arguments)
    ema = ModelEmaV3(model, decay=0.99, use_warmup=True)
    optimizer = create_optimizer_v2(model, "adamw", lr=rate, weight_decay=0.05)
    batch, began = 32, time.perf_counter()
    for step in range(steps := images // batch):
        done = step / steps
        clutter = min(max((done - 0.2) / 0.3, 0.0), 1.0)
        scene = Closeups("train", clutter=clutter).batch(range(step * batch, step * batch + batch))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(done, rate)
        loss = F.cross_entropy(model.train()(scene.images), scene.labels, label_smoothing=0.05)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(model, step + 1)
        if step % 100 == 99:
            score = top1(ema.module, Closeups("score", clutter=clutter), 200)
            seconds = time.perf_counter() - began
            print(f"step {step + 1}, {seconds:.0f} s, loss {loss:.2f}, {score:.1f} %", flush=True)
    return ema.module.eval()


def described(network: Any) -> nn.Module:
    """With what the demo's images are."""
    size = {"input_size": (3, SIDE, SIDE), "mean": (MEAN,) * 3, "std": (STD,) * 3}
    network.pretrained_cfg = {**network.pretrained_cfg, **size, "num_classes": NUM_CLASSES}
    return network


@torch.inference_mode()
def scored(model: DynamicViT, count: int, chance: bool = False) -> float:
    """Top-1; with ``chance``, as many positions take the slow path, but any."""
    torch.manual_seed(0)
    right = 0
    for start in range(0, count, 100):
        scene = Closeups("score").batch(range(start, start + 100))
        decisions: list[Tensor] | None = None
        if chance:
            patches = model.first_blocks(scene.images[:1]).grid_size
            decisions = []
            for kept in model.schedule.kept(patches):
                order = torch.rand(100, patches).argsort(1)
                decisions.append((order < kept).float())
        logits = model.forward_pruned(scene.images, decisions).logits
        right += int((logits.argmax(1) == scene.labels).sum())
    return 100 * right / count


def main() -> None:
    """Train what is not there, score, time, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=list(NETWORKS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=28_800, help="to train the dense one on")
    parser.add_argument("--tuned", type=int, default=6_400, help="to fine-tune on")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--count", type=int, default=1_000, help="scenes to score on")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--set", action="append", default=[], help="values of the recipe")
    args = parser.parse_args()
    torch.set_num_threads(1)
    dense, tuned = args.folder / "dense", args.folder / "tuned"
    if not (dense / "config.json").exists():
        network = described(dense_network(args.network, args.images, args.rate))
        DynamicViT(network, Schedule((), ()), []).save_pretrained(dense)
    backbone = DynamicViT.from_pretrained(dense).backbone
    found: dict[str, dict[str, Any]] = {
        "dense": {"top1": top1(backbone, Closeups("score"), args.count)}
    }
    found["dense"]["gmacs"] = count_macs(backbone) / 1e9
    if not (tuned / "config.json").exists():
        model = sparsify(backbone, 0.7)
        more = [f"images={args.tuned}", "batch_size=64", "augment.mixup_prob=0"]
        recipe = load_recipe("small_data", [*more, "backbone_lr_scale=0.1", *args.set])
        loader = SceneLoader(Closeups("train", seed=1), args.tuned, recipe.batch_size)
        fit(model, loader, recipe, args.folder / "run", force=True)
        model.save_pretrained(tuned)
    model = DynamicViT.from_pretrained(tuned)
    for ratio in RATIOS:
        model.keep_ratio = ratio
        row: dict[str, Any] = {
            "top1": scored(model, args.count),
            "chance": scored(model, args.count, chance=True),
        }
        row["gmacs"] = count_macs(model) / 1e9
        for timing in bench(
            model, batch_sizes=(1, 8, 32), precisions=("fp32",), threads=1, seconds=args.seconds
        ):
            speed = timing.speedup
            row[f"speedup_{timing.batch_size}"] = [speed.low, speed.median, speed.high]
        found[str(ratio)] = row
        print(ratio, json.dumps(row), flush=True)
    (args.folder / "measured.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(json.dumps(found["dense"]))


if __name__ == "__main__":
    main()

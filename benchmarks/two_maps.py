"""What training in one map gives beside the released form, which carries two.

    PYTHONPATH=tests python benchmarks/two_maps.py convnext DENSE

DENSE is a folder of that name that ``hierarchical.py`` made. From its network both forms are
fine-tuned at ρ = 0.7 by the paper's losses: the same images in the same order, the same noise of
the draws, for each seed. Scored is what inference gives.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from hierarchical import NETWORKS, Closeups, scored
from torch import Tensor

import two_streams  # pyright: ignore[reportMissingImports]  # of the tests
from dynamicvit import DynamicViT, sparsify
from dynamicvit.core.decisions import Sampler
from dynamicvit.core.method import Masked
from dynamicvit.core.outputs import MaskedOutput
from dynamicvit.demo.experiment import SceneLoader
from dynamicvit.training import fit, load_recipe

RATIOS = (0.7, 0.5)


def in_two_maps(model: DynamicViT, images: Tensor, *, sampler: Sampler, **_: Any) -> MaskedOutput:
    """The masked path of the released form."""
    report: list[Masked] = []

    def draw(stage: int, scores: Tensor) -> Tensor:
        decision = sampler(scores, torch.ones_like(scores), 0)
        report.append(Masked(start, decision, scores))
        return decision

    start = model.first_blocks(images)
    end = two_streams.walk(model, images, draw)
    return MaskedOutput.of(report, end, model.bound.answers(end), None)


def tuned(dense: Path, two: bool, seed: int, settings: list[str]) -> DynamicViT:
    """The network after fine-tuning in either form."""
    recipe = load_recipe("convnext_tiny", [*settings, f"seed={seed}"])
    torch.manual_seed(seed)
    model = sparsify(DynamicViT.from_pretrained(dense).backbone, 0.7)
    if two:
        model.forward_masked = lambda images, **more: in_two_maps(model, images, **more)
    images = Closeups("train", seed=seed)
    loader = SceneLoader(images, recipe.images, recipe.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        fit(model, loader, recipe, Path(folder, "run"))
    vars(model).pop("forward_masked", None)
    return model.eval()


def main() -> None:
    """Train both forms with each seed, and score them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=list(NETWORKS))
    parser.add_argument("dense", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=6_400)
    parser.add_argument("--count", type=int, default=2_000, help="scenes to score on")
    parser.add_argument("--set", action="append", default=[], help="values of the recipe")
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings = [f"images={args.images}", "batch_size=64", "learning_rate=1e-3", "drop_path=0"]
    settings += ["augment.mixup_prob=0", "augment.smoothing=0", "backbone_frozen=0", "warmup=0.1"]
    for seed in range(args.seeds):
        for two in (False, True):
            model = tuned(args.dense, two, seed, [*settings, *args.set])
            found = []
            for ratio in RATIOS:
                model.keep_ratio = ratio
                found.append(f"{scored(model, args.count):.2f} % at {ratio}")
            maps = "two maps" if two else "one map"
            print(f"{args.network}, seed {seed}, {maps}: {', '.join(found)}", flush=True)


if __name__ == "__main__":
    main()

"""The demo's experiment: sparsify, fine-tune, compare with the dense network and random tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch

from dynamicvit.core.model import DynamicViT
from dynamicvit.costs import count_macs
from dynamicvit.data import Batch
from dynamicvit.demo.dense import load_dense
from dynamicvit.demo.scenes import MEAN, STD, Scenes
from dynamicvit.evaluation.bench import bench
from dynamicvit.plots import draw
from dynamicvit.sparsification import sparsify
from dynamicvit.training import Progress, Recipe, fit, load_recipe
from dynamicvit.utils.files import temporary_folder
from dynamicvit.utils.precision import autocast, worthwhile
from dynamicvit.utils.words import percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRAINED_RATIO = 0.7
RATIOS = (0.9, 0.7, 0.5)
SHOWN = 4  # scenes, in the picture
BATCH_SIZE = 16  # of timings


@dataclass(frozen=True)
class Size:
    """The size of the demo.

    Attributes:
        train_scenes: to fine-tune on.
        score_scenes: to score on, with digits and backgrounds never trained on.
        bench_seconds: of timing for each row.
        random_ratios: keep ratios at which random tokens are scored and timed.
    """

    train_scenes: int
    score_scenes: int
    bench_seconds: float
    random_ratios: tuple[float, ...]


SHORT = Size(train_scenes=1_280, score_scenes=1_000, bench_seconds=1.5, random_ratios=(0.7, 0.5))
LONG = Size(train_scenes=9_984, score_scenes=2_000, bench_seconds=4.0, random_ratios=RATIOS)


@dataclass(frozen=True)
class Row:
    """A row of the demo's table.

    Attributes:
        name: of the method.
        keep_ratio: ρ; None for the dense network.
        top1: in [0, 1].
        gmacs: of one image, prediction modules included.
        speedup: throughput relative to dense, median of pairs; None for dense.
        digit_kept: fraction of the digit's patches that the last stage keeps.
        background_kept: fraction of the other patches.
    """

    name: str
    keep_ratio: float | None
    top1: float
    gmacs: float
    speedup: float | None
    digit_kept: float
    background_kept: float


class SceneLoader:
    """Training scenes in batches; no scene comes twice."""

    def __init__(self, scenes: Scenes, count: int, batch_size: int) -> None:
        self.scenes = scenes
        self.batch_size = batch_size
        self._length = count // batch_size
        self._first = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Begin at a batch of an epoch."""
        self._first = epoch * self._length + start

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        for number in range(self._first, self._first // self._length * self._length + self._length):
            first = number * self.batch_size
            scene = self.scenes.batch(range(first, first + self.batch_size))
            yield Batch(scene.images, scene.labels)


def sparse_model(method: str = "dynamicvit") -> DynamicViT:
    """The demo's dense network, sparsified."""
    return sparsify(load_dense(), TRAINED_RATIO, policy="removed", method=method)


def recipe(size: Size, seed: int) -> Recipe:
    """The small-data recipe, for scenes of which none comes twice."""
    plenty = ["augment.mixup_prob=0", "backbone_lr_scale=0.1"]
    length = [f"images={size.train_scenes}", f"seed={seed}", "batch_size=64"]
    return load_recipe("small_data", [*plenty, *length])


def fine_tune(
    model: DynamicViT, size: Size, seed: int, on_step: Callable[[Progress], None] | None = None
) -> None:
    """Fine-tune in place on fresh training scenes."""
    plan = recipe(size, seed)
    loader = SceneLoader(Scenes("train", seed=seed + 1), size.train_scenes, plan.batch_size)
    with temporary_folder() as folder:
        fit(model, loader, plan, folder, precision=_precision(), on_step=on_step)


@cache
def _precision() -> torch.dtype | None:
    """bfloat16 where it pays; where it does not, that is said once."""
    return worthwhile(torch.bfloat16, "cpu")


@torch.inference_mode()
def score(model: DynamicViT, size: Size, seed: int) -> tuple[float, float, float]:
    """Top-1 and the fractions of digit and background patches kept, over the scoring scenes."""
    torch.manual_seed(seed)  # repeats random scores
    right = digit = digit_kept = background = background_kept = 0
    model.eval()
    for start in range(0, size.score_scenes, 100):
        stop = min(start + 100, size.score_scenes)
        scene = Scenes("score", seed=seed).batch(range(start, stop))
        with autocast("cpu", _precision()):
            output = model.forward_pruned(scene.images)
        kept = output.kept[-1]
        right += int((output.logits.argmax(dim=1) == scene.labels).sum())
        digit += int(scene.digit_patches.sum())
        digit_kept += int((kept & scene.digit_patches).sum())
        background += int((~scene.digit_patches).sum())
        background_kept += int((kept & ~scene.digit_patches).sum())
    return right / size.score_scenes, digit_kept / digit, background_kept / background


def dense_row(size: Size, seed: int) -> Row:
    """The dense network, on the same scenes."""
    model = sparse_model()
    model.keep_ratio = 1.0  # drops nothing, as the dense network
    top1, digit, background = score(model, size, seed)
    return Row("dense", None, top1, count_macs(model.backbone) / 1e9, None, digit, background)


def rows(model: DynamicViT, name: str, size: Size, seed: int) -> Iterator[Row]:
    """The same weights at several keep ratios."""
    model.eval()
    for ratio in size.random_ratios if name == "random" else RATIOS:
        model.keep_ratio = ratio
        top1, digit, background = score(model, size, seed)
        (timing,) = bench(
            model,
            batch_sizes=(BATCH_SIZE,),
            precisions=("fp32",),
            threads=torch.get_num_threads(),
            seconds=size.bench_seconds,
        )
        gmacs = count_macs(model) / 1e9
        yield Row(name, ratio, top1, gmacs, timing.speedup.median, digit, background)
    model.keep_ratio = TRAINED_RATIO


def draw_scenes(model: DynamicViT, seed: int) -> Figure:
    """The patches kept of a few scoring scenes, with pruned and dense predictions."""
    scenes = Scenes("score", seed=seed).batch(range(SHOWN))
    with torch.inference_mode():
        output, dense_logits = model.forward_pruned(scenes.images), load_dense()(scenes.images)
    return draw(
        scenes.images * STD + MEAN,
        output,
        method=model.method.name,
        names=[str(digit) for digit in range(10)],
        labels=scenes.labels.tolist(),
        dense_logits=dense_logits,
    )


def shortcomings(rows: list[Row]) -> list[str]:
    """The expectations that the measured rows miss."""
    dense = rows[0].top1
    ours = {row.keep_ratio: row for row in rows if row.name == "dynamicvit"}
    chance = {row.keep_ratio: row for row in rows if row.name == "random"}
    loss, gain = dense - ours[0.7].top1, ours[0.5].top1 - chance[0.5].top1
    found = []
    if dense < 0.9:
        found.append(f"the dense network has top-1 {percent(dense)}, expected 90 % or more")
    if loss > 0.01:
        found.append(f"at 0.7 it loses {100 * loss:.1f} points, expected 1 or less")
    if gain < 0.05:
        found.append(f"at 0.5 it is {100 * gain:.1f} points above random, expected 5 or more")
    for ratio in (0.7, 0.5):
        row = ours[ratio]
        if row.digit_kept < 2 * row.background_kept:
            found.append(
                f"at {ratio} digit patches are kept {row.digit_kept / row.background_kept:.1f} "
                "times as often as others, expected 2 or more"
            )
    return found

"""How long blocks and stages take on this machine, by the number of tokens that enter them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import eval_mode, untrained_on_purpose
from dynamicvit.core.schedule import Schedule
from dynamicvit.costs import structure_of
from dynamicvit.evaluation.bench import time_in_turn
from dynamicvit.evaluation.bench.machine import torch_threads
from dynamicvit.evaluation.bench.plan import Setting, load_file, network_file
from dynamicvit.layers.tokens import Tokens
from dynamicvit.methods.controls import StaticRanking
from dynamicvit.runtimes import RUNTIMES, Format
from dynamicvit.runtimes.base import without_stages
from dynamicvit.runtimes.pytorch import infer
from dynamicvit.tuning.price import Curve
from dynamicvit.utils.files import temporary_folder

#: Token counts at which each block is timed, and at which whole models are, each to be compiled or
#: written to a file.
POINTS, WHOLE_POINTS = 12, 5

#: Rows of a matrix unit's tile: with one image a kernel cuts what is left over into small pieces.
_TILE = 16

#: Share of the tokens that a stage drops while it is timed.
_DROPPED = 1 / 12

Progress = Callable[[str, float], None]
"""Called with the current work, and the share done of it."""


def measured_apart(setting: Setting) -> bool:
    """Whether a runtime's blocks can be timed one by one; else whole models are."""
    return setting.runtime == "eager"


def points(num_patches: int, num_prefix: int, count: int = POINTS) -> list[int]:
    """Token counts from few to all: every second one fills whole tiles, with the prefix tokens.

    Args:
        num_patches: N.
        num_prefix: tokens before the patches.
        count: how many.
    """
    found = {num_patches}
    for step in range(1, count):
        rows = (num_patches + num_prefix) * step / count
        tiled = step % 2 == 0 and rows > _TILE
        rows = _TILE * round(rows / _TILE) if tiled else round(rows)
        found.add(min(max(1, rows - num_prefix), num_patches))
    return sorted(found)


def measure_parts(
    model: DynamicViT,
    images: Tensor,
    setting: Setting,
    threads: int,
    seconds: float,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time each kind of block, the stages and the rest in turn, and give the medians.

    Blocks of the same structure are one kind, and timed once.

    Args:
        model: whose method is timed at its first stage.
        images: ``(B, channels, height, width)`` of noise.
        setting: an eager runtime, and its precision.
        threads: CPU threads.
        seconds: to measure for.
        progress: called now and then.

    Returns:
        As :func:`~dynamicvit.tuning.price.price_in_seconds` takes it.
    """
    bound, work = model.bound, {}
    run = partial(infer, device_type=images.device.type, precision=setting.precision)
    with eval_mode(model), untrained_on_purpose(model), torch_threads(threads):
        embedded: Any = run(lambda: bound.embed(images))
        counts = points(embedded.num_patches, embedded.num_prefix)
        kinds = [structure_of(block) for block in bound.blocks[:-1]]
        names = {kind: f"block {kinds.index(kind)}" for kind in kinds}
        method, at = model.methods[0], model.schedule.stages[0]
        for count in counts:
            tokens = _held(embedded, count, _merges(model))
            for kind, name in names.items():
                work[name, count] = partial(bound.run, kinds.index(kind), tokens)
            work["last", count] = partial(bound.run_last, replace(tokens, block=model.depth - 1))
            left = count - max(1, round(count * _DROPPED)) if count > 1 else 1
            work["stage", count] = partial(_stage, model, method, at, tokens, left)
        last: Any = run(lambda: bound.run_last(replace(embedded, block=model.depth - 1)))
        work["embed", 0] = partial(bound.embed, images)
        work["head", 0] = lambda: bound.head(bound.finish(last))
        report = None if progress is None else partial(progress, "timing blocks and stages")
        called = [partial(run, each) for each in work.values()]
        times = time_in_turn(called, threads, seconds, progress=report)
    medians = {key: each.percentile(50) or 0.0 for key, each in zip(work, times, strict=True)}
    curves: dict[str, dict[int, float]] = {}
    for (name, count), value in medians.items():
        if count:
            curves.setdefault(name, {})[count] = value
    if method.looks_back:  # that it ran with the block before
        before = curves[names[kinds[max(0, at - 1)]]]
        curves["stage"] = {n: max(0.0, v - before[n]) for n, v in curves["stage"].items()}
    return {
        "fixed": medians["embed", 0] + medians["head", 0],
        "curves": curves,
        "blocks": [*(names[kind] for kind in kinds), "last"],
        "stage": "stage",
    }


def measure_whole(
    model: DynamicViT,
    images: Tensor,
    setting: Setting,
    threads: int,
    seconds: float,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time whole models that drop once, before block 1, and the model with its own stages.

    From the differences follow the time of a block at each count, the mean of all blocks, and that
    of a stage. For runtimes that run nothing smaller than a file or a compiled model.

    Args:
        model: as of :func:`measure_parts`, likewise the others.
        images: likewise.
        setting: any runtime, and its precision.
        threads: likewise.
        seconds: likewise.
        progress: likewise.
    """
    bound, depth = model.bound, model.depth
    grid_size = bound.embed(images[:1]).num_patches
    counts = points(grid_size, bound.num_prefix, WHOLE_POINTS)
    networks: dict[str, DynamicViT] = {"dense": without_stages(model), "own": model}
    for count in counts[:-1]:
        once = Schedule((1,), (count / grid_size,), "merged" if _merges(model) else "removed")
        networks[str(count)] = model.like(bound, once, StaticRanking)
    taken = time_networks(networks, images, setting, threads, seconds, progress)
    dense = taken["dense"]
    saved = {count: (taken[str(count)] - dense) / (depth - 1) for count in counts[:-1]}
    block = {count: dense / depth + each for count, each in saved.items()}
    block[grid_size] = dense / depth
    curve = {"block": block}
    held, stages = (
        grid_size,
        dict(zip(model.schedule.stages, model.schedule.kept(grid_size), strict=True)),
    )
    parts, curves = 0.0, Curve.through(block)
    for i in range(depth):
        held = stages.get(i, held)
        parts += curves(held)
    each = max(0.0, taken["own"] - parts) / max(1, len(stages))
    curve["stage"] = dict.fromkeys(counts, each)
    return {"fixed": 0.0, "curves": curve, "blocks": ["block"] * depth, "stage": "stage"}


def time_networks(
    networks: dict[str, DynamicViT],
    images: Tensor,
    setting: Setting,
    threads: int,
    seconds: float,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Median seconds of a batch for each network, timed in turn in one runtime.

    Files in int8 are calibrated on two photographs, which is enough for times.
    """
    runtime = RUNTIMES[setting.runtime]
    with temporary_folder() as folder, torch_threads(threads):
        work = []
        for place, (name, network) in enumerate(networks.items()):
            if progress is not None:
                progress(f"preparing {setting.runtime} {name}", place / len(networks))
            network.eval().warns_untrained = False
            work.append(_prepared(runtime, network, name, images, setting, folder))
        report = None if progress is None else partial(progress, "timing")
        times = time_in_turn(work, threads, seconds, progress=report)
        del work
    medians = (each.percentile(50) or 0.0 for each in times)
    return dict(zip(networks, medians, strict=True))


def _prepared(
    runtime: Any,
    network: nn.Module,
    name: str,
    images: Tensor,
    setting: Setting,
    folder: Path,
) -> Callable[[], object]:
    if isinstance(runtime, Format):
        height, width = images.shape[-2:]
        file = network_file(network, name, runtime, setting.precision, (height, width), folder)
        network = load_file(file, runtime, setting.precision)
    return runtime.prepare(network, images, setting.precision)


def _merges(model: DynamicViT) -> bool:
    """Whether tokens have sizes after a stage, which attention then takes into account."""
    return model.policy == "merged" or model.method.merges


def _held(tokens: Tokens, count: int, merged: bool) -> Tokens:
    """So many of the tokens, as they are after some have been dropped or merged."""
    if count == tokens.num_patches:
        return tokens
    batch, device = tokens.x.shape[0], tokens.x.device
    kept = tokens.keep(torch.arange(count, device=device).expand(batch, -1))
    if not merged:
        return kept
    groups = torch.arange(tokens.num_patches, device=device).clamp(max=count - 1)
    size = torch.ones(batch, count, device=device)
    return replace(kept, size=size, groups=groups.expand(batch, -1))


def _stage(model: DynamicViT, method: Any, at: int, tokens: Tokens, left: int) -> Sequence[Any]:
    """What a method does at its stage, and for one that looks back the block before."""
    tokens = replace(tokens, block=at)
    if method.looks_back:
        tokens = model.bound.run(at - 1, tokens, keep_heads=True)
    return method.prune(tokens, left, model.policy)

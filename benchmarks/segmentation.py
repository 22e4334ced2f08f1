r"""mIoU over cost: ways to spend fewer MACs on segmentation, from one dense model.

Each row is made of the dense model's folder (`dynamicvit train DATA --dense`), by the functions
that the commands call. `dynamicvit compare` makes such a table of methods alone; here stand also a
smaller input, and what share of the kept patches lies on a person. Stopped and started again, the
script goes on where it was::

    python benchmarks/segmentation.py STREET@train runs/dense --test STREET@test -o runs/seg

`--train IMAGES` fine-tunes each row on so many images first, with the dense model as its teacher.
Choices are made on images held out of the training images; the test images are only reported.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, get_args

import torch
import torch.nn.functional as F

from dynamicvit import Segmenter, load
from dynamicvit.checkpoints.loading import set_image_size
from dynamicvit.core.networks import DenseNetwork, untrained_on_purpose
from dynamicvit.core.schedule import Policy
from dynamicvit.costs import count_macs
from dynamicvit.data import MaskData, joint_eval_transform, split
from dynamicvit.evaluation.bench.timer import time_in_turn
from dynamicvit.evaluation.segmentation import evaluate_segmentation, masks_for
from dynamicvit.methods import at_macs
from dynamicvit.runtimes.pytorch import infer
from dynamicvit.training import train

DENSE, SMALLER = "dense", "smaller input"
#: Ways by name: method and policy; a smaller input is no method.
WAYS: dict[str, tuple[str, str | None]] = {
    "ours, merged": ("dynamicvit", "merged"),
    "ours, bypassed": ("dynamicvit", "bypassed"),
    "look-ahead": ("lookahead", None),
    "ToMe, gathered back": ("tome", None),
    "random, merged": ("random", "merged"),
    "random, removed": ("random", "removed"),
    "static": ("static", "removed"),
    "2 x 2 downsampling": ("downsample", None),
}


def model_for(way: str, dense: Segmenter, fraction: float) -> Segmenter:
    """A row's model, as near to a share of the dense MACs as `compare` makes it."""
    dense, whole = copy.deepcopy(dense), count_macs(dense)
    if way == SMALLER:
        patch, side = max(dense.bound.patch_size), dense.bound.image_size[0]
        while count_macs(dense) > fraction * whole:
            side -= patch
            set_image_size(dense, side)
        return dense
    method, policy = WAYS[way]
    sparse = at_macs(method, dense, fraction, policy=policy)
    assert isinstance(sparse, Segmenter)
    return sparse


@torch.no_grad()
def person_share(model: Segmenter, data: MaskData) -> float | None:
    """Of what the last stage keeps, the share that lies on another class than the first."""
    if not model.schedule.stages:
        return None
    window = model.bound.image_size
    data = data.with_joint_transform(joint_eval_transform(model))
    on_person = kept = 0.0
    for index in range(len(data)):
        sample: Any = data[index]
        image, mask, _ = sample
        output = model.forward_pruned(image[None, :, : window[0], : window[1]])
        person = F.interpolate((mask > 0).float()[None, None], image.shape[1:])
        person = F.adaptive_avg_pool2d(person[..., : window[0], : window[1]], output.grid)
        chosen = output.kept[-1][0].float()
        on_person += float((person.flatten() * chosen).sum())
        kept += float(chosen.sum())
    return on_person / max(kept, 1.0)


def rows(arguments: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """Ways and shares of the dense MACs, the dense model first."""
    yield DENSE, 1.0
    for fraction in arguments.fractions:
        for way in arguments.ways:
            if WAYS.get(way, ("", None))[1] in (None, *get_args(Policy)):
                yield way, fraction


def main(argv: Sequence[str] | None = None) -> None:
    """Make the rows that are missing, and print all."""
    parser = argparse.ArgumentParser(description="mIoU over cost")
    parser.add_argument("data", help="training images and masks, as the commands name them")
    parser.add_argument("dense", help="folder of the dense model")
    parser.add_argument("--test", help="images that are only reported")
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.65, 0.5])
    parser.add_argument("--ways", nargs="+", default=[*WAYS, SMALLER], choices=[*WAYS, SMALLER])
    parser.add_argument("--train", type=int, default=0, help="images to fine-tune each row on")
    parser.add_argument("--set", action="append", default=[], help="of the recipe, key=value")
    parser.add_argument("--hold-out", type=float, default=0.1)
    parser.add_argument("--limit", type=int, default=0, help="images to evaluate on, 0 for all")
    parser.add_argument("--seconds", type=float, default=20.0, help="to time a pair of models")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args(argv)
    arguments.output.mkdir(parents=True, exist_ok=True)
    file = arguments.output / "rows.jsonl"
    done = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    known = {(row["way"], row["fraction"]) for row in done}
    dense = load(arguments.dense)
    if not isinstance(dense, Segmenter) or dense.schedule.stages:
        parser.error(f"{arguments.dense} is no dense segmentation model")
    for way, fraction in rows(arguments):
        if (way, fraction) in known:
            continue
        row = _row(way, fraction, dense, arguments)
        with open(file, "a") as out:
            out.write(json.dumps(row) + "\n")
        print(json.dumps({k: v for k, v in row.items() if k != "iou"}), flush=True)


def _row(
    way: str, fraction: float, dense: Segmenter, arguments: argparse.Namespace
) -> dict[str, Any]:
    model = copy.deepcopy(dense) if way == DENSE else model_for(way, dense, fraction)
    trained = arguments.train if model.schedule.stages else 0
    if trained:
        folder = arguments.output / f"{way} {fraction:g}".replace(",", "").replace(" ", "_")
        overrides = [f"images={trained}", f"hold_out={arguments.hold_out}", *arguments.set]
        train(arguments.data, folder, model, recipe="segmentation", overrides=overrides)
        model = load(folder)
        assert isinstance(model, Segmenter)
    _, held_out = split(masks_for(arguments.data, model), arguments.hold_out)
    sources = {"held_out": held_out}
    if arguments.test:
        sources["test"] = masks_for(arguments.test, model)
    # Of another input size the maps are other maps: only mIoU is compared.
    alike = way != DENSE and model.bound.image_size == dense.bound.image_size
    row: dict[str, Any] = {
        "way": way,
        "fraction": fraction,
        "images_trained_on": trained,
        "gmacs": count_macs(model) / 1e9,
        "of_dense": count_macs(model) / count_macs(dense),
    }
    with untrained_on_purpose(model):
        for name, data in sources.items():
            some = data.subset(range(min(arguments.limit or len(data), len(data))))
            result = evaluate_segmentation(
                model, some, dense=DenseNetwork(dense) if alike else None
            )
            row[name] = {
                "miou": result.miou,
                "agreement": result.agreement,
                "iou": result.iou,
                "images": result.images,
                "kept_on_a_person": person_share(model, some),
            }
        if arguments.seconds and way != DENSE:
            row |= {f"speed_up_{n}": _speed_up(model, dense, n, arguments.seconds) for n in (1, 8)}
    return row


def _speed_up(model: Segmenter, dense: Segmenter, batch: int, seconds: float) -> float:
    """How many times as fast as the dense model: the median of rounds, timed in turn."""
    work = []
    for each in (dense.eval(), model.eval()):
        images = torch.randn(batch, 3, *each.bound.image_size)
        work.append(partial(infer, partial(each, images), "cpu", "fp32"))
    dense_times, times = time_in_turn(work, torch.get_num_threads(), seconds)
    return median(a / b for a, b in zip(dense_times.seconds, times.seconds, strict=True))


if __name__ == "__main__":
    main()

"""The staircase: what bfloat16, int8 and dropping tokens are worth, by themselves and together.

    python benchmarks/quantization.py MODEL CALIBRATION VALIDATION --class-map imagenet \
        --dense-checkpoint deit_tiny_patch16_224.safetensors -o runs/quantization

Writes each file once, evaluates it once (``results.json``; stopped, it goes on where it was), and
times all of them in turn, batch size by batch size: a CSV and a plot of throughput over timm's own
dense network in eager float32. With ``--policy removed --policy merged`` the model takes both.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dynamicvit.budgets import tiled_keep_ratios
from dynamicvit.checkpoints.dense import load_dense
from dynamicvit.checkpoints.loading import load
from dynamicvit.core.model import DynamicViT
from dynamicvit.costs import DENSE
from dynamicvit.data import ImageData, Loader, class_map_for, eval_transform
from dynamicvit.errors import InputError
from dynamicvit.evaluation.accuracy import evaluate
from dynamicvit.evaluation.bench import time_in_turn
from dynamicvit.plots import style
from dynamicvit.runtimes import export, load_exported

REFERENCE = "timm, dense, fp32"
BATCHES = (1, 32)

#: Of each network: what it is called, the kind of file, and what that computes in.
PRECISIONS = (("fp32", "fp32", "fp32"), ("bf16", "fp32", "bf16"), ("int8", "int8", "fp32"))


class Step(NamedTuple):
    """One file, run in one precision."""

    name: str
    file: Path
    precision: str


def main() -> None:
    """Write, evaluate, time, draw."""
    options = _options()
    torch.set_num_threads(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    if not ImageData(options.validation).labeled:
        raise InputError(f"{options.validation} has no labels to count right answers by")
    model = load(options.model)
    architecture = model.pretrained_cfg["architecture"]
    timm_dense = load_dense(architecture, options.dense_checkpoint).eval()
    dense = DynamicViT(load_dense(architecture, options.dense_checkpoint), DENSE, []).eval()
    steps = _steps("dense", dense, options)
    for dropped in options.policy or (model.policy,):
        model.policy, name = dropped, dropped
        if options.tile is not None:
            model.keep_ratio = tiled_keep_ratios(model, options.tile)
            name = f"{dropped}, tile {options.tile}"
        steps += _steps(name, model, options)
    found = _accuracies(timm_dense, steps, options)
    rows = []
    for batch in BATCHES:
        images = _pictures(options, timm_dense, batch)
        work: dict[str, Callable[[], Any]] = {REFERENCE: partial(_infer, timm_dense, images)}
        for name, file, precision in steps:
            work[name] = partial(_infer, load_exported(file, precision), images)
        for name, times in _in_turn(work, options.threads, options.seconds).items():
            rows.append({"batch": batch, "step": name, "top1": found[name], **times})
            print(rows[-1], flush=True)
    with (options.output / "staircase.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, options.output / "staircase.png")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", help="a trained model that drops tokens")
    parser.add_argument("calibration", help="images to calibrate on")
    parser.add_argument("validation", help="labeled images")
    parser.add_argument("--dense-checkpoint", required=True, help="what it was trained from")
    parser.add_argument("--class-map")
    parser.add_argument("--crop-pct", type=float, default=0.875)
    parser.add_argument(
        "--policy",
        action="append",
        choices=("removed", "merged"),
        help="instead of the model's own",
    )
    parser.add_argument("--tile", type=int, help="as of dynamicvit export")
    parser.add_argument("--images", type=int, default=300, help="to calibrate on")
    parser.add_argument("--max-drop", type=float, help="as of dynamicvit export")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60.0, help="for each batch size")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/quantization"))
    return parser.parse_args()


def _steps(name: str, network: DynamicViT, options: argparse.Namespace) -> list[Step]:
    """A network in each precision; files that are not there yet are written."""
    files = {
        kind: options.output / f"{name.replace(', tile ', '-')}-{kind}.xml"
        for kind in ("fp32", "int8")
    }
    for kind, file in files.items():
        _write(network, file, kind, options)
    return [Step(f"{name}, {label}", files[kind], inner) for label, kind, inner in PRECISIONS]


def _write(network: DynamicViT, file: Path, kind: str, options: argparse.Namespace) -> None:
    if file.exists():
        return
    if kind == "fp32":
        export(network, file, crop_pct=options.crop_pct)
        return
    judged = {} if options.max_drop is None else {"validation": options.validation}
    made = export(
        network,
        file,
        precision="int8",
        calibrate=options.calibration,
        calibration_images=options.images,
        max_drop=options.max_drop,
        class_map=options.class_map,
        crop_pct=options.crop_pct,
        **judged,
    )
    print(file, made.agreement, "in float:", made.in_words, flush=True)


def _accuracies(
    timm_dense: nn.Module, steps: Sequence[Step], options: argparse.Namespace
) -> dict[str, float]:
    """Top-1 of each step, of those not yet in ``results.json`` anew."""
    kept = options.output / "results.json"
    found: dict[str, float] = json.loads(kept.read_text()) if kept.exists() else {}
    networks: dict[str, Callable[[], Any]] = {REFERENCE: lambda: timm_dense}
    networks |= {name: partial(load_exported, *file) for name, *file in steps}
    data = ImageData(options.validation)
    data = data.with_class_map(class_map_for(data, 1000, options.class_map).index)
    data = data.with_transform(eval_transform(timm_dense, crop_pct=options.crop_pct))
    for name, network in networks.items():
        if name not in found:
            top1 = evaluate(network(), Loader(data, 32)).top1
            assert top1 is not None  # the images have labels
            found[name] = top1
            kept.write_text(json.dumps(found, indent=1))
            print(f"{name}: top-1 {100 * found[name]:.2f} %", flush=True)
    return found


def _pictures(options: argparse.Namespace, model: nn.Module, count: int) -> Tensor:
    data = ImageData(options.validation, labeled=False)
    data = data.with_transform(eval_transform(model, crop_pct=options.crop_pct))
    return torch.stack([data[index].image for index in range(count)])


@torch.inference_mode()
def _infer(network: nn.Module, images: Tensor) -> None:
    network(images)


def _in_turn(
    work: dict[str, Callable[[], Any]], threads: int, seconds: float
) -> dict[str, dict[str, float]]:
    """Median time of a batch, and the reference's over it in the same round: median, quartiles."""
    times = dict(zip(work, time_in_turn(list(work.values()), threads, seconds, None), strict=True))
    told = {}
    for name, own in times.items():
        ratio = times[REFERENCE].over(own)
        told[name] = {
            "milliseconds": round(1e3 * own.spread.median, 3),
            "speed_up": round(ratio.median, 2),
            "lower": round(ratio.low, 2),
            "upper": round(ratio.high, 2),
            "rounds": len(own.seconds),
        }
    return told


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """Bars of throughput, a panel for each batch size, with top-1 beside them."""
    batches = list(dict.fromkeys(row["batch"] for row in rows))
    figure = style.figure(11, 1 + 0.42 * len(rows) / len(batches))
    panels = figure.subplots(1, len(batches), sharey=True, squeeze=False)[0]
    merged = style.METHODS["dynamicvit-merged"][0]
    colors = {"timm": style.FAINT, "dense": style.DENSE, "merged": merged}
    for axes, batch in zip(panels, batches, strict=True):
        held = [row for row in rows if row["batch"] == batch]
        bars = axes.barh(
            [row["step"] for row in held],
            [row["speed_up"] for row in held],
            xerr=[
                [row["speed_up"] - row["lower"] for row in held],
                [row["upper"] - row["speed_up"] for row in held],
            ],
            error_kw={"ecolor": style.INK, "elinewidth": 0.8, "capsize": 2},
            color=[colors.get(row["step"].split(",")[0], style.PRUNED) for row in held],
        )
        texts = [
            f"{row['speed_up']:.1f} ×" + (f", {100 * row['top1']:.1f} %" if row["top1"] else "")
            for row in held
        ]
        axes.bar_label(bars, texts, padding=6, fontsize=style.SMALL, color=style.INK)
        unit = f"throughput, times {REFERENCE}"
        style.dress(axes, f"batch {batch}: throughput and top-1", x=unit, grid=False)
        axes.set_xlim(0, 1.45 * max(row["upper"] for row in held))
    panels[0].invert_yaxis()  # they share it
    style.save(figure, file)


if __name__ == "__main__":
    main()

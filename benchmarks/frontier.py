r"""Accuracy over budget: one model fine-tuned for each keep ratio, with and without labels.

Each is made and judged by the commands a user has, `dynamicvit train` and `dynamicvit eval`, in a
folder of its own. Stopped and started again, the script goes on where it was; the table is written
anew after each model::

    python benchmarks/frontier.py LABELED VAL --unlabeled UNLABELED \\
        --checkpoint deit_tiny_patch16_224.safetensors --class-map imagenet -o runs/frontier
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from safetensors.torch import save_model

from dynamicvit.backbones import backbone_for
from dynamicvit.checkpoints.dense import load_dense
from dynamicvit.checkpoints.loading import load
from dynamicvit.costs import count_macs

DENSE = "dense"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        mode: what it learned from, or that it is dense.
        keep_ratio: ρ; 1 for the dense network.
        top1: percent of the evaluated images.
        below_dense: points of top-1.
        agreement: percent of the images on which it answers as the dense network does.
        gmacs: a forward pass, in 10⁹.
        images_seen: in training.
        seconds: of training.
    """

    mode: str
    keep_ratio: float
    top1: float
    below_dense: float
    agreement: float
    gmacs: float
    images_seen: int
    seconds: float


@dataclass(frozen=True)
class Student:
    """One model of the frontier.

    Attributes:
        mode: "label-free" or "with labels".
        keep_ratio: ρ.
    """

    mode: str
    keep_ratio: float

    @property
    def folder(self) -> str:
        """Its place in the output folder."""
        return f"{self.mode.replace(' ', '-')}-{self.keep_ratio:g}"


def main() -> None:
    """Train and evaluate what is missing, and print the table."""
    options = _options()
    options.output.mkdir(parents=True, exist_ok=True)
    dense_weights = options.output / "dense.safetensors"
    if not dense_weights.exists():
        dense = load_dense(options.model, options.checkpoint)
        save_model(dense, str(dense_weights))
    options.num_classes = backbone_for(load_dense(options.model, dense_weights)).num_classes
    students = [Student(mode, ratio) for ratio in options.keep_ratios for mode in options.modes]
    evaluate_dense(options)
    with ThreadPoolExecutor(options.jobs) as pool:
        pending = [pool.submit(make, student, options) for student in students]
        for made in pending:
            made.result()
            write_csv(options.output / "frontier.csv", rows(students, options))
    print(markdown(list(rows(students, options))))


def make(student: Student, options: argparse.Namespace) -> None:
    """Train and evaluate a student, as far as that has not been done."""
    folder = options.output / student.folder
    if not (folder / "report.json").exists():
        weight = options.label_weight if student.mode == "with labels" else 0.0
        settings = [
            f"keep_ratio={student.keep_ratio}",
            f"images={options.images}",
            f"losses.classification={weight}",
            *options.set,
        ]
        command = ["train", options.labeled, "--model", options.model, "-o", folder]
        command += ["--checkpoint", options.output / "dense.safetensors"]
        command += ["--recipe", options.recipe, "--precision", options.precision]
        command += ["--num-classes", options.num_classes]  # the images' are not fitted
        command += [word for setting in settings for word in ("--set", setting)]
        command += [word for source in options.unlabeled for word in ("--unlabeled", source)]
        if weight and options.class_map:
            command += ["--class-map", options.class_map]
        run(command, options, log=folder.with_suffix(f"{folder.suffix}.log"))
    if not (folder / "eval.json").exists():
        evaluation(["--model", folder], folder / "eval.json", options)


def evaluate_dense(options: argparse.Namespace) -> None:
    """Evaluate the dense network, if that has not been done."""
    result = options.output / "dense.json"
    if not result.exists():
        weights = options.output / "dense.safetensors"
        model = ["--model", options.model, "--checkpoint", weights, "--dense"]
        evaluation(model, result, options)


def evaluation(model: Sequence[Any], result: Path, options: argparse.Namespace) -> None:
    """`dynamicvit eval` on the evaluation images, compared with the dense weights."""
    command = ["eval", options.val, *model, "--json", result, "--precision", options.precision]
    command += ["--dense-checkpoint", options.output / "dense.safetensors"]
    if options.crop_pct:
        command += ["--crop-pct", options.crop_pct]
    if options.class_map:
        command += ["--class-map", options.class_map]
    run(command, options, log=result.with_suffix(".log"))


def run(command: Sequence[Any], options: argparse.Namespace, log: Path) -> None:
    """One `dynamicvit` command, its output added to a log."""
    words = [sys.executable, "-m", "dynamicvit", *map(str, command), "--threads", options.threads]
    words += [] if options.workers is None else ["--workers", options.workers]
    with log.open("a") as file:
        done = subprocess.run(list(map(str, words)), stdout=file, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))} failed, see {log}")


def rows(students: Sequence[Student], options: argparse.Namespace) -> Iterator[Row]:
    """The table so far: the dense network first."""
    dense = json.loads((options.output / "dense.json").read_text())
    backbone = load_dense(options.model, options.output / "dense.safetensors")
    top1 = 100 * dense["top1"]
    yield Row(DENSE, 1.0, top1, 0.0, 100 * dense["agreement"], count_macs(backbone) / 1e9, 0, 0.0)
    for student in students:
        folder = options.output / student.folder
        if not (folder / "eval.json").exists():
            continue
        result = json.loads((folder / "eval.json").read_text())
        training = json.loads((folder / "report.json").read_text())["training"]
        yield Row(
            mode=student.mode,
            keep_ratio=student.keep_ratio,
            top1=100 * result["top1"],
            below_dense=top1 - 100 * result["top1"],
            agreement=100 * result["agreement"],
            gmacs=count_macs(load(str(folder))) / 1e9,
            images_seen=training["images"],
            seconds=training["seconds"],
        )


def write_csv(path: Path, table: Iterator[Row]) -> None:
    """All rows, every number as it is."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in table)


def markdown(table: Sequence[Row]) -> str:
    """The table as docs/results.md has it."""
    head = "| learned from | ρ | top-1 | below dense | agreement | GMACs | images seen | seconds |"
    lines = [head, "|" + "---|" * 8]
    lines += [
        f"| {row.mode} | {row.keep_ratio:g} | {row.top1:.2f} % | {row.below_dense:.2f} "
        f"| {row.agreement:.1f} % | {row.gmacs:.2f} | {row.images_seen:,} | {row.seconds:.0f} |"
        for row in table
    ]
    return "\n".join(lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("labeled", help="training images with labels")
    parser.add_argument("val", help="images to evaluate on")
    parser.add_argument("--unlabeled", action="append", default=[], help="more training images")
    parser.add_argument("--model", default="deit_tiny_patch16_224", help="timm's name")
    parser.add_argument("--checkpoint", help="its dense weights; timm's by default")
    parser.add_argument("--class-map", help="'imagenet', or a file of class names")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/frontier"))
    parser.add_argument("--recipe", default="small_data")
    parser.add_argument("--images", type=int, default=16000, help="seen by each model")
    parser.add_argument("--keep-ratios", type=float, nargs="+", default=[0.7, 0.5, 0.9, 0.6, 0.8])
    parser.add_argument(
        "--modes", nargs="+", choices=MODES, default=MODES, help="what to learn from"
    )
    parser.add_argument(
        "--label-weight", type=float, default=0.1, help="of the classification loss"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--crop-pct", type=float, default=0.875)
    parser.add_argument("--jobs", type=int, default=1, help="models trained at the same time")
    parser.add_argument("--threads", type=int, help="of each; by default all cores shared evenly")
    parser.add_argument("--workers", type=int, help="that read images; each command's default")
    options = parser.parse_args()
    options.threads = options.threads or max(1, (os.cpu_count() or 1) // options.jobs)
    return options


MODES = ("label-free", "with labels")


if __name__ == "__main__":
    main()

"""Which backbone gives what: size, cost and kept patches of every registered model.

All of it follows from shapes: no weights are made, no image runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from torch import nn

from dynamicvit.errors import InputError
from dynamicvit.macs import DENSE, costs_of, resolve_image_size, schedule_macs
from dynamicvit.registry import PREFIX

KEEP_RATIOS = (0.9, 0.8, 0.7, 0.5)
"""Those of the paper's tables."""

COMMAND = "dynamicvit backbones --output docs/backbones.md"
"""What writes the page."""


@dataclass(frozen=True)
class Budget:
    """A model at one keep ratio.

    Attributes:
        keep_ratio: ρ.
        kept: patches left after each stage.
        macs: of one image, prediction modules included.
    """

    keep_ratio: float
    kept: tuple[int, ...]
    macs: int


@dataclass(frozen=True)
class Entry:
    """A registered model.

    Attributes:
        name: in timm, with ``dynamicvit_`` in front.
        image_size: height and width in pixels.
        num_patches: N.
        stages: blocks before which patches are dropped.
        parameters: of backbone and prediction modules.
        predictor_parameters: of the prediction modules alone.
        dense_macs: of one image through the backbone alone.
        budgets: what each keep ratio gives.
    """

    name: str
    image_size: tuple[int, int]
    num_patches: int
    stages: tuple[int, ...]
    parameters: int
    predictor_parameters: int
    dense_macs: int
    budgets: tuple[Budget, ...]


def registered() -> list[str]:
    """The models that this package registers with timm; not those that others add."""
    return timm.list_models(f"{PREFIX}*", module="registry")


def describe(name: str, keep_ratios: Iterable[float] = KEEP_RATIOS) -> Entry:
    """Size and cost of a registered model.

    Args:
        name: in timm, with ``dynamicvit_`` in front.
        keep_ratios: for each of these ρ.
    """
    with torch.device("meta"):
        model = timm.create_model(name)
    num_patches = costs_of(model, num_stages=0).num_patches
    budgets = []
    for keep_ratio in keep_ratios:
        model.keep_ratio = keep_ratio
        kept = model.schedule.kept(num_patches)
        budgets.append(Budget(keep_ratio, kept, schedule_macs(model, model.schedule)))
    return Entry(
        name=name,
        image_size=resolve_image_size(model),
        num_patches=num_patches,
        stages=model.schedule.stages,
        parameters=_parameters(model),
        predictor_parameters=_parameters(model.predictors),
        dense_macs=schedule_macs(model, DENSE),
        budgets=tuple(budgets),
    )


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# ---------------------------------------------------------------- the page


def page(entries: Iterable[Entry]) -> str:
    """The catalogue in Markdown.

    Args:
        entries: in any order; on the page they stand by family and cost.
    """
    ordered = sorted(entries, key=lambda entry: (_family(entry), entry.dense_macs))
    sections = [_HEAD, _overview(ordered), *map(_section, ordered)]
    return "\n\n".join(sections) + "\n"


def check_page(path: str | Path, fresh: str) -> None:
    """Compare a page with a fresh one.

    Raises:
        InputError: naming the first line that differs, and the command that writes the page.
    """
    path = Path(path)
    try:
        found = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read ({error}); write it with: {COMMAND}") from error
    expected = fresh.splitlines()
    if found == expected:
        return
    pairs = enumerate(zip(found, expected, strict=False), start=1)
    ends = min(len(found), len(expected)) + 1
    line = next((number for number, (ours, theirs) in pairs if ours != theirs), ends)
    raise InputError(f"{path} is not up to date (line {line}); write it again with: {COMMAND}")


_HEAD = f"""\
# Which backbone gives what

Written by `{COMMAND}`, checked by a test: not to be edited by hand.

The models that `timm.create_model("dynamicvit_…", keep_ratio=ρ)` builds by name, and what they
cost. A GMAC is 10⁹ multiply-adds of one image (two FLOPs each). The prediction modules are counted,
which published figures leave out; "dense" is the backbone alone. After the three stages ρ, ρ² and
ρ³ of the patches are left. `img_size=…` and `stages=…` give other figures; `dynamicvit bench --model
NAME` says them for any backbone of a [supported family](../README.md#which-backbones)."""


def _overview(entries: Sequence[Entry]) -> str:
    ratios = [budget.keep_ratio for budget in entries[0].budgets] if entries else []
    header = ["backbone", "pixels", "parameters", "dense", *(f"ρ = {ratio:g}" for ratio in ratios)]
    rows = [
        [
            f"[{_backbone(entry)}](#{entry.name})",
            _pixels(entry),
            _millions(entry.parameters),
            _giga(entry.dense_macs),
            *(_giga(budget.macs) for budget in entry.budgets),
        ]
        for entry in entries
    ]
    return "GMACs of one image:\n\n" + _table(header, rows)


def _section(entry: Entry) -> str:
    stages = ", ".join(map(str, entry.stages))
    facts = (
        f"{_pixels(entry)} pixels, {entry.num_patches} patches, dropped before blocks {stages} "
        f"(the first is 0); {_millions(entry.parameters)} parameters, "
        f"{_millions(entry.predictor_parameters)} of them in the prediction modules."
    )
    header = ["ρ", "GMACs", "of dense", *(f"kept from block {stage}" for stage in entry.stages)]
    dense = [
        "dense",
        _giga(entry.dense_macs),
        "100 %",
        *(str(entry.num_patches) for _ in entry.stages),
    ]
    rows = [
        [
            f"{budget.keep_ratio:g}",
            _giga(budget.macs),
            f"{100 * budget.macs / entry.dense_macs:.0f} %",
            *map(str, budget.kept),
        ]
        for budget in entry.budgets
    ]
    return f"## {entry.name}\n\n{facts}\n\n{_table(header, [dense, *rows])}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table: the first column is left-aligned, the others are numbers."""
    rule = ["---"] + ["--:"] * (len(header) - 1)
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def _backbone(entry: Entry) -> str:
    return entry.name.removeprefix(PREFIX)


def _family(entry: Entry) -> str:
    """What the backbone's name begins with: deit, lvvit, vit."""
    return _backbone(entry).partition("_")[0]


def _pixels(entry: Entry) -> str:
    height, width = entry.image_size
    return str(height) if height == width else f"{height}×{width}"


def _giga(macs: int) -> str:
    return f"{macs / 1e9:.2f}"


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M"

"""The catalog of backbones: size, cost and kept patches of every registered model.

Everything is counted on the meta device.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import timm
import torch
from torch import nn

from dynamicvit.backbones import BUILT_IN, OPTIONAL
from dynamicvit.checkpoints.released import RELEASES, Release
from dynamicvit.checkpoints.timm_names import PREFIX
from dynamicvit.costs import DENSE, costs_of, resolve_image_size
from dynamicvit.errors import InputError
from dynamicvit.utils.inputs import read_text
from dynamicvit.utils.words import percent

KEEP_RATIOS = (0.9, 0.8, 0.7, 0.5)
"""Those of the paper's tables."""

COMMAND = "dynamicvit backbones --output docs/backbones.md"
"""The command that writes the page."""


@dataclass(frozen=True)
class AtRatio:
    """A model at one keep ratio.

    Attributes:
        keep_ratio: ρ.
        kept: number of patches after each stage.
        macs: of one image, with the prediction modules.
        release: the authors' checkpoint of it, if there is one.
    """

    keep_ratio: float
    kept: tuple[int, ...]
    macs: int
    release: Release | None


@dataclass(frozen=True)
class Entry:
    """A registered model.

    Attributes:
        backbone: timm's name, which the model's adds ``dynamicvit_`` to.
        image_size: height and width in pixels.
        num_patches: N.
        stages: blocks before which patches are dropped.
        parameters: of backbone and prediction modules.
        predictor_parameters: of the prediction modules alone.
        dense_macs: of one image through the backbone alone.
        ratios: one for each keep ratio.
    """

    backbone: str
    image_size: tuple[int, int]
    num_patches: int
    stages: tuple[int, ...]
    parameters: int
    predictor_parameters: int
    dense_macs: int
    ratios: tuple[AtRatio, ...]


def entry_for(backbone: str) -> Entry:
    """Size and cost of one of :data:`~dynamicvit.checkpoints.timm_names.BACKBONES`."""
    with torch.device("meta"):
        model = timm.create_model(f"{PREFIX}{backbone}")
    if model.policy == "merged":
        model.policy = "removed"
    costs = costs_of(model, len(model.schedule.stages))
    ratios = []
    released = {(row.architecture.model, row.keep_ratio): row for row in RELEASES.values()}
    for keep_ratio in KEEP_RATIOS:
        model.keep_ratio = keep_ratio
        kept = model.schedule.kept(costs.num_patches)
        macs = costs.total(model.schedule)
        ratios.append(AtRatio(keep_ratio, kept, macs, released.get((backbone, keep_ratio))))
    return Entry(
        backbone=backbone,
        image_size=resolve_image_size(model),
        num_patches=costs.num_patches,
        stages=model.schedule.stages,
        parameters=_parameters(model),
        predictor_parameters=_parameters(model.predictors),
        dense_macs=replace(costs, stages=(), adds=()).total(DENSE),
        ratios=tuple(ratios),
    )


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# ---------------------------------------------------------------- the page


def page(entries: Sequence[Entry]) -> str:
    """The catalog in Markdown, in the order of the entries."""
    sections = [_HEAD, _overview(entries), *map(_section, entries), _families()]
    return "\n\n".join(sections) + "\n"


def check_page(path: str | Path, fresh: str) -> None:
    """Compare a page with a fresh one.

    Raises:
        InputError: if they differ, with the command that writes the page.
    """
    try:
        found = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read ({error}); write it with: {COMMAND}") from error
    if found.splitlines() != fresh.splitlines():
        raise InputError(f"{path} is not up to date; write it again with: {COMMAND}")


_HEAD = f"""\
# Which backbone gives what

Written by `{COMMAND}` and checked by a test: not to be edited by hand.

The models that `timm.create_model("{PREFIX}…", keep_ratio=ρ)` builds by name, and what they cost.
A GMAC is 10⁹ multiply-adds (two FLOPs each) for one image. The prediction modules are counted,
which published figures leave out, and dropped tokens are removed, as published: merging, the
default, adds one to two percent. "Dense" is the backbone alone. Other sizes (`img_size=…`), other
stages, and any other backbone of the families below cost what `dynamicvit bench` says. The patches
of ConvNeXt and Swin are the positions of the third stage's map, of which the others take a cheap
path ([hierarchical.md](hierarchical.md)); blocks are that stage's, and prediction modules hold the
cheap paths. Released is what `--released NAME` loads: checkpoints of
[the paper](https://arxiv.org/abs/2106.02034)'s authors, with the top-1 accuracy on ImageNet-1k that
they report."""


def _overview(entries: Sequence[Entry]) -> str:
    ratios = [f"ρ = {at.keep_ratio:g}" for at in entries[0].ratios] if entries else []
    rows = [
        [
            f"[{entry.backbone}](#{PREFIX}{entry.backbone})",
            _pixels(entry),
            _millions(entry.parameters),
            _giga(entry.dense_macs),
            *(_giga(at.macs) for at in entry.ratios),
        ]
        for entry in entries
    ]
    header = ["backbone", "pixels", "parameters", "dense", *ratios]
    return f"GMACs for one image:\n\n{_table(header, rows)}"


def _section(entry: Entry) -> str:
    facts = (
        f"{_pixels(entry)} pixels, {entry.num_patches} patches; {_millions(entry.parameters)} "
        f"parameters, {_millions(entry.predictor_parameters)} of them in the prediction modules."
    )
    header = ["ρ", "GMACs", "of dense", *(f"patches from block {s}" for s in entry.stages)]
    dense = ["dense", _giga(entry.dense_macs), "", *[str(entry.num_patches)] * len(entry.stages)]
    rows = [dense]
    for at in entry.ratios:
        share = percent(at.macs / entry.dense_macs, 0)
        kept = map(str, at.kept)
        rows.append([f"{at.keep_ratio:g}", _giga(at.macs), share, *kept])
    if any(at.release for at in entry.ratios):
        header.append("released")
        dense.append("")
        for row, at in zip(rows[1:], entry.ratios, strict=True):
            row.append(f"`{at.release.name}`: {at.release.top1:.2f} %" if at.release else "")
    return f"## {PREFIX}{entry.backbone}\n\n{facts}\n\n{_table(header, rows)}"


def _families() -> str:
    families = [
        (family.family, tuple(kind.__name__ for kind in family.model_classes))
        for family in BUILT_IN
    ]
    families += [(optional.families, optional.classes) for optional in OPTIONAL.values()]
    lines = [f"- {name}: {', '.join(f'`{kind}`' for kind in kinds)}" for name, kinds in families]
    more = "[How to add one](adding-a-backbone.md)."
    return "\n".join(["## Families", "", "`sparsify` takes these:", "", *lines, "", more])


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of labels and right-aligned numbers."""
    rule = ["---"] + ["--:"] * (len(header) - 1)
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def _pixels(entry: Entry) -> str:
    height, width = entry.image_size
    return str(height) if height == width else f"{height}×{width}"


def _giga(macs: int) -> str:
    return f"{macs / 1e9:.2f}"


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M"

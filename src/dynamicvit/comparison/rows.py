"""What is compared (methods by name, and DynamicViT's ablations), and what its rows say."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from statistics import mean, stdev
from types import MappingProxyType
from typing import get_args

from torch import nn

from dynamicvit.backbones import Hierarchical
from dynamicvit.checkpoints.loading import load
from dynamicvit.comparison.timing import Timing
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import bound_of
from dynamicvit.core.schedule import Policy, Schedule
from dynamicvit.errors import InputError
from dynamicvit.methods import METHODS, at_macs, method_named
from dynamicvit.utils.words import percent

#: The dense network's name among the candidates.
DENSE_NAME = "dense"


# ---------------------------------------------------------------- what is compared


@dataclass(frozen=True)
class Candidate:
    """One way to save work, with what of the recipe is different for it.

    Attributes:
        name: in commands and tables.
        method: its name in :data:`~dynamicvit.methods.METHODS`.
        policy: what becomes of dropped tokens.
        num_stages: of the usual three only the first so many.
        overrides: what of a recipe is different for it, as ``key=value``.
        saved: a model that was trained before, as :func:`~dynamicvit.load` takes it: it is
            compared as it is, at its own budget.
    """

    name: str
    method: str = "dynamicvit"
    policy: Policy = "removed"
    num_stages: int | None = None
    overrides: tuple[str, ...] = ()
    saved: str | None = None

    @property
    def works_untrained(self) -> bool:
        """Whether it means anything before it is fine-tuned."""
        return self.saved is not None or METHODS[self.method].works_untrained

    def over(self, backbone: nn.Module) -> Candidate:
        """The same on a network whose maps stay whole, with the policy of those."""
        if self.saved is not None or not isinstance(bound_of(backbone), Hierarchical):
            return self
        name = full_name(self.method, "cheap") if self.name not in ABLATIONS else self.name
        return replace(self, name=name, policy="cheap")

    def build(self, backbone: nn.Module, fraction: float) -> DynamicViT:
        """A model at the share of the dense MACs that is nearest to a budget.

        Args:
            backbone: used, not copied.
            fraction: of its MACs.
        """
        if self.saved is not None:
            return load(self.saved)
        stages = None
        if self.num_stages is not None:
            bound = bound_of(backbone)
            assert bound is not None
            depth = len(bound.blocks)
            stages = Schedule.for_depth(depth).stages[: self.num_stages]
        return at_macs(self.method, backbone, fraction, stages=stages, policy=self.policy)


#: It is not its own dense self: the network that it was cut out of teaches it, by its answers.
_OWN_CHANNELS = (
    *("losses.token=0", "losses.feature=0", "losses.guidance=0", "masking=full"),
    *("share_first_blocks=false", "teacher.model=dense"),
)

#: The only other teacher of the ranking is the gradient of the decisions. It comes as the paper has
#: it: drawn one by one, with a ratio loss of four times the token loss's weight (small_data's: 4).
#: Where as many must stay, top-k's gradient has nothing to hold it and diverges at this rate.
_NO_GUIDANCE = (
    *("losses.guidance=0", "losses.ratio=16"),
    *("decisions=independent", "masking=full"),
)

#: What of a recipe is different for a method, wherever it is compared.
_OVERRIDES = {"narrow": _OWN_CHANNELS}

ABLATIONS: Mapping[str, Candidate] = MappingProxyType(
    {
        candidate.name: candidate
        for candidate in (
            Candidate("one-stage", num_stages=1),
            Candidate("two-stages", num_stages=2),
            Candidate("no-distillation", overrides=("losses.distillation=0",)),
            Candidate("no-token", overrides=("losses.token=0",)),
            Candidate("no-feature", overrides=("losses.feature=0",)),
            Candidate("no-guidance", overrides=_NO_GUIDANCE),
            Candidate("zeroed", overrides=("masking=zeroed",)),
        )
    }
)
"""DynamicViT, dropped tokens removed, with something left out, by name."""


def all_names() -> list[str]:
    """Every method by its name in tables: one that merges by default once with each policy."""
    return [
        full_name(name, policy)
        for name, kind in METHODS.items()
        for policy in dict.fromkeys(("removed", kind.default_policy))
    ]


def full_name(method: str, policy: Policy) -> str:
    """A method's name in tables: with its policy, unless it removes tokens and always does."""
    plain = policy == METHODS[method].default_policy == "removed"
    return method if plain else f"{method}-{policy}"


def candidate_named(name: str) -> Candidate:
    """A method, also with ``-merged`` or ``-removed`` behind its name, or an ablation.

    Raises:
        InputError: naming all that there are.
    """
    if name in ABLATIONS:
        return ABLATIONS[name]
    method, _, last = name.rpartition("-")
    if name in METHODS or last not in get_args(Policy):
        method, last = name, None
    try:
        kind = method_named(method)
    except InputError as error:
        if ":" in name:
            raise
        raise InputError(f"{error}, and the ablations {', '.join(ABLATIONS)}") from None
    policy = last or kind.default_policy
    overrides = _OVERRIDES.get(kind.name, ())
    return Candidate(full_name(kind.name, policy), kind.name, policy, overrides=overrides)


def candidates(names: str | Sequence[str]) -> list[Candidate]:
    """The candidates of a list, each once.

    Args:
        names: names, or a text of names with commas; "all" and "ablations" stand for several.

    Raises:
        InputError: for an unknown name, or none.
    """
    groups = {"all": all_names(), "ablations": list(ABLATIONS)}
    asked = names.split(",") if isinstance(names, str) else names
    several = [groups.get(name.strip(), [name.strip()]) for name in asked]
    return list(dict.fromkeys(candidate_named(name) for group in several for name in group))


# ---------------------------------------------------------------- what comes out


@dataclass(frozen=True)
class Entry:
    """What one row is about.

    Attributes:
        candidate: how work is saved; ``None`` for the dense network.
        fraction: of the dense MACs that was asked for.
        seed: of training, and of chance; ``None`` without training.
    """

    candidate: Candidate | None
    fraction: float
    seed: int | None

    @property
    def name(self) -> str:
        """The candidate's."""
        return DENSE_NAME if self.candidate is None else self.candidate.name

    @property
    def is_given(self) -> bool:
        """Whether it is a model that was trained before."""
        return self.candidate is not None and self.candidate.saved is not None

    def __str__(self) -> str:
        how = "untrained" if self.seed is None else f"seed {self.seed}"
        how = "as it is" if self.is_given else how
        return self.name if self.candidate is None else f"{self.name} at {self.fraction:g}, {how}"


@dataclass(frozen=True)
class Row:
    """What one row says.

    Attributes:
        method: name of the candidate.
        fraction: of the dense MACs that was asked for.
        macs_fraction: that it has.
        gmacs: of one image, everything counted.
        seed: of training; ``None`` untrained.
        images: seen in training.
        top1: share of the labeled images, or ``None`` without labels.
        agreement: share of the images on which the dense network says the same.
        divergence: KL divergence from the dense network's answers, in nats; ``None`` of maps.
        evaluated: images that were evaluated.
        given: of a model that was trained before, what tells its weights from others.
        miou: of a segmentation model, whose agreement is the share of the pixels; ``None`` without
            masks.
    """

    method: str
    fraction: float
    macs_fraction: float
    gmacs: float
    seed: int | None
    images: int
    top1: float | None
    agreement: float
    divergence: float | None
    evaluated: int
    given: str = ""
    miou: float | None = None

    def __str__(self) -> str:
        said = [
            f"{name} {percent(share, 2)}"
            for name, share in (("top-1", self.top1), ("mIoU", self.miou))
            if share is not None
        ]
        said.append(f"agreement {percent(self.agreement, 2)}")
        if self.divergence is not None:
            said.append(f"KL {self.divergence:.4f}")
        return f"{', '.join(said)}, {self.gmacs:.3f} GMACs"


@dataclass(frozen=True)
class Line:
    """A candidate at one budget, over its seeds.

    Attributes:
        method: its name.
        fraction: of the dense MACs that was asked for.
        trained: whether it was fine-tuned.
        gmacs: of one image.
        macs_fraction: of the dense network's.
        top1: mean over the seeds, in 0..1; ``None`` without labels.
        top1_spread: standard deviation over the seeds; ``None`` with fewer than two.
        agreement: mean over the seeds.
        agreement_spread: likewise.
        divergence: mean over the seeds, in nats; ``None`` of maps.
        seeds: how many.
        images: seen in training.
        timings: by batch size.
        given: whether it is a model that was trained before, compared as it is.
        miou: mean over the seeds; ``None`` without masks.
        miou_spread: likewise.
    """

    method: str
    fraction: float
    trained: bool
    gmacs: float
    macs_fraction: float
    top1: float | None
    top1_spread: float | None
    agreement: float
    agreement_spread: float | None
    divergence: float | None
    seeds: int
    images: int
    timings: Mapping[int, Timing]
    given: bool = False
    miou: float | None = None
    miou_spread: float | None = None

    @property
    def score(self) -> tuple[str, float, float | None] | None:
        """What labels measure: its name, mean and spread; ``None`` without labels."""
        if self.top1 is not None:
            return "top-1", self.top1, self.top1_spread
        return None if self.miou is None else ("mIoU", self.miou, self.miou_spread)

    @property
    def is_dense(self) -> bool:
        """Whether it is the dense network's."""
        return self.method == DENSE_NAME

    @property
    def label(self) -> str:
        """How plots call it."""
        needs_none = self.trained or self.is_dense or self.given
        return self.method if needs_none else f"{self.method}, untrained"


def lines_of(
    rows: Sequence[Row], timings: Mapping[tuple[str, float], Sequence[Timing]]
) -> list[Line]:
    """Rows that differ in their seed only become one line.

    Ordered: dense, then budgets from large to small, in each the methods in the order of their
    registry, others behind them, the untrained before the trained.
    """
    groups: dict[tuple[str, float, bool, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.method, row.fraction, row.seed is not None, row.given), []).append(
            row
        )
    order = list(dict.fromkeys([DENSE_NAME, *all_names(), *ABLATIONS, *(r.method for r in rows)]))
    ranked = sorted(groups, key=lambda group: (-group[1], order.index(group[0]), group[2]))
    return [
        _line(groups[group], {t.batch_size: t for t in timings.get(group[:2], ())})
        for group in ranked
    ]


def _line(rows: Sequence[Row], timings: Mapping[int, Timing]) -> Line:
    first = rows[0]
    top1, miou = (
        [value for row in rows if (value := getattr(row, name)) is not None]
        for name in ("top1", "miou")
    )
    agreed = [row.agreement for row in rows]
    diverged = [row.divergence for row in rows if row.divergence is not None]
    return Line(
        method=first.method,
        fraction=first.fraction,
        trained=first.seed is not None,
        gmacs=first.gmacs,
        macs_fraction=first.macs_fraction,
        top1=mean(top1) if top1 else None,
        top1_spread=_spread(top1),
        miou=mean(miou) if miou else None,
        miou_spread=_spread(miou),
        agreement=mean(agreed),
        agreement_spread=_spread(agreed),
        divergence=mean(diverged) if diverged else None,
        seeds=len(rows),
        images=first.images,
        timings=timings,
        given=bool(first.given),
    )


def _spread(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None


def write_csv(lines: Sequence[Line]) -> str:
    """The lines as CSV, shares in 0..1; empty where there is no value."""
    sizes = sorted({size for line in lines for size in line.timings})
    measures = ("speedup", "low", "high", "dense_ms", "ms", "choosing_ms", "choosing_share")
    table = []
    for line in lines:
        values = {name: value for name, value in asdict(line).items() if name != "timings"}
        for size in sizes:
            timing = line.timings.get(size)
            for measure in measures:
                values[f"{measure}_batch_{size}"] = timing and getattr(timing, measure)
        table.append(values)
    text = io.StringIO()
    columns = [each.name for each in fields(Line) if each.name != "timings"]
    columns += [f"{measure}_batch_{size}" for size in sizes for measure in measures]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for values in table:
        writer.writerow({name: _rounded(value) for name, value in values.items()})
    return text.getvalue()


def _rounded(value: object) -> object:
    return round(value, 5) if isinstance(value, float) else value

"""What is compared: methods by name, and DynamicViT's ablations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import get_args

from torch import nn

from dynamicvit.backbones import Hierarchical
from dynamicvit.checkpoints.loading import load
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import bound_of
from dynamicvit.core.schedule import Policy, Schedule
from dynamicvit.errors import InputError
from dynamicvit.methods import METHODS, at_macs, method_named
from dynamicvit.methods.budgets import NETWORKS

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

    @property
    def is_network(self) -> bool:
        """Whether it is a network of its own, made of the dense one."""
        return METHODS[self.method] in NETWORKS

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


#: It is not its own dense self: the network that it is a copy of teaches it, by its answers.
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
_OVERRIDES = {"narrow": _OWN_CHANNELS, "fewer-pixels": _OWN_CHANNELS}

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


# ---------------------------------------------------------------- what there is to do


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

"""The ways to save work, by name, each built for the same budget."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from torch import nn

from dynamicvit.backbones import backbone_for
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.prediction import PredictionModule
from dynamicvit.core.schedule import Policy, Schedule
from dynamicvit.errors import InputError
from dynamicvit.methods.budgets import (
    with_downsampling,
    with_keep_ratio,
    with_merging,
    with_width,
)
from dynamicvit.methods.class_attention import ClassAttention
from dynamicvit.methods.random import RandomScores
from dynamicvit.methods.static import StaticRanking


@dataclass(frozen=True)
class Way:
    """One way to save work.

    Attributes:
        name: in commands and tables.
        does: in a few words.
        build: from a dense network and the share of its MACs to a model at the nearest it can
            reach; the network is used, not copied (but for "width").
        overrides: what of a recipe is different for it, as ``key=value``.
        untrained: whether it means anything before it is fine-tuned.
        ablation: whether it is DynamicViT with something left out.
    """

    name: str
    does: str
    build: Callable[[nn.Module, float], DynamicViT]
    overrides: tuple[str, ...] = ()
    untrained: bool = False
    ablation: bool = False


def _dynamic(
    stages: int = 3, policy: Policy = "removed"
) -> Callable[[nn.Module, float], DynamicViT]:
    """The paper's way, with the first of its usual stages; or what becomes of dropped tokens."""

    def build(backbone: nn.Module, fraction: float) -> DynamicViT:
        bound = backbone_for(backbone)
        usual = Schedule.for_depth(len(bound.blocks)).stages
        width = bound.width
        return with_keep_ratio(
            backbone, fraction, lambda: PredictionModule(width), usual[:stages], policy
        )

    return build


def _static(backbone: nn.Module, fraction: float) -> DynamicViT:
    bound = backbone_for(backbone)
    grid = bound.grid(*bound.image_size)
    return with_keep_ratio(backbone, fraction, lambda: StaticRanking(grid))


def _kept_by(stage: Callable[[], nn.Module]) -> Callable[[nn.Module, float], DynamicViT]:
    return lambda backbone, fraction: with_keep_ratio(backbone, fraction, stage)


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

_WAYS = (
    Way("dynamic", "DynamicViT", _dynamic()),
    Way("dynamic-merged", "DynamicViT, dropped tokens merged", _dynamic(policy="merged")),
    Way("random", "any tokens", _kept_by(RandomScores), untrained=True),
    Way("static", "the same places for all images, learned", _static),
    Way("downsampling", "the grid pooled 2×2 before a block", with_downsampling),
    Way(
        "attention",
        "least attended by the class token dropped",
        _kept_by(ClassAttention),
        untrained=True,
    ),
    Way(
        "attention-fused",
        "the same, and fused into a token (EViT)",
        _kept_by(lambda: ClassAttention(fuse=True)),
        untrained=True,
    ),
    Way("merging", "the most alike merged (ToMe)", with_merging, untrained=True),
    Way("width", "narrower, dense, sliced", with_width, _OWN_CHANNELS),
    Way("one-stage", "DynamicViT, first stage only", _dynamic(1), ablation=True),
    Way("two-stages", "DynamicViT, first two stages", _dynamic(2), ablation=True),
    Way(
        "no-distillation",
        "DynamicViT without distillation",
        _dynamic(),
        ("losses.distillation=0",),
        ablation=True,
    ),
    Way(
        "no-token", "DynamicViT without token loss", _dynamic(), ("losses.token=0",), ablation=True
    ),
    Way(
        "no-feature",
        "DynamicViT without feature loss",
        _dynamic(),
        ("losses.feature=0",),
        ablation=True,
    ),
    Way("no-guidance", "DynamicViT without guidance", _dynamic(), _NO_GUIDANCE, ablation=True),
    Way(
        "zeroed",
        "DynamicViT trained with zeros for dropped tokens",
        _dynamic(),
        ("masking=zeroed",),
        ablation=True,
    ),
)

WAYS: Mapping[str, Way] = MappingProxyType({way.name: way for way in _WAYS})
"""Every way by its name."""


def names(ablations: bool = False) -> list[str]:
    """Names of the ways, or of the ablations of DynamicViT."""
    return [way.name for way in _WAYS if way.ablation is ablations]


def build(name: str, backbone: nn.Module, macs_fraction: float) -> DynamicViT:
    """A model that saves work in the named way.

    Args:
        name: one of :data:`WAYS`.
        backbone: a supported vision transformer; used as it is, not copied.
        macs_fraction: share of its MACs; the model's are the nearest that the way can reach.

    Returns:
        In the backbone's mode. Without its own training only those that are ``untrained`` mean
        anything.

    Raises:
        InputError: for an unknown name, a fraction outside (0, 1), or a way that can't be had with
            this backbone.
    """
    if not 0 < macs_fraction < 1:
        raise InputError(f"a share of the dense MACs is between 0 and 1, got {macs_fraction}")
    model = way_of(name).build(backbone, macs_fraction)
    return model.train(backbone.training)


def way_of(name: str) -> Way:
    """The way of that name.

    Raises:
        InputError: naming the nearest there is.
    """
    if name not in WAYS:
        near = difflib.get_close_matches(name, WAYS, n=1)
        hint = f"did you mean {near[0]}? There are" if near else "there are"
        raise InputError(f"no way {name!r}: {hint} {', '.join(WAYS)}")
    return WAYS[name]


def ways_of(text: str) -> Sequence[Way]:
    """The ways of a list with commas; ``all`` and ``ablations`` stand for several.

    Raises:
        InputError: for an unknown name, or none.
    """
    chosen: list[str] = []
    for name in (part.strip() for part in text.split(",")):
        groups = {"all": names(), "ablations": names(ablations=True)}
        chosen += groups.get(name) or [way_of(name).name]
    return [WAYS[name] for name in dict.fromkeys(chosen)]

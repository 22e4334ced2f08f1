"""A budget per image: easy images keep fewer tokens, hard ones more, the schedule's on average.

At a stage an image keeps, instead of k, a number between k and that of its patches whose keep score
passes a threshold: halfway, if its method says nothing else. Thresholds are found on images without
labels, and kept as a table of shares, so that every keep ratio has one: exact at the one of the
calibration, near at others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dynamicvit.core.method import Choice, Method
from dynamicvit.core.parts import by_count
from dynamicvit.core.registry import METHODS
from dynamicvit.core.schedule import Policy, Schedule
from dynamicvit.errors import InputError
from dynamicvit.layers.tokens import Tokens
from dynamicvit.utils.words import inputs_called

if TYPE_CHECKING:
    from dynamicvit.core.model import DynamicViT

#: Images that a mean needs at least.
LEAST_IMAGES = 32

#: A table has a threshold for each of so many shares, from 1 / SHARES to 1.
SHARES = 64

#: Counts are multiples of the grid's patches over this (8 of 196): images of a batch that keep as
#: many run together, and few would with every number.
STEPS = 24

#: Halvings of the range of scores in which a threshold lies: to float32's precision.
_HALVINGS = 30


@dataclass(frozen=True)
class PerImage:
    """How many tokens each image keeps.

    Attributes:
        thresholds: for each stage, keep scores above which :data:`SHARES` growing shares of the
            tokens that come lie, on average over images. Empty before it was calibrated.
        stages: block indices of the stages that it was calibrated for.
        policy: what became of dropped tokens there.
        cap: no image keeps more than so many times the mean at a stage, or ``None``.
    """

    thresholds: tuple[tuple[float, ...], ...] = ()
    stages: tuple[int, ...] = ()
    policy: Policy = "removed"
    cap: float | None = None

    def prune(
        self, schedule: Schedule, stage: int, method: Method, tokens: Tokens
    ) -> tuple[list[Tokens], Tensor]:
        """A stage of the pruned path where images keep different numbers of tokens.

        Args:
            schedule: how many they keep on average.
            stage: its number.
            method: what scores the tokens.
            tokens: those that come to the stage.

        Returns:
            Those that go on, in parts whose images keep the same number; and ``(B, M)`` log-odds of
            keeping those that came.

        Raises:
            InputError: before it was calibrated, or if it was for other stages or another policy.
        """
        if not self.thresholds:
            raise InputError(
                "the model has no thresholds yet for a budget per image: "
                "call model.calibrate(images) with images as it will see"
            )
        if (self.stages, self.policy) != (schedule.stages, schedule.policy):
            raise InputError(
                f"the budget per image was calibrated for stages {self.stages} and dropped tokens "
                f"{self.policy}, not for {schedule.stages}, {schedule.policy}: calibrate it again"
            )
        scores, own, alike = scored(method, tokens, schedule.policy)
        came, mean = mean_counts(schedule, stage, tokens.grid_size)
        above = (scores >= self.threshold(stage, mean / came)).sum(dim=1)
        held, most = scores.shape[1], _most(mean, tokens.grid_size, self.cap)
        limits = above.new_tensor([mean, held, most])
        counts = counted(above, *limits, tokens.grid_size, method.spread)
        return kept_parts(method, tokens, counts, scores, own, alike), scores

    def threshold(self, stage: int, share: float) -> float:
        """The keep score above which a share of the tokens that come to a stage lies."""
        if share >= 1:
            return float("-inf")
        table, at = self.thresholds[stage], share * SHARES - 1
        below = min(max(int(at), 0), SHARES - 2)
        return table[below] + max(at - below, 0.0) * (table[below + 1] - table[below])


def counted(
    above: Tensor, mean: Tensor, held: Tensor, most: Tensor, grid_size: int, spread: float
) -> Tensor:
    """How many tokens images keep, one at least.

    Args:
        above: how many pass the threshold; integers of any shape.
        mean: how many go on in the mean.
        held: how many there are.
        most: the cap.
        grid_size: N.
        spread: of the method.
    """
    step = max(1, grid_size // STEPS)
    wanted = mean + spread * (above - mean)
    # A quarter less: halves of patches would lie midway between two steps and tip either way.
    stepped = (((wanted - 0.25) / step + 0.5).floor() * step).long()
    # Who would keep all keeps all, whatever the steps are.
    stepped = torch.where((above >= held) | (wanted >= held), held, stepped)
    return torch.minimum(stepped, torch.minimum(held, most)).clamp(min=1)


def _most(mean: float, grid_size: int, cap: float | None) -> int:
    return grid_size if cap is None else max(1, int(cap * mean))


def scored(method: Method, tokens: Tokens, policy: Policy) -> tuple[Tensor, Tensor, Tensor | None]:
    """The keep scores that decide, those of the method itself, and how alike the tokens are."""
    assert isinstance(method, Choice)
    own, alike = method.keep_scores(tokens), method.alike(tokens, policy)
    return method.ranked(tokens, own, alike), own, alike


def kept_parts(
    method: Method,
    tokens: Tokens,
    counts: Tensor,
    scores: Tensor,
    own: Tensor,
    alike: Tensor | None,
) -> list[Tokens]:
    """The tokens after each image has kept its best, in parts whose images keep the same number.

    Args:
        method: which may leave a summary of those that are dropped.
        tokens: M patch tokens.
        counts: ``(B,)``.
        scores: ``(B, M)``, by which tokens are ranked; of those that tie the first.
        own: ``(B, M)``, what the method says.
        alike: ``(B, M, M)`` where dropped tokens merge, else ``None``.
    """
    assert isinstance(method, Choice)
    order = scores.argsort(dim=1, descending=True, stable=True)
    kept = order.argsort(dim=1) < counts[:, None]
    looked_at = method.adds or alike is not None
    tokens = replace(tokens, heads=tokens.heads if looked_at else None)
    if looked_at:
        dropped = (~kept).to(torch.float32)
        summary = method.summary(tokens, dropped, own)
        if alike is not None:
            tokens = method.absorb(tokens, dropped, kept, alike, own)
        tokens = replace(tokens.with_summary(summary), heads=None)
    tokens = method.told(tokens, kept)
    return [part.keep(position) for part, position in by_count(tokens, kept)]


def mean_counts(schedule: Schedule, stage: int, num_patches: int) -> tuple[int, int]:
    """How many patches come to a stage on average, and how many go on."""
    counts = (num_patches, *schedule.kept(num_patches))
    return counts[stage], counts[stage + 1]


# ---------------------------------------------------------------- calibration


@torch.no_grad()
def calibrated(model: DynamicViT, images: Tensor | Iterable[Tensor], cap: float | None) -> PerImage:
    """Thresholds for a model at its schedule of the moment.

    Stage by stage: the tokens that come to one are those that the stages before it keep.

    Args:
        model: whose method's scores compare images.
        images: ``(n, channels, height, width)``, or batches of that.
        cap: of :class:`PerImage`.

    Raises:
        InputError: as :meth:`~dynamicvit.DynamicViT.calibrate`.
    """
    check_compares_images(model.method)
    number = isinstance(cap, Real) and not isinstance(cap, bool)
    if cap is not None and not (number and cap >= 1):
        raise InputError(f"a cap is 1 or more, in means of the stage, got {cap!r}")
    batches = images.split(LEAST_IMAGES) if isinstance(images, Tensor) else images
    first = [model.first_blocks(batch) for batch in batches]
    found = sum(tokens.x.shape[0] for tokens in first)
    if found < LEAST_IMAGES:
        what = inputs_called(model.bound.frames)
        raise InputError(f"calibration needs {LEAST_IMAGES} {what} or more, got {found}")
    schedule, patches = model.schedule, first[0].grid_size
    about = PerImage((), schedule.stages, schedule.policy, cap)
    for stage in range(len(schedule.stages)):
        scores = [score for tokens in first for score in _scores_at(model, about, stage, tokens)]
        come, _ = mean_counts(schedule, stage, patches)
        table = _thresholds(scores, come, patches, cap, model.method.spread)
        about = replace(about, thresholds=(*about.thresholds, table))
    return about


def _scores_at(model: DynamicViT, about: PerImage, stage: int, first: Tokens) -> list[Tensor]:
    """``(B', M')`` keep scores of each part that comes to a stage, the stages before calibrated."""
    found: list[Tensor] = []

    def note(at: int, tokens: Tokens, count: int) -> list[Tokens]:
        del count
        if at < stage:
            return about.prune(model.schedule, at, model.methods[at], tokens)[0]
        found.append(scored(model.methods[at], tokens, model.policy)[0])
        return [tokens]

    model._walk(first, note, model.schedule.stages[stage])
    return found


def _thresholds(
    scores: Sequence[Tensor], come: int, grid_size: int, cap: float | None, spread: float
) -> tuple[float, ...]:
    """For each share the threshold at which images keep as many on average.

    Args:
        scores: ``(B', M')`` of each part of the images.
        come: how many tokens come to the stage on average.
        grid_size: N.
        cap: of :class:`PerImage`.
        spread: of the method.
    """
    longest = max(part.shape[1] for part in scores)
    padded = [F.pad(part, (longest - part.shape[1], 0), value=float("-inf")) for part in scores]
    ranked = torch.cat(padded).sort(dim=1).values.contiguous()
    held = ranked.isfinite().sum(dim=1, keepdim=True)
    means = come * torch.arange(1, SHARES + 1, device=ranked.device) / SHARES
    most = held.new_tensor([_most(mean, grid_size, cap) for mean in means.tolist()])
    finite = ranked[ranked.isfinite()]
    low, high = (edge.expand(SHARES) for edge in (finite.amin(), finite.amax()))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        above = longest - torch.searchsorted(ranked, middle.expand(len(ranked), -1).contiguous())
        many = counted(above, means, held, most, grid_size, spread).float().mean(dim=0) > means
        low, high = torch.where(many, middle, low), torch.where(many, high, middle)
    return tuple(high.tolist())


def check_compares_images(method: type[Method]) -> None:
    """Raise ``InputError`` unless the keep scores of a method tell one image from another."""
    if method.default_policy == "cheap":
        raise InputError(
            "a budget per image is for tokens that leave: the maps of this network stay whole, and "
            "every image has as many positions on the slow path"
        )
    if method.reactivates:
        raise InputError(
            f"a budget per image is for tokens that are dropped once, and {method.name} may take "
            "them up again"
        )
    if not method.compares_images:
        able = ", ".join(sorted(name for name, kind in METHODS.items() if kind.compares_images))
        raise InputError(
            f"a budget per image needs keep scores that compare images, and "
            f"{method.name or method.__name__} gives none; these methods do: {able}"
        )


# ---------------------------------------------------------------- in a config


def described(per_image: PerImage | None) -> dict[str, Any] | None:
    """What a model's config says of it."""
    return None if per_image is None else asdict(per_image)


def per_image_in(config: Mapping[str, Any]) -> PerImage | None:
    """What a config says of it, ``None`` where it says nothing.

    Raises:
        InputError: for something that :func:`described` does not write.
    """
    said = config.get("per_image")
    if said is None:
        return None
    try:
        thresholds = tuple(tuple(map(float, stage)) for stage in said["thresholds"])
        stages, cap = tuple(map(int, said["stages"])), said["cap"]
        per_image = PerImage(
            thresholds, stages, said["policy"], None if cap is None else float(cap)
        )
    except (TypeError, ValueError, LookupError) as error:
        raise InputError(f"per_image is none that calibrate made ({error})") from error
    numbers = [number for stage in thresholds for number in stage]
    sizes = {len(stage) for stage in thresholds}
    if sizes - {SHARES} or len(thresholds) != len(stages) or not all(map(isfinite, numbers)):
        raise InputError(
            f"per_image has {SHARES} finite thresholds for each of its stages {stages}, "
            f"got {len(thresholds)} stages of {sorted(sizes)}"
        )
    return per_image

"""Where and how much to drop (Sections 3.1 and 4 of the paper)."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal, get_args

from dynamicvit.errors import InputError
from dynamicvit.layers.tokens import kept_count

Policy = Literal["removed", "merged", "bypassed", "cheap"]
"""What becomes of dropped tokens.

``"removed"``: nothing, as in the paper. ``"merged"``: each becomes part of the kept token that is
most like it (:mod:`dynamicvit.core.merging`). ``"bypassed"``: each waits as it is and comes back to
its place before a later block, or after the last one (Bergner et al., "Token Cropr", CVPR 2025).
``"cheap"``: it stays and takes a cheap path, for networks whose maps stay whole
(:mod:`dynamicvit.core.spatial`).
"""


@dataclass(frozen=True)
class Schedule:
    """The stages of a network and the share of the original patches that each keeps.

    Attributes:
        stages: indices of the blocks before which tokens are dropped, ascending.
        keep_ratios: share of the original N patches kept from that stage on; never growing.
        policy: what becomes of the tokens that the prediction modules drop.
        restore_before: index of the first block that runs on every patch again, after the last
            stage; the depth for none, at the end. Bypassed tokens come back there, and each patch
            of a merged one gets a copy of it. ``None``: merged tokens stay merged, and bypassed
            ones come back at the end, which :meth:`for_depth` says by the depth.
    """

    stages: tuple[int, ...]
    keep_ratios: tuple[float, ...]
    policy: Policy = "removed"
    restore_before: int | None = None

    def __post_init__(self) -> None:
        if self.policy == "gone":
            raise InputError("policy 'gone' is called 'removed' now")
        if self.policy not in get_args(Policy):
            raise InputError(f"policy is one of {get_args(Policy)}, got {self.policy!r}")
        if len(self.stages) != len(self.keep_ratios):
            raise InputError(
                f"{len(self.stages)} stages {self.stages} need {len(self.stages)} keep ratios, "
                f"got {len(self.keep_ratios)}: {self.keep_ratios}"
            )
        if list(self.stages) != sorted(set(self.stages)):
            raise InputError(f"stages must ascend and not repeat, got {self.stages}")
        for ratio in self.keep_ratios:
            check_keep_ratio(ratio)
        for before, after in zip(self.keep_ratios, self.keep_ratios[1:], strict=False):
            if after > before:
                raise InputError(
                    f"keep ratios are shares of the original patches and can't grow from stage to "
                    f"stage, got {self.keep_ratios}"
                )
        if self.restore_before is not None:
            self._check_restore(self.restore_before)

    @classmethod
    def for_depth(
        cls,
        depth: int,
        keep_ratio: float | Sequence[float] = 0.7,
        stages: Sequence[int] | None = None,
        policy: Policy = "removed",
        restore_before: int | None = None,
    ) -> Schedule:
        """The schedule of a network with ``depth`` blocks.

        Args:
            depth: number of blocks.
            keep_ratio: ρ, from which the stages keep ρ, ρ², ρ³, ...; or one ratio for each stage.
            stages: block indices; by default 1/4, 2/4 and 3/4 of the depth (3, 6, 9 of 12).
            policy: what becomes of dropped tokens.
            restore_before: the block before which they come back.

        Raises:
            InputError: for a stage outside the depth or given twice, a ratio outside (0, 1],
                growing ratios, another number of ratios than stages, or a block to restore before
                that is outside the depth or not after the last stage.
        """
        if stages is None:
            stages = _quarters(depth)
            if depth < 4:
                raise InputError(f"{depth} blocks are too few for default stages: give stages")
        stages = check_stages(stages, depth)
        if isinstance(keep_ratio, Sequence) and not isinstance(keep_ratio, str):
            for ratio in keep_ratio:
                check_keep_ratio(ratio)
            ratios = tuple(float(ratio) for ratio in keep_ratio)
        else:
            ratios = geometric(keep_ratio, len(stages))
        if restore_before is None and policy == "bypassed":
            restore_before = depth
        if restore_before is not None:
            [restore_before] = check_stages([restore_before], depth + 1, "restore_before")
        return cls(stages, ratios, policy, restore_before)

    def checked(self, depth: int) -> Schedule:
        """The same schedule, in plain numbers.

        Raises:
            InputError: if it does not fit a network of so many blocks, as :meth:`for_depth`.
        """
        return Schedule.for_depth(
            depth, self.keep_ratios, self.stages, self.policy, self.restore_before
        )

    @property
    def keep_ratio(self) -> float | None:
        """ρ, if the ratios are ρ, ρ², ρ³, ...; else ``None``."""
        if not self.keep_ratios:
            return 1.0
        rho = self.keep_ratios[0]
        same = zip(self.keep_ratios, geometric(rho, len(self.keep_ratios)), strict=True)
        return rho if all(math.isclose(a, b) for a, b in same) else None

    def mean_kept(self, depth: int) -> float:
        """Share of the patches that a block holds, on average over the ``depth`` blocks.

        As if none came back: by this number schedules of other stages are compared.
        """
        return _mean_kept(depth, self.stages, self.keep_ratios)

    def kept(self, num_patches: int) -> tuple[int, ...]:
        """How many of ``num_patches`` are left after each stage."""
        policy = self.policy
        return tuple(kept_count(num_patches, ratio, policy) for ratio in self.keep_ratios)

    def _check_restore(self, block: int) -> None:
        if self.policy == "removed":
            raise InputError(
                f"restore_before {block!r}: removed tokens don't come back, those of policy "
                "'bypassed' or 'merged' do"
            )
        number = isinstance(block, Integral) and not isinstance(block, bool)
        if not number or block <= max(self.stages, default=-1):
            raise InputError(
                f"restore_before is a block after the last of the stages {self.stages}, "
                f"got {block!r}"
            )


def nearest(options: Sequence[Schedule], depth: int, keep_ratio: float) -> Schedule:
    """Of a method's own schedules, the one that holds as many tokens as the paper's at this ρ.

    On average over the blocks; what the paper's are is said for 1 to 3 blocks too.
    """
    share = _mean_kept(depth, _quarters(depth), geometric(keep_ratio, 3))
    return min(options, key=lambda own: abs(own.mean_kept(depth) - share))


def keep_ratio_among(options: Sequence[Schedule], depth: int, schedule: Schedule) -> float | None:
    """The ρ of at most four digits to which a schedule is :func:`nearest`; ``None`` without one."""
    share, smallest = schedule.mean_kept(depth), 1e-4

    def mean_kept(step: int) -> float:
        return _mean_kept(depth, _quarters(depth), geometric(smallest * step, 3))

    found = smallest * (1 + bisect_left(range(1, 10_000), share, key=mean_kept))
    for digits in range(1, 5):
        ratio = max(round(found, digits), smallest)
        found_there = nearest(options, depth, ratio)
        if (found_there.stages, found_there.keep_ratios) == (schedule.stages, schedule.keep_ratios):
            return ratio
    return None


def _quarters(depth: int) -> list[int]:
    return [depth * quarter // 4 for quarter in (1, 2, 3)]


def _mean_kept(depth: int, stages: Sequence[int], keep_ratios: Sequence[float]) -> float:
    spans = zip((0, *stages), (*stages, depth), (1.0, *keep_ratios), strict=True)
    return sum((end - start) * ratio for start, end, ratio in spans) / depth


def geometric(keep_ratio: float, num_stages: int) -> tuple[float, ...]:
    """ρ, ρ², ρ³, ... (Section 4)."""
    check_keep_ratio(keep_ratio)
    return tuple(float(keep_ratio) ** (stage + 1) for stage in range(num_stages))


def check_keep_ratio(keep_ratio: float) -> None:
    """Raise ``InputError`` unless ``0 < keep_ratio <= 1``."""
    number = isinstance(keep_ratio, Real) and not isinstance(keep_ratio, bool)
    if not number or not 0 < keep_ratio <= 1:
        raise InputError(f"a keep ratio is a number in (0, 1], got {keep_ratio!r}")


def check_stages(stages: Sequence[int], depth: int, name: str = "stage") -> tuple[int, ...]:
    """The stages as a tuple of int, or ``InputError`` if they are not blocks of this depth."""
    if isinstance(stages, str) or not isinstance(stages, Iterable):
        raise InputError(f"stages are a sequence of block indices, got {stages!r}")
    stages = tuple(stages)
    for stage in stages:
        if not isinstance(stage, Integral) or isinstance(stage, bool) or not 0 <= stage < depth:
            raise InputError(f"{name} {stage!r} is not a block index: 0 to {depth - 1} exist")
    return tuple(int(stage) for stage in stages)

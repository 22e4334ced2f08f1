"""Run-length tokenization: of a part of a video that stands still, the first tubelet says it all.

After Choudhury et al., "Don't Look Twice: Faster Video Transformers with Run-Length Tokenization"
(NeurIPS 2024), Section 3. Tubelets whose pixels hardly differ from the tubelet before are dropped
before the first block. Theirs also adds a learned embedding of the run's length, which needs
training from there; here tubelets have their own positions only.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log, prod

import torch
from torch import Tensor

from dynamicvit.backbones import Backbone
from dynamicvit.backbones.video import Video
from dynamicvit.core.method import Choice, Method
from dynamicvit.core.registry import register_method
from dynamicvit.core.schedule import Policy, Schedule
from dynamicvit.errors import InputError
from dynamicvit.layers.tokens import Tokens

#: Mean difference of normalized pixels from which on a tubelet is another one; the paper's.
THRESHOLD = 0.1

#: Of the first tubelets, which no difference drops; finite, so that scores can be averaged.
_MOST = 1e6


@register_method(
    "rlt",
    does="drops the tubelets of a clip that look as the one before them, before the first block",
    paper="Choudhury et al., NeurIPS 2024",
)
class RunLength(Choice):
    """Keeps the tubelets that differ most from the one before, and all of the first time.

    Nothing is learned; it works untrained. A tubelet's difference is that between its last frame
    and the first frame of the tubelet before, averaged over channels and pixels; its keep score is
    the logarithm of the share of :data:`THRESHOLD`, so that 0 is the paper's threshold. With a
    budget per clip (``sparsify(..., per_image=True)``), as in the paper, a threshold decides, and
    clips with more motion keep more; else every clip keeps as many.
    """

    works_untrained = True
    looks_at_motion = True
    spread = 1.0

    @classmethod
    def for_stages(cls, bound: Backbone, stages: Sequence[int]) -> list[Method]:
        """One, before the first block.

        Raises:
            InputError: for other stages.
        """
        if tuple(stages) not in ((), (0,)):
            raise InputError(
                f"{cls.name} drops tubelets before the first block: its one stage is 0, "
                f"got {tuple(stages)}"
            )
        return super().for_stages(bound, stages)

    @classmethod
    def schedules(cls, bound: Backbone) -> Sequence[Schedule]:
        """One for each number of tubelets, from all down to one; before block 0.

        Raises:
            InputError: for a backbone of images.
        """
        if not isinstance(bound, Video):
            raise InputError(
                f"{cls.name} drops what stands still in a video; {bound.family} takes images"
            )
        total = prod(bound.grid(*bound.image_size))
        return [Schedule((0,), (kept / total,)) for kept in range(total, 0, -1)]

    @classmethod
    def schedule(
        cls,
        bound: Backbone,
        keep_ratio: float | Sequence[float] = 0.7,
        stages: Sequence[int] | None = None,
        policy: Policy | None = None,
    ) -> Schedule:
        return super().schedule(bound, keep_ratio, (0,) if stages is None else stages, policy)

    def keep_scores(self, tokens: Tokens) -> Tensor:
        """``(B, M)``: logarithms of the differences, in thresholds."""
        motion = tokens.motion
        assert motion is not None  # as the model's first stage
        motion = motion.clamp(torch.finfo(motion.dtype).tiny, _MOST)
        motion = motion if tokens.index is None else motion.gather(1, tokens.index)
        return motion.log() - log(THRESHOLD)

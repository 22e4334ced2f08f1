"""Run-length tokenization: of a part of a video that stands still, the first tubelet says it all.

After Choudhury et al., "Don't Look Twice: Faster Video Transformers with Run-Length Tokenization"
(NeurIPS 2024), Section 3. Tubelets whose pixels hardly differ from the tubelet before are dropped
before the first block. A kept one has a learned embedding of how many it stands for added.
"""

from __future__ import annotations

from math import log

import torch
from torch import Tensor, nn

from dynamicvit.backbones import Backbone
from dynamicvit.core.method import Method
from dynamicvit.core.registry import register_method
from dynamicvit.layers.tokens import Tokens
from dynamicvit.methods.tubelets import BeforeBlocks

#: Mean difference of normalized pixels from which on a tubelet is another one; the paper's.
THRESHOLD = 0.1

#: Of the first tubelets, which no difference drops; finite, so that scores can be averaged.
_MOST = 1e6


@register_method(
    "rlt",
    does="drops the tubelets of a clip that look as the one before them, before the first block",
    paper="Choudhury et al., NeurIPS 2024",
)
class RunLength(BeforeBlocks):
    """Keeps the tubelets that differ most from the one before, and all of the first time.

    A tubelet's difference is that between its last frame and the first frame of the tubelet before,
    averaged over channels and pixels; its keep score is the logarithm of the share of
    :data:`THRESHOLD`, so that 0 is the paper's threshold. With a budget per clip
    (``sparsify(..., per_image=True)``), as in the paper, a threshold decides, and clips with more
    motion keep more; else every clip keeps as many.

    It works untrained. Training learns an embedding of the length of a run, which is added to the
    kept tubelet that the run starts with. Here it starts at zero, and a run of one has none: so
    nothing changes before training, nor where nothing is dropped.

    Args:
        times: tubelets along the axis of time, the longest run.
        dim: C, the width of the tokens.
    """

    looks_at_motion = True
    tells = True
    spread = 1.0

    def __init__(self, times: int, dim: int) -> None:
        super().__init__()
        self.lengths = nn.Parameter(torch.zeros(times - 1, dim))

    @classmethod
    def for_stage(cls, bound: Backbone) -> Method:
        return cls(bound.grid(*bound.image_size)[0], bound.width)

    def keep_scores(self, tokens: Tokens) -> Tensor:
        """``(B, M)``: logarithms of the differences, in thresholds."""
        motion = tokens.motion
        assert motion is not None  # as the model's first stage
        motion = motion.clamp(torch.finfo(motion.dtype).tiny, _MOST)
        motion = motion if tokens.index is None else motion.gather(1, tokens.index)
        return motion.log() - log(THRESHOLD)

    def told(self, tokens: Tokens, kept: Tensor) -> Tokens:
        """Each kept tubelet with the embedding of its run's length (Section 3.2)."""
        return self(tokens, kept)

    def forward(self, tokens: Tokens, kept: Tensor) -> Tokens:
        """The same, called as a module: so are its weights moved to where they are needed."""
        longer = run_lengths(tokens.to_grid(kept.float()).unflatten(1, tokens.grid) > 0.5) - 1
        if tokens.index is not None:
            longer = longer.gather(1, tokens.index)
        table = torch.cat([self.lengths.new_zeros(1, self.lengths.shape[1]), self.lengths])
        added = table[longer.clamp(0, len(self.lengths))].to(tokens.x.dtype)
        x = torch.cat([tokens.x[:, : tokens.num_prefix], tokens.patches + added], dim=1)
        return tokens.with_x(x)


def run_lengths(kept: Tensor) -> Tensor:
    """``(B, N)``: how many tubelets each kept one stands for, itself included; 1 for a dropped one.

    Args:
        kept: ``(B, times, rows, columns)`` bool.
    """
    kept = kept.flatten(2)
    ends = kept.new_full((kept.shape[0], kept.shape[2]), kept.shape[1], dtype=torch.long)
    found = []
    for time in reversed(range(kept.shape[1])):
        found.append(torch.where(kept[:, time], ends - time, 1))
        ends = torch.where(kept[:, time], time, ends)
    return torch.stack(found[::-1], dim=1).flatten(1)

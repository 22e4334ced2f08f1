"""Does an exported file do what the model does? Told by images, not by the graph."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dynamicvit.core.model import DynamicViT
from dynamicvit.core.outputs import PrunedOutput
from dynamicvit.errors import InputError
from dynamicvit.export.reader import ExportedModel

#: The largest difference of a logit in float32.
MAX_LOGIT_ERROR = 1e-3
#: Log-odds of keeping that are nearer to the last patch kept than this are a tie: runtimes add up
#: in another order, which moves them by some 1e-6.
TIE = 1e-4


class ExportMismatchError(RuntimeError):
    """An exported file does not do what its model does; the message has the numbers."""


@dataclass(frozen=True)
class CheckResult:
    """How a file compares with its model.

    Attributes:
        images: on how many images.
        logit_error: the largest difference of a logit, for the same patches kept.
        ties: images of which the file kept other patches, equally good to the model.
    """

    images: int
    logit_error: float
    ties: int


@torch.inference_mode()
def check(model: DynamicViT, exported: ExportedModel, images: Tensor) -> CheckResult:
    """Compare the logits and the kept patches.

    A patch may stand in for another only where the model itself can't tell which is better. The
    model is then run on the patches that the file kept, so that every image's logits are compared.

    Args:
        model: in ``eval()``, on the CPU, in float32.
        exported: its file.
        images: ``(B, channels, height, width)``, normalized.

    Raises:
        InputError: without images.
        ExportMismatchError: if they differ.
    """
    if not len(images):
        raise InputError("no images to check the exported file on")
    own, theirs = model.forward_pruned(images), exported.forward_pruned(images)
    differing = [image for image in range(len(images)) if _differ(own, theirs, image)]
    for image in differing:
        _check_tie(own, theirs, image)
    expected = own.logits.clone()
    for image in differing:
        decisions = [kept[image : image + 1].float() for kept in theirs.kept]
        given = model.forward_pruned(images[image : image + 1], decisions)
        expected[image] = given.logits[0]
    error = float((theirs.logits - expected).abs().max())
    if not error <= MAX_LOGIT_ERROR:  # NaN is none
        raise ExportMismatchError(
            f"logits differ from PyTorch's by {error:.2g}, and by {MAX_LOGIT_ERROR:g} they may"
        )
    return CheckResult(len(images), error, len(differing))


def _differ(own: PrunedOutput, theirs: PrunedOutput, image: int) -> bool:
    pairs = zip(own.kept, theirs.kept, strict=True)
    return any(not torch.equal(mine[image], other[image]) for mine, other in pairs)


def _check_tie(own: PrunedOutput, theirs: PrunedOutput, image: int) -> None:
    """Refuse other patches than the model's, unless they were as good.

    Only the first stage that differs can be judged: after it, the model saw other tokens.
    """
    # Without scores nothing ties: other ways to reduce tokens have none.
    odds = tuple(map(_log_odds, own.keep_scores)) or tuple(kept.float() for kept in own.kept)
    pairs = zip(own.kept, theirs.kept, odds, strict=True)
    for stage, (mine, other, scores) in enumerate(pairs, start=1):
        swapped = mine[image] != other[image]
        if not swapped.any():
            continue
        cut = scores[image][mine[image]].min()
        gap = float((scores[image][swapped] - cut).abs().max())
        same_number = int(other[image].sum()) == int(mine[image].sum())
        if same_number and gap <= TIE:
            return
        raise ExportMismatchError(
            f"image {image + 1} of the check keeps other patches than in PyTorch at stage {stage}: "
            f"{int((swapped & mine[image]).sum())} of {int(mine[image].sum())} differ, with "
            f"log-odds of keeping {gap:.2g} from the cut"
        )


def _log_odds(keep_scores: Tensor) -> Tensor:
    """Of log-probabilities of keeping, which are all near 0 where the model is sure to keep.

    The model ranks there too, by what is left of 1.
    """
    scores = keep_scores.double()
    return scores - (-scores.expm1()).log()

"""Synthetic scenes: one handwritten digit hidden in a photograph, among pieces of other digits.

The 8x8 digits and two photographs come with scikit-learn, so nothing is downloaded. The class is
the digit, and only its patches show it: a model that drops them has to guess.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dynamicvit.data.samples import digits, photographs
from dynamicvit.errors import InputError

IMAGE_SIZE = 96
PATCH_SIZE = 8
GRID = IMAGE_SIZE // PATCH_SIZE
NUM_CLASSES = 10
MEAN, STD = 0.5, 0.25
"""Normalization of all three channels."""

TRAIN_DIGITS_PER_CLASS = 140
PATCH_INK = 1 / 16
"""Fraction of a patch's area that the digit's ink must cover for the patch to be the digit's."""

_CANVAS = 32  # side of the canvas of a glyph, in pixels
_FLAT = 0.3  # brightness of the background without clutter
_PHOTOGRAPH = 0.5  # contrast of the photographs at full clutter, so that ink is visible on foliage
_GLYPHS = 7  # the digit, and six pieces of others
_DRAWS_PER_GLYPH = 10
_DRAWS_PER_SCENE = 8 + _GLYPHS * _DRAWS_PER_GLYPH
_SPLITS = ("train", "score")

Split = Literal["train", "score"]


class SceneBatch(NamedTuple):
    """A batch of scenes.

    Attributes:
        images: ``(B, 3, 96, 96)`` float32, normalized.
        labels: ``(B,)`` int64, the digit.
        digit_patches: ``(B, 144)`` bool, the patches that the digit covers.
    """

    images: Tensor
    labels: Tensor
    digit_patches: Tensor


@dataclass(frozen=True)
class Scenes:
    """An endless, indexable collection of scenes.

    Scene ``i`` of a split and seed is the same in any batch. The two splits share no digit image
    and no pixel of the photographs.

    Attributes:
        split: ``"train"`` or ``"score"``.
        seed: of the scenes.
        clutter: from 0, the digit on flat gray, to 1, on a photograph among six pieces of other
            digits.
    """

    split: Split = "train"
    seed: int = 0
    clutter: float = 1.0

    def __post_init__(self) -> None:
        if self.split not in _SPLITS:
            raise InputError(f"split must be one of {_SPLITS}, got {self.split!r}")
        if self.seed < 0:
            raise InputError(f"seed must be at least 0, got {self.seed}")
        if not 0 <= self.clutter <= 1:
            raise InputError(f"clutter must be in [0, 1], got {self.clutter}")

    def batch(self, indices: Sequence[int], *, with_digit: bool = True) -> SceneBatch:
        """The scenes at these indices; without the digit, all else stays the same."""
        draws = self._draws(indices)
        scene, glyph = draws[:, :8], draws[:, 8:].unflatten(1, (_GLYPHS, _DRAWS_PER_GLYPH))

        background = self._backgrounds(scene)
        alpha, labels = self._glyphs(glyph)
        corner = (glyph[..., 3:5] * (IMAGE_SIZE - _CANVAS + 1)).long()  # (B, G, 2): y, x
        # Glyphs are light on dark and dark on light, so always readable.
        light = _brightness_under(background, corner) < 0.5  # (B, G)
        strength = 0.8 + 0.2 * glyph[..., 5]
        alpha = alpha * strength[..., None, None]
        present = glyph[..., 6] < self.clutter
        present[:, 0] = True
        alpha = alpha * present[..., None, None]

        pieces, whole = alpha[:, 1:], alpha[:, :1]
        dark_ink = _paste(pieces * ~light[:, 1:, None, None], corner[:, 1:])
        light_ink = _paste(pieces * light[:, 1:, None, None], corner[:, 1:])
        # No piece touches the digit, which stays readable.
        clear = _paste(torch.ones_like(whole), corner[:, :1]) == 0
        dark_ink, light_ink = dark_ink * clear, light_ink * clear
        digit_ink = _paste(whole, corner[:, :1])
        if with_digit:
            dark_ink = torch.where(light[:, 0, None, None], dark_ink, dark_ink + digit_ink)
            light_ink = torch.where(light[:, 0, None, None], light_ink + digit_ink, light_ink)

        dark = 0.12 * scene[:, 5:8, None, None]
        images = background + dark_ink[:, None] * (dark - background)
        images = images + light_ink[:, None] * (1 - dark - images)
        share = F.avg_pool2d((digit_ink > 0.4).float()[:, None], PATCH_SIZE).flatten(1)
        return SceneBatch((images - MEAN) / STD, labels, share >= PATCH_INK)

    def _draws(self, indices: Sequence[int]) -> Tensor:
        """Random numbers ``(B, D)`` in [0, 1), a stream for each scene."""
        split = _SPLITS.index(self.split)
        streams = (np.random.default_rng((self.seed, split, int(i))) for i in indices)
        draws = [stream.random(_DRAWS_PER_SCENE, dtype=np.float32) for stream in streams]
        return torch.from_numpy(np.stack(draws))

    def _backgrounds(self, scene: Tensor) -> Tensor:
        """Crops of the photographs ``(B, 3, 96, 96)`` in [0, 1], of a contrast by the clutter."""
        bands = photograph_bands(self.split)  # (2, 3, H, W)
        rows, columns = (side - IMAGE_SIZE + 1 for side in bands.shape[-2:])
        crops = []
        for photo, y, x, flip in scene[:, :4].tolist():
            y, x = int(y * rows), int(x * columns)
            crop = bands[int(photo * len(bands)), :, y : y + IMAGE_SIZE, x : x + IMAGE_SIZE]
            crops.append(crop.flip(-1) if flip < 0.5 else crop)
        photographs = torch.stack(crops)
        return _FLAT + _PHOTOGRAPH * self.clutter * (photographs - _FLAT)

    def _glyphs(self, glyph: Tensor) -> tuple[Tensor, Tensor]:
        """The digit and the pieces of others, each on its own canvas.

        Args:
            glyph: random numbers ``(B, G, D)``.

        Returns:
            Ink ``(B, G, 32, 32)`` in [0, 1], and the digits' labels ``(B,)``.
        """
        inks, labels = digit_glyphs(self.split)
        which = (glyph[..., 0] * len(inks)).long()  # (B, G)
        size = 22 + 6 * glyph[..., 1]
        angle = math.radians(12) * (2 * glyph[..., 2] - 1)
        shear = 0.15 * (2 * glyph[..., 7] - 1)
        # The grid maps the canvas back to the digit: zoom in, turn, slant.
        zoom = _CANVAS / size
        cos, sin = zoom * angle.cos(), zoom * angle.sin()
        nothing = torch.zeros_like(size)
        rows = [torch.stack([cos, shear - sin, nothing], -1), torch.stack([sin, cos, nothing], -1)]
        theta = torch.stack(rows, -2).flatten(0, 1)  # (B·G, 2, 3)
        sources = inks[which].flatten(0, 1)[:, None]
        grid = F.affine_grid(theta, [len(theta), 1, _CANVAS, _CANVAS], align_corners=False)
        ink = F.grid_sample(sources, grid, align_corners=False)
        ink = ink.unflatten(0, which.shape).squeeze(2)
        # A piece is an upper or lower half, or a quarter, never as tall as a digit.
        pieces = _pieces()[(glyph[..., 8] * len(_pieces())).long()]
        pieces[:, 0] = 1
        return ink * pieces, labels[which[:, 0]]


@cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    return digits("demo")


@cache
def digit_indices(split: Split) -> np.ndarray:
    """Sorted indices of a split in scikit-learn's digits."""
    _, labels = _digits()
    shuffle = np.random.RandomState(0)
    chosen = []
    for label in range(NUM_CLASSES):
        order = shuffle.permutation(np.flatnonzero(labels == label))
        train, score = order[:TRAIN_DIGITS_PER_CLASS], order[TRAIN_DIGITS_PER_CLASS:]
        chosen.append(train if split == "train" else score)
    return np.sort(np.concatenate(chosen))


@cache
def digit_glyphs(split: Split) -> tuple[Tensor, Tensor]:
    """A split's digits as ink ``(D, 32, 32)`` in [0, 1], and their labels ``(D,)``."""
    images, labels = _digits()
    chosen = digit_indices(split)
    ink = torch.from_numpy(images[chosen]).float()[:, None] / 16
    ink = F.interpolate(ink, size=(_CANVAS, _CANVAS), mode="bicubic", align_corners=False)
    ink = ((ink - 0.2) / 0.5).clamp(0, 1)  # sharpens enlarged strokes
    return ink.squeeze(1), torch.from_numpy(labels[chosen]).long()


@cache
def photograph_bands(split: Split) -> Tensor:
    """A split's part of each photograph ``(2, 3, H, W)`` in [0, 1]: the left two thirds train."""
    pixels = np.stack([np.asarray(picture) for picture in photographs("demo").values()])
    pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    border = pixels.shape[-1] * 2 // 3
    left, right = pixels.tensor_split([border], dim=-1)
    return (left if split == "train" else right).float() / 255


@cache
def _pieces() -> Tensor:
    """The shapes of pieces, as masks ``(6, 32, 32)`` of the canvas."""
    half = _CANVAS // 2
    first, last, whole = slice(half), slice(half, None), slice(None)
    cuts = [(first, whole), (last, whole)]
    cuts += [(y, x) for y in (first, last) for x in (first, last)]
    masks = torch.zeros(len(cuts), _CANVAS, _CANVAS)
    for mask, cut in zip(masks, cuts, strict=True):
        mask[cut] = 1
    return masks


def _brightness_under(background: Tensor, corner: Tensor) -> Tensor:
    """Mean brightness ``(B, G)`` of the background under each glyph's canvas."""
    sums = F.pad(background.mean(1).cumsum(1).cumsum(2), (1, 0, 1, 0))  # summed-area table
    y, x = corner.unbind(-1)
    scene = torch.arange(len(background))[:, None]

    def at(y: Tensor, x: Tensor) -> Tensor:
        return sums[scene, y, x]

    far_y, far_x = y + _CANVAS, x + _CANVAS
    return (at(far_y, far_x) - at(y, far_x) - at(far_y, x) + at(y, x)) / _CANVAS**2


def _paste(canvases: Tensor, corner: Tensor) -> Tensor:
    """Paste canvases ``(B, G, 32, 32)`` onto empty images; the strongest ink wins.

    Args:
        canvases: of ink.
        corner: ``(B, G, 2)``, y and x of their upper left corners.

    Returns:
        The ink ``(B, 96, 96)``.
    """
    steps = torch.arange(_CANVAS)
    y = corner[..., 0, None, None] + steps[:, None]
    x = corner[..., 1, None, None] + steps
    ink = canvases.new_zeros(len(canvases), IMAGE_SIZE * IMAGE_SIZE)
    where = (y * IMAGE_SIZE + x).flatten(1)
    ink.scatter_reduce_(1, where, canvases.flatten(1), "amax")
    return ink.unflatten(1, (IMAGE_SIZE, IMAGE_SIZE))

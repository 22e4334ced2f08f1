"""Augmentation that must not end a run."""

import random

import numpy as np
import torch
from PIL import Image

from dynamicvit.data import train_transform
from families import DEIT


def test_the_strongest_posterize_of_the_papers_recipe_is_drawn_and_no_error() -> None:
    """timm's RandAugment reaches zero bits, which Pillow refuses from version 13 on."""
    transform = train_transform(DEIT.backbone(), auto_augment="rand-m10-n8-mstd0.5-inc1")
    image = Image.fromarray(np.arange(60 * 50 * 3, dtype=np.uint8).reshape(60, 50, 3))
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the generator that timm draws from
    torch.manual_seed(0)
    for _ in range(30):
        assert transform(image).isfinite().all()


def test_posterize_leaves_a_bit() -> None:
    transform = train_transform(DEIT.backbone(), auto_augment="rand-m10-n2-inc1")
    (posterize,) = (
        op for step in transform.transforms for op in getattr(step, "ops", ())
        if op.name.startswith("Posterize")
    )  # fmt: skip
    posterize.prob = 1.0
    image = Image.fromarray(np.array([[[0, 127, 128], [200, 255, 1]]], dtype=np.uint8))
    assert np.asarray(posterize(image)).tolist() == [[[0, 0, 128], [128, 128, 0]]]

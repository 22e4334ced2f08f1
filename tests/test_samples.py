"""The bundled pictures are read from scikit-learn's files, without it (tests/test_start.py)."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from dynamicvit.data.samples import digits, panned, photographs
from dynamicvit.errors import InputError


def test_they_are_what_scikit_learn_loads() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    expected, (images, labels) = datasets.load_digits(), digits("demo")
    np.testing.assert_array_equal(images, expected.images)
    np.testing.assert_array_equal(labels, expected.target)
    for pixels, picture in zip(
        datasets.load_sample_images().images, photographs("demo").values(), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(picture), pixels)


def test_a_window_moves_over_a_photograph() -> None:
    photograph = next(iter(photographs("demo").values()))
    pixels = np.asarray(photograph).transpose(2, 0, 1)
    clip = panned(photograph, 4)
    assert clip.shape == (4, 3, 427, 480)
    assert clip.dtype == np.uint8
    np.testing.assert_array_equal(clip[0], pixels[:, :, :480])
    np.testing.assert_array_equal(clip[-1], pixels[:, :, -480:])


@pytest.mark.parametrize("read", [digits, photographs])
def test_what_is_missing_is_said(read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynamicvit.data.samples.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(InputError, match=r"sklearn can't be imported .* dynamicvit\[demo\]"):
        read("demo")

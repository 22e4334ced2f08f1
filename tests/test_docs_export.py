"""The code of docs/export.md runs, and gives what the model gives."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from dynamicvit.data import eval_transform
from exports import ignore_deprecations, small

PAGE = Path(__file__).resolve().parents[1] / "docs" / "export.md"
CODE = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.M)

pytestmark = ignore_deprecations


@torch.no_grad()
def test_the_page(
    exported: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    model = small("merged")  # the square one
    for name in ("onnx", "openvino", "torch"):
        file = exported(name, policy="merged")
        for part in file.parent.glob(f"{file.stem}.*"):
            shutil.copy(part, tmp_path / f"model{part.suffix}")
    monkeypatch.chdir(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side
    photo = Image.fromarray(load_sample_image("china.jpg")).resize((333, 217))
    photo.save("photo.jpg", exif=exif)
    expected_input = eval_transform(model)(Image.open("photo.jpg"))[None]
    expected = model.forward_pruned(expected_input)
    names: dict[str, Any] = {}
    assert len(CODE) == 5
    for code in CODE[1:4]:  # the first one writes a file; the last is for another kind of .pt2
        names["kept"] = names["logits"] = None
        exec(compile(code, str(PAGE), "exec", dont_inherit=True), names)
        np.testing.assert_allclose(names["images"], expected_input, atol=1e-5)
        np.testing.assert_allclose(names["logits"], expected.logits, atol=1e-4)
    places = expected.kept[-1][0].reshape(expected.grid).nonzero().numpy()
    found = np.stack([names["rows"], names["columns"]], axis=1)
    np.testing.assert_array_equal(found, places)
    assert capsys.readouterr().out.strip() == str(int(expected.logits[0].argmax()))

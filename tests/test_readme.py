"""The Python of README.md runs, in order, on a small model in place of DeiT-S."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pictures import noise_folders

PAGE = Path(__file__).resolve().parents[1] / "README.md"
CODE = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.M)

#: What the page says, and what runs here: nothing is downloaded, and little is computed.
SMALL = {
    '"deit_small_patch16_224", pretrained=True': '"deit_tiny_patch16_224", **small',
    '"deit_small_patch16_224")': "model, overrides=recipe, workers=0)",
    "dense=True)": "dense=True, workers=0)",
    '"model.onnx")': '"model.pt2")',  # written faster
    'calibrate="photos")': 'calibrate="photos", calibration_images=4, least_agreement=0)',
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("matplotlib", "onnx", "onnxscript", "onnxruntime", "nncf"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    for folder in ("photos", "validation"):
        noise_folders(tmp_path / folder, classes=4, each=2)
    pixels = np.random.default_rng(0).integers(0, 256, (80, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("photo.jpg")
    names: dict[str, Any] = {
        "images": torch.randn(2, 3, 64, 64),
        "small": {"img_size": 64, "depth": 4, "embed_dim": 48, "num_heads": 3, "num_classes": 4},
        "recipe": ["images=4", "batch_size=2"],
    }
    code = "".join(CODE)
    for said, small in SMALL.items():
        assert said in code
        code = code.replace(said, small)
    exec(compile(code, str(PAGE), "exec", dont_inherit=True), names)
    assert {Path(file).is_file() for file in ("kept.png", "model.pt2", "int8.onnx")} == {True}
    assert names["output"].full_map.shape == (2, 4, 4, 48)
    assert [tuple(each.shape) for each in names["maps"]] == [(2, 48, 4, 4)] * 3
    assert names["made"].precision == "int8"
    assert names["result"].images == 8

"""Files of segmentation models: the model's map, its kept patches, and what int8 costs of mIoU."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

pytest.importorskip("torchmetrics")

from dynamicvit import InputError, Segmenter, export, segmenter, sparsify
from dynamicvit.data import eval_transform, joint_eval_transform
from dynamicvit.evaluation import evaluate_segmentation
from dynamicvit.runtimes import FORMATS, Description, load_exported
from dynamicvit.runtimes.comparison import check
from dynamicvit.runtimes.description import describe
from dynamicvit.runtimes.graph import layers_of
from dynamicvit.runtimes.int8 import most_sensitive_first
from exports import NEEDED, changed, graph_of, ignore_deprecations
from families import DEIT, randomize
from masks import NAMES, scene, write_scenes

Main = Callable[..., int]

pytestmark = [ignore_deprecations, pytest.mark.usefixtures("traced_once")]


def made(head: str = "linear", policy: str = "removed") -> Segmenter:
    dense = segmenter(DEIT.backbone(depth=1, img_size=(32, 32)), 3, head)
    model = sparsify(dense, 0.6, (0,), policy, "dynamicvit")
    randomize(model.decode_head, 5)
    randomize(model.predictors, 6)
    model.set_class_names(NAMES)
    assert isinstance(model, Segmenter)
    return model.eval()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes"), 6)


@pytest.fixture(scope="module")
def model() -> Segmenter:
    return made()


def installed(name: str) -> None:
    for package in NEEDED.get(name, ()):
        pytest.importorskip(package)


@pytest.fixture(scope="module")
def other() -> Segmenter:
    """With the other head and policy; of the head's two blocks the second is as the first."""
    model = made("mask", "bypassed")
    model.decode_head.blocks = model.decode_head.blocks[:1]
    return model


@pytest.mark.parametrize(
    ("which", "name", "batch"),
    [
        ("model", "torch", 3),
        *(
            pytest.param(which, name, None, marks=pytest.mark.extended)
            for which in ("model", "other")
            for name in ("onnx", "openvino")
        ),
    ],
)
def test_a_file_does_what_the_model_does(
    which: str, name: str, batch: int | None, request: pytest.FixtureRequest, scenes: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    installed(name)
    model = request.getfixturevalue(which)
    path = tmp_path / f"model{FORMATS[name].suffix}"
    export(model, path, batch=batch, validation=str(scenes))
    file = load_exported(path)
    assert (file.task, file.labels, file.num_classes) == ("segmentation", model.labels, 3)
    assert file.description.map_size == (2, 2)
    assert file.description == describe(model, batch=batch)
    images = torch.randn(4, 3, 32, 32)
    own, found = model.forward_pruned(images), file.forward_pruned(images)
    torch.testing.assert_close(found.logits, own.logits, atol=1e-4, rtol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(found.kept, own.kept, strict=True))
    expected = evaluate_segmentation(model, scenes, workers=0)
    assert evaluate_segmentation(file, scenes, workers=0).iou == pytest.approx(expected.iou)


def test_the_dense_map_can_be_written(model: Segmenter, tmp_path: Path) -> None:
    export(model, tmp_path / "dense.pt2", dense=True, batch=2)
    images = torch.randn(2, 3, 32, 32)
    found = load_exported(tmp_path / "dense.pt2")
    torch.testing.assert_close(found(images), model.dense(images), atol=1e-5, rtol=1e-5)


def test_a_file_says_what_it_is(model: Segmenter) -> None:
    model = made()
    model.labels = replace(model.labels, ignore_index=7, reduce_labels=True)
    about = describe(model)
    assert Description.from_json(about.to_json(), "x") == about
    assert about.mask_labels == model.labels
    values = json.loads(about.to_json())
    assert (values["task"], values["map_size"]) == ("segmentation", [2, 2])
    for wrong in ({"map_size": None}, {"task": "classification"}, {"task": "detection"}):
        with pytest.raises(InputError, match=r"map_size|task"):
            Description.from_json(json.dumps({**values, **wrong}), "x")


def test_the_check_sees_a_map(model: Segmenter) -> None:
    images = torch.randn(2, 3, 32, 32)
    check(model, changed(model, lambda outputs: outputs), images)

    def other(outputs: list[torch.Tensor]) -> list[torch.Tensor]:
        outputs[0] = outputs[0].clone()
        outputs[0][1, 2, 1, 1] += 0.01
        return outputs

    with pytest.raises(RuntimeError, match=r"logits differ from PyTorch's by 0\.01"):
        check(model, changed(model, other), images)


def test_an_image_is_seen_as_evaluation_sees_its_center(model: Segmenter) -> None:
    about = describe(model)
    assert (about.crop_pct, about.interpolation) == (1.0, "bilinear")
    image = Image.fromarray(scene(0, (64, 96))[0])
    whole, _ = joint_eval_transform(model)(image, torch.zeros(64, 96))
    assert whole.shape == (3, 32, 48)
    torch.testing.assert_close(eval_transform(model)(image), whole[:, :, 8:40], atol=0.03, rtol=0)


@pytest.mark.extended  # each run has the commands of docs/segmentation.md
@pytest.mark.parametrize(("name", "masks"), [("onnx", False), ("onnx", True), ("openvino", True)])
def test_int8_says_what_it_costs(
    name: str, masks: bool, model: Segmenter, scenes: Path, tmp_path: Path
) -> None:
    """Points of mIoU where there are masks, else the share of the pixels."""
    installed(name)
    pytest.importorskip("onnxruntime.quantization" if name == "onnx" else "nncf")
    path = tmp_path / f"model{FORMATS[name].suffix}"
    settings = {"precision": "int8", "calibrate": str(scenes / "images"), "least_agreement": 0}
    found = export(model, path, validation=str(scenes) if masks else None, **settings)
    agreement, file = found.agreement, load_exported(path)
    assert agreement is not None
    assert 0.5 < agreement.kept[0] <= 1
    linear = {n for n, part in model.decode_head.named_modules() if isinstance(part, nn.Linear)}
    assert {f"decode_head.{name}" for name in linear} <= {*found.layers}, "the head's too"
    assert file.description.precision == "int8"
    if not masks:
        assert (agreement.miou, agreement.labeled) == (None, 0)
        assert agreement.drop == pytest.approx(100 * (1 - agreement.answers))
        return
    own = evaluate_segmentation(model, scenes, workers=0)
    theirs = evaluate_segmentation(file, scenes, dense=model, workers=0)
    assert agreement.model_miou == pytest.approx(own.miou)
    assert agreement.miou == pytest.approx(theirs.miou)
    assert agreement.answers == pytest.approx(theirs.agreement)
    assert agreement.answers > 0.8
    assert agreement.drop == pytest.approx(100 * (own.miou - theirs.miou))  # type: ignore[operator]


def test_the_head_is_among_the_layers_that_may_stay_in_float(model: Segmenter) -> None:
    layers = set(layers_of(graph_of(model, describe(model, batch=3))).values())
    assert "decode_head.linear" in layers
    ordered = most_sensitive_first(model, torch.randn(2, 3, 32, 32), layers)
    assert set(ordered) == layers


def test_commands_run_a_file(
    model: Segmenter, scenes: Path, tmp_path: Path, command: Main,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    model.save_pretrained(tmp_path / "model")
    file = tmp_path / "model.pt2"
    words = ("-o", file, "--batch", 3, "--validation", scenes)
    assert command("export", tmp_path / "model", *words) == 0
    capsys.readouterr()
    numbers = []
    for name in (tmp_path / "model", file):
        words = ("eval", scenes, "-m", name, "--workers", 0, "--json", "-")
        assert command(*words) == 0
        numbers.append(json.loads(capsys.readouterr().out))
    assert numbers[0]["iou"] == numbers[1]["iou"]
    pictures = tmp_path / "pictures"
    assert command("visualize", scenes / "images" / "0.png", "-m", file, "-o", pictures) == 0
    assert (pictures / "0_dynamicvit.png").is_file()


def test_what_does_not_fit_is_refused(
    model: Segmenter, scenes: Path, tmp_path: Path, command: Main
) -> None:
    with pytest.raises(InputError, match=r"crop_pct 0\.9: a segmentation model"):
        export(model, tmp_path / "model.pt2", crop_pct=0.9)
    with pytest.raises(InputError, match="class_map names: masks"):
        export(
            model, tmp_path / "model.onnx", precision="int8", calibrate=str(scenes / "images"),
            validation=str(scenes), class_map="names",
        )  # fmt: skip
    with pytest.raises(InputError, match="has no classifier"):
        export(DEIT.sparse(num_classes=0), tmp_path / "model.pt2")

"""Int8 files: which layers are in int8, how far the files agree, and what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dynamicvit import DynamicViT, InputError, sparsify
from dynamicvit.core.networks import core_of
from dynamicvit.data import UNLABELED, Batch, ImageData, Loader
from dynamicvit.runtimes import (
    FORMATS,
    Agreement,
    Description,
    Exported,
    ExportMismatchError,
    Format,
    export,
    load_exported,
    writer,
)
from dynamicvit.runtimes.comparison import Reference
from dynamicvit.runtimes.description import describe
from dynamicvit.runtimes.graph import Graph, layers_of, prediction_layers, trace
from dynamicvit.runtimes.images import calibration_of
from dynamicvit.runtimes.int8 import fewest_in_float, most_sensitive_first
from exports import NOWHERE, changed, ignore_deprecations, small, traced
from families import BY_NAME, DEIT
from pictures import noise_folders, write_image

pytestmark = ignore_deprecations


@pytest.fixture(scope="module")
def model() -> DynamicViT:
    return small("merged")


@pytest.fixture(scope="module")
def layers() -> dict[str, str]:
    return layers_of(traced("merged")[0])


@pytest.fixture(
    scope="module", params=["onnx", pytest.param("openvino", marks=pytest.mark.extended)]
)
def files(
    request: pytest.FixtureRequest,
    layers: dict[str, str],
    exported: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Path]:
    """The model in float, and in int8 but for the prediction modules and one layer."""
    if request.param == "openvino":
        pytest.importorskip("nncf")
    source = exported(request.param, "merged")
    target = tmp_path_factory.mktemp("int8") / f"int8{source.suffix}"
    FORMATS[request.param].quantize(
        source,
        target,
        replace(traced("merged")[1], precision="int8"),
        NOWHERE.images(6, seed=1),
        layers,
        prediction_layers(layers.values()) | {"blocks.0.mlp.fc2"},
    )
    return source, target


def in_int8(file: Path) -> dict[str, bool]:
    """For each product of the file, by the name that it was traced with, whether it is int8."""
    if file.suffix == ".xml":
        import openvino

        kinds = ("MatMul", "Convolution", "ScaledDotProductAttention")
        return {
            node.get_friendly_name().partition("/")[0]: is_rounded(node.input_value(0).get_node())
            for node in openvino.Core().read_model(file).get_ordered_ops()
            if node.get_type_name() in kinds
        }
    import onnx

    nodes = onnx.load(file).graph.node
    made = {output: node.op_type for node in nodes for output in node.output}
    return {
        scope(node): any(made.get(name) == "DequantizeLinear" for name in node.input)
        for node in nodes
        if node.op_type in ("MatMul", "Gemm", "Conv")
    }


def is_rounded(node: Any) -> bool:
    """Whether an OpenVINO node gives rounded values, moved about perhaps."""
    while node.get_type_name() in ("Reshape", "Transpose", "Gather"):
        node = node.input_value(0).get_node()
    return node.get_type_name() == "FakeQuantize"


def scope(node: Any) -> str:
    """What an ONNX node was called when it was traced."""
    scopes = {entry.key: entry.value for entry in node.metadata_props}
    return scopes["pkg.torch.onnx.name_scopes"].split("'")[-2]


def test_int8_is_where_it_should_be(files: tuple[Path, Path], layers: dict[str, str]) -> None:
    """Layers, but for the prediction modules and the one named; no product without weights."""
    source, target = files
    assert not any(in_int8(source).values())
    found = in_int8(target)
    assert len(found) > len(layers), "attention and similarity are products too"
    int8 = {
        layers[name.replace("convolution", "conv2d")] for name, is_int8 in found.items() if is_int8
    }
    assert int8 == {
        layer
        for layer in layers.values()
        if not layer.startswith("predictors.") and layer != "blocks.0.mlp.fc2"
    }


@torch.no_grad()
def test_an_int8_file_is_near_its_model(model: DynamicViT, files: tuple[Path, Path]) -> None:
    """Near, and not the same, for one image and for several."""
    source, target = files
    exported, plain = load_exported(target), load_exported(source)
    assert (exported.description.precision, plain.description.precision) == ("int8", "fp32")
    images = NOWHERE.images(5, seed=4)
    given = exported.forward_pruned(images)
    own = model.forward_pruned(images)
    error = (given.logits - own.logits).square().mean().sqrt() / own.logits.std()
    assert 1e-4 < error < 0.5  # of another image's logits it would be 1.4
    kept = [(a & b).sum() / a.sum() for a, b in zip(own.kept, given.kept, strict=True)]
    assert min(kept) > 0.8
    torch.testing.assert_close(exported(images[:1]), given.logits[:1], atol=0.15, rtol=0)


@pytest.mark.parametrize("files", ["onnx"], indirect=True)
@pytest.mark.parametrize("fixed", [False, True])
@torch.no_grad()
def test_one_image_is_computed_in_int8_too(
    files: tuple[Path, Path], fixed: bool, tmp_path: Path
) -> None:
    """Without any option: for known shapes ONNX Runtime would fuse biases and products in float."""
    import onnx
    import onnxruntime

    *_, target = files
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    if fixed:
        graph = onnx.load(target)
        graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
        target = tmp_path / "int8.onnx"
        onnx.save(graph, target)
    else:
        options.add_free_dimension_override_by_name("batch", 1)
    session = onnxruntime.InferenceSession(target, options)
    logits, *_ = session.run(None, {"images": NOWHERE.images(1).numpy()})
    expected = load_exported(files[-1])(NOWHERE.images(1))
    torch.testing.assert_close(torch.from_numpy(logits), expected, atol=0.05, rtol=0)
    nodes = onnx.load(tmp_path / "optimized.onnx").graph.node
    made = {output: node.op_type for node in nodes for output in node.output}
    products = [node for node in nodes if node.op_type in ("MatMul", "FusedMatMul", "Gemm")]
    assert products, "attention's are in float"
    for node in products:
        assert not any(made.get(name) == "DequantizeLinear" for name in node.input), node.name
    assert any(node.op_type == "MatMulIntegerToFloat" for node in nodes)


def test_every_product_with_a_weight_is_of_a_layer() -> None:
    """All layers of the model are found, by names that its modules have; others in test_export."""
    family = BY_NAME["siglip"]
    model = family.sparse(depth=1, stages=(0,))
    layers = layers_of(trace(model, describe(model, image_size=family.size, batch=2)))
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    modules = {
        path.removeprefix("backbone.")
        for path, module in model.named_modules()
        if isinstance(module, kinds)
    }
    assert set(layers.values()) == modules


@pytest.mark.parametrize(
    ("in_float", "expected"),
    [
        (set(), "none"),
        ({"predictors.0.project", "head"}, "predictors.0.project, head"),
        ({"predictors.0.project", "predictors.0.mlp.0", "head"}, "the prediction modules, head"),
    ],
)
def test_layers_in_words(in_float: set[str], expected: str) -> None:
    layers = ("patch_embed.proj", "predictors.0.project", "predictors.0.mlp.0", "head")
    about, left = describe(small("merged")), frozenset(in_float)
    made = Exported(Path("a"), "onnx", about, "", layers=layers, in_float=left)
    assert made.in_words == expected


# ---------------------------------------------------------------- max_drop


@torch.no_grad()
def test_the_most_sensitive_layer_comes_first() -> None:
    """One whose input has a value that no other comes near has no levels left for the others."""
    model = DEIT.sparse(depth=2, stages=(1,))
    layers = ["blocks.0.attn.proj", "blocks.0.mlp.fc2", "blocks.1.mlp.fc2", "head"]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fc1 = model.blocks[0].mlp.fc1
    fc1.bias[3] += 3000.0
    model.blocks[0].mlp.fc2.weight[:, 3] = 0.0
    order = most_sensitive_first(model, DEIT.images(4), layers)
    assert sorted(order) == sorted(layers)
    assert order[0] == "blocks.0.mlp.fc2"
    fc1.bias.copy_(before["backbone.blocks.0.mlp.fc1.bias"])
    model.blocks[0].mlp.fc2.weight.copy_(before["backbone.blocks.0.mlp.fc2.weight"])
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), "what was rounded is as before"
    assert most_sensitive_first(model, DEIT.images(4), layers)[0] != "blocks.0.mlp.fc2"


@pytest.mark.parametrize("needed", [0, 1, 2, 3, 5, 6, 7, 8, 9])
def test_the_fewest_layers_stay_in_float(needed: int) -> None:
    order = [f"layer{index}" for index in range(8)]
    tried = []

    def write(in_float: frozenset[str]) -> frozenset[str]:
        tried.append(in_float)
        return in_float

    def drop(file: frozenset[str]) -> float:
        return 0.5 if len(file) - 1 >= needed else 2.0

    found = fewest_in_float(write, drop, frozenset({"always"}), order, 0.5)
    assert found == ({"always", *order[:needed]} if needed <= 8 else None)
    assert len(tried) == len(set(tried)) <= 7


# ---------------------------------------------------------------- agreement


def batches(count: int, labels: list[int]) -> list[Batch]:
    images = NOWHERE.images(count, seed=9)
    return [
        Batch(images[:2], torch.tensor(labels[:2])),
        Batch(torch.empty(0, 3, 0, 0), torch.empty(0, dtype=torch.int64), skipped=("bad.png",)),
        Batch(images[2:], torch.tensor(labels[2:])),
    ]


@torch.no_grad()
def test_where_tokens_combine_the_answers_alone_agree() -> None:
    """A file may merge the first of two tokens into the second, or the second into the first."""
    model = core_of(sparsify(NOWHERE.backbone(), 0.5, method="lookahead"))
    assert isinstance(model, DynamicViT)
    model.eval()

    def swap(found: list[Tensor]) -> list[Tensor]:
        found[1:] = [places.flip(1) * 0 for places in found[1:]]
        return found

    found = Reference(model, batches(4, [UNLABELED] * 4)).agreement(changed(model, swap))
    assert (found.answers, found.kept, found.least) == (1.0, (), 1.0)


@torch.no_grad()
def test_agreement_counts_answers_and_patches() -> None:
    model = NOWHERE.sparse(depth=2, stages=(0, 1), policy="merged")
    images = NOWHERE.images(4, seed=9)
    best = model(images).argmax(1).tolist()
    labels = [best[0], (best[1] + 1) % 7, best[2], UNLABELED]
    reference = Reference(model, batches(4, labels))
    same = reference.agreement(changed(model, lambda found: found))
    assert same == Agreement(4, 1.0, (1.0, 1.0), 3, 2 / 3, 2 / 3)
    assert (same.drop, same.least) == (0.0, 1.0)

    def spoil(found: list[Tensor]) -> list[Tensor]:
        """The first answer of each batch, and one patch of its first image at the last stage."""
        found[0][0] = -found[0][0]
        dropped = set(found[1][0].tolist()) - set(found[2][0].tolist())
        found[2][0, 0] = min(dropped)
        return found

    worse = reference.agreement(changed(model, spoil))
    k = model.schedule.kept(NOWHERE.num_patches)[-1]
    assert worse.answers == 0.5
    assert worse.kept == (1.0, pytest.approx(1 - 2 / (4 * k)))
    assert (worse.top1, worse.model_top1) == (0.0, 2 / 3)
    assert worse.drop == pytest.approx(200 / 3)
    unlabeled = Reference(model, batches(4, [UNLABELED] * 4))
    assert unlabeled.agreement(changed(model, spoil)).drop == 50.0


def test_agreement_needs_an_image(model: DynamicViT) -> None:
    with pytest.raises(InputError, match="no readable image"):
        Reference(model, []).agreement(changed(model, lambda found: found))


def test_calibration_and_comparison_share_no_image(tmp_path: Path) -> None:
    for gray in range(0, 240, 20):
        write_image(tmp_path / f"{gray:03}.png", gray, size=(8, 8))
    (tmp_path / "000.png").write_bytes(b"no image")
    transform = ImageData(tmp_path, labeled=False).transform
    found = calibration_of(ImageData(tmp_path, labeled=False), transform, 300)
    assert found.origin == f"9 images of {tmp_path}"
    assert isinstance(found.held_out, ImageData)
    held_out = torch.cat([batch.images for batch in Loader(found.held_out, 32) if len(batch)])
    used, others = found.images[:, 0, 0, 0].tolist(), held_out[:, 0, 0, 0].tolist()
    assert not set(used) & set(others)
    assert len(set(used)) == 9
    assert len(others) == 2, "of three, one can't be read"
    assert len(calibration_of(ImageData(tmp_path), transform, 4).images) == 4


# ---------------------------------------------------------------- export


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Eight images without labels."""
    return noise_folders(tmp_path / "pictures", classes=1, each=8, size=NOWHERE.size) / "0"


class Fake(Format):
    """A format that takes no time: an int8 file lists the layers in float.

    Each of three layers in int8 spoils one answer more.
    """

    name, suffix, precisions = "fake", ".fake", ("fp32", "int8")
    ordered = ("blocks.0.mlp.fc2", "blocks.0.mlp.fc1", "patch_embed.proj", "head")

    def __init__(self) -> None:
        self.written: list[frozenset[str]] = []

    def trace(self, model: DynamicViT, description: Description) -> Any:
        return traced("merged")[0]

    def write(self, program: Any, description: Description, path: Path, **options: Any) -> None:
        assert description.precision == "fp32"
        path.write_text("[]")

    def quantize(self, source: Path, target: Path, description: Description, *rest: Any) -> None:
        assert description.precision == "int8"
        assert source.is_file()
        target.write_text(json.dumps(sorted(rest[-1])))
        self.written.append(rest[-1])

    def read(self, path: Path, precision: str) -> tuple[Any, Description]:
        in_float = json.loads(path.read_text())
        missing = sum(layer not in in_float for layer in self.ordered[:3])
        graph = Graph(small("merged"))

        def run(images: Tensor) -> list[Tensor]:
            found = list(graph(images))
            found[0][:missing] = -found[0][:missing]
            return found

        return run, traced("merged")[1]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """An entry in the registry is all that a format needs."""
    fake = Fake()
    monkeypatch.setitem(FORMATS, fake.name, fake)
    monkeypatch.setattr(
        writer,
        "most_sensitive_first",
        lambda model, images, layers: (*fake.ordered, *(set(layers) - set(fake.ordered))),
    )
    return fake


@pytest.mark.parametrize(("max_drop", "expected"), [(100.0, 0), (50.0, 2), (0.0, 3)])
def test_layers_go_back_to_float_until_little_is_lost(
    model: DynamicViT, fake: Fake, pictures: Path, tmp_path: Path, max_drop: float, expected: int
) -> None:
    """Two images are held out; each of three layers in int8 spoils one answer of them."""
    file = tmp_path / "model.fake"
    made = export(
        model,
        file,
        precision="int8",
        calibrate=str(pictures),
        max_drop=max_drop,
        least_agreement=0.0,
    )
    rest = [layer for layer in made.in_float if not layer.startswith("predictors.")]
    assert len(rest) == expected
    assert made.in_words.startswith("the prediction modules")
    assert json.loads(file.read_text()) == sorted(made.in_float)
    assert (made.path, made.format, made.precision) == (file, "fake", "int8")
    assert made.agreement is not None
    assert made.agreement.images == 2
    assert {path.name for path in tmp_path.iterdir()} == {"model.fake", "pictures"}


def test_a_file_that_agrees_too_little_is_not_written(
    model: DynamicViT, layers: dict[str, str], fake: Fake, pictures: Path, tmp_path: Path
) -> None:
    file = tmp_path / "model.fake"
    file.write_text("old")
    with pytest.raises(ExportMismatchError, match=r"0\.0 % .* 85 %"):
        export(model, file, precision="int8", calibrate=str(pictures))
    assert file.read_text() == "old"
    assert fake.written == [prediction_layers(layers.values())]


def test_photographs_are_enough_to_time_a_file(
    model: DynamicViT, fake: Fake, tmp_path: Path
) -> None:
    made = export(model, tmp_path / "model.fake", precision="int8", least_agreement=0.0)
    assert made.agreement is not None
    assert made.agreement.images == 10


# ---------------------------------------------------------------- bad input


def test_what_can_not_be_int8(
    model: DynamicViT, fake: Fake, pictures: Path, tmp_path: Path
) -> None:
    one = tmp_path / "one"
    write_image(one / "a.png", 3)
    out = tmp_path / "out"
    out.mkdir()
    calibrate = {"calibrate": str(pictures)}
    for name, arguments, said in (
        ("a.fake", {}, "calibrate"),
        ("a.pt2", calibrate, "a.pt2"),
        ("a.fake", {**calibrate, "precision": "fp32"}, f"calibrate {pictures}"),
        ("a.fake", {"calibration_images": 9, "precision": "fp32"}, "calibration_images 9"),
        ("a.fake", {**calibrate, "max_drop": -1.0}, "-1"),
        ("a.fake", {**calibrate, "calibration_images": 0}, "0 images"),
        ("a.fake", {"calibrate": str(one)}, "1 image"),
        ("a.fake", {**calibrate, "batch": 20}, "batch 20: 6 images"),
        ("a.fake", {**calibrate, "validation": str(pictures)}, "no labels"),
    ):
        with pytest.raises(InputError, match=said):
            export(model, out / name, **{"precision": "int8", **arguments})
    assert not any(out.iterdir())


@pytest.mark.parametrize(("name", "package"), [("a.xml", "nncf"), ("a.onnx", "onnxruntime")])
def test_a_missing_package_is_named(
    name: str, package: str, model: DynamicViT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [each for each in sys.modules if each.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"{package}.*dynamicvit\[quant\]"):
        export(model, tmp_path / name, precision="int8", least_agreement=0.0)

"""Exported files do what the model does, say what they are, and are refused where they don't."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.export import ExportedProgram

from dynamicvit import DynamicViT, InputError
from dynamicvit.checkpoints.loading import set_image_size
from dynamicvit.core.schedule import Policy
from dynamicvit.data import ImageData, eval_transform
from dynamicvit.runtimes import (
    FORMATS,
    Description,
    ExportedModel,
    ExportMismatchError,
    Format,
    check,
    export,
    format_of,
    load_exported,
)
from dynamicvit.runtimes.comparison import TIE
from dynamicvit.runtimes.description import describe
from dynamicvit.runtimes.graph import Graph, trace
from dynamicvit.runtimes.images import MAX_IMAGES, own_pictures, sample_pictures
from dynamicvit.runtimes.pytorch import has_compiler
from families import DEIT, FAMILIES, Family, assert_agree
from pictures import write_image

#: Of the packages that the formats need.
NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}

#: Operators that ONNX Runtime, OpenVINO and TensorRT all list. TensorRT's list is the shortest
#: (docs/operators.md of onnx/onnx-tensorrt, at 8.4; LayerNormalization is younger). No Loop, If,
#: Scan, NonZero, OneHot or Sequence.
LISTED = """
    Add And ArgMax Cast Clip Concat Constant ConstantOfShape Conv Cos Div Equal Erf Exp
    Expand Flatten Gather GatherElements GatherND Gemm GlobalAveragePool Greater Identity
    LayerNormalization Less Log LogSoftmax MatMul Max Min Mul Neg Not Or Pad Pow Range ReduceL2
    ReduceMax ReduceMean ReduceSum Relu Reshape ScatterElements Shape Sigmoid Sin Slice Softmax
    Split Sqrt Squeeze Sub Tanh Tile TopK Transpose Unsqueeze Where
"""

# What other libraries deprecate in each other.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

#: A family in every run for each way to pool or place tokens; ``-m every_family`` runs all.
export_families = pytest.mark.parametrize(
    "family",
    [
        pytest.param(
            family,
            id=family.name,
            marks=()
            if family.name in ("eva02_split", "beit", "lvvit")
            else pytest.mark.every_family,
        )
        for family in FAMILIES
    ],
)


def needs(name: str) -> None:
    """Skip where the format's packages are not installed."""
    for package in NEEDED.get(name, ()):
        pytest.importorskip(package)


@pytest.fixture(scope="module")
def model() -> DynamicViT:
    return DEIT.sparse()


@pytest.fixture(scope="module")
def description(model: DynamicViT) -> Description:
    return describe(model, crop_pct=0.8)


@pytest.fixture(scope="module")
def program(model: DynamicViT, description: Description) -> ExportedProgram:
    """The model's graph: tracing takes most of an export's time."""
    return trace(model, description)


@pytest.fixture(scope="module")
def merging_program() -> tuple[DynamicViT, Description, ExportedProgram]:
    """A model that merges, and its graph."""
    model = DEIT.sparse(policy="merged")
    description = describe(model)
    return model, description, trace(model, description)


@pytest.fixture(scope="module", params=["onnx", "openvino", "torch"])
def merging(
    request: pytest.FixtureRequest,
    merging_program: tuple[DynamicViT, Description, ExportedProgram],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[DynamicViT, Path]:
    """A model that merges, and it in each format."""
    needs(request.param)
    model, description, program = merging_program
    path = tmp_path_factory.mktemp("merging") / f"model{FORMATS[request.param].suffix}"
    FORMATS[request.param].write(program, description, path)
    return model, path


@pytest.fixture(scope="module", params=["onnx", "openvino", "torch"])
def file(
    request: pytest.FixtureRequest,
    program: ExportedProgram,
    description: Description,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The model in each format."""
    needs(request.param)
    path = tmp_path_factory.mktemp("export") / f"model{FORMATS[request.param].suffix}"
    FORMATS[request.param].write(program, description, path)
    return path


# ---------------------------------------------------------------- the same answers


@pytest.mark.parametrize("batch", [1, 3])
@torch.no_grad()
def test_a_file_does_what_the_model_does(model: DynamicViT, file: Path, batch: int) -> None:
    exported, images = load_exported(file), DEIT.images(batch, seed=4)
    own, theirs = model.forward_pruned(images), exported.forward_pruned(images)
    assert_agree(theirs.logits, own.logits, 1e-4)
    assert_agree(exported(images), own.logits, 1e-4)
    assert theirs.grid == own.grid
    for name in ("kept", "kept_index"):
        for mine, other in zip(getattr(own, name), getattr(theirs, name), strict=True):
            assert torch.equal(mine, other)


@torch.no_grad()
def test_one_image_has_a_session_of_its_own_in_onnx(
    model: DynamicViT, program: ExportedProgram, description: Description, tmp_path: Path
) -> None:
    """Made when it is first asked for, with as many threads as there were; the answers stay."""
    needs("onnx")
    import onnxruntime

    path = tmp_path / "model.onnx"
    FORMATS["onnx"].write(program, description, path)
    made: list[onnxruntime.InferenceSession] = []

    class Session(onnxruntime.InferenceSession):
        def __init__(self, *args: Any, **rest: Any) -> None:
            super().__init__(*args, **rest)
            made.append(self)

    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxruntime, "InferenceSession", Session)
        exported, images = load_exported(path), DEIT.images(2, seed=4)
        assert_agree(exported(images), model(images), 1e-4)
        assert len(made) == 1
        try:
            torch.set_num_threads(threads + 1)
            for _ in range(2):
                assert_agree(exported(images[:1]), model(images[:1]), 1e-4)
        finally:
            torch.set_num_threads(threads)
    assert [session.get_inputs()[0].shape[0] for session in made] == ["batch", 1]
    found = {session.get_session_options().intra_op_num_threads for session in made}
    assert found == {threads}


def test_kept_patches_are_indices_in_image_order(model: DynamicViT, file: Path) -> None:
    logits, *kept = load_exported(file).outputs(DEIT.images(2))
    assert logits.shape == (2, model.num_classes)
    for places, k in zip(kept, model.schedule.kept(DEIT.num_patches), strict=True):
        assert places.shape == (2, k)
        assert places.dtype == torch.int64
        assert (places.diff(dim=1) > 0).all()


def test_a_file_describes_itself(model: DynamicViT, file: Path, description: Description) -> None:
    found = load_exported(file)
    assert found.description == description
    assert found.schedule == model.schedule
    own, theirs = eval_transform(model, crop_pct=0.8), eval_transform(found)
    assert str(own) == str(theirs)


def test_labels_go_along() -> None:
    model = DEIT.sparse()
    names = [f"kind {index}" for index in range(model.num_classes)]
    model.backbone.pretrained_cfg = {**model.pretrained_cfg, "label_names": names}
    described = describe(model)
    assert described.labels == tuple(names)
    assert type(described).from_json(described.to_json(), "x") == described


@pytest.mark.parametrize(
    ("written", "policy"),
    [({}, "removed"), ({"dropped": "gone"}, "removed"), ({"dropped": "merged"}, "merged")],
)
def test_descriptions_in_older_words(
    description: Description, written: dict[str, str], policy: str
) -> None:
    """From before there was merging, and as 0.1.0 called it."""
    values = json.loads(description.to_json())
    del values["policy"]
    found = Description.from_json(json.dumps({**values, **written}), "x")
    assert found == replace(description, policy=policy)


@torch.no_grad()
def test_a_fixed_batch_takes_any_number_of_images(model: DynamicViT, tmp_path: Path) -> None:
    file = tmp_path / "pairs.pt2"
    export(model, file, batch=2)
    exported, images = load_exported(file), DEIT.images(5)
    assert_agree(exported(images), model(images), 1e-4)
    with pytest.raises(Exception, match=r"shape|size|expected"):
        exported._run(images)


@pytest.mark.parametrize("batch", [1, 3])
@torch.no_grad()
def test_a_file_merges_as_the_model_does(
    merging: tuple[DynamicViT, Path], batch: int, model: DynamicViT
) -> None:
    merged, file = merging
    exported, images = load_exported(file), DEIT.images(batch, seed=4)
    assert exported.schedule == merged.schedule
    assert check(merged, exported, images).ties == 0
    assert (model(images) - merged(images)).abs().max() > 1e-2, "else it shows nothing"


@torch.no_grad()
def test_bfloat16_where_the_runtime_has_it(model: DynamicViT, file: Path) -> None:
    """OpenVINO computes in it, where the processor can; the others say that they don't."""
    if file.suffix != ".xml":
        with pytest.raises(InputError, match="fp32, not in bf16"):
            load_exported(file, "bf16")
        return
    with pytest.raises(InputError, match="fp32 or bf16, not in fp16"):
        load_exported(file, "fp16")
    images = DEIT.images(3, seed=4)
    exact, rounded = load_exported(file)(images), load_exported(file, "bf16")(images)
    assert rounded.dtype == torch.float32
    assert_agree(rounded, exact, 0.2)
    import openvino

    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert not torch.equal(rounded, exact), "it was not asked for bfloat16"


@export_families
@pytest.mark.parametrize("policy", get_args(Policy))
def test_every_family_in_onnx(family: Family, policy: Policy, tmp_path: Path) -> None:
    """One graph of operators that every runtime lists, with any number of images."""
    onnx = pytest.importorskip("onnx")
    needs("onnx")
    model = family.sparse(depth=2, stages=(0, 1), policy=policy)
    file = tmp_path / "model.onnx"
    # Some of transformers' are made for another one.
    export(model, file, image_size=set_image_size(model, family.size))
    images = family.images(3, seed=4)
    assert check(model, load_exported(file), images).ties == 0
    written = onnx.load(file)
    assert {node.op_type for node in written.graph.node} <= set(LISTED.split())
    assert {node.domain for node in written.graph.node} == {""}
    assert not written.functions
    assert written.opset_import[0].version >= 18
    assert written.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    names = [output.name for output in written.graph.output]
    assert names == ["logits", "kept_1", "kept_2"]
    types = {value.name: value.type.tensor_type.elem_type for value in written.graph.value_info}
    for node in written.graph.node:
        if node.op_type == "ScatterElements":  # TensorRT scatters numbers
            assert types[node.output[0]] != onnx.TensorProto.BOOL


@pytest.mark.parametrize("policy", get_args(Policy))
def test_a_stage_is_no_more_than_it_must_be(policy: Policy, tmp_path: Path) -> None:
    """For one image in int8 a stage's small operations cost as much as what it saves in others.

    The k best in image order take two: TopK by score, TopK to sort. The odds take no softmax, and
    which patches are kept is known without looking for them.
    """
    onnx = pytest.importorskip("onnx")
    needs("onnx")
    model = DEIT.sparse(policy=policy)
    export(model, tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx").graph
    counts = Counter(node.op_type for node in graph.node)
    assert counts["TopK"] == 2 * len(model.schedule.stages)
    assert counts["LogSoftmax"] == 0
    assert counts["Softmax"] == model.depth, "of attention alone"
    assert (counts["ScatterElements"] > 0) == (policy == "merged")


@torch.no_grad()
def test_a_stage_that_drops_nothing(tmp_path: Path) -> None:
    """Its patches are those of the stage before, under a name of their own."""
    model = DEIT.sparse(keep_ratio=(1.0, 0.5, 0.5))
    for name in ("onnx", "openvino", "torch"):
        needs(name)
        file = tmp_path / f"model{FORMATS[name].suffix}"
        export(model, file)
        _, *kept = load_exported(file).outputs(DEIT.images(3))
        assert [places.shape[1] for places in kept] == [DEIT.num_patches, 10, 10]
        assert torch.equal(kept[1], kept[2])


@pytest.mark.every_family
def test_aotinductor(model: DynamicViT, tmp_path: Path) -> None:
    if not has_compiler():
        pytest.skip("AOTInductor needs a C++ compiler")
    file = tmp_path / "model.pt2"
    export(model, file, format="aotinductor")
    exported = load_exported(file)
    assert exported.description == describe(model)
    assert check(model, exported, DEIT.images(3, seed=4)).ties == 0


# ---------------------------------------------------------------- the comparison


def changed(model: DynamicViT, change: Callable[[list[Tensor]], list[Tensor]]) -> ExportedModel:
    """The model's own outputs, changed, as if by a faulty runtime."""
    description = describe(model)
    graph = Graph(model)
    return ExportedModel(lambda images: change(list(graph(images))), description)


def test_the_check_sees_logits(model: DynamicViT) -> None:
    images = DEIT.images(2)
    for error, passes in ((5e-4, True), (2e-3, False), (float("nan"), False)):
        faulty = changed(model, lambda found, e=error: [found[0] + e, *found[1:]])
        if passes:
            assert check(model, faulty, images).logit_error == pytest.approx(5e-4, rel=0.01)
        else:
            with pytest.raises(ExportMismatchError, match="logits differ"):
                check(model, faulty, images)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_the_check_sees_kept_patches(model: DynamicViT, stage: int) -> None:
    """One patch of one image is another: far from a tie."""

    def swap(found: list[Tensor]) -> list[Tensor]:
        places = found[1 + stage][1]
        held = found[stage][1] if stage else torch.arange(DEIT.num_patches)
        [dropped, *_] = set(held.tolist()) - set(places.tolist())
        places[0] = dropped
        return found

    with pytest.raises(ExportMismatchError, match=rf"image 2 .* stage {stage + 1}: 1 of"):
        check(model, changed(model, swap), DEIT.images(2))


def tied(model: DynamicViT, images: Tensor, gap: float, sure: float) -> ExportedModel:
    """A runtime that swaps the last kept patch of the last stage for the next best one.

    The model's keep scores are changed so that the two's are ``gap`` apart, and all of them higher
    by ``sure``.
    """
    scores = model.forward_pruned(images).keep_scores[-1][0]
    k = model.schedule.kept(DEIT.num_patches)[-1]
    order = scores.argsort(descending=True)
    last, following = int(order[k - 1]), int(order[k])
    forward = model.forward_pruned

    def nudged(images: Tensor, decisions: object = None) -> object:
        output = forward(images, decisions)
        if decisions is None:
            scores = output.keep_scores[-1][0]
            scores += sure
            scores[following] = scores[last] - gap
        return output

    model.forward_pruned = nudged
    description = describe(model)
    graph = Graph(model)

    def run(images: Tensor) -> list[Tensor]:
        *rest, kept = graph(images)
        kept[0][kept[0] == last] = following
        survived = list(forward(images).kept)
        survived[-1] = torch.zeros_like(survived[-1]).scatter(1, kept, True)
        logits = forward(images, [places.float() for places in survived]).logits
        return [logits, *rest[1:], kept]

    return ExportedModel(run, description)


@pytest.mark.parametrize("sure", [0.0, 15.0])
@pytest.mark.parametrize(("gap", "passes"), [(TIE / 2, True), (TIE * 2, False)])
@torch.no_grad()
def test_only_ties_may_be_broken_otherwise(gap: float, passes: bool, sure: float) -> None:
    """Also where the model is sure to keep all of them, so that no score is far from 0."""
    model, images = DEIT.sparse(), DEIT.images(2)
    exported = tied(model, images, gap, sure)
    assert (exported(images)[0] - model(images)[0]).abs().max() > 1e-2, "else it shows nothing"
    if passes:
        found = check(model, exported, images)
        assert (found.ties, found.images) == (1, 2)
        assert found.logit_error < 1e-4
    else:
        with pytest.raises(ExportMismatchError, match="from the cut"):
            check(model, exported, images)


def test_a_file_that_differs_is_not_written(
    program: ExportedProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Format, "trace", lambda *_: program)
    file = tmp_path / "model.pt2"
    file.write_text("old")
    with pytest.raises(ExportMismatchError):
        export(DEIT.sparse(seed=3), file)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]
    assert file.read_text() == "old"


def test_pictures_are_real(model: DynamicViT) -> None:
    transform = eval_transform(model)
    images, origin = sample_pictures(transform)
    assert origin == "10 crops of scikit-learn's 2 photographs"
    assert images.shape == (10, 3, *DEIT.size)
    assert all((a != b).any() for a, b in pairwise(images))


def test_pictures_of_ones_own(model: DynamicViT, tmp_path: Path) -> None:
    """Spread over the source; what can't be read is left out."""
    for gray in range(0, 200, 2):
        write_image(tmp_path / f"{gray:03}.png", gray, size=DEIT.size[::-1])
    (tmp_path / "000.png").write_bytes(b"no image")
    data = ImageData(tmp_path)
    images, origin = own_pictures(data, eval_transform(model, crop_pct=1.0))
    assert origin == f"{MAX_IMAGES - 1} images of {tmp_path}"
    levels = (images * 0.229 + 0.485)[:, 0, 0, 0] * 255
    assert (levels.diff() > 0).all()
    assert levels[-1].round() == 198
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "bad.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="no readable image"):
        own_pictures(ImageData(tmp_path / "only"), eval_transform(model))


# ---------------------------------------------------------------- bad input


def test_formats_are_told_by_their_ending() -> None:
    found = [format_of(f"a{ending}").name for ending in (".onnx", ".xml", ".PT2")]
    assert found == ["onnx", "openvino", "torch"]
    assert format_of("a.pt2", "aotinductor").name == "aotinductor"
    for arguments, said in (
        (("a.bin",), r"ends in \.onnx, \.xml, \.pt2"),
        (("a.pt2", "onnx"), r"ends in \.onnx"),
        (("a.pt2", "tflite"), "tflite"),
    ):
        with pytest.raises(InputError, match=said):
            format_of(*arguments)


def test_what_can_not_be_exported(model: DynamicViT, tmp_path: Path) -> None:
    for arguments, said in (
        ({"batch": 0}, "batch 0"),
        ({"crop_pct": 1.5}, "1.5"),
        ({"opset": 18}, "opset 18"),
        ({"validation": str(tmp_path / "nowhere")}, "nowhere"),
        ({"precision": "fp16"}, "fp16"),
    ):
        with pytest.raises(InputError, match=said):
            export(model, tmp_path / "a.pt2", **arguments)
    with pytest.raises(InputError, match="opset 17"):
        export(model, tmp_path / "a.onnx", opset=17)
    headless = DEIT.sparse(num_classes=0)
    with pytest.raises(InputError, match="no classifier"):
        export(headless, tmp_path / "a.pt2")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_a_missing_package_is_named(
    name: str, model: DynamicViT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, NEEDED[name][0], None)
    monkeypatch.setitem(sys.modules, NEEDED[name][-1], None)
    monkeypatch.setattr(Format, "trace", lambda *_: pytest.fail("said only after the work"))
    file = tmp_path / f"a{FORMATS[name].suffix}"
    command = rf"pip install 'dynamicvit\[{name}\]'"
    with pytest.raises(InputError, match=command):
        export(model, file)
    file.write_text("")
    with pytest.raises(InputError, match=command):
        load_exported(file)


def test_files_that_are_not_ours(
    file: Path,
    program: ExportedProgram,
    description: Description,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_exported(tmp_path / file.name)
    broken = tmp_path / file.name
    broken.write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="can't be read by"):
        load_exported(broken)
    monkeypatch.setattr(Description, "to_json", lambda self: json.dumps({"a": 1}))
    format_of(file).write(program, description, broken)
    with pytest.raises(InputError, match=broken.name):
        load_exported(broken)


def test_images_of_another_size(file: Path) -> None:
    with pytest.raises(InputError, match=r"\(1, 3, 8, 8\).*\(batch, 3, 64, 80\)"):
        load_exported(file)(torch.zeros(1, 3, 8, 8))


def test_what_openvino_can_not_convert_is_said_in_a_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    openvino = pytest.importorskip("openvino")

    def fail(_: object) -> None:
        raise RuntimeError("Check 'false' failed\nNo conversion rule found for: aten.some_op\n\n")

    monkeypatch.setattr(openvino, "convert_model", fail)
    with pytest.raises(
        InputError, match=r"can't convert this model \(No conversion rule .*some_op"
    ):
        export(DEIT.sparse(depth=2, stages=(1,)), tmp_path / "model.xml")
    assert list(tmp_path.iterdir()) == []

"""Exported files do what the model does, describe themselves, and are refused if they differ."""

from __future__ import annotations

import json
import resource
import sys
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dynamicvit import DynamicViT, InputError
from dynamicvit.checkpoints.loading import set_image_size
from dynamicvit.core.schedule import Policy
from dynamicvit.data import ImageData, eval_transform
from dynamicvit.layers.tokens import TIE
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
from dynamicvit.runtimes.description import describe
from dynamicvit.runtimes.graph import Graph, layers_of, trace
from dynamicvit.runtimes.images import MAX_IMAGES, own_pictures, sample_pictures
from dynamicvit.runtimes.pytorch import has_compiler
from dynamicvit.utils.outputs import is_ours, rules
from exports import NEEDED, NOWHERE, changed, family_of, ignore_deprecations, small, traced
from families import DEIT, POLICIES, Family, assert_agree, each_family
from pictures import write_image
from rows import some_or_all

pytestmark = ignore_deprecations

Files = Callable[..., Path]


@pytest.fixture
def converted_before(monkeypatch: pytest.MonkeyPatch, exported: Files) -> Callable[[str], None]:
    """In a format exports of ``exports.small`` take its graph, traced and converted once."""

    def take(name: str) -> None:
        file = exported(name)
        program = traced()[0] if name == "torch" else None
        monkeypatch.setattr(Format, "trace", lambda *_: program)
        if name == "openvino":
            import openvino

            monkeypatch.setattr(
                openvino, "convert_model", lambda _: openvino.Core().read_model(file)
            )
        if name == "onnx":
            import onnx_ir

            graph = torch.onnx.ONNXProgram(onnx_ir.load(file), None)
            monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: graph)

    return take


#: Operators that ONNX Runtime, OpenVINO and TensorRT all list. TensorRT's list is the shortest
#: (docs/operators.md of onnx/onnx-tensorrt, at 8.4; LayerNormalization is younger). No Loop, If,
#: Scan, NonZero, OneHot or Sequence.
LISTED = """
    Abs Add And ArgMax Cast Clip Concat Constant ConstantOfShape Conv Cos Div Equal Erf Exp
    Expand Flatten Gather GatherElements GatherND Gemm GlobalAveragePool Greater Identity
    LayerNormalization Less Log LogSoftmax MatMul Max Min Mul Neg Not Or Pad Pow Range ReduceL2
    ReduceMax ReduceMean ReduceMin ReduceSum Relu Reshape Round ScatterElements Shape Sigmoid Sin
    Slice Softmax Split Sqrt Squeeze Sub Tanh Tile TopK Transpose Unsqueeze Where
"""

#: ONNX's number for the type of truth values.
BOOL = 9

each_format = pytest.mark.parametrize("name", ["onnx", "openvino", "torch"])


# ---------------------------------------------------------------- the same outputs


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        pytest.param(name, policy, marks=pytest.mark.extended if rare else ())
        for name in ("onnx", "openvino", "torch")
        for policy in POLICIES
        for rare in [policy == "bypassed"]  # takes long to convert
    ],
)
@torch.no_grad()
def test_a_file_does_what_the_model_does(name: str, policy: Policy, exported: Files) -> None:
    file, model = load_exported(exported(name, policy=policy)), small(policy)
    assert file.description == describe(model)
    assert file.schedule == model.schedule
    assert str(eval_transform(file)) == str(eval_transform(model))
    for batch in (1, 3):
        images = family_of(policy).images(batch, seed=4)
        own, theirs = model.forward_pruned(images), file.forward_pruned(images)
        assert_agree(theirs.logits, own.logits, 1e-4)
        assert_agree(file(images), own.logits, 1e-4)
        assert theirs.grid == own.grid
        assert {index.dtype for index in theirs.kept_index} == {torch.int64}
        assert all((index.diff(dim=1) > 0).all() for index in theirs.kept_index)
        for part in ("kept", "kept_index"):
            for mine, other in zip(getattr(own, part), getattr(theirs, part), strict=True):
                assert torch.equal(mine, other)
    other = deepcopy(model)
    policy = "merged" if policy == "removed" else "removed"
    other.schedule = replace(model.schedule, policy=policy, restore_before=None)
    assert (other(images) - own.logits).abs().max() > 1e-2, "else the policy shows nothing"


@pytest.mark.extended
@each_format
def test_tokens_that_merged_merge_again(name: str, tmp_path: Path) -> None:
    """A second stage is the same operators once more, and takes as long to convert."""
    for package in NEEDED.get(name, ()):
        pytest.importorskip(package)
    model = NOWHERE.sparse(depth=2, stages=(0, 1), policy="merged")
    made = export(model, tmp_path / f"model{FORMATS[name].suffix}")
    file, images = load_exported(made.path), NOWHERE.images(3, seed=4)
    assert len(file.description.kept) == 2
    assert check(model, file, images).ties == 0


@torch.no_grad()
def test_one_image_has_a_session_of_its_own_in_onnx(
    exported: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made at its first call, with the threads at the time of loading."""
    onnxruntime = pytest.importorskip("onnxruntime")
    made: list[Any] = []

    class Session(onnxruntime.InferenceSession):
        def __init__(self, *args: Any, **rest: Any) -> None:
            super().__init__(*args, **rest)
            made.append(self)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    file, images = load_exported(exported("onnx")), DEIT.images(2, seed=4)
    assert_agree(file(images), small()(images), 1e-4)
    assert len(made) == 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for _ in range(2):
        assert_agree(file(images[:1]), small()(images[:1]), 1e-4)
    assert [session.get_inputs()[0].shape[0] for session in made] == ["batch", 1]
    threads = {session.get_session_options().intra_op_num_threads for session in made}
    assert threads == {1}


@torch.no_grad()
def test_a_fixed_batch_takes_any_number_of_images(exported: Files) -> None:
    file, images = load_exported(exported("torch", batch=2)), DEIT.images(5)
    assert_agree(file(images), small()(images), 1e-4)
    with pytest.raises(Exception, match=r"shape|size|expected"):
        file._run(images)


@each_format
@torch.no_grad()
def test_bfloat16_if_the_runtime_has_it(name: str, exported: Files) -> None:
    file = exported(name)
    with pytest.raises(InputError, match="fp16"):
        load_exported(file, "fp16")
    if name != "openvino":
        with pytest.raises(InputError, match="bf16"):
            load_exported(file, "bf16")
        return
    images = DEIT.images(3, seed=4)
    exact, rounded = load_exported(file)(images), load_exported(file, "bf16")(images)
    assert rounded.dtype == torch.float32
    assert_agree(rounded, exact, 0.2)
    import openvino

    has_bf16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert torch.equal(rounded, exact) != has_bf16


@pytest.mark.extended  # each run has the files of ``exports.small``
@each_family
@pytest.mark.parametrize("policy", POLICIES)
def test_every_family_in_onnx(family: Family, policy: Policy, tmp_path: Path) -> None:
    """One graph of operators that every runtime lists, for any number of images.

    Every product with a weight is of a layer: what int8 is made of.
    """
    onnx = pytest.importorskip("onnx")
    depth, back = (2, 1) if policy == "bypassed" else (1, None)
    model = family.sparse(depth=depth, stages=(0,), policy=policy, restore_before=back)
    file = tmp_path / "model.onnx"
    # Some of transformers' models are made for another size.
    about = describe(model, image_size=set_image_size(model, family.size))
    program = trace(model, about)
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    names = {name for name, part in model.named_modules() if isinstance(part, kinds)}
    unread = f".{family.unread}."
    assert {*layers_of(program).values()} == {
        name.removeprefix("backbone.") for name in names if unread not in name
    }
    FORMATS["onnx"].write(program, about, file)
    images = family.images(3, seed=4)
    assert check(model, load_exported(file), images).ties == 0
    assert_any_runtime_can_read(onnx.load(file), ["logits", "kept_1"])


def assert_any_runtime_can_read(written: Any, outputs: list[str]) -> None:
    assert {node.op_type for node in written.graph.node} <= set(LISTED.split())
    assert {node.domain for node in written.graph.node} == {""}
    assert not written.functions
    assert written.opset_import[0].version >= 18
    assert written.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [output.name for output in written.graph.output] == outputs
    types = {value.name: value.type.tensor_type.elem_type for value in written.graph.value_info}
    for node in written.graph.node:
        if node.op_type == "ScatterElements":  # TensorRT scatters numbers
            assert types[node.output[0]] != BOOL


@some_or_all("policy", ("removed", "merged"), POLICIES)
def test_a_stage_is_no_more_than_it_must_be(policy: Policy, exported: Files) -> None:
    """For one image in int8 the small operations of a stage cost as much as it saves elsewhere.

    The k best in image order need three TopK: for the last score, which those that tie are told
    by, for the k, and to sort. The odds need no softmax, and the kept patches are known without a
    search.
    """
    onnx = pytest.importorskip("onnx")
    written = onnx.load(exported("onnx", policy=policy))
    kept = small(policy).schedule.kept(family_of(policy).num_patches)
    outputs = ["logits", *(f"kept_{stage + 1}" for stage in range(len(kept)))]
    assert_any_runtime_can_read(written, outputs)
    counts = Counter(node.op_type for node in written.graph.node)
    drops = len({*kept})
    assert counts["TopK"] == 3 * drops + len(kept) - drops, "or one to name what it has not dropped"
    assert counts["LogSoftmax"] == 0
    assert counts["Softmax"] == small(policy).depth, "attention's"
    assert (counts["ScatterElements"] > 0) == (policy != "removed")


@each_format
@torch.no_grad()
def test_a_full_disk_is_one_line_and_nothing_stays(
    name: str, tmp_path: Path, converted_before: Callable[[str], None]
) -> None:
    converted_before(name)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    path = tmp_path / f"model{FORMATS[name].suffix}"
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
        with pytest.raises(InputError, match=rf"{path.name}: can't be written \(") as error:
            export(small(), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(error.value)
    assert not [*tmp_path.iterdir()]


@pytest.mark.extended
def test_aotinductor(tmp_path: Path) -> None:
    if not has_compiler():
        pytest.skip("AOTInductor needs a C++ compiler")
    file = tmp_path / "model.pt2"
    export(small(), file, format="aotinductor")
    loaded = load_exported(file)
    assert loaded.description == describe(small())
    assert check(small(), loaded, DEIT.images(3, seed=4)).ties == 0


# ---------------------------------------------------------------- descriptions


def test_labels_and_crop_are_described() -> None:
    model = DEIT.sparse()
    names = [f"kind {index}" for index in range(model.num_classes)]
    model.backbone.pretrained_cfg = {**model.pretrained_cfg, "label_names": names}
    described = describe(model, crop_pct=0.8)
    assert (described.labels, described.crop_pct) == (tuple(names), 0.8)
    assert Description.from_json(described.to_json(), "x") == described


@pytest.mark.parametrize(
    ("written", "policy"),
    [({}, "removed"), ({"dropped": "gone"}, "removed"), ({"dropped": "merged"}, "merged")],
)
def test_older_descriptions(written: dict[str, str], policy: Policy) -> None:
    """From before merging and int8, and in the words of 0.1.0."""
    description = describe(small())
    values = json.loads(description.to_json())
    del values["policy"], values["precision"]
    found = Description.from_json(json.dumps({**values, **written}), "x")
    assert found == replace(description, policy=policy)


# ---------------------------------------------------------------- the comparison


@pytest.mark.parametrize(("error", "passes"), [(5e-4, True), (2e-3, False), (float("nan"), False)])
def test_the_check_sees_logits(error: float, passes: bool) -> None:
    faulty = changed(small(), lambda found: [found[0] + error, *found[1:]])
    if passes:
        found = check(small(), faulty, DEIT.images(2))
        assert found.logit_error == pytest.approx(error, rel=0.01)
    else:
        with pytest.raises(ExportMismatchError, match="logits"):
            check(small(), faulty, DEIT.images(2))


@pytest.mark.parametrize("stage", [0, 1])
def test_the_check_sees_kept_patches(stage: int) -> None:
    """One patch of one image is another: far from a tie."""

    def swap(found: list[Tensor]) -> list[Tensor]:
        places = found[1 + stage][1]
        before = found[stage][1] if stage else torch.arange(DEIT.num_patches)
        [dropped, *_] = set(before.tolist()) - set(places.tolist())
        places[0] = dropped
        return found

    model = DEIT.sparse(depth=2, stages=(0, 1))
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
    graph = Graph(model)

    def run(images: Tensor) -> list[Tensor]:
        *rest, index = graph(images)
        index[0][index[0] == last] = following
        kept = list(forward(images).kept)
        kept[-1] = torch.zeros_like(kept[-1]).scatter(1, index, True)
        logits = forward(images, [places.float() for places in kept]).logits
        return [logits, *rest[1:], index]

    return ExportedModel(run, describe(model))


@pytest.mark.parametrize("sure", [0.0, 15.0])
@pytest.mark.parametrize(("share", "passes"), [(0.5, True), (2.0, False)])
@torch.no_grad()
def test_only_ties_may_be_broken_differently(share: float, passes: bool, sure: float) -> None:
    """Also if the model is sure to keep all of them, so that no score is near 0."""
    gap = share * TIE * max(1.0, 2 * sure)
    model, images = DEIT.sparse(), DEIT.images(2)
    file = tied(model, images, gap, sure)
    assert (file(images)[0] - model(images)[0]).abs().max() > 1e-2, "else it shows nothing"
    if passes:
        found = check(model, file, images)
        assert (found.ties, found.images) == (1, 2)
        assert found.logit_error < 1e-4
    else:
        with pytest.raises(ExportMismatchError, match="stage 3: 1 of"):
            check(model, file, images)


@each_format
def test_a_file_carries_the_mark_and_replaces_only_ours(
    name: str, exported: Files, tmp_path: Path, converted_before: Callable[[str], None]
) -> None:
    """Its weights have no room for it: they are ours if the file is, and read again afterwards."""
    kind, path = FORMATS[name], tmp_path / f"m{FORMATS[name].suffix}"
    assert is_ours(exported(name))
    converted_before(name)
    beside = kind.beside and tmp_path / kind.beside.format(name=path.name, stem=path.stem)
    with rules([], overwrite=False):
        for alone in filter(None, (beside, path)):
            alone.write_text("mine")
            with pytest.raises(InputError, match=rf"{alone.name} exists.*--overwrite"):
                export(small(), path)
            assert alone.read_text() == "mine"
            alone.unlink()
        if name != "openvino":
            return
        far = tmp_path / "far.xml"
        path.symlink_to(far)
        export(small(), path)
        assert path.is_symlink()
        load_exported(path)
        kind.check_output(path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["far.xml", "m.bin", "m.xml"]


def test_a_file_that_differs_is_not_written(
    tmp_path: Path, converted_before: Callable[[str], None]
) -> None:
    converted_before("torch")
    file = tmp_path / "model.pt2"
    file.write_text("old")
    with pytest.raises(ExportMismatchError):
        export(DEIT.sparse(depth=1, stages=(0,), seed=3), file)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]
    assert file.read_text() == "old"


def test_sample_pictures() -> None:
    images, _ = sample_pictures(eval_transform(small()))
    assert images.shape == (10, 3, *DEIT.size)
    assert all((a != b).any() for a, b in pairwise(images))


def test_own_pictures(tmp_path: Path) -> None:
    """Spread over the source, without unreadable ones."""
    for gray in range(0, 200, 2):
        write_image(tmp_path / f"{gray:03}.png", gray, size=DEIT.size[::-1])
    (tmp_path / "000.png").write_bytes(b"no image")
    images, origin = own_pictures(ImageData(tmp_path), eval_transform(small(), crop_pct=1.0))
    assert origin == f"{MAX_IMAGES - 1} images of {tmp_path}"
    levels = (images * 0.229 + 0.485)[:, 0, 0, 0] * 255
    assert (levels.diff() > 0).all()
    assert levels[-1].round() == 198
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "bad.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="only"):
        own_pictures(ImageData(tmp_path / "only"), eval_transform(small()))


# ---------------------------------------------------------------- bad input


def test_formats_by_suffix_and_name() -> None:
    names = [format_of(file).name for file in ("a.onnx", "a.xml", "a.PT2")]
    assert names == ["onnx", "openvino", "torch"]
    assert format_of("a.pt2", "aotinductor").name == "aotinductor"
    for file, name, said in (
        ("a.bin", None, r"\.onnx, \.xml, \.pt2"),
        ("a.pt2", "onnx", r"\.onnx"),
        ("a.pt2", "tflite", "tflite"),
    ):
        with pytest.raises(InputError, match=said):
            format_of(file, name)


def test_what_can_not_be_exported(tmp_path: Path) -> None:
    for name, arguments, said in (
        ("a.pt2", {"batch": 0}, "batch 0"),
        ("a.pt2", {"crop_pct": 1.5}, "1.5"),
        ("a.pt2", {"opset": 18}, "opset 18"),
        ("a.pt2", {"validation": str(tmp_path / "nowhere")}, "nowhere"),
        ("a.pt2", {"precision": "fp16"}, "fp16"),
        ("a.onnx", {"opset": 17}, "opset 17"),
    ):
        with pytest.raises(InputError, match=said):
            export(small(), tmp_path / name, **arguments)
    with pytest.raises(InputError, match="classifier"):
        export(DEIT.sparse(num_classes=0), tmp_path / "a.pt2")
    assert not list(tmp_path.iterdir())


def test_an_opset_that_onnx_has_not_is_refused_before_the_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = pytest.importorskip("onnx").defs.onnx_opset_version()
    monkeypatch.delattr(Format, "trace")
    for opset in (newest + 1, 65536, 2**70):
        with pytest.raises(InputError, match=f"opset {opset}: .* 18 to {newest}"):
            export(small(), tmp_path / "a.onnx", opset=opset)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_a_missing_package_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in NEEDED[name]:
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(Format, "trace", lambda *_: pytest.fail("said only after the work"))
    file = tmp_path / f"a{FORMATS[name].suffix}"
    with pytest.raises(InputError, match=rf"dynamicvit\[{name}\]"):
        export(small(), file)
    file.write_text("")
    with pytest.raises(InputError, match=rf"dynamicvit\[{name}\]"):
        load_exported(file)


@each_format
def test_files_that_are_not_ours(name: str, exported: Files, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"nowhere{FORMATS[name].suffix}"):
        load_exported(tmp_path / f"nowhere{FORMATS[name].suffix}")
    for part in exported(name).parent.glob(f"{exported(name).stem}.*"):
        (tmp_path / part.name).write_bytes(
            part.read_bytes().replace(b"keep_ratios", b"keep_ration")
        )
    foreign = tmp_path / exported(name).name
    with pytest.raises(InputError, match=foreign.name):
        load_exported(foreign)
    foreign.write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match=foreign.name):
        load_exported(foreign)


def test_images_of_another_size(exported: Files) -> None:
    with pytest.raises(InputError, match=r"\(1, 3, 8, 8\).*3, 64, 80"):
        load_exported(exported("torch"))(torch.zeros(1, 3, 8, 8))


def test_what_openvino_can_not_convert_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    openvino = pytest.importorskip("openvino")

    def fail(_: object) -> None:
        raise RuntimeError("Check 'false' failed\nNo conversion rule found for: aten.some_op\n\n")

    monkeypatch.setattr(openvino, "convert_model", fail)
    with pytest.raises(InputError, match=r"^.*aten\.some_op\)$"):
        FORMATS["openvino"].write(*traced(), tmp_path / "model.xml")

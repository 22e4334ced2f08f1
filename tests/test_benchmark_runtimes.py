"""The runtimes of the benchmark: each runs the network that it names, or says why it can't."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dynamicvit import DynamicViT, InputError
from dynamicvit.core.networks import DenseNetwork
from dynamicvit.costs import DENSE, executed_macs
from dynamicvit.evaluation.bench import bench, bench_files, measure, memory, peak_memory, plan
from dynamicvit.layers.onednn import OneDNNLinear
from dynamicvit.plots.speed import plot_speed
from dynamicvit.runtimes import FORMATS, RUNTIMES, export, pytorch
from exports import ignore_deprecations, shallow, small, traced
from families import DEIT, assert_agree
from processes import in_this_process

pytestmark = ignore_deprecations


@pytest.fixture
def model() -> DynamicViT:
    return small()


@pytest.fixture
def pairs(exported: Callable[..., Path]) -> Path:
    """A file for two images."""
    return exported("torch", batch=2)


@pytest.mark.parametrize("name", ["eager", "torch"])
def test_dense_keeps_every_patch(name: str, model: DynamicViT) -> None:
    dense = RUNTIMES[name].dense(model)
    if name == "eager":  # as its own library runs it
        assert isinstance(dense, DenseNetwork)
    else:
        assert isinstance(dense, DynamicViT)
        assert dense.schedule == DENSE
    assert dense.backbone is model.backbone
    images = DEIT.images()
    with torch.inference_mode():
        assert_agree(dense(images), model.backbone(images))


def test_onednn_is_of_a_copy(model: DynamicViT, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, images = RUNTIMES["onednn"], DEIT.images()
    runtime.ready()
    answers: list[Tensor] = []

    def watched(work, device_type, precision):
        network = work.func
        assert (device_type, precision) == ("cpu", "fp32")
        assert any(type(layer) is OneDNNLinear for layer in network.modules())
        assert all(a is b for a, b in zip(network.parameters(), model.parameters(), strict=True))
        answers.append(work())

    monkeypatch.setattr(pytorch, "infer", watched)
    with torch.inference_mode():
        runtime.prepare(model, images, "fp32")()
        assert_agree(answers[0], model(images))
    assert not any(type(layer) is OneDNNLinear for layer in model.modules())
    assert runtime.why_not("fp32", "cpu") is None
    assert runtime.why_not("bf16", "cpu")
    assert runtime.why_not("fp32", "cuda")


@pytest.mark.usefixtures("traced_once")
def test_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """One for each network, whatever the batch size, for times and memory; and what they do.

    What measures the memory runs in this process: test_benchmark.py starts others.
    """
    model, kind = shallow(), FORMATS["torch"]
    networks = {"dense-fp32.pt2": kind.dense(model), "pruned-fp32.pt2": model}
    written: list[str] = []

    def watched(network, file, **arguments):
        written.append(file.name)
        made = export(network, file, **arguments)  # which compares it with the network
        if network is model:
            work = kind.prepare(plan.load_file(file, kind, "fp32"), DEIT.images(3), "fp32")
            with torch.inference_mode():
                assert_agree(work()[0], model(DEIT.images(3)), 1e-4)
        return made

    monkeypatch.setattr(plan, "export", watched)
    monkeypatch.setattr(memory.subprocess, "run", in_this_process)
    settings = {"batch_sizes": [1, 2], "samples": 2, "threads": 1, "memory": True}
    report = bench(model, runtimes=["torch"], **settings)
    assert written == [*networks]
    row, larger = report.rows
    assert (row.runtime, row.precision) == ("torch", "fp32")
    assert (row.batch_size, larger.batch_size) == (1, 2)
    assert row.reference is not None
    assert row.reference is not row.dense
    # The dense network has every saving of the pruned one but dropped tokens.
    assert row.pruned_macs == executed_macs(model)
    assert row.dense_macs == executed_macs(kind.dense(model))
    assert row.dense_macs < executed_macs(model.backbone)
    [of_files] = report.memory
    assert (of_files.runtime, of_files.batch_size) == ("torch", 2)
    for peak in (of_files.dense, of_files.pruned):
        assert peak.total > peak.inference >= 0
        assert peak.total > 50 << 20


@pytest.mark.parametrize("calibrate", [None, "photos"])
def test_int8_has_a_file_of_its_own(
    calibrate: str | None, model: DynamicViT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checked if the user gives images to calibrate on; else it is for speed only."""
    asked: list[dict] = []

    def quantized(network, file, **arguments):
        asked.append(arguments)
        file.parent.mkdir(exist_ok=True)
        file.touch()

    monkeypatch.setattr(plan, "export", quantized)
    files = [
        plan.network_file(
            model, "pruned", FORMATS["openvino"], precision, DEIT.size, tmp_path, calibrate
        )
        for precision in ("int8", "fp32", "bf16", "int8")
    ]
    assert files[0] == files[3] != files[1] == files[2]
    int8, plain = asked
    assert (int8["precision"], plain["precision"]) == ("int8", "fp32")
    assert (int8["calibrate"], plain["calibrate"]) == (calibrate, None)
    assert int8.get("least_agreement") == (0.0 if calibrate is None else None)
    assert "least_agreement" not in plain


def test_a_compiled_network_is_compiled_once_for_its_shape(
    model: DynamicViT, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The arguments of the compiler, which itself takes a minute."""
    asked: list[dict] = []

    def compiler(network, **arguments):
        asked.append(arguments)
        return network

    monkeypatch.setattr(torch, "compile", compiler)
    images = DEIT.images()
    work = RUNTIMES["compile"].prepare(model, images, "fp32")
    with torch.inference_mode():
        assert torch.equal(work(), model(images))
        work()
    [arguments] = asked
    assert arguments["dynamic"] is False
    assert arguments["options"]["freezing"]
    assert not arguments["options"]["triton.cudagraphs"]


def test_any_number_of_networks_is_compiled() -> None:
    """With shared code the compiler stops after a few, silently."""
    with torch._dynamo.config.patch(recompile_limit=1):
        for width in (1, 2, 3):
            work = pytorch._with_own_code(nn.Linear(width, 1))
            ready = torch.compile(work, backend="eager", fullgraph=True, dynamic=False)
            ready(torch.ones(1, width))


class TestBenchFiles:
    @pytest.mark.extended
    def test_a_file_against_another(self, exported: Callable[..., Path], tmp_path: Path) -> None:
        file = exported("openvino")
        for part in file.parent.glob(f"{file.stem}.*"):
            if part.suffix in (".xml", ".bin"):
                shutil.copy(part, tmp_path / f"dense{part.suffix}")
        settings = {"batch_sizes": [2], "precisions": ["fp32", "bf16"]}
        rows = bench_files(file, tmp_path / "dense.xml", **settings, samples=2, threads=1).rows
        assert [(row.batch_size, row.runtime, row.precision) for row in rows] == [
            (2, "openvino", precision) for precision in ("fp32", "bf16")
        ]
        for row in rows:
            assert row.dense is not None
            assert row.dense is not row.pruned
            assert row.names == ("dense.xml", file.name)
            assert row.reference is None

    def test_a_file_alone_takes_its_own_batch_size(self, pairs: Path) -> None:
        rows = bench_files(pairs, samples=2, threads=1).rows
        assert [(row.batch_size, row.runtime, row.dense) for row in rows] == [(2, "torch", None)]
        [panel] = plot_speed(rows).axes
        assert panel.get_xlabel() == "images per second"
        [bar] = panel.patches
        assert bar.get_width() == pytest.approx(rows[0].speed(rows[0].pruned).median)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"batch_sizes": [2, 3]}, "batches of 2, not of 3"),
            ({"batch_sizes": [0]}, "batch size 0"),
            ({"precisions": ["bf16"]}, "bf16"),
            ({"precisions": []}, "precision"),
            ({"threads": 0}, "threads 0"),
        ],
    )
    def test_bad_input(self, arguments: dict, message: str, pairs: Path) -> None:
        with pytest.raises(InputError, match=message):
            bench_files(pairs, **arguments)

    def test_files_that_take_different_images(
        self, exported: Callable[..., Path], tmp_path: Path
    ) -> None:
        """As they say themselves."""
        program, about = traced()
        square = tmp_path / "square.pt2"
        FORMATS["torch"].write(program, replace(about, input_size=(3, 64, 64)), square)
        with pytest.raises(InputError, match="3x64x64 and 3x64x80"):
            bench_files(exported("torch"), square, batch_sizes=[2])


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_a_missing_package(name: str, model: DynamicViT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=rf"dynamicvit\[{name}\]"):
        bench(model, runtimes=["eager", name], batch_sizes=[1], samples=2)


def test_a_missing_compiler(model: DynamicViT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytorch, "has_compiler", lambda: False)
    with pytest.raises(InputError, match=r"C\+\+ compiler"):
        bench(model, runtimes=["compile"], batch_sizes=[1], samples=2)


class TestMemory:
    def test_beside_the_times(self, model: DynamicViT, monkeypatch: pytest.MonkeyPatch) -> None:
        """At the largest batch, where it can be measured; in eager mode also with a graph."""
        asked: list[tuple] = []

        def peak_memory(model, batch_size, *, runtime, precision, graph, **_):
            asked.append((batch_size, runtime, precision, graph))
            return asked[-1]

        monkeypatch.setattr(measure, "peak_memory", peak_memory)
        asked_for = {"batch_sizes": [2, 1], "runtimes": ["eager", "onednn"], "memory": True}
        report = bench(model, **asked_for, precisions=["fp32"], samples=2, threads=1)
        assert report.memory == tuple(asked)
        assert asked == [(2, "eager", "fp32", False), (2, "eager", "fp32", True)]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"runtime": "compile"}, "compile"),
            ({"runtime": "onnx", "precision": "bf16"}, "onnx bf16"),
            ({"runtime": "onnx", "graph": True}, "onnx keeps no graph"),
        ],
    )
    def test_what_is_not_measured(self, arguments: dict, message: str, model: DynamicViT) -> None:
        with pytest.raises(InputError, match=message):
            peak_memory(model, 2, **arguments)


def test_rows_and_their_plot(model: DynamicViT) -> None:
    """A row for each setting; a panel for each batch size, a bar for each network."""
    rows = bench(model, batch_sizes=[1, 2], samples=2, threads=1).rows
    settings = [(row.batch_size, row.precision, row.threads, row.pairs) for row in rows]
    assert settings == [(size, name, 1, 2) for size in (1, 2) for name in ("fp32", "bf16")]
    panels = plot_speed(rows, "title").axes
    assert [panel.get_title(loc="left") for panel in panels] == ["batch 1", "batch 2"]
    for place, panel in enumerate(panels):
        bars = [bar.get_width() for bar in panel.patches]
        expected = [
            row.reference.over(times).median
            for row in rows[2 * place : 2 * place + 2]
            for times in (row.dense, row.pruned)
        ]
        assert bars == pytest.approx(expected)
    ticks = [label.get_text() for label in panels[0].get_yticklabels()]
    assert ticks == ["eager fp32", "eager bf16"]

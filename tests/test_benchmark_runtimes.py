"""The benchmark's runtimes: each runs the network that it says, and says if it can't."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dynamicvit import DynamicViT, InputError
from dynamicvit.core.networks import DenseNetwork
from dynamicvit.costs import DENSE, executed_macs
from dynamicvit.evaluation.bench import bench, bench_files, memory, peak_memory, plan
from dynamicvit.layers.onednn import OneDNNLinear
from dynamicvit.plots.speed import plot_speed
from dynamicvit.runtimes import FORMATS, RUNTIMES, export, pytorch
from families import DEIT, assert_agree

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*pickle.*:UserWarning"
)

FILES = ("torch", "openvino")


@pytest.fixture(scope="module")
def model() -> DynamicViT:
    return DEIT.sparse(depth=2, stages=(1,))


@pytest.fixture(scope="module")
def files(model: DynamicViT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pruned.xml and dense.xml of any batch size, and two.pt2 of two images."""
    folder = tmp_path_factory.mktemp("files")
    export(model, folder / "pruned.xml")
    export(model, folder / "dense.xml", dense=True)
    export(model, folder / "two.pt2", batch=2)
    return folder


@pytest.mark.parametrize("name", ["eager", *FILES])
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


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_timed_do_what_the_model_does(
    name: str, model: DynamicViT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file of each network, written once for all batch sizes and precisions."""
    kind, images = FORMATS[name], DEIT.images(3)
    answers: list[Tensor] = []
    written: list[str] = []

    def watched(network, file, **arguments):
        written.append(file.name)
        return export(network, file, **arguments)

    monkeypatch.setattr(plan, "export", watched)
    networks = {"dense": kind.dense(model), "pruned": model}
    for precision in ("fp32", "bf16") if name == "openvino" else ("fp32",):
        for part, network in networks.items():
            file = plan.network_file(network, part, kind, precision, DEIT.size, tmp_path)
            loaded = plan.load_file(file, kind, precision)
            answers.append(kind.prepare(loaded, images, precision)()[0])
    assert written == [f"dense-fp32{kind.suffix}", f"pruned-fp32{kind.suffix}"]
    with torch.inference_mode():
        for place, network in enumerate(networks.values()):
            assert_agree(answers[place], network(images), 1e-4)
    if name == "openvino":  # bf16 is another precision, where the processor has it
        import openvino

        has_bf16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        assert ((answers[2] - answers[0]).abs().max() > 1e-4) == has_bf16


@pytest.mark.parametrize("calibrate", [None, "photos"])
def test_int8_has_a_file_of_its_own(
    calibrate: str | None, model: DynamicViT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checked where the images to calibrate on are the user's; else it is for speed only."""
    asked: list[dict] = []

    def quantized(network, file, **arguments):
        asked.append(arguments)
        file.parent.mkdir()
        file.touch()

    monkeypatch.setattr(plan, "export", quantized)
    job = (model, "pruned", FORMATS["onnx"], "int8", DEIT.size, tmp_path, calibrate)
    assert plan.network_file(*job) == plan.network_file(*job)
    [arguments] = asked
    assert arguments["precision"] == "int8"
    assert arguments["calibrate"] == calibrate
    assert arguments.get("least_agreement") == (0.0 if calibrate is None else None)


def test_rows_of_files(model: DynamicViT) -> None:
    row, larger = bench(model, batch_sizes=[1, 2], runtimes=["torch"], samples=2, threads=1)
    assert (row.runtime, row.precision) == ("torch", "fp32")
    assert (row.batch_size, larger.batch_size) == (1, 2)
    assert row.reference is not None
    assert row.reference is not row.dense
    # Against a dense network that saves what the pruned one saves besides tokens.
    assert row.pruned_macs == executed_macs(model)
    assert row.dense_macs == executed_macs(RUNTIMES["torch"].dense(model))
    assert row.dense_macs < executed_macs(model.backbone)


def test_a_compiled_network_is_compiled_once_for_its_shape(
    model: DynamicViT, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler itself takes a minute; here, what it is told."""
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
    """With shared code the compiler gives up after so many, without a word unless asked for it."""
    with torch._dynamo.config.patch(recompile_limit=1):
        for width in (1, 2, 3):
            work = pytorch._with_own_code(nn.Linear(width, 1))
            ready = torch.compile(work, backend="eager", fullgraph=True, dynamic=False)
            ready(torch.ones(1, width))


class TestBenchFiles:
    def test_a_file_against_another(self, files: Path) -> None:
        rows = bench_files(
            files / "pruned.xml",
            files / "dense.xml",
            batch_sizes=[1, 2],
            precisions=["fp32", "bf16"],
            samples=2,
            threads=1,
        ).rows
        assert [(row.batch_size, row.runtime, row.precision) for row in rows] == [
            (1, "openvino", "fp32"),
            (1, "openvino", "bf16"),
            (2, "openvino", "fp32"),
            (2, "openvino", "bf16"),
        ]
        for row in rows:
            assert row.dense is not None
            assert row.dense is not row.pruned
            assert row.names == ("dense.xml", "pruned.xml")
            assert row.reference is None

    def test_a_file_alone_takes_its_own_batch_size(self, files: Path) -> None:
        [row] = bench_files(files / "two.pt2", samples=2, threads=1)
        assert (row.batch_size, row.runtime, row.dense) == (2, "torch", None)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"batch_sizes": [2, 3]}, "two.pt2 takes batches of 2, not of 3"),
            ({"batch_sizes": [0]}, "batch size 0"),
            ({"precisions": ["bf16"]}, "fp32, not in bf16"),
            ({"precisions": []}, "nothing to measure"),
            ({"threads": 0}, "threads 0"),
        ],
    )
    def test_bad_input(self, arguments: dict, message: str, files: Path) -> None:
        with pytest.raises(InputError, match=message):
            bench_files(files / "two.pt2", **arguments)

    def test_files_that_take_other_images(self, files: Path, tmp_path: Path) -> None:
        other = DEIT.sparse(depth=2, stages=(1,), img_size=(32, 48))
        export(other, tmp_path / "other.pt2", batch=2)
        with pytest.raises(InputError, match="take other images: 3x32x48 and 3x64x80"):
            bench_files(files / "pruned.xml", tmp_path / "other.pt2")


class TestMissing:
    @pytest.mark.parametrize(("name", "package"), [("onnx", "onnx"), ("openvino", "openvino")])
    def test_a_package(
        self, name: str, package: str, model: DynamicViT, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(__import__("sys").modules, package, None)
        with pytest.raises(InputError, match=rf"pip install 'dynamicvit\[{name}\]'"):
            bench(model, runtimes=["eager", name], batch_sizes=[1], samples=2)

    def test_the_compiler(self, model: DynamicViT, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pytorch, "has_compiler", lambda: False)
        with pytest.raises(InputError, match=r"C\+\+ compiler"):
            bench(model, runtimes=["compile"], batch_sizes=[1], samples=2)


class TestMemory:
    def test_of_a_file(self, model: DynamicViT) -> None:
        """Weights and runtime, in processes that load the file."""
        row = peak_memory(model, 2, runtime="torch", threads=1)
        assert row.runtime == "torch"
        for peak in (row.dense, row.pruned):
            assert peak.total > peak.inference >= 0
            assert peak.total > 50 << 20

    def test_beside_the_times(self, model: DynamicViT, monkeypatch: pytest.MonkeyPatch) -> None:
        """At the largest batch, where it can be measured; in eager mode also with a graph."""
        asked: list[tuple] = []

        def peak_memory(model, batch_size, *, runtime, precision, graph, **rest):
            asked.append((batch_size, runtime, precision, graph))
            return asked[-1]

        monkeypatch.setattr(memory, "peak_memory", peak_memory)
        asked_for = {"batch_sizes": [2, 1], "runtimes": ["eager", "onednn"], "memory": True}
        report = bench(model, **asked_for, precisions=["fp32"], samples=2, threads=1)
        assert report.memory == tuple(asked)
        assert asked == [(2, "eager", "fp32", False), (2, "eager", "fp32", True)]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"runtime": "compile"}, "not in compile"),
            ({"runtime": "onnx", "precision": "bf16"}, "onnx bf16"),
            ({"runtime": "onnx", "graph": True}, "onnx keeps no graph"),
        ],
    )
    def test_what_is_not_measured(self, arguments: dict, message: str, model: DynamicViT) -> None:
        with pytest.raises(InputError, match=message):
            peak_memory(model, 2, **arguments)


class TestPlot:
    def test_a_panel_for_each_batch_size_and_a_bar_for_each_network(
        self, model: DynamicViT
    ) -> None:
        rows = bench(model, batch_sizes=[1, 2], samples=2, threads=1).rows
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

    def test_files_have_images_per_second(self, files: Path) -> None:
        rows = bench_files(files / "two.pt2", samples=2, threads=1).rows
        [panel] = plot_speed(rows).axes
        assert panel.get_xlabel() == "images per second"
        [bar] = panel.patches
        assert bar.get_width() == pytest.approx(rows[0].speed(rows[0].pruned).median)

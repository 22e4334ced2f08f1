"""`dynamicvit bench`: what it prints, writes and refuses."""

import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from dynamicvit import DynamicViT, cli, load
from dynamicvit.cli import bench as module
from dynamicvit.cli.bench_tables import print_times
from dynamicvit.core.schedule import Schedule
from dynamicvit.costs import DENSE, count_macs, schedule_macs
from dynamicvit.evaluation.bench import BenchReport, BenchRow, MemoryRow, Peak, Times
from dynamicvit.runtimes import RUNTIMES, ExportMismatchError

QUICK = ["--batch-size", "1", "--precision", "fp32"]
ONCE = {"--model": "test_vit", "--samples": "2", "--threads": "1"}


def words(*arguments: str) -> list[str]:
    """A quick call of the command, but for what the arguments say."""
    left = [word for pair in ONCE.items() if pair[0] not in arguments for word in pair]
    return ["bench", *left, *QUICK, *arguments]


def run(*arguments: str):
    """The command's result; what it prints is not wrapped."""
    return CliRunner(env={"COLUMNS": "100"}).invoke(cli.app, words(*arguments))


def measured(*arguments: str) -> dict:
    result = run("--json", "-", *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(autouse=True)
def no_download(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("bench must not download")

    monkeypatch.setattr("timm.models._builder.load_pretrained", refuse)


def cells(text: str) -> list[list[str]]:
    """The table's lines, word by word."""
    lines = [line.split() for line in text.splitlines()]
    return [line for line in lines if line[1:2] and line[1] in RUNTIMES]


def test_table():
    words = ("--method", "dynamicvit", "--keep-ratio", "0.5")
    result = run(*words, "--batch-size", "2", "--precision", "bf16")
    assert result.exit_code == 0, result.output
    for part in (
        "test_vit (random",
        "160x160",
        "keeps 50, 25, 12.5 %",
        "0.0376",
        torch.__version__,
    ):
        assert part in result.stdout
    assert [line[:4] for line in cells(result.stdout)] == [
        [size, "eager", precision, network]
        for size in ("1", "2")
        for precision in ("fp32", "bf16")
        for network in ("dense", "pruned")
    ]
    assert "\n2 rounds" in result.stdout


def test_whole_tiles():
    """100 patches at half, a quarter and an eighth: 50 to 47, 25 to 31 and 12 to 15 beside the
    class token."""
    words = ("--method", "dynamicvit", "--keep-ratio", "0.5", "--tile", "16")
    assert measured(*words)["keep_ratios"] == [0.47, 0.31, 0.15]


#: A batch of four in two runtimes, with a reference that is slower than both.
ROWS = [
    BenchRow(
        4,
        "eager",
        "bf16",
        2,
        pruned=Times((0.08, 0.1, 0.12)),
        dense=Times((0.16, 0.2, 0.24)),
        reference=Times((0.32, 0.4, 0.48)),
        pruned_macs=1,
        dense_macs=4,
    ),
    BenchRow(
        4,
        "openvino",
        "fp32",
        2,
        pruned=Times((0.05,) * 100),
        dense=Times((0.04, 0.06) * 50),
        reference=Times((0.4,) * 100),
        pruned_macs=1,
        dense_macs=2,
    ),
]


REPORT = BenchReport(
    tuple(ROWS), Schedule((1,), (0.5,)), "dynamicvit", (160, 160), 2, "cpu", "a CPU", {}
)


def test_what_a_line_says(capsys):
    print_times(Console(width=60), ROWS[:1])
    printed = capsys.readouterr().out
    reference, dense, pruned = cells(printed)
    # Lines as wide as they are, though the terminal is not.
    assert reference == ["4", "eager", "fp32", "dense", "400", "–", "–", "10"]
    assert " ".join(dense) == "4 eager bf16 dense 200 – – 20 2.00 [2.00–2.00]"
    assert " ".join(pruned[:-4]) == "4 eager bf16 pruned 100 – – 40 4.00 [4.00–4.00]"
    assert pruned[-4:] == ["2.00", "[2.00–2.00]", "50", "%"]
    assert "unclear" not in printed
    assert "\n3 rounds" in printed


def test_a_ratio_within_its_spread_is_called_unclear(capsys):
    print_times(Console(width=200), ROWS[1:])
    printed = capsys.readouterr().out
    _, dense, pruned = cells(printed)
    assert dense[4:7] == ["50", "60", "60"]
    assert pruned[8:] == ["8.00", "[8.00–8.00]", "1.00", "[0.80–1.20]", "unclear", "50", "%"]
    assert printed.endswith("\n100 rounds\n")


def test_a_reference_that_is_a_row_is_printed_once(capsys):
    row = replace(ROWS[0], precision="fp32", reference=ROWS[0].dense)
    print_times(Console(width=200), [row])
    dense, pruned = cells(capsys.readouterr().out)
    assert dense[3:] == ["dense", "200", "–", "–", "20"]
    assert pruned[8] == "2.00"


def test_json_on_standard_output_is_only_json():
    numbers = measured("--keep-ratio", "0.5", "--method", "dynamicvit")
    assert numbers["keep_ratios"] == [0.5, 0.25, 0.125]
    assert numbers["weights"] == "random"
    assert numbers["threads"] == 1
    [row] = numbers["rows"]
    assert (row["batch_size"], row["runtime"], row["precision"]) == (1, "eager", "fp32")
    assert row["pairs"] == 2
    assert row["speedup"]["low"] <= row["speedup"]["median"] <= row["speedup"]["high"]
    assert row["reference"] == row["dense"]
    assert row["pruned"]["over_reference"] == row["speedup"]
    assert row["pruned"]["p99"] is None
    assert row["pruned"]["throughput"] == pytest.approx(1 / row["pruned"]["p50"])


def test_pairs_that_do_not_exist_are_named(monkeypatch):
    monkeypatch.setattr(module, "bench", lambda *_, **__: REPORT)
    result = run("--runtime", "onnx", "--runtime", "openvino", "--precision", "bf16")
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("onnx bf16 ")
    assert len(result.stderr.splitlines()) == 1


def test_plot(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "bench", lambda *_, **__: REPORT)
    target = tmp_path / "speed.pdf"
    result = run("--plot", str(target))
    assert result.exit_code == 0, result.output
    assert str(target) in result.stdout
    assert target.stat().st_size > 2000


def test_a_file_that_differs_is_not_timed(monkeypatch):
    def differ(*_, **__):
        raise ExportMismatchError("logits differ")

    monkeypatch.setattr(module, "bench", differ)
    result = run()
    assert result.exit_code == 1
    [line] = result.stderr.splitlines()
    assert "test_vit" in line
    assert "logits differ" in line


def test_the_device_is_cuda_if_there_is_one(monkeypatch):
    moved = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(DynamicViT, "to", lambda model, place: moved.append(place))
    monkeypatch.setattr(module, "bench", lambda *_, **__: REPORT)
    measured()
    assert moved == ["cuda"]


def test_budget():
    numbers, fraction = measured("--macs", "0.02G"), 0.02e9 / 37635328
    assert 0.95 * fraction < numbers["pruned_macs"] / numbers["dense_macs"] <= fraction


@pytest.mark.parametrize("model", ["test_vit", "deit_tiny_patch16_224"])
def test_image_size(model):
    """Of a backbone that takes any size, and of one that is strict about its own."""
    numbers = measured("--model", model, "--image-size", "64x96")
    assert numbers["image_size"] == [64, 96]


def test_a_method_that_merges_is_not_said_to_remove():
    assert "the others merge into kept ones" in run("--method", "tome").stdout


def test_a_saved_model(tmp_path):
    model = load("test_vit", keep_ratio=0.4, method="dynamicvit", pretrained=False)
    model.policy = "merged"
    model.save_pretrained(tmp_path / "model")
    result = run("--model", str(tmp_path / "model"), "--json", str(tmp_path / "bench.json"))
    assert "the others merge into the most alike kept ones" in result.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"model", "bench.json"}
    numbers = json.loads((tmp_path / "bench.json").read_text())
    assert (numbers["weights"], numbers["policy"]) == ("given", "merged")
    assert numbers["keep_ratios"] == pytest.approx([0.4, 0.16, 0.064])
    assert numbers["pruned_macs"] == count_macs(model) == schedule_macs(model, model.schedule)
    assert numbers["dense_macs"] == schedule_macs(model, DENSE)


def test_memory(monkeypatch):
    """The table; the numbers are tested with the library."""
    peaks = Peak(900 << 20, 100 << 20), Peak(800 << 20, 0)
    rows = [
        MemoryRow(3, "fp32", graph, *peaks, runtime)
        for runtime, graph in (("eager", False), ("eager", True), ("openvino", False))
    ]
    report = replace(REPORT, memory=tuple(rows))
    monkeypatch.setattr(module, "bench", lambda *_, memory, **__: report if memory else REPORT)
    result = run("--batch-size", "3", "--memory")
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    numbers = ["900", "800", "100", "0"]
    assert ["eager", "fp32,", "inference", "mode", *numbers] in lines
    assert ["openvino", "fp32", *numbers] in lines


def test_files_are_called_by_their_names(monkeypatch, tmp_path):
    names = ("dense.xml", "pruned.xml")
    report = replace(
        REPORT, rows=(replace(ROWS[1], reference=None, names=names),), against="dense.xml"
    )
    monkeypatch.setattr(module, "bench_files", lambda *_, **__: report)
    result = run("--model", "pruned.xml", "--against", "dense.xml")
    assert result.exit_code == 0, result.output
    assert [line[3] for line in cells(result.stdout)] == list(names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--macs", "60%", "--keep-ratio", "0.5"], "--keep-ratio 0.5 and --macs 60%"),
        (["--macs", "60%", "--tile", "16"], "--tile 16"),
        (["--macs", "3"], "3.0G, 900M or 60%"),
        (["--macs", "0.001G"], "0.001"),
        (["--keep-ratio", "1.5"], "1.5"),
        (["--batch-size", "0"], "batch size 0"),
        (["--precision", "fp8"], "'fp8'"),
        (["--calibrate", "photos"], "calibrate photos"),
        (["--runtime", "tflite"], "'tflite'"),
        (["--plot", "speed.txt"], "--plot speed.txt"),
        (["--plot", "nowhere/speed.png"], "nowhere"),
        (["--against", "dense.onnx"], "--against dense.onnx"),
        (["--model", "no.onnx"], "no.onnx"),
        (["--model", "no.onnx", "--runtime", "onnx"], "--runtime ['onnx']"),
        (["--model", "no.onnx", "--memory"], "--memory"),
        (["--threads", "0"], "threads 0"),
        (["--samples", "1"], "samples 1"),
        (["--seconds", "0"], "seconds 0.0"),
        (["--image-size", "big"], "'big'"),
        (["--image-size", "165"], "165x165"),
        (["--model", "test_vlt"], "test_vlt"),
        (["--json", "nowhere/bench.json"], "nowhere"),
        (["--json", "."], "--json"),
    ],
)
def test_bad_input(arguments, message, command, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert command(*words(*arguments)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    [line] = printed.err.splitlines()
    assert message in line
    assert list(tmp_path.iterdir()) == []

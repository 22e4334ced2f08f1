"""`dynamicvit bench` as it is typed."""

import json
import sys

import pytest
import torch
from typer.testing import CliRunner

from dynamicvit import cli
from dynamicvit.cli import bench as command  # registers the command
from dynamicvit.macs import DENSE, count_macs, schedule_macs

QUICK = ["--batch-size", "1", "--precision", "fp32", "--samples", "2", "--threads", "1"]


def run(*arguments: str):
    """The command's result; what it prints is not wrapped."""
    return CliRunner(env={"COLUMNS": "100"}).invoke(
        cli.app, ["bench", "--model", "test_vit", *QUICK, *arguments]
    )


def measured(*arguments: str) -> dict:
    result = run("--json", "-", *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(autouse=True)
def no_download(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("bench must not download")

    monkeypatch.setattr("timm.models._builder.load_pretrained", refuse)


def test_table():
    result = run("--keep-ratio", "0.5", "--batch-size", "2", "--precision", "bf16")
    assert result.exit_code == 0, result.output
    assert "test_vit (random weights), 160x160 px, keeps 0.5, 0.25, 0.125" in result.stdout
    assert "GMACs 0.0376 dense" in result.stdout
    assert "speed-up [quartiles]" in result.stdout
    assert f"torch {torch.__version__}, 1 threads" in result.stdout
    lines = [line.split() for line in result.stdout.splitlines()]
    settings = [line[:2] for line in lines if line[1:2] in (["fp32"], ["bf16"])]
    assert settings == [["1", "fp32"], ["2", "fp32"], ["1", "bf16"], ["2", "bf16"]]


def test_json_on_standard_output_is_only_json():
    numbers = measured("--keep-ratio", "0.5")
    assert numbers["keep_ratios"] == [0.5, 0.25, 0.125]
    assert numbers["weights"] == "random"
    assert numbers["threads"] == 1
    [row] = numbers["rows"]
    assert (row["batch_size"], row["precision"], row["pairs"]) == (1, "fp32", 2)
    assert row["speedup"]["low"] <= row["speedup"]["median"] <= row["speedup"]["high"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_device_is_cuda_where_there_is_one(device, monkeypatch):
    """As in eval and train."""
    moved = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: device == "cuda")
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a GPU")
    monkeypatch.setattr(command.DynamicViT, "to", lambda model, place: moved.append(place))
    monkeypatch.setattr(command, "_timed", lambda *_: [])
    numbers = measured()
    assert moved == [device] == [numbers["device"]]
    assert (numbers["processor"] == "a GPU") == (device == "cuda")


def test_json_in_a_file(tmp_path):
    target = tmp_path / "bench.json"
    result = run("--json", str(target))
    assert result.exit_code == 0, result.output
    assert "GMACs" in result.stdout
    assert json.loads(target.read_text())["model"] == "test_vit"
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]


@pytest.mark.parametrize(("budget", "fraction"), [("60%", 0.6), ("0.02G", 0.02e9 / 37635328)])
def test_budget(budget, fraction):
    numbers = measured("--macs", budget)
    assert 0.95 * fraction < numbers["pruned_macs"] / numbers["dense_macs"] <= fraction


@pytest.mark.parametrize("model", ["test_vit", "deit_tiny_patch16_224"])
def test_image_size(model):
    """Of a backbone that takes any size, and of one that is strict about its own."""
    numbers = measured("--model", model, "--image-size", "64x96")
    assert numbers["image_size"] == [64, 96]
    square = measured("--model", model, "--image-size", "64")
    assert square["image_size"] == [64, 64]
    assert square["dense_macs"] < numbers["dense_macs"]


def test_a_saved_model(tmp_path):
    from dynamicvit.loading import load_model

    model = load_model("test_vit", keep_ratio=0.4, pretrained=False)
    model.save_pretrained(tmp_path / "saved")
    numbers = measured("--model", str(tmp_path / "saved"))
    assert numbers["weights"] == "given"
    assert numbers["keep_ratios"] == pytest.approx([0.4, 0.16, 0.064])
    assert numbers["pruned_macs"] == count_macs(model)
    assert numbers["dense_macs"] == schedule_macs(model, DENSE)


def test_it_says_what_becomes_of_dropped_patches(tmp_path):
    from dynamicvit.loading import load_model

    model = load_model("test_vit", pretrained=False)
    model.dropped = "merged"
    model.save_pretrained(tmp_path)
    result = run("--model", str(tmp_path), "--json", str(tmp_path / "bench.json"))
    assert "the others merge into the most alike kept ones" in " ".join(result.stdout.split())
    numbers = json.loads((tmp_path / "bench.json").read_text())
    assert numbers["dropped"] == "merged"
    assert numbers["pruned_macs"] == schedule_macs(model, model.schedule)
    result = run()
    assert "the others are gone" in " ".join(result.stdout.split())


def test_memory(monkeypatch):
    """The command's part; that the numbers are right is tested with the library's."""
    from dynamicvit.benchmark import MemoryRow, Peak

    asked = []

    def peak_memory(model, batch_size, *, precision, image_size, threads, graph):
        asked.append((batch_size, precision, graph))
        return MemoryRow(
            batch_size, precision, graph, Peak(900 << 20, 100 << 20), Peak(800 << 20, 0)
        )

    monkeypatch.setattr(command, "peak_memory", peak_memory)
    result = run("--batch-size", "3", "--memory")
    assert result.exit_code == 0, result.output
    assert asked == [(3, "fp32", False), (3, "fp32", True)]
    assert "peak memory in MiB, batch 3, fp32" in result.stdout
    [line] = [line for line in result.stdout.splitlines() if line.startswith("inference mode  ")]
    assert line.split()[2:] == ["900", "800", "100", "0"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--macs", "60%", "--keep-ratio", "0.5"], "--keep-ratio 0.5 and --macs 60%"),
        (["--macs", "3"], "3.0G, 900M or 60%"),
        (["--macs", "0.001G"], "too small: with one token kept"),
        (["--keep-ratio", "1.5"], "1.5"),
        (["--batch-size", "0"], "a batch size is at least 1, got 0"),
        (["--precision", "fp8"], "one of fp32, bf16, got 'fp8'"),
        (["--threads", "0"], "threads are at least 1, got 0"),
        (["--samples", "1"], "at least 2 samples, got 1"),
        (["--seconds", "0"], "seconds are positive, got 0.0"),
        (["--image-size", "big"], "written 384 or 224x320, got 'big'"),
        (["--image-size", "165"], "165x165"),
        (["--model", "test_vlt"], "test_vit"),
        (["--json", "nowhere/bench.json"], "the folder nowhere does not exist"),
        (["--json", "."], "is a folder"),
    ],
)
def test_bad_input(arguments, message, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "argv", ["dynamicvit", "bench", "--model", "test_vit", *QUICK, *arguments]
    )
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    printed = capsys.readouterr()
    assert exit_.value.code == 2
    assert printed.out == ""
    assert message in printed.err
    assert len(printed.err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []

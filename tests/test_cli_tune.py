"""`dynamicvit tune`: files that other commands take, and what bad input leaves behind."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from families import DEIT
from pictures import noise_folders

Main = Callable[..., int]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model of three stages; as a dense one it has no name."""
    folder = tmp_path_factory.mktemp("model")
    DEIT.sparse(depth=6, stages=(1, 3, 5), keep_ratio=0.7).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("images")
    return noise_folders(folder / "photographs", classes=4, each=10, size=(64, 80))


def test_what_is_found_is_used_by_other_commands(
    command: Main,
    model: Path,
    photographs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dynamicvit.plots.style.save", lambda *_: ())
    words = ["tune", model, "--data", photographs, "--macs", "60%", "-o", tmp_path / "tuned"]
    words += ["--evaluations", 4, "--image-size", "64x80"]
    assert command(*words, "--json", tmp_path / "found.json") == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    share = found["measured"] / found["dense"]
    assert 0.5 < share <= 0.6
    assert f"{100 * share:.1f} % of dense" in said
    assert found["predicted"] == found["measured"]
    schedule = tmp_path / "tuned" / "schedule.json"
    assert schedule.exists()
    assert command(
        "bench", "--model", model, "--schedule", schedule, "--samples", 2, "--batch-size", 1,
        "--precision", "fp32", "--threads", 1, "--image-size", "64x80",
        "--json", tmp_path / "bench.json",
    ) == 0  # fmt: skip
    timed = json.loads((tmp_path / "bench.json").read_text())
    assert timed["pruned_macs"] == found["measured"]
    assert command(*words) == 0
    assert re.search(r"ran 0 schedules, \d+ by earlier runs", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no target"),
        (["--macs", "60%", "--latency", "20ms"], "latency 20ms"),
        (["--macs", "1%"], "1%"),
        (["--latency", "20"], "20"),
        (["--macs", "60%", "--images", "8"], "8 images"),
        (["--latency", "5ms", "--runtime", "nothing"], "nothing"),
    ],
)
def test_bad_input_leaves_nothing(
    words: list[str],
    said: str,
    command: Main,
    model: Path,
    photographs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    output = tmp_path / "tuned"
    given = ["tune", model, "--data", photographs, "--image-size", "64x80", "-o", output]
    assert command(*given, *words) == 2
    assert said in capsys.readouterr().err
    assert not (output / "schedule.json").exists()


def test_a_schedule_of_another_depth_is_named(
    command: Main, model: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / "schedule.json"
    values = {"format_version": 1, "depth": 12, "stages": [3], "keep_ratios": [0.5]}
    file.write_text(json.dumps({**values, "policy": "removed", "method": "dynamicvit"}))
    given = ["eval", photographs, "--model", model, "--compare-dense", "--unlabeled"]
    assert command(*given, "--schedule", file) == 2
    assert re.search(r"12 blocks.* 6", capsys.readouterr().err)
    assert command(*given, "--schedule", file, "--keep-ratio", 0.5) == 2
    assert "--keep-ratio 0.5 and --schedule" in capsys.readouterr().err

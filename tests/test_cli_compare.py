"""`dynamicvit compare`: its table and files, that it goes on, and what bad input leaves behind."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from dynamicvit import comparison as library
from dynamicvit import count_macs, evaluate, sparsify
from dynamicvit.cli.compare_tables import costs_table, results_table
from dynamicvit.comparison import ABLATIONS, CSV_NAME, Line, Timing, all_names
from families import BY_NAME
from pictures import noise_folders

Main = Callable[..., int]

# Python warns where a process with threads forks; that is torch's affair.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

DEIT = BY_NAME["deit"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that its folder describes: by its name in timm and what differs."""
    folder = tmp_path_factory.mktemp("model")
    sparsify(DEIT.backbone(), method="dynamicvit").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("siglip")
    sparsify(BY_NAME["siglip"].backbone(), method="dynamicvit").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    return noise_folders(folder, classes=7, each=3, size=DEIT.size)


@pytest.fixture
def run(command: Main, saved: Path, data: Path, tmp_path: Path, monkeypatch) -> Main:
    """The command on the small network and images; standard output as wide as it likes."""
    monkeypatch.setenv("COLUMNS", "160")
    output = tmp_path / "out"

    def main(*arguments: object) -> int:
        once = {"--model": saved, "--data": data, "--images": 4, "--workers": 0, "--threads": 1}
        given = [word for pair in once.items() if pair[0] not in arguments for word in pair]
        if not any(str(word).startswith("batch_size") for word in arguments):
            given += ["--set", "batch_size=2"]
        return command("compare", *given, "--macs", "0.75", "-o", output, *arguments)

    return main


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the rows that would be computed, which here are not."""
    names: list[str] = []
    note = lambda _, entries, *__: names.extend(entry.name for entry in entries)  # noqa: E731
    monkeypatch.setattr(library, "_run", note)
    monkeypatch.setattr("dynamicvit.cli.compare.save_comparison", lambda *_: [])
    return names


def table(tmp_path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((tmp_path / "out" / CSV_NAME).read_text().splitlines()))


def test_table_csv_and_plots(run: Main, tmp_path: Path, capsys) -> None:
    assert run("--methods", "tome", "--seconds", "1e-6", "--seeds", 2) == 0
    said = capsys.readouterr().out
    for words in ("for 0.75 of dense", "what choosing takes", "agreement", "±", "untrained"):
        assert words in said
    lines = table(tmp_path)
    assert [(line["method"], line["trained"], line["seeds"]) for line in lines] == [
        ("dense", "False", "1"),
        ("tome", "False", "1"),
        ("tome", "True", "2"),
    ]
    assert all(float(line["macs_fraction"]) == pytest.approx(0.75, abs=0.03) for line in lines[1:])
    assert all(line["speedup_batch_32"] for line in lines[1:])
    for name in ("gmacs", "throughput_batch_1", "throughput_batch_32"):
        for kind in ("png", "pdf"):
            assert (tmp_path / "out" / f"accuracy_over_{name}.{kind}").stat().st_size > 1000


def test_the_table_fits_a_terminal() -> None:
    """The longest name with every number at its widest."""
    longest = max([*all_names(), *ABLATIONS], key=len)
    timing = Timing(32, 10.52, 10.4, 10.6, 99.0, 9.4, 0.1, 0.1)
    shared = dict(gmacs=10.825, macs_fraction=0.825, seeds=3, images=8, timings={32: timing})
    line = Line(longest, 0.64, True, top1=0.7738, top1_spread=0.0042, agreement=0.9,
                agreement_spread=0.0133, divergence=0.2754, **shared)  # fmt: skip
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(results_table([line]))
    said = console.export_text()
    for words in (longest, "77.38 ± 0.42", "90.00 ± 1.33", "0.2754", "0.825", "10.52"):
        assert words in said
    assert "…" not in said


def test_titles_and_captions_do_not_break() -> None:
    """Above and below the shortest name with every number at its shortest."""
    timings = {32: Timing(32, 1.0, 1.0, 1.0, 1.0, 1.0, 0.1, None)}
    line = Line("x", 0.6, True, 0.1, 0.6, None, None, 0.9, None, 0.1, 1, 8, timings)
    for table in (results_table([line]), costs_table([line])):
        console = Console(width=80, record=True, file=io.StringIO())
        console.print(table)
        said = [text.strip() for text in console.export_text().splitlines()]
        for words in (str(table.title or ""), str(table.caption or "")):
            for text in words.splitlines():
                assert text in said


def test_interrupted_it_goes_on_then_computes_nothing_and_others_add(
    run: Main, tmp_path: Path, capsys, monkeypatch
) -> None:
    finished = library.Experiment.row

    def stop(self, entry, on_step=None):
        if entry.seed is not None:
            raise KeyboardInterrupt
        return finished(self, entry, on_step)

    with monkeypatch.context() as patched:
        patched.setattr(library.Experiment, "row", stop)
        assert run("--methods", "random", "--no-timing") == 130
    said = capsys.readouterr().err
    assert "the same command resumes" in said
    assert len(list((tmp_path / "out" / "rows").iterdir())) == 2
    with monkeypatch.context() as patched:
        patched.setattr("dynamicvit.cli.compare.save_comparison", lambda *_: [])
        assert run("--methods", "random", "--no-timing") == 0
        first = (tmp_path / "out" / CSV_NAME).read_text()
        patched.setattr("dynamicvit.comparison.experiment.fit", None)
        patched.setattr("dynamicvit.comparison.experiment.measure", None)
        assert run("--methods", "random", "--no-timing") == 0
    assert (tmp_path / "out" / CSV_NAME).read_text() == first
    plots: list[str] = []
    note = lambda _, path: plots.append(path.name)  # noqa: E731
    monkeypatch.setattr("dynamicvit.plots.style.save", note)
    assert run("--methods", "static", "--no-timing", "--macs", "0.8") == 0
    assert [line["method"] for line in table(tmp_path)] == [
        "dense", "static", "random", "random", "static",
    ]  # fmt: skip
    assert plots == ["accuracy_over_gmacs"]


def test_a_trained_model_is_a_row_as_it_is(
    run: Main,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("dynamicvit.cli.compare.save_comparison", lambda *_: [])
    trained = tmp_path / "trained"
    model = DEIT.sparse(0.6)
    model.save_pretrained(trained)
    given = ("--no-train", "--methods", "static", "--trained", trained)
    assert run(*given, "--seconds", "1e-6") == 0
    said = capsys.readouterr().out
    assert "left out static: they mean nothing before they are trained" in said
    [row] = [line for line in table(tmp_path) if line["method"] == str(trained)]
    found = evaluate(model, data, dense=True)
    assert float(row["agreement"]) == pytest.approx(found.agreement, abs=1e-5)
    assert float(row["macs_fraction"]) == pytest.approx(
        count_macs(model) / count_macs(model.backbone), abs=1e-4
    )
    assert (row["given"], row["trained"]) == ("True", "False")
    assert row["speedup_batch_32"]
    assert not (tmp_path / "out" / "runs").exists()
    DEIT.sparse(0.6, seed=5).save_pretrained(trained)  # another model of the same name
    assert run(*given, "--no-timing") == 0
    assert len([line for line in table(tmp_path) if line["method"] == str(trained)]) == 1


def test_a_sparse_model_is_not_taken_for_dense_without_a_word(
    run: Main, rows: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    DEIT.sparse(policy="merged").save_pretrained(tmp_path / "sparse")
    assert run("--model", tmp_path / "sparse", "--methods", "tome") == 0
    assert "not dense: it drops tokens (dynamicvit, merged)" in capsys.readouterr().out


def test_without_training(
    run: Main,
    rows: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("dynamicvit.comparison.rows.at_macs", lambda *_, **__: None)
    assert run("--no-train") == 0
    assert "not dense" not in capsys.readouterr().out
    assert rows == [
        "dense", "random", "class-attention", "evit", "tps", "diffrate", "tome", "mctf",
        "lookahead",
    ]  # fmt: skip


def test_a_part_is_kept_aside_unless_images_are_named(run: Main, data: Path, monkeypatch) -> None:
    seen: list[tuple[int, int]] = []

    def look(experiment, entries, *_):
        seen.append((len(experiment.evaluated), sum(map(len, experiment.trained))))

    monkeypatch.setattr(library, "_run", look)
    monkeypatch.setattr("dynamicvit.cli.compare.save_comparison", lambda *_: [])
    few = ("--methods", "random")
    assert run(*few) == 0
    assert run(*few, "--validation", data) == 0
    assert run(*few, "--validation", data, "--unlabeled", data) == 0
    assert run(*few, "--no-train") == 0
    assert seen == [(2, 19), (21, 21), (21, 42), (21, 0)]


def test_methods_that_a_backbone_can_not_have(
    siglip: Path, run: Main, rows: list[str], capsys
) -> None:
    arguments = ("--model", siglip, "--no-train")
    assert run(*arguments) == 0
    said = capsys.readouterr().out
    assert "left out class-attention: ClassAttention" in said
    assert "left out narrow" in said
    assert rows == ["dense", "random", "tome", "mctf", "lookahead"]
    assert run(*arguments, "--methods", "class-attention") == 2
    assert "class-attention: ClassAttention" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "mergin"], "'mergin'"),
        (["--methods", "narrow", "--no-train"], "'narrow'"),
        (["--macs", "1.5"], "a budget is written like"),
        (["--macs", "100%"], "100%"),
        (["--macs", "0.001"], "a budget of"),
        (["--seeds", "0"], "0"),
        (["--images", "0"], "0"),
        (["--seconds", "0"], "seconds are positive, got 0.0"),
        (["--data", "nowhere"], "nowhere"),
        (["--validation", "nowhere"], "nowhere"),
        (["--recipe", "nothing"], "no recipe 'nothing'"),
        (["--set", "losses.gidance=1"], "unknown key 'losses.gidance'"),
        (["--set", "losses.classification=1", "--unlabeled", "DATA"], "have no labels"),
        (["--set", "batch_size=1000"], "batch size 1000"),
        (["--set", "policy=merged"], "policy=merged: a comparison sets policy itself"),
        (["--trained", "MODEL"], "is not trained: name its method instead, dynamicvit"),
        (["--model", "deit_tini_patch16_224"], "no model 'deit_tini_patch16_224'"),
    ],
)
def test_bad_input(
    run: Main, saved: Path, data: Path, tmp_path: Path, capsys, arguments: list[str], message: str
) -> None:
    given = [{"DATA": str(data), "MODEL": str(saved)}.get(part, part) for part in arguments]
    if "--methods" not in given:
        given += ["--methods", "dynamicvit"]
    assert run(*given) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1
    assert not (tmp_path / "out").exists() or not os.listdir(tmp_path / "out")


@pytest.mark.parametrize("missing", ["--model", "--data"])
def test_what_must_be_named(command: Main, capsys, missing: str) -> None:
    other = {"--model": "--data", "--data": "--model"}[missing]
    assert command("compare", other, "something") == 2
    assert f"Missing option '{missing}'" in capsys.readouterr().err

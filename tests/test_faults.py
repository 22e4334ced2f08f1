"""A table of faults, run on every command."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest

import dynamicvit.cli
import dynamicvit_command
from dynamicvit.core.hub import MODEL_FILES
from dynamicvit.utils.files import atomic_write, open_output
from dynamicvit.utils.outputs import MARK
from dynamicvit_command import COMMANDS, UNFORESEEN


class Case(NamedTuple):
    """A call of a command that writes.

    Attributes:
        words: without the output; files of the fixture by their names.
        option: that names the output.
        output: a file, or a folder.
        files: of the folder, that the command writes.
    """

    words: tuple[str, ...]
    option: str
    output: str
    files: tuple[str, ...] = ()


MODEL = ("--model", "model")
CASES = {
    "eval": Case(("eval", "photos.tar", *MODEL, "--checkpoint", "w.pth"), "--json", "r.json"),
    "bench": Case(("bench", *MODEL, "--checkpoint", "w.pth"), "--json", "r.json"),
    "bench plot": Case(("bench", *MODEL, "--checkpoint", "w.pth"), "--plot", "r.png"),
    "predict": Case(("predict", "photos.tar", "photos", *MODEL), "--output", "r.csv"),
    "predict lines": Case(("predict", "photos", *MODEL), "--output", "r.jsonl"),
    "kept": Case(("eval", "photos.tar", *MODEL), "--save-kept", "r.npz"),
    "stream": Case(("stream", "clip.mp4", *MODEL), "--json", "r.json"),
    "backbones": Case(("backbones",), "--output", "page.md"),
    "info": Case(("info", "model"), "--json", "r.json"),
    "onnx": Case(("export", *MODEL), "--output", "m.onnx"),
    "openvino": Case(("export", *MODEL), "--output", "m.xml"),
    "torch": Case(("export", *MODEL, "--checkpoint", "w.pth"), "--output", "m.pt2"),
    "train": Case(
        ("train", "photos", *MODEL),
        "--output",
        "run",
        ("recipe.yaml", "log.jsonl", "report.json", "curves.png", "config.json"),
    ),
    "tune": Case(
        ("tune", "model", "--data", "photos", "--macs", "60%"),
        "--output",
        "run",
        ("schedule.json", "frontier.png", "tried.json"),
    ),
    "calibrate": Case(("calibrate", "photos", *MODEL), "--output", "run", MODEL_FILES),
    "convert": Case(("convert", "w.pth"), "--out", "run", MODEL_FILES),
    "visualize": Case(
        ("visualize", "photos/cat/0.png", *MODEL), "--output", "run", ("0_dynamicvit.png",)
    ),
    "demo": Case(("demo",), "--output", "run", ("demo.png",)),
    "compare": Case(
        ("compare", "--data", "photos", *MODEL),
        "--output",
        "run",
        ("comparison.csv", "accuracy_over_gmacs.pdf"),
    ),
}
FILES = [name for name, case in CASES.items() if not case.files]
FOLDERS = [name for name, case in CASES.items() if case.files]


def test_the_table_is_complete() -> None:
    writing = COMMANDS.keys() - {"app"}
    assert {case.words[0] for case in CASES.values()} == writing


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the inputs; afterwards they and everything else must be as before."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos.tar", "w.pth", "clip.mp4", "model/config.json", "photos/cat/0.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"this is {name}")
    yield tmp_path
    for name in ("photos.tar", "w.pth", "clip.mp4", "model/config.json", "photos/cat/0.png"):
        assert (tmp_path / name).read_text() == f"this is {name}"


def inputs(case: Case) -> list[str]:
    """The files and folders among a call's words."""
    return [word for word in case.words if Path(word).exists()]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("more", [(), ("--overwrite",)])
def test_an_output_is_no_input(
    place: Path, name: str, more: tuple[str, ...], command: Callable[..., int], one_line
) -> None:
    """Not by another name of the file either."""
    case = CASES[name]
    ending = Path(case.output).suffix
    for given in [each for each in inputs(case) if Path(each).is_file()]:
        for count, link in enumerate((os.symlink, os.link)):
            other = f"other{count}{ending}"
            link(given, other)
            assert command(*case.words, case.option, other, *more) == 2
            assert f"{other} is an input" in one_line()
            os.unlink(other)


@pytest.mark.parametrize("name", ["eval", "info"])
def test_what_a_model_is_read_from_is_an_input(
    name: str, place: Path, command: Callable[..., int], one_line: Callable[[], str]
) -> None:
    """Though this library wrote it."""
    config = Path("model", "config.json")
    before = config.read_text()
    config.write_text('{"written_by": "dynamicvit 0.2.0"}')
    words = [word for word in CASES[name].words if word not in ("--checkpoint", "w.pth")]
    assert command(*words, "--json", config) == 2
    assert f"{config} is part of an input" in one_line()
    config.write_text(before)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_others_stays(
    place: Path, name: str, command: Callable[..., int], one_line
) -> None:
    case = CASES[name]
    beside = {"m.onnx": "m.onnx.data", "m.xml": "m.bin"}.get(case.output, case.output)
    for each in {case.output, beside}:
        Path(each).write_text("mine")
        assert command(*case.words, case.option, case.output) == 2
        assert f"{each} exists" in one_line()
        assert Path(each).read_text() == "mine"
        os.rename(each, "far")
        os.symlink("far", each)
        assert command(*case.words, case.option, case.output) == 2
        assert f"{each} exists" in one_line()
        assert os.readlink(each) == "far"
        os.unlink(each)
    ending = Path(case.output).suffix
    os.mkdir(f"folder{ending}")
    before = set(os.listdir())
    for wrong in ("none/below", "far/below", "folder"):
        assert command(*case.words, case.option, wrong + ending) == 2
        assert wrong in one_line()
    assert set(os.listdir()) == before


@pytest.mark.parametrize("name", FOLDERS)
def test_files_of_others_in_a_folder_stay(
    place: Path, name: str, command: Callable[..., int], one_line
) -> None:
    case = CASES[name]
    for each in case.files:
        (place / "run").mkdir()
        (place / "run" / each).write_text("mine")
        assert command(*case.words, case.option, case.output) == 2
        assert f"{each} exists" in one_line()
        assert (place / "run" / each).read_text() == "mine"
        assert os.listdir("run") == [each]
        (place / "run").rename(place / f"was{each}")
    (place / "file").write_text("mine")
    for wrong in ("file", "file/below"):
        assert command(*case.words, case.option, wrong) == 2
        assert "file" in one_line()


def at_first(monkeypatch: pytest.MonkeyPatch, name: str, act: Callable[[], None]) -> None:
    """Do something where a command looks at its output."""
    module = import_module(f"dynamicvit.cli.{COMMANDS[name][0].partition(':')[0]}")
    checks = {"check_file", "check_folder", "check_json"} & vars(module).keys()
    assert checks
    for check in checks:
        monkeypatch.setattr(module, check, lambda *args, **kwargs: act())


@pytest.mark.parametrize("name", CASES)
def test_a_bug_is_one_line_and_a_traceback_in_a_file(
    place: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    class PanicError(BaseException):  # as libraries in Rust raise
        pass

    def fail() -> None:
        raise PanicError("of a kind\nthat nobody foresaw")

    case = CASES[name]
    at_first(monkeypatch, case.words[0], fail)
    monkeypatch.setattr(dynamicvit_command.tempfile, "tempdir", str(place))
    words = ["dynamicvit", *case.words, case.option, case.output]
    for more in ([], ["--debug"]):
        monkeypatch.setattr("sys.argv", [*words, *more])
        with pytest.raises(SystemExit) as exit:
            dynamicvit.cli.main()
        assert exit.value.code == UNFORESEEN
        *debug, line = capsys.readouterr().err.splitlines()
        assert "PanicError: of a kind that nobody foresaw" in line
        [written] = place.glob("dynamicvit-traceback-*.txt")
        assert (str(written) in line) == (not more)
        assert "in fail" in "".join(debug) if more else "in fail" in written.read_text()
    monkeypatch.setattr(dynamicvit_command.tempfile, "tempdir", str(place / "none"))
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as exit:
        dynamicvit.cli.main()
    assert exit.value.code == UNFORESEEN
    [line] = capsys.readouterr().err.splitlines()
    assert "--debug" in line


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_a_command_with_a_line(
    place: Path,
    name: str,
    signum: int,
    monkeypatch: pytest.MonkeyPatch,
    command: Callable[..., int],
    one_line,
) -> None:
    case, before = CASES[name], signal.getsignal(signal.SIGTERM)
    at_first(monkeypatch, case.words[0], lambda: os.kill(os.getpid(), signum))
    assert command(*case.words, case.option, case.output) == 128 + signum
    assert one_line().startswith("interrupted")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_that_a_library_swallows_still_counts(
    place: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., int], one_line
) -> None:
    def swallow() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            raise RuntimeError("a callback failed") from None

    at_first(monkeypatch, "demo", swallow)
    assert command("demo", "-o", "run") == 143
    assert one_line().startswith("interrupted")


def test_an_own_result_is_replaced_and_others_only_when_told(
    place: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., int], one_line
) -> None:
    """By the words of a whole command, from its checks to its writer."""
    monkeypatch.setattr("dynamicvit.cli.backbones.BACKBONES", ())
    out, told = place / "page.md", ("--overwrite",)
    for content, code, more in (("", 0, ()), (MARK, 0, ()), ("x", 2, ()), ("x", 0, told)):
        out.write_text(content)
        assert command("backbones", "--output", out, *more) == code
        assert (out.read_text() == "x") == (code == 2)
    assert "page.md exists" in one_line()
    assert not list(place.glob(".*"))


@pytest.mark.parametrize("name", FILES)
def test_a_full_disk_is_named(
    place: Path, name: str, monkeypatch: pytest.MonkeyPatch, command: Callable[..., int], one_line
) -> None:
    """What writes a file says which one, and leaves nothing of it."""
    case = CASES[name]
    out = place / case.output

    def fill() -> None:
        with atomic_write(out) as draft:
            draft.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    at_first(monkeypatch, case.words[0], fill)
    assert command(*case.words, case.option, case.output) == 2
    assert str(out) in one_line()
    assert not out.exists()
    assert not list(place.glob(".*"))


def test_a_stream_onto_a_full_disk_ends_with_a_whole_line(tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    with pytest.raises(OSError, match=str(out)), open_output(out) as file:  # noqa: PT012
        file.write('{"a": 1}\n{"half')
        file.flush()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert out.read_text() == '{"a": 1}\n'


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e300", "9" * 30, "9" * 5000, "x"])
@pytest.mark.parametrize(
    "option",
    ["--keep-ratio", "--tile", "--batch-size", "--image-size", "--crop-pct", "--threads"],
)
def test_numbers_that_are_none(
    place: Path, option: str, value: str, command: Callable[..., int], one_line
) -> None:
    assert command("eval", "photos", *MODEL, f"{option}={value}") == 2
    assert option.strip("-").partition("-")[0] in one_line()

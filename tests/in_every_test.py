"""Small models: one thread is fastest for each, and ``make test`` runs as many tests as cores."""

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from matplotlib.figure import Figure
from timm.layers import weight_init

import dynamicvit.cli
import dynamicvit_command
import exports
from dynamicvit.runtimes import FORMATS, Format
from dynamicvit.utils.signals import SignalStack, set_signal_stack

torch.set_num_threads(1)

# The garbage collector looks less often at tests and the networks that they share: six percent of
# their time, and a tenth of what it takes to collect them.
gc.set_threshold(100_000, 50, 100)

_trunc_normal = weight_init._trunc_normal_
# On the meta device there is nothing to draw, and it takes half the time of building a network.
weight_init._trunc_normal_ = lambda x, *rest: x if x.is_meta else _trunc_normal(x, *rest)
os.environ["OMP_NUM_THREADS"] = "1"  # for processes that tests start

if find_spec("openvino_telemetry"):
    from openvino_telemetry.utils.opt_in_checker import OptInChecker

    # Each conversion would fork this process to tell Intel of it: a second, and no test's business.
    OptInChecker._run_in_ci = staticmethod(lambda: True)


# As from a terminal, whatever the parent ignores: nohup, and shells in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """First what starts Python anew, from a process in which no runtime has threads yet.

    Then what forks and what exports: the first process takes most of it, so that the other mostly
    needs no server of forks and nothing that converts, seconds each.
    """
    sources = {path: path.read_text(encoding="utf-8") for path in {item.path for item in items}}

    def turn(item: pytest.Item) -> tuple[bool, ...]:
        source = sources[item.path]
        first = item.path.name == "test_start.py"
        return not first, "from processes import" not in source, "from exports import" not in source

    items.sort(key=turn)


def pytest_runtest_setup() -> None:
    """One thread, and signals on its own stack, as outside of pytest.

    A command's --threads would last into later tests. Pytest's faulthandler gives the main thread
    another stack: in a process in which runtimes have been at work, the end of a child, of which
    torch's loaders want to hear, did not fit there, and the process was killed without a word.
    """
    torch.set_num_threads(1)
    if sys.platform == "linux":
        set_signal_stack(SignalStack(None, 2, 0))  # SS_DISABLE


def pytest_collection_finish() -> None:
    """What is imported by now stays: the garbage collector need not search it again and again."""
    gc.freeze()


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The program as the shell runs it; gives the exit code. Errors that are bugs are raised."""

    def unforeseen(error: BaseException) -> NoReturn:
        raise error

    monkeypatch.setattr(dynamicvit_command, "_unforeseen", unforeseen)

    def run(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["dynamicvit", *map(str, words)])
        try:
            dynamicvit.cli.main()
        except SystemExit as exit:
            return int(exit.code or 0)
        return 0

    return run


@pytest.fixture(autouse=True)
def own_handlers() -> Iterator[None]:
    """Whatever a library does with signals in one test, the next one finds them as they were."""
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.fixture(autouse=True)
def blank_curves(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs leave a picture with nothing on it: to draw one takes as long as a tiny run."""
    if "curves" not in request.keywords:
        monkeypatch.setattr("dynamicvit.plots.curves.curves", lambda steps: Figure((1, 1)))


@pytest.fixture(autouse=True)
def brief_cards(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saved models' cards say no costs: to count them takes longer than to save a tiny model."""
    if "cards" not in request.keywords:
        monkeypatch.setattr("dynamicvit.checkpoints.card._rows", lambda model: [])


@pytest.fixture(autouse=True)
def own_plugins() -> Iterator[None]:
    """Modules that a test names are imported by its own processes, not by those of later tests."""
    yield
    os.environ.pop("DYNAMICVIT_IMPORT", None)


@pytest.fixture
def native_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 is taken where it is asked for, on processors that emulate it too."""
    monkeypatch.setattr("dynamicvit.utils.precision._emulates_bf16", lambda device_type: False)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Gives the file of ``exports.small`` in a format, written once; tests must not change it."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "exported"
    folder.mkdir(exist_ok=True)
    write = cache(partial(exports.write, folder))
    return lambda name, policy="removed", batch=None: write(name, policy, batch)


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("converted")


@pytest.fixture
def traced_once(monkeypatch: pytest.MonkeyPatch, converted: Path) -> None:
    """Exports take a model's graph and files from before: for tests whose model stays as it is."""
    monkeypatch.setattr(Format, "trace", lambda _, model, about: exports.graph_of(model, about))
    for name in exports.NEEDED:
        monkeypatch.setattr(FORMATS[name], "write", exports.written_once(converted, FORMATS[name]))


@pytest.fixture
def one_line(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """The one line on standard error, without the command's name."""

    def read() -> str:
        error = capsys.readouterr().err
        assert error.startswith("dynamicvit: ")
        assert error.count("\n") == 1, error
        return error.removeprefix("dynamicvit: ").strip()

    return read

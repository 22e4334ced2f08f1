"""Whatever happens to a checkpoint or a log, the run goes on from what is whole, and says so."""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dynamicvit import InputError
from dynamicvit.training import Progress, fit, loop
from dynamicvit.training.checkpoint import DAMAGED, NEWEST, PREVIOUS
from dynamicvit.training.checkpoint_file import DamagedError, load_checkpoint, write_checkpoint
from dynamicvit.training.log import DAMAGED_LOG, read_log
from memory import Memory, shallow, small

State = dict[str, Any]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed after its second step, saved after each."""
    folder = tmp_path_factory.mktemp("run")

    def crash(progress: Progress) -> None:
        if progress.step == 1:
            raise MemoryError

    before, loop.SAVE_SECONDS = loop.SAVE_SECONDS, 0.0
    try:
        with pytest.raises(MemoryError):
            fit(shallow(), Memory(), small(), folder, on_step=crash)
    finally:
        loop.SAVE_SECONDS = before
    return folder


@pytest.fixture(scope="module")
def whole(run: Path) -> State:
    """What a checkpoint holds, of few weights only: each takes time to be read."""
    state = load_checkpoint(run / NEWEST)
    state["model"] = dict(list(state["model"].items())[:2])
    state["optimizer"]["state"] = {0: moments(state)}
    del state["teacher"]
    return state


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other


@st.composite
def damages(draw: st.DrawFn, size: int) -> Callable[[bytearray], bytearray]:
    """Flipped bits, a cut, or a stretch of zeros; often in the zip's directory, at the end."""
    places = st.one_of(st.integers(0, size - 1), st.integers(size - size // 8, size - 1))
    flips = draw(st.lists(st.tuples(places, st.integers(0, 7)), max_size=4))
    cut = draw(st.one_of(st.just(size), st.integers(0, size), st.integers(size - 200, size)))
    zeros = draw(st.one_of(st.just(size), places))

    def damage(content: bytearray) -> bytearray:
        for place, bit in flips:
            content[place] ^= 1 << bit
        content[zeros : zeros + 512] = bytes(len(content[zeros : zeros + 512]))
        return content[:cut]

    return damage


@pytest.mark.parametrize("sealed", [True, False], ids=["digest", "as 0.1.0 wrote it"])
def test_a_damaged_file_is_known_or_its_state_is_the_same(
    sealed: bool, run: Path, whole: State, tmp_path: Path
) -> None:
    path = tmp_path / NEWEST
    if sealed:
        write_checkpoint(whole, path)
    else:
        torch.save(whole, path)
    content = path.read_bytes()
    assert same(load_checkpoint(path), whole)

    @settings(
        max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(damages(len(content)))
    def check(damage: Callable[[bytearray], bytearray]) -> None:
        path.write_bytes(damage(bytearray(content)))
        try:
            found = load_checkpoint(path)
        except DamagedError as error:
            found = error
        assert "\n" not in str(found) if isinstance(found, DamagedError) else same(found, whole)

    check()


@pytest.mark.parametrize("sealed", [True, False], ids=["digest", "as 0.1.0 wrote it"])
def test_no_record_is_taken_for_a_folder(sealed: bool, whole: State, tmp_path: Path) -> None:
    """One bit in the zip's directory, and torch reads zeros in the record's place."""
    path = tmp_path / NEWEST
    if sealed:
        write_checkpoint(whole, path)
    else:
        torch.save(whole, path)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 38] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(DamagedError):
        load_checkpoint(path)


def drop(*names: Any) -> Callable[[State], None]:
    """Remove an entry."""

    def change(state: State) -> None:
        for name in names[:-1]:
            state = state[name]
        del state[names[-1]]

    return change


def put(value: Any, *names: Any) -> Callable[[State], None]:
    """Put a value in an entry's place."""

    def change(state: State) -> None:
        for name in names[:-1]:
            state = state[name]
        state[names[-1]] = value

    return change


def moments(state: State) -> dict[str, Any]:
    """Those of the last weight; the first blocks learn nothing."""
    return state["optimizer"]["state"][max(state["optimizer"]["state"])]


def misshape(name: str) -> Callable[[State], None]:
    """Give a moment a shape that no weight has."""
    return lambda state: moments(state).update(
        {name: torch.zeros(moments(state)[name].numel() + 1)}
    )


def rename_weight(state: State) -> None:
    name = next(iter(state["model"]))
    state["model"][f"{name}s"] = state["model"].pop(name)


def whole_numbers(state: State) -> None:
    name = next(name for name in state["model"] if name.endswith("weight"))
    state["model"][name] = state["model"][name].long()


#: Which a file's own form forbids.
CHANGES: dict[str, Callable[[State], None]] = {
    **{f"no {name}": drop(name) for name in ("version", "recipe", "epoch_steps", "processes")},
    **{f"no {name}": drop(name) for name in ("model", "optimizer", "scaler", "counters")},
    **{f"no {name}": drop("counters", name) for name in ("step", "skipped", "kept_sum")},
    **{f"no {name}": drop("optimizer", name) for name in ("state", "param_groups")},
    "no step of the best": drop("best", "step"),
    "version in words": put("one", "version"),
    "recipe a list": put([], "recipe"),
    "a recipe's key a number": put({1: 2}, "recipe"),
    "steps in words": put("3", "epoch_steps"),
    "no process": put(0, "processes"),
    "images a number": put(7, "images"),
    "weights a list": put([], "model"),
    "a weight a number": put({"weight": 1.0}, "model"),
    "moments a list": put([], "optimizer", "state"),
    "moments by name": put({"weight": {}}, "optimizer", "state"),
    "a moment a number": lambda state: moments(state).update(exp_avg=0.5),
    "a group a number": put([3], "optimizer", "param_groups"),
    "scale in words": put({"scale": "large"}, "scaler"),
    "a step before the first": put(-1, "counters", "step"),
    "skipped a number": put(0, "counters", "skipped"),
    "best in words": put("high", "best", "value"),
}

#: Which do not fit the run.
MISFITS: dict[str, Callable[[State], None]] = {
    "stages missing": put([], "counters", "kept_sum"),
    "a weight of another name": rename_weight,
    "a weight of whole numbers": whole_numbers,
    "a group of one weight": put([0], "optimizer", "param_groups", 0, "params"),
    "a moment missing": lambda state: moments(state).pop("exp_avg"),
    "a step of another shape": misshape("step"),
    "a moment of another shape": misshape("exp_avg"),
    "another moment of another shape": misshape("exp_avg_sq"),
}


def resumed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """The step from which a run goes on; it makes none."""
    monkeypatch.setattr(loop, "batches", lambda *_: ())
    return fit(shallow(), Memory(), small(), folder, resume=True).steps


@pytest.mark.parametrize("change", CHANGES)
def test_what_no_run_writes_is_damage(change: str, whole: State, tmp_path: Path) -> None:
    state = copy.deepcopy(whole)
    CHANGES[change](state)
    version = {"version": state.get("version")}  # written last, in place of the right one
    write_checkpoint({**state, **version}, tmp_path / NEWEST)
    with pytest.raises(DamagedError, match=NEWEST):
        load_checkpoint(tmp_path / NEWEST)


@pytest.mark.parametrize("change", MISFITS)
def test_what_does_not_fit_is_set_aside_if_the_one_before_does(
    change: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    state = load_checkpoint(folder / NEWEST)
    MISFITS[change](state)
    write_checkpoint(state, folder / NEWEST)
    with caplog.at_level(logging.WARNING):
        assert resumed(folder, monkeypatch) == 1
    assert str(folder / NEWEST) in caplog.messages[0]
    assert f"going on from {folder / PREVIOUS}" in caplog.messages[0]
    assert (folder / DAMAGED).exists()


def test_damage_and_nothing_else_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    (folder / PREVIOUS).unlink()
    state = load_checkpoint(folder / NEWEST)
    CHANGES["no step"](state)
    write_checkpoint(state, folder / NEWEST)
    with pytest.raises(InputError, match=NEWEST):
        resumed(folder, monkeypatch)


@pytest.mark.parametrize(
    ("harm", "left"),
    [
        (lambda log: log.write_bytes(b"\xff\x00" * 5000), []),
        (lambda log: log.write_bytes(b""), []),
        (lambda log: (log.unlink(), log.mkdir()), []),
        (lambda log: log.write_bytes(log.read_bytes().replace(b'"step": 0', b'"step": ""')), [1]),
        (lambda log: log.write_bytes(log.read_bytes()[:-1]), [0]),
        (lambda log: log.write_bytes(log.read_bytes().replace(b"\n", b"", 1)), []),
    ],
    ids=["no text", "empty", "a folder", "a line of something else", "cut", "two lines in one"],
)
def test_a_damaged_log_is_set_aside_and_its_whole_lines_stay(
    harm: Callable[[Path], object],
    left: list[int],
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    log, damaged = folder / "log.jsonl", folder / DAMAGED_LOG
    harm(log)
    before = log.read_bytes() if log.is_file() else b""
    with caplog.at_level(logging.WARNING):
        assert resumed(folder, monkeypatch) == 2
    assert f"{log} is damaged" in caplog.text
    assert damaged.exists() == bool(before) or damaged.is_dir()
    assert [step["step"] for step in read_log(log)] == left
    monkeypatch.undo()  # and it is mended only once
    fit(shallow(), Memory(), small(), folder, resume=True)
    assert [step["step"] for step in read_log(log)] == [*left, 2, 3, 4, 5]
    assert not damaged.is_file() or damaged.read_bytes() == before

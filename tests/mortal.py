"""Runs that are killed, each in a fork.

Of a process that has not trained: autograd does not survive the fork of one that has used it.
"""

from __future__ import annotations

import io
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from dynamicvit.training import checkpoint, checkpoint_file, dense, fit, loop, train
from dynamicvit.training import run as runs
from dynamicvit.training.held_out import HeldOut
from dynamicvit.training.log import Progress
from dynamicvit.utils.files import UNFINISHED
from memory import Memory, paper, shallow
from pictures import noise_folders

#: Everything that draws: decisions, mixup, dropped paths; and averaged weights.
RECIPE = paper("epochs=2", "ema=0.9", "drop_path=0.3")
CODE = str(Path(loop.__file__).parent)


def run(folder: Path) -> None:
    """Train, saving after each step; go on where there is something to go on from."""
    loop.SAVE_SECONDS = 0.0
    model = shallow(drop_path_rate=RECIPE.drop_path)
    fit(
        model,
        Memory(),
        RECIPE,
        folder,
        held_out=HeldOut(Memory(2, batch=3)),
        resume=checkpoint.holds_run(folder),
    )


def in_fork(work: Callable[[], None]) -> int:
    """The signal that ended the work, or 0."""
    child = os.fork()
    if not child:
        code = 1
        try:
            work()
            code = 0
        finally:
            sys.stdout.flush()
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError("a run failed")
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def lines_of_training(folder: Path) -> int:
    """How many lines of training's code a whole run executes."""
    count = folder / "count"

    def work() -> None:
        lines = _on_each_line(lambda _: None)
        run(folder / "whole")
        count.write_text(str(lines[0]))

    assert in_fork(work) == 0
    return int(count.read_text())


def killed_at_line(folder: Path, line: int) -> int:
    """Run until so many lines of training's code have been executed."""

    def work() -> None:
        _on_each_line(lambda done: os.kill(os.getpid(), signal.SIGKILL) if done == line else None)
        run(folder)

    return in_fork(work)


def killed_in_write(folder: Path, number: int, share: float) -> int:
    """Run until a share of a checkpoint has been written."""

    def work() -> None:
        real, written = torch.save, []

        def save(state: object, file: io.BufferedWriter) -> None:
            written.append(state)
            if len(written) < number:
                return real(state, file)
            buffer = io.BytesIO()
            real(state, buffer)
            file.write(buffer.getvalue()[: int(share * buffer.tell())])
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

        torch.save = save
        run(folder)

    return in_fork(work)


def _on_each_line(act: Callable[[int], None]) -> list[int]:
    done = [0]

    def inside(frame, event, argument):
        if event == "line":
            done[0] += 1
            act(done[0])
        return inside

    def trace(frame, event, argument):
        return inside if frame.f_code.co_filename.startswith(CODE) else None

    sys.settrace(trace)
    return done


def check_same(folder: Path, whole: Path) -> None:
    """Everything that a run leaves, but for the time that it took."""
    states = [checkpoint_file.load_checkpoint(each / checkpoint.NEWEST) for each in (folder, whole)]
    for state in states:
        del state["counters"]["seconds"], state["counters"]["log_bytes"]
    ours, theirs = map(_flat, states)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        same = torch.equal(ours[name], value) if torch.is_tensor(value) else ours[name] == value
        assert same, name
    best = [checkpoint_file.load_checkpoint(each / checkpoint.BEST) for each in (folder, whole)]
    assert best[0]["counters"]["step"] == best[1]["counters"]["step"] == ours["best.step"]
    assert len((folder / "log.jsonl").read_text().splitlines()) == ours["counters.step"]
    assert not list(folder.glob(f"{UNFINISHED}*"))


def _flat(value: object, name: str = "") -> dict[str, object]:
    if not isinstance(value, dict):
        return {name: value}
    flat: dict[str, object] = {}
    for key, part in value.items():
        flat |= _flat(part, f"{name}.{key}".strip("."))
    return flat


def kill(folder: Path, kills: int, seed: int) -> tuple[int, int]:
    """Kill runs, each going on where the one before was killed; how many were, and how many end."""
    random.seed(seed)
    torch.set_num_threads(1)
    lines = lines_of_training(folder)
    mortal, killed, finished = folder / "mortal", 0, 0
    while killed < kills or finished == 0:
        if killed >= kills:
            ended = in_fork(lambda: run(mortal))
        elif killed % 3 == 2:
            ended = killed_in_write(mortal, random.randint(1, 3), random.random())
        else:
            ended = killed_at_line(mortal, random.randint(1, lines // 2))
        assert ended in (0, signal.SIGKILL)
        killed += ended == signal.SIGKILL
        if not ended:
            check_same(mortal, folder / "whole")
            finished += 1
            shutil.rmtree(mortal)
    return killed, finished


def kill_both_parts(folder: Path) -> list[int]:
    """Kill a run on classes of its own in its dense and in its sparse part; how each try ended."""
    data = noise_folders(folder / "data", classes=3, each=5)

    def fitted(output: Path, part: str = "") -> None:
        loop.SAVE_SECONDS = 0.0
        for module in (dense, runs):
            module.draw_run = lambda _: None

        def on_step(progress: Progress) -> None:
            if progress.step == 1 and part == ("sparse" if progress.kept else "dense"):
                os.kill(os.getpid(), signal.SIGKILL)

        steps = ("images=12", "dense.images=12", "batch_size=4", "dense.batch_size=4")
        train(
            data,
            output,
            shallow(),
            overrides=(*steps, "hold_out=0.2"),
            workers=0,
            device="cpu",
            on_step=on_step,
        )

    torch.set_num_threads(1)
    tries = [
        in_fork(lambda part=part: fitted(folder / "mortal", part))
        for part in ("dense", "sparse", "")
    ]
    assert in_fork(lambda: fitted(folder / "whole")) == 0
    for part in ("dense", ""):
        check_same(folder / "mortal" / part, folder / "whole" / part)
        for name in ("config.json", "model.safetensors"):
            ours, theirs = (folder / each / part / name for each in ("mortal", "whole"))
            assert ours.read_bytes() == theirs.read_bytes()
    return tries

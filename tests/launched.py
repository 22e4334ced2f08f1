"""What each process of a launched run does: ``torchrun launched.py FOLDER``; the tests compare.

As ``accelerate launch --use_fsdp`` asks, by a variable, the processes share the weights too.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from dynamicvit import DynamicViT
from dynamicvit.data import Batch
from dynamicvit.evaluation.accuracy import evaluate
from dynamicvit.training import Progress, Recipe, train
from dynamicvit.training.checkpoint import holds_run
from dynamicvit.training.held_out import HeldOut
from dynamicvit.training.optimizer import create_optimizer
from dynamicvit.training.step import Split, Step
from dynamicvit.training.teachers import teachers_for
from dynamicvit.utils.distributed import Processes, launched_processes
from dynamicvit.utils.signals import Interrupted
from families import DEIT
from memory import Memory, paper, small

PLAIN = ("augment.mixup=0", "augment.cutmix=0")
STEPS = 20
#: Name, recipe, images in a batch (not the same for each process, or none for one of them).
RUNS: Sequence[tuple[str, Recipe, int]] = (
    ("paper", paper("epochs=5", "backbone_frozen=0", "backbone_lr_scale=1", *PLAIN), 5),
    ("guided", small("backbone_lr_scale=1", *PLAIN, steps=STEPS), 4),
    ("lagged", paper("epochs=5", "decisions=top-k", "masking=lagged", "clip_grad=1", *PLAIN), 4),
    ("one image", paper("epochs=5", "ema=0.9", *PLAIN), 1),
)


#: The first of them, stopped half-way by one process.
RESUMED = "resumed"
#: The last of them, with averaged weights: stopped half-way by one process, and by several.
GATHERED, SPREAD = "gathered", "spread"
#: The first of them, in three passes, for which one of the processes has too few images.
PASSES = "passes"


def run(name: str, folder: Path, accumulate: int = 1, stop: int = STEPS) -> DynamicViT:
    """One of the runs, in as many processes as were launched; from where it was stopped."""
    _, recipe, batch = next(row for row in RUNS if row[0] == name)
    processes = launched_processes()
    model = DEIT.sparse(seed=processes.rank)  # the main process's weights are everyone's
    memory = Memory(4, batch=batch)

    def interrupt(progress: Progress) -> None:
        if progress.step + 1 == stop < STEPS:
            raise KeyboardInterrupt

    train(
        model,
        memory,
        recipe,
        folder,
        held_out=HeldOut(Memory(2, batch=5)),
        resume=holds_run(folder),
        processes=processes,
        accumulate=accumulate,
        on_step=interrupt,
    )
    return model


def spread(folder: Path) -> None:
    """The runs of processes that share the weights."""
    for name, _, _ in RUNS:
        weights = run(name, folder / name).state_dict()
        torch.save(weights, folder / name / f"weights{launched_processes().rank}.pt")
    run(RUNS[0][0], folder / PASSES, accumulate=3)
    run(RUNS[-1][0], folder / GATHERED)
    with suppress(Interrupted):
        run(RUNS[-1][0], folder / SPREAD, stop=STEPS // 2)
    held = hold(launched_processes())
    (folder / f"held{launched_processes().rank}.json").write_text(json.dumps(held))


def hold(processes: Processes) -> dict[str, Any]:
    """What a process holds after a step, in bytes, and what an infinite gradient of one does."""
    _, recipe, _ = RUNS[0]
    model = DEIT.sparse().train()
    teachers = teachers_for(model, recipe)
    student = processes.student(model)
    optimizer = create_optimizer(student, recipe)
    step = Step(student, teachers, recipe, processes)
    batch = next(iter(Memory(batch=2)))
    step.backward(batch, Split(0, 2 * processes.rank, 2 * processes.count))
    optimizer.step()
    learned = [p for p in student.parameters() if p.grad is not None]
    moments = [value for state in optimizer.state.values() for value in state.values()]
    held = [*student.parameters(), *(p.grad for p in learned), *moments]
    size = sum(_own(value).nbytes for value in held)

    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    scaler.scale(torch.zeros(()))  # the first makes the scale
    if processes.rank == processes.count - 1:
        next(_own(p.grad) for p in learned if _own(p.grad).numel())[0] = math.inf
    before = [_own(p).detach().clone() for p in learned]
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    left_out = all(map(torch.equal, before, map(_own, learned)))
    return {"bytes": size, "scale": scaler.get_scale(), "left_out": left_out}


def _own(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def count(folder: Path) -> None:
    """Evaluate on batches of 5 and 1, one image of which can't be read."""
    processes = launched_processes()
    result = evaluate(DEIT.sparse(), Unreadable(), dense=DEIT.backbone(), processes=processes)
    (folder / f"result{processes.rank}.json").write_text(json.dumps(asdict(result)))


class Unreadable(Memory):
    """Batches of five, two, and one that only one process gets."""

    def __iter__(self):
        part, parts = self.share
        for size, batch in zip((5, 2, 1), Memory(3, batch=5), strict=True):
            held = batch.images[:size].tensor_split(parts)[part]
            labels = batch.labels[:size].tensor_split(parts)[part]
            yield Batch(held, labels, (f"{size}.jpg",) if part == parts - 1 else ())


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    if launched_processes().holders > 1:
        spread(folder)
    else:
        for name, _, _ in RUNS:
            run(name, folder / name)
        run(RUNS[0][0], folder / RESUMED)
        count(folder)
    launched_processes().close()

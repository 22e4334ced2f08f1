"""What each process of a launched run does, of which test_scale compares the outcome."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from dynamicvit import DynamicViT
from dynamicvit.core.decisions import best_k_sampler
from dynamicvit.data import Batch
from dynamicvit.evaluation.accuracy import evaluate
from dynamicvit.training import Progress, Recipe, TrainingObjective, fit
from dynamicvit.training.checkpoint import holds_run
from dynamicvit.training.held_out import HeldOut
from dynamicvit.utils.distributed import launched_processes
from families import DEIT
from memory import Memory, paper, shallow, small

PLAIN = ("augment.mixup=0", "augment.cutmix=0")
STEPS = 4
#: Name, recipe, images in a batch (not the same for each process, or none for one of them).
RUNS: Sequence[tuple[str, Recipe, int]] = (
    ("paper", paper("epochs=2", "backbone_frozen=0", "backbone_lr_scale=1", *PLAIN), 5),
    ("guided", small("backbone_lr_scale=1", "budgets=[0.4,0.9]", *PLAIN, steps=STEPS), 4),
    ("lagged", paper("epochs=2", "decisions=top-k", "masking=lagged", "clip_grad=1", *PLAIN), 4),
    ("one image", paper("epochs=2", "ema=0.9", *PLAIN), 1),
)


#: The first of them, stopped half-way by one process.
RESUMED = "resumed"


def run(name: str, folder: Path, accumulate: int = 1, stop: int = STEPS) -> DynamicViT:
    """One of the runs, in as many processes as were launched; from where it was stopped."""
    _, recipe, batch = next(row for row in RUNS if row[0] == name)
    processes = launched_processes()
    model = shallow(seed=processes.rank)  # the main process's weights are everyone's
    memory = Memory(2, batch=batch)

    def interrupt(progress: Progress) -> None:
        if progress.step + 1 == stop < STEPS:
            raise KeyboardInterrupt

    fit(
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


def count(folder: Path) -> None:
    """Evaluate on batches of 5 and 1, one image of which can't be read."""
    processes = launched_processes()
    model = shallow()
    dense = DEIT.backbone(depth=model.depth)
    result = evaluate(model, Unreadable(), dense=dense, processes=processes)
    (folder / f"result{processes.rank}.json").write_text(json.dumps(asdict(result)))


def shard(folder: Path) -> None:
    """A loop of one's own over an objective that torch shards (docs/scaling.md)."""
    model = shallow()
    objective = TrainingObjective(model, sampler=best_k_sampler).train()
    rank = 0
    if torch.distributed.is_initialized():
        rank = torch.distributed.get_rank()
        fully_shard(objective)
        assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    totals = []
    for batch in Memory(3):
        losses = objective(batch.images, batch.labels)
        losses.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        totals.append(losses.total.item())
    (folder / f"sharded{rank}.json").write_text(json.dumps(totals))


class Unreadable(Memory):
    """Batches of five, two, and one that only one process gets."""

    def __iter__(self):
        part, parts = self.share
        for size, batch in zip((5, 2, 1), Memory(3, batch=5), strict=True):
            held = batch.images[:size].tensor_split(parts)[part]
            labels = batch.labels[:size].tensor_split(parts)[part]
            yield Batch(held, labels, (f"{size}.jpg",) if part == parts - 1 else ())


def all_of_it(folder: Path) -> None:
    """What one of the processes does; its warnings go to a file."""
    torch.set_num_threads(1)
    sys.stderr = (folder / f"said{launched_processes().rank}").open("w")
    for name, _, _ in RUNS:
        run(name, folder / name)
    run(RUNS[0][0], folder / RESUMED)
    count(folder)
    shard(folder)
    launched_processes().close()

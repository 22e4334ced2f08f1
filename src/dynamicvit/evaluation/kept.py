"""The kept patches of a whole data set, as an array or a table."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZipFile

import numpy as np
import torch
from torch import nn

from dynamicvit.core.outputs import PrunedOutput
from dynamicvit.data import Batch
from dynamicvit.errors import InputError
from dynamicvit.evaluation.tables import check_suffix, write_table
from dynamicvit.layers.tokens import Grid
from dynamicvit.utils.distributed import Processes
from dynamicvit.utils.files import atomic_write
from dynamicvit.utils.outputs import MARK

SUFFIXES = (".npz", ".parquet")


class _Part(NamedTuple):
    """Of a batch of B images: paths, labels ``(B,)``, predicted classes ``(B,)``, packed bits."""

    paths: tuple[str, ...]
    labels: np.ndarray
    predicted: np.ndarray
    bits: np.ndarray


class KeptPatches:
    """Collects the kept patches of batches, and writes them.

    Args:
        path: a ``.npz``, with the arrays ``image`` (paths), ``label`` (-1 for none), ``predicted``
            (class index), each ``(images,)``, and ``kept`` ``(images, stages, *grid)`` bool; or a
            ``.parquet``, with the columns ``image``, ``label``, ``predicted``, and for each stage
            ``kept_1``, ..., a list of N booleans, row after row of the grid.
        model: has stages.

    Raises:
        InputError: for another suffix, a missing pyarrow, or a model that keeps every patch.
    """

    def __init__(self, path: str | Path, model: nn.Module) -> None:
        check_suffix(path, SUFFIXES)
        schedule = getattr(model, "schedule", None)
        if schedule is None or not schedule.stages:
            raise InputError(f"{path}: the model keeps every patch, so there is nothing to save")
        self.path = Path(path)
        self._stages = len(schedule.stages)
        self._grid: Grid = ()
        self._parts: list[_Part] = []

    def add(self, batch: Batch, output: PrunedOutput) -> None:
        """Collect a batch."""
        self._grid = output.grid
        kept = torch.stack(output.kept, dim=1).flatten(1).cpu().numpy()
        paths = batch.paths or ("",) * len(batch)
        # Of equal logits the lower index, as top-1 counts them.
        order = output.logits.sort(dim=1, descending=True, stable=True).indices
        predicted = order[:, 0].cpu().numpy()
        bits = np.packbits(kept, axis=1)
        self._parts.append(_Part(paths, batch.labels.cpu().numpy(), predicted, bits))

    def skip(self) -> None:
        """Note a batch without a readable image, so that processes stay in step."""
        empty = np.empty(0, dtype=np.int64)
        self._parts.append(_Part((), empty, empty, np.empty((0, 0), dtype=np.uint8)))

    def save(self, processes: Processes) -> None:
        """Write what all processes have collected; each has its share of each batch, in order."""
        shares = processes.gather(self._parts)
        if not processes.is_main:
            return
        parts = [part for batch in zip(*shares, strict=True) for part in batch if part.paths]
        write = self._write_arrays if self.path.suffix.lower() == ".npz" else self._write_rows
        write(parts)

    def _unpacked(self, part: _Part) -> np.ndarray:
        """``(B, stages, N)``."""
        count = self._stages * math.prod(self._grid)
        bits = np.unpackbits(part.bits, axis=1, count=count)
        return bits.reshape(len(bits), self._stages, -1).astype(bool)

    def _write_arrays(self, parts: list[_Part]) -> None:
        kept = np.concatenate([self._unpacked(part) for part in parts])
        arrays = {
            "image": np.array([path for part in parts for path in part.paths]),
            "label": np.concatenate([part.labels for part in parts]),
            "predicted": np.concatenate([part.predicted for part in parts]),
            "kept": kept.reshape(len(kept), self._stages, *self._grid),
        }
        with atomic_write(self.path) as draft:
            with open(draft, "wb") as file:  # or numpy would add an ending
                np.savez_compressed(file, **arrays)
            with ZipFile(draft, "a") as archive:
                archive.comment = MARK.encode()

    def _write_rows(self, parts: list[_Part]) -> None:
        columns = {"image": "string", "label": "int", "predicted": "int"}
        columns |= {f"kept_{stage + 1}": "bools" for stage in range(self._stages)}

        def rows() -> Iterator[dict[str, Any]]:
            for part in parts:
                for path, label, predicted, kept in zip(
                    part.paths, part.labels, part.predicted, self._unpacked(part), strict=True
                ):
                    row = {"image": path, "label": int(label), "predicted": int(predicted)}
                    yield row | {f"kept_{n}": each for n, each in enumerate(kept, start=1)}

        write_table(self.path, columns, rows())

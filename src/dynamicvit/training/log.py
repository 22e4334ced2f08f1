"""What is written of each step: a line of JSON in the log, and curves in TensorBoard."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError
from typing_extensions import NotRequired, TypedDict

from dynamicvit.errors import InputError
from dynamicvit.training.checkpoint import cannot_write
from dynamicvit.utils.files import atomic_write
from dynamicvit.utils.optional import need

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_log = logging.getLogger(__name__)

TENSORBOARD_FOLDER = "tensorboard"
#: A log that was not what it had been; kept, for whoever wants to know why.
DAMAGED_LOG = "log.damaged.jsonl"


@dataclass(frozen=True)
class Progress:
    """One step of a run, for whoever shows it.

    Attributes:
        step: counted from 0.
        steps: of the whole run.
        images: seen so far.
        images_per_second: of this run of the program, reading included.
        losses: each part by name, unweighted, and the total.
        kept: for each stage the mean share of patches that the step's decisions kept.
        learning_rates: of prediction modules and backbone.
        gradient_norm: before clipping.
        kept_by_score: for each stage the mean share of patches that are still there and likelier
            kept than not by the scores alone; empty where a score is no probability
            (:attr:`Recipe.scores_are_probabilities`).
        kept_at_inference: for each stage the share of patches that inference keeps, the k best.
        not_finite: for a step that was left out, what was not finite, by name.
        suspects: of that step a few images by name: whose logits were not finite, or if all were,
            of all.
        held_out: after an evaluation of the held-out images ``top1``, or ``agreement`` with the
            dense network, in 0..1; else empty.
    """

    step: int
    steps: int
    images: int
    images_per_second: float
    losses: dict[str, float]
    kept: tuple[float, ...]
    learning_rates: dict[str, float]
    gradient_norm: float
    kept_by_score: tuple[float, ...]
    kept_at_inference: tuple[float, ...]
    not_finite: tuple[str, ...] = ()
    suspects: tuple[str, ...] = ()
    held_out: dict[str, float] = field(default_factory=dict)

    def to_line(self) -> str:
        """JSON and a newline; what is not finite is ``null``, for which JSON has a word."""
        return json.dumps(_plain(asdict(self)), allow_nan=False) + "\n"

    def scalars(self) -> Iterator[tuple[str, float]]:
        """The numbers by their names in TensorBoard, which groups them by the first word."""
        for name, value in self.losses.items():
            yield f"loss/{name}", value
        for name, shares in (
            ("sampled", self.kept),
            ("by_score", self.kept_by_score),
            ("at_inference", self.kept_at_inference),
        ):
            for stage, share in enumerate(shares, 1):
                yield f"kept_stage_{stage}/{name}", share
        for name, value in self.learning_rates.items():
            yield f"learning_rate/{name}", value
        for name, value in self.held_out.items():
            yield f"held_out/{name}", value
        yield "run/gradient_norm", self.gradient_norm
        yield "run/images_per_second", self.images_per_second
        yield "run/left_out", float(bool(self.not_finite))


class _Line(TypedDict):
    """What curves are drawn from; a line may hold more."""

    step: int
    losses: dict[str, float | None]
    kept: list[float | None]
    learning_rates: dict[str, float | None]
    gradient_norm: float | None
    kept_by_score: list[float | None]
    kept_at_inference: list[float | None]
    not_finite: list[str]
    held_out: NotRequired[dict[str, float | None]]


_LINE = TypeAdapter(_Line)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The steps of a log, in the order in which they were made.

    Raises:
        InputError: for a log that can't be read, or a line that is no step's, with its number.
    """
    steps = []
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror})") from None
    for number, line in enumerate(lines, start=1):
        if (problem := _problem(line)) is not None:
            raise InputError(f"{path}, line {number}: not a step's JSON ({problem})")
        steps.append(json.loads(line))
    return steps


def mend_log(path: Path, step: int, size: int) -> int:
    """Cut off the steps that a checkpoint does not know, for they are done again.

    A log that is not what it was is set aside and reported; the lines that are whole stay.

    Args:
        path: of the log.
        step: the first that is done again.
        size: bytes of the log when the checkpoint was written.

    Returns:
        Its bytes now.

    Raises:
        InputError: if the disk is full.
    """
    content = path.read_bytes() if path.is_file() else b""
    lines = content.splitlines(keepends=True)
    whole = [line for line in lines if line.endswith(b"\n") and _problem(line) is None]
    text = b"".join(line for line in whole if json.loads(line)["step"] < step)
    try:
        if len(text) != size:
            _log.warning("%s is damaged: %d of its %d bytes are whole", path, len(text), size)
            if len(whole) < len(lines) or path.is_dir():
                path.replace(path.with_name(DAMAGED_LOG))
        if path.is_file() and content.startswith(text):
            os.truncate(path, len(text))
        else:
            with atomic_write(path, ours=True) as draft:
                draft.write_bytes(text)
    except OSError as error:
        raise cannot_write(path, error) from error
    return len(text)


def _problem(line: bytes) -> str | None:
    """Why a line is no step's, if so."""
    try:
        _LINE.validate_json(line)
    except ValidationError as error:
        return str(error.errors(include_input=False)[0]["msg"])
    return None


class TensorBoard:
    """Writes each step that it is called with; to be closed at the end, or used with ``with``.

    Where tensorboard is not installed nothing is written, and a warning says how to get it.

    Args:
        folder: for TensorBoard's files. A run that goes on adds to what is there; what had been
            written of steps that are made again is hidden.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: SummaryWriter | None = None
        self._missing = False

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        # On a full disk closing fails too; what went wrong first is to be said.
        with suppress(InputError) if kind else nullcontext():
            self.close()

    def __call__(self, progress: Progress) -> None:
        """Write a step.

        Raises:
            InputError: if the disk is full.
        """
        if self._writer is None:  # nothing is written for a run that never makes a step
            self._open(progress.step)
        if self._writer is None:
            return
        try:
            for name, value in progress.scalars():
                if math.isfinite(value):
                    self._writer.add_scalar(name, value, progress.step)
        except OSError as error:
            raise cannot_write(self.folder, error) from error

    def after(self, show: Callable[[Progress], None] | None) -> Callable[[Progress], None]:
        """What shows a step and then writes it."""

        def both(progress: Progress) -> None:
            if show is not None:
                show(progress)
            self(progress)

        return both

    def _open(self, step: int) -> None:
        if self._missing:
            return
        try:
            need("tensorboard", "track")
        except InputError as error:
            self._missing = True
            _log.warning("no curves in TensorBoard: %s", error)
            return
        from torch.utils.tensorboard import SummaryWriter

        try:
            self._writer = SummaryWriter(str(self.folder), purge_step=step or None)
        except OSError as error:
            raise cannot_write(self.folder, error) from error

    def close(self) -> None:
        """Write what is left.

        Raises:
            InputError: if the disk is full.
        """
        writer, self._writer = self._writer, None
        if writer is not None:
            try:
                writer.close()
            except OSError as error:
                raise cannot_write(self.folder, error) from error


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""What `dynamicvit train` shows of a run: each step, and what came out."""

from __future__ import annotations

from rich.console import Console
from rich.progress import TaskID

from dynamicvit.cli.console import LineNowAndThen, progress_bar, say
from dynamicvit.training import Progress, TrainingReport
from dynamicvit.training.checkpoint import BEST
from dynamicvit.utils.words import MEASURES, duration, percent


class Bar:
    """Shows each step: in a bar on a terminal, elsewhere in a line now and then.

    Args:
        console: where.
        dense_first: whether the dense model is fitted first.
        what: is seen, "images" or "clips".
    """

    def __init__(self, console: Console, dense_first: bool, what: str) -> None:
        self.console, self.dense_first, self.what = console, dense_first, what
        self.bar = progress_bar(console, transient=False)
        self.lines = LineNowAndThen(console)
        self.task: TaskID | None = None
        self.part = ""

    def __enter__(self) -> Bar:
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def __call__(self, progress: Progress) -> None:
        """Show a step; of the dense model, if it is fitted first, in a bar of its own."""
        part = ("sparse" if progress.kept else "dense") if self.dense_first else ""
        if part != self.part or self.task is None:
            title = part or "training"
            self.part, self.task = part, self.bar.add_task(title, total=None, note="")
        which = f"{part}: " if part else ""
        kept = "/".join(f"{share:.2f}" for share in progress.kept)
        speed = f"{progress.images_per_second:.1f} {self.what}/s"
        note = f"{speed} loss {progress.losses['total']:.3f}" + (f" kept {kept}" if kept else "")
        done = progress.step + 1
        self.bar.update(self.task, total=progress.steps, completed=done, note=note)
        self.lines.say(f"{which}step {done} of {progress.steps}, {note}, {_left(progress)}")
        for measure, share in progress.held_out.items():
            say(self.console, f"{which}{_on_held_out(measure, share)} after step {done}")


def _on_held_out(measure: str, share: float) -> str:
    return f"held-out {MEASURES[measure]} {percent(share, 2)}"


def _left(progress: Progress) -> str:
    """The time left, should the rest run as fast as this."""
    images_a_step = progress.images / (progress.step + 1)
    seconds = (progress.steps - progress.step - 1) * images_a_step / progress.images_per_second
    return f"{duration(seconds)} left"


def say_results(report: TrainingReport, console: Console, *, fitted: bool, what: str) -> None:
    """Print how long a run took, and how right the model is on held-out images or clips."""
    kept = " / ".join(f"{100 * share:.1f}" for share in report.kept)
    say(
        console,
        f"trained on {report.images:,} {what} ({report.steps:,} whole steps) in "
        f"{duration(report.seconds)}, {report.images / report.seconds:.1f} "
        f"{what}/s" + (f"; patches kept in training: {kept} %" if any(report.kept) else ""),
    )
    if report.skipped:
        say(console, f"left out {len(report.skipped)} unreadable {what}")
    if report.bad_steps:
        say(console, f"left out {report.bad_steps} steps that were not finite")
    best, held_out = report.best, report.held_out
    if held_out is None:
        return
    share = getattr(held_out, best.measure)
    dense = getattr(report.dense_held_out, best.measure, None)
    if share is not None and dense is not None:
        both = f"dense {percent(dense, 2)}, sparse {percent(share, 2)}"
        which = "dense: the model that was fitted first" if fitted else "dense: as it was given"
        name = MEASURES[best.measure]
        say(console, f"held-out {name}: {both}, of {held_out.images} {what} ({which})")
    elif share is not None:
        say(console, f"{_on_held_out(best.measure, share)} of {held_out.images} {what}")
    if share is not None and best.value is not None and best.value > share:
        say(console, f"it was {percent(best.value, 2)} after step {best.step}: {BEST}")

"""A stream: frames in, answers out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from dynamicvit.core.classifier import PrunedClassifier
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import own_image_size, segments
from dynamicvit.core.segmenter import post_process_semantic_segmentation
from dynamicvit.data import (
    Prediction,
    Sampling,
    class_names,
    clip_eval_transform,
    eval_transform,
    frames_of,
    joint_eval_transform,
    top_classes,
)
from dynamicvit.errors import InputError
from dynamicvit.streaming.controller import Controller
from dynamicvit.streaming.events import (
    Answer,
    Change,
    Event,
    Missed,
    Tally,
    UnreadableFrame,
    milliseconds,
)
from dynamicvit.streaming.feed import Feed
from dynamicvit.streaming.frames import FrameSource, open_frames
from dynamicvit.streaming.levels import Level, costs_of, levels_of
from dynamicvit.streaming.window import Window

#: Default keep ratios of a stream with a target latency.
RATIOS = (0.9, 0.8, 0.7, 0.6, 0.5)


class Stream:
    """A video, camera or folder, classified frame by frame; a model of clips sees the last ones.

    A thread reads and prepares the frames and drops late ones. With a target latency, the keep
    ratio goes down and up to hold it. Opening warms up the model and times each level::

        for event in Stream("clip.mp4", model, target_latency=0.02):
            ...  # Answer, UnreadableFrame, Change or Missed

    Args:
        source: a video file, a folder of images, a camera (``camera:0``, ``/dev/video0``), or an
            open source; closed at the end.
        models: the model, in ``eval()``; or, with ``target_latency``, several by name that agree
            in classes, image size and preprocessing. They are moved to ``device``.
        fps: frames per second in place of the source's own times; 0 for as fast as they are
            classified, none dropped. By default the rate of a video or camera, and 0 for a folder.
        target_latency: seconds from when a frame is due to its answer, to be held by nine of ten
            frames.
        keep_ratios: of one model, to choose among; by default its own, or :data:`RATIOS` with
            ``target_latency``.
        queue: length of the queue of frames; when full, the oldest is dropped.
        top: classes in each answer.
        precision: dtype of autocast; None for float32.
        stride: of a model of clips, frames of the stream from one of a clip to the next; 1 by
            default. Dropped frames don't count.
        image_size: height and width of the images; the first model's own by default.
        crop_pct: as for :func:`~dynamicvit.data.eval_transform`.
        device: of PyTorch's models; by default a GPU if there is one.
        stopped: polled between frames; true ends the stream.

    Attributes:
        levels: models and keep ratios, from the one that keeps most.
        tally: counts of the events so far.
        settings: source, device and levels, for JSON.
        names: of the classes.
        rate: frames a second that are asked for, or the source's own, if it has one.

    Raises:
        InputError: for an unreadable source or arguments that conflict; while iterating, after
            the last frame of a source that breaks off.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | FrameSource,
        models: PrunedClassifier | Mapping[str, PrunedClassifier],
        *,
        fps: float | None = None,
        target_latency: float | None = None,
        keep_ratios: Sequence[float] = (),
        queue: int = 2,
        top: int = 1,
        precision: torch.dtype | None = None,
        stride: int | None = None,
        image_size: tuple[int, int] | None = None,
        crop_pct: float | None = None,
        device: torch.device | str | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        if not isinstance(models, Mapping):
            models = {"model": models}
        first = next(iter(models.values()))
        if target_latency is None and (len(models) > 1 or len(keep_ratios) > 1):
            raise InputError(f"{max(len(models), len(keep_ratios))} levels need a target latency")
        if target_latency is not None and len(models) == 1 and isinstance(first, DynamicViT):
            keep_ratios = keep_ratios or RATIOS
        if top < 1:
            raise InputError(f"top must be at least 1, got {top}")
        if isinstance(source, str | os.PathLike):
            source = open_frames(os.fspath(source), fps)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        for model in models.values():
            model.to(device)
        self.levels = levels_of(models, keep_ratios, device=device, precision=precision)
        prepare = _preparation(first, image_size, crop_pct)
        self._feed = Feed(source, prepare, fps=fps, places=queue, stopped=stopped)
        period = self._feed.period
        height, width = image_size or own_image_size(first)  # type: ignore[arg-type]
        blank = prepare(Image.new("RGB", (width, height)))
        frames = frames_of(first)  # type: ignore[arg-type]
        if frames is None and stride is not None:
            raise InputError(f"stride {stride} is of clips, and the model takes images")
        self._window = None if frames is None else Window(frames, 1 if stride is None else stride)
        like = blank if frames is None else Window(frames).add(blank).stacked()
        costs = costs_of(self.levels, like)
        self._controller = None
        if target_latency is not None:
            self._controller = Controller(costs, target_latency, period=period, places=queue)
        self.names, self._top = class_names(first), top
        self.rate = fps or source.rate
        self.settings: dict[str, Any] = {
            "source": source.name,
            "fps": period and round(1 / period, 3),
            "target_ms": milliseconds(target_latency),
            "image_size": list(blank.shape[2:]),
            "device": str(device),
            "threads": torch.get_num_threads(),
            "levels": [
                {**level.as_dict(), "computing_ms": milliseconds(cost)}
                for level, cost in zip(self.levels, costs, strict=True)
            ],
        }
        self.tally = Tally(target_latency)

    @property
    def dropped(self) -> int:
        """Frames dropped so far."""
        return self._feed.dropped

    def summary(self) -> dict[str, Any]:
        """Counts and percentiles so far; see :meth:`Tally.summary`."""
        return self.tally.summary(self.dropped)

    def __iter__(self) -> Iterator[Event]:
        """The events in order; can be iterated once.

        Raises:
            InputError: after the last frame of a source that breaks off.
        """
        with self._feed as frames:
            for event in answers(
                frames,
                self.levels,
                self.names,
                top=self._top,
                controller=self._controller,
                window=self._window,
            ):
                self.tally.add(event)
                yield event


def answers(
    frames: Feed,
    levels: Sequence[Level],
    names: Sequence[str],
    *,
    top: int = 1,
    controller: Controller | None = None,
    window: Window | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Event]:
    """Classify frames one by one, in order.

    Args:
        frames: ready for the classifier.
        levels: indexed by ``controller``; without one, the first is used.
        names: of the classes.
        top: classes in each answer.
        controller: chooses among the levels.
        window: makes clips of the frames, for a model of clips.
        clock: the time in seconds, the same as that of the frames.

    Yields:
        The events of each frame.
    """
    for frame in frames:
        if frame.images is None:
            yield UnreadableFrame(frame.index, frame.problem or "")
            continue
        index = controller.level if controller else 0
        level = levels[index]
        began = clock()
        seen = frame.images if window is None else window.add(frame.images)
        logits = level.classify(seen)
        computing = clock() - began
        classes, found = _said(logits, names, top, frame.picture)
        answer = Answer(
            index=frame.index,
            time=frame.time,
            name=frame.name,
            classes=classes,
            waiting=0.0 if frame.due is None else began - frame.due,
            computing=computing,
            level=level,
            dropped=frames.dropped,
            map=found,
            picture=None if found is None else frame.picture,
        )
        yield answer
        if controller is None:
            continue
        measured = controller.after(answer.latency, computing)
        if measured is None:
            continue
        if controller.level != index:
            yield Change(frame.index, level, levels[controller.level], measured, controller.target)
        else:
            yield Missed(frame.index, level, measured, controller.target)


def _said(
    logits: Tensor, names: Sequence[str], top: int, picture: Image.Image | None
) -> tuple[tuple[Prediction, ...], Tensor | None]:
    """The classes of an answer, and of a segmentation model its map."""
    best = top_classes(logits, names, top)
    if logits.ndim == 1 or picture is None:
        return tuple(best), None
    [found] = post_process_semantic_segmentation(logits[None], [(picture.height, picture.width)])
    return tuple(each for each in best if each.probability), found


def _preparation(
    model: Any, image_size: tuple[int, int] | None, crop_pct: float | None
) -> Callable[[Image.Image], Tensor]:
    """From a frame to ``(1, C, H, W)``, normalized; whole for a segmentation model."""
    if segments(model):
        if crop_pct is not None:
            raise InputError(f"crop_pct {crop_pct}: a segmentation model sees whole frames")
        joint = joint_eval_transform(model, image_size)
        return lambda frame: joint(frame, torch.zeros(frame.height, frame.width))[0][None]
    if frames_of(model) is not None:
        one = clip_eval_transform(model, Sampling(1), image_size=image_size, crop_pct=crop_pct)
        return lambda frame: one(pil_to_tensor(frame.convert("RGB"))[None, None])
    transform = eval_transform(model, image_size, crop_pct)
    return lambda frame: transform(frame)[None]

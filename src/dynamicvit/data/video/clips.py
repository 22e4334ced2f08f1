"""A data set of clips: the frames of videos, and their classes."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from dynamicvit.data.decoding import reason_of
from dynamicvit.data.images import ImageData
from dynamicvit.data.sources import Source
from dynamicvit.data.video.clip_sources import open_clips
from dynamicvit.data.video.clip_transforms import ONE_VIEW, ClipTransform, Views
from dynamicvit.data.video.reading import VideoFile
from dynamicvit.data.video.sampling import Sampling
from dynamicvit.errors import InputError


class ClipData(ImageData):
    """Videos as clips of frames, as :class:`~dynamicvit.data.ImageData` has images.

    A sample's ``image`` is what the transform gives: ``(T, 3, H, W)``, or ``(V, T, 3, H, W)`` of
    several views. Its frames are read from the file anew each time, and no others are decoded than
    that needs. A video that is damaged where a wanted frame lies is unreadable: it comes as
    :class:`~dynamicvit.data.Unreadable`.

    Args:
        root: a folder of class folders, a ``.tar`` of them, a flat folder or tar of unlabeled
            clips, one video, a list of paths and classes (``.csv``, ``.tsv``, ``.txt``), or
            ``hfds/PLACE@SPLIT`` with a column of videos.
        transform: chooses frames and makes a tensor of them; by default 16 uniform frames, whole.
        class_map: as for ``ImageData``.
        labeled: likewise.
        strict: likewise.

    Raises:
        InputError: as ``ImageData``.
    """

    noun = "clip"
    transform: ClipTransform  # type: ignore[assignment]

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        transform: ClipTransform | None = None,
        class_map: Mapping[str, int] | str | os.PathLike[str] | None = None,
        labeled: bool | None = None,
        strict: bool = False,
    ) -> None:
        super().__init__(
            root,
            transform=transform or ClipTransform(Sampling(16)),  # type: ignore[arg-type]
            class_map=class_map,
            labeled=labeled,
            strict=strict,
        )

    @property
    def views(self) -> Views:
        """Clips and crops of each video."""
        return self.transform.views or ONE_VIEW

    def _open(self, root: str | os.PathLike[str]) -> Source:
        return open_clips(root)

    def _decode(self, row: int) -> Tensor:
        """``(clips, T, 3, H, W)`` uint8."""
        try:
            video = VideoFile(self._source.read(row))
            chosen = self.transform.choose(video.timeline)
            wanted, where = np.unique(chosen, return_inverse=True)
            frames = torch.from_numpy(video.frames(wanted))
        except InputError:
            raise
        except Exception as error:  # FFmpeg's name its functions and memory
            raise ValueError(reason_of(error)) from error
        return frames[torch.from_numpy(where.reshape(chosen.shape))].movedim(-1, 2)

"""What a runtime is to the benchmark."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from dynamicvit.core.model import DynamicViT
from dynamicvit.costs import DENSE


@dataclass(frozen=True)
class Job:
    """A network to make ready.

    Attributes:
        network: in ``eval()``.
        name: how the others call it, for files.
        images: ``(B, channels, height, width)``, all that it will be run on.
        precision: one of the runtime's.
        folder: for files; jobs that share it have the same networks under these names.
        calibrate: a source of images for int8; by default two photographs' crops, whose ranges are
            as fast as any.
    """

    network: nn.Module
    name: str
    images: Tensor
    precision: str
    folder: Path
    calibrate: str | None = None


class Runtime(ABC):
    """A way to run a network.

    Attributes:
        name: as it is asked for.
        precisions: those that it computes in.
    """

    name: str
    precisions: tuple[str, ...]

    @abstractmethod
    def check(self, precision: str) -> None:
        """See to it that all it needs is here.

        Args:
            precision: one of the runtime's.

        Raises:
            InputError: naming what is missing.
        """

    def why_not(self, precision: str, device_type: str) -> str | None:
        """Why there are no times of a precision on a device, in words; ``None`` if there are."""
        del device_type
        if precision in self.precisions:
            return None
        return f"{self.name} computes in {' or '.join(self.precisions)}"

    def dense(self, model: DynamicViT) -> nn.Module:
        """The network that pruning is compared with: without stages, with all other savings."""
        return DynamicViT(model.backbone, DENSE, []).eval()

    @abstractmethod
    def prepare(self, job: Job) -> Callable[[], object]:
        """What runs one batch. The first call may take longer; torch's threads stay as they are.

        Raises:
            InputError: for a network that the runtime does not take.
        """

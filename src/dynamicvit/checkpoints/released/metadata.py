"""What shapes can't tell: a safetensors file's metadata, and the name of the file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from dynamicvit.checkpoints.released.zoo import ARCHITECTURES, Architecture, keep_ratio_in
from dynamicvit.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Metadata:
    """What a safetensors file says about itself; ``None`` where it is silent.

    Every method raises :class:`InputError` for an entry that can't be read.

    Attributes:
        entries: the file's; empty for other files.
        source: what messages call the file.
    """

    entries: Mapping[str, str]
    source: str

    def keep_ratio(self) -> float | None:
        """ρ."""
        return self._read("rho", float)

    def number_of_heads(self) -> int | None:
        """H."""
        return self._read("num_heads", int)

    def residual_divisor(self) -> float | None:
        """What LV-ViT's residual branches are divided by."""
        return self._read("residual_divisor", float)

    def stages(self) -> list[int] | None:
        """Blocks before which tokens are dropped."""
        return self._read("stages", lambda text: [int(number) for number in json.loads(text)])

    def relative(self) -> Architecture | None:
        """The full-size network that a small one says it is a kind of."""
        kind = self.entries.get("kind")
        return next((known for known in ARCHITECTURES if known.model == kind), None)

    def _read(self, key: str, read: Callable[[str], T]) -> T | None:
        if key not in self.entries:
            return None
        try:
            return read(self.entries[key])
        except (ValueError, TypeError) as error:
            value = self.entries[key]
            raise InputError(f"{self.source}: its metadata has {key}={value!r}") from error


def find_keep_ratio(
    given: float | Sequence[float] | None, metadata: Metadata, file_name: str
) -> tuple[float | Sequence[float], str]:
    """ρ of a released checkpoint, and where it is from.

    Args:
        given: goes first: ρ, or one ratio for each stage.
        metadata: of the file; goes before its name.
        file_name: such as ``dynamic-vit_384_r0.7.pth``, without folders.

    Returns:
        ρ, and ``"as given"``, ``"from its metadata"`` or ``"from its name"``.

    Raises:
        InputError: if none of them tells.
    """
    if given is not None:
        return given, "as given"
    said = metadata.keep_ratio()
    if said is not None:
        return said, "from its metadata"
    named = keep_ratio_in(file_name)
    if named is not None:
        return named, "from its name"
    raise InputError(
        f"{metadata.source}: does not say its keep ratio, and neither do shapes; give keep_ratio "
        f"(--keep-ratio), such as 0.7"
    )

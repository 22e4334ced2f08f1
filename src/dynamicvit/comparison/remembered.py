"""The dense network's answers, which every row is compared with."""

from __future__ import annotations

from torch import Tensor, nn


class Remembered(nn.Module):
    """A network that is asked once for each batch of an evaluation, and answers so ever after."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._answers: list[Tensor] = []
        self._place = 0

    def from_the_start(self) -> Remembered:
        """Before each evaluation, of the same batches."""
        self._place = 0
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, classes)``."""
        if self._place == len(self._answers):
            self._answers.append(self.network(images))
        answer = self._answers[self._place]
        self._place += 1
        return answer

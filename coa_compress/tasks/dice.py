"""Random choices drawn one by one from an explicit generator."""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Dice:
    """Draws numbers, colors and choices.

    Args:
        generator: The only source of randomness.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def uniform(self, low: float, high: float) -> float:
        """Return a number in ``[low, high)``."""
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def integer(self, low: int, high: int) -> int:
        """Return a whole number from ``low`` to ``high``, both included."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def chance(self, probability: float) -> bool:
        """Return True with a probability."""
        return self.uniform(0.0, 1.0) < probability

    def pick(self, choices: Sequence[T]) -> T:
        """Return one of the choices."""
        return choices[self.integer(0, len(choices) - 1)]

    def weighted(self, weights: Sequence[float]) -> int:
        """Return the position of a choice, each as likely as its weight."""
        return int(
            torch.multinomial(
                torch.tensor(weights, dtype=torch.float64), 1, generator=self.generator
            )
        )

    def color(self, choices: Sequence[tuple[float, float, float]], jitter: float = 0.08) -> Tensor:
        """Return one of some RGB colors, lighter or darker by up to ``jitter``, hue nearly kept."""
        chosen = torch.tensor(self.pick(choices))
        hue = 2 * torch.rand(3, generator=self.generator) - 1
        move = jitter * (self.uniform(-1.0, 1.0) + 0.3 * hue)
        return (chosen + move).clamp(0.02, 0.98)

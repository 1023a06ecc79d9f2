"""The losses and validations of a training stage, as they come in."""

from collections.abc import Mapping
from typing import Any

from coa_compress.artifacts import History
from coa_compress.errors import TrainingError


class LossLog:
    """Means of named losses over about a hundred stretches of a training stage.

    Args:
        every: Steps in one stretch.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._steps: list[int] = []
        self._means: dict[str, list[float]] = {}
        self._validation: list[tuple[int, float]] = []
        self._sums: dict[str, float] = {}
        self._count = 0

    def add(self, step: int, losses: Mapping[str, float], *, last: bool = False) -> None:
        """Take in the losses of one step.

        Args:
            step: Steps done so far.
            losses: Value of each named, unweighted loss.
            last: True at the last step, which ends the last stretch.

        Raises:
            TrainingError: If the names differ from those of the steps before.
        """
        if self._sums and self._sums.keys() != losses.keys():
            message = (
                f"the losses of step {step} are named {', '.join(losses)}, those before "
                f"{', '.join(self._sums)}: every step must return the same names"
            )
            raise TrainingError(message)
        self._count += 1
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        if last or step % self.every == 0:
            self._end_stretch(step)

    def _end_stretch(self, step: int) -> None:
        self._steps.append(step)
        for name, total in self._sums.items():
            self._means.setdefault(name, []).append(total / self._count)
            self._sums[name] = 0.0
        self._count = 0

    def add_validation(self, step: int, value: float) -> None:
        """Take in the result of one validation; higher is better."""
        self._validation.append((step, value))

    def history(self) -> History:
        """Return what was logged so far.

        >>> log = LossLog(every=2)
        >>> log.add(1, {"l1": 1.0})
        >>> log.add(2, {"l1": 2.0})
        >>> log.history().losses
        {'l1': (1.5,)}
        """
        return History(
            steps=tuple(self._steps),
            losses={name: tuple(means) for name, means in self._means.items()},
            validation=tuple(self._validation),
        )

    def to_json(self) -> dict[str, Any]:
        """Return everything, including the unfinished stretch, as JSON values."""
        return {
            "steps": self._steps,
            "means": self._means,
            "validation": self._validation,
            "sums": self._sums,
            "count": self._count,
        }

    def restore_(self, saved: Mapping[str, Any]) -> None:
        """Take over what ``to_json`` returned; raises KeyError when something is absent."""
        self._steps = list(saved["steps"])
        self._means = {name: list(means) for name, means in saved["means"].items()}
        self._validation = [(step, value) for step, value in saved["validation"]]
        self._sums = dict(saved["sums"])
        self._count = saved["count"]

"""How long and how fast to train: the settings every training stage shares."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

from coa_compress.errors import SettingError
from coa_compress.settings import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    check_ranges,
)

Precision = Literal["auto", "fp32", "bf16"]
"""Number format of the forward pass; ``auto`` takes bf16 where the hardware multiplies it fast."""

Decay = Annotated[float, Interval(ge=0.0, lt=1.0)]
"""How much of an average is kept at each step, in [0, 1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """Settings of one training stage.

    Args:
        steps: Optimizer steps.
        batch_size: Examples in one micro-step of all processes together; used by whoever makes
            the batches.
        learning_rate: The largest learning rate, reached after the warm-up.
        final_learning_rate: The learning rate of the last step.
        warmup_steps: Steps of linear warm-up; never more than half of all steps.
        weight_decay: Decoupled weight decay of every parameter with two or more dimensions.
        clip_norm: Largest 2-norm of the whole gradient.
        ema_decay: Decay of the moving average of the weights; 0 means no averaging.
        accumulate: Micro-steps whose gradients make one optimizer step.
        precision: Number format of the forward pass; losses are always float32. ``auto`` is bf16
            where the device is fast in it and the network's own code can run in it, else fp32.
        checkpoint_every: Steps between two checkpoints.
        validate_every: Steps between two validations.
        patience: Steps without a better validation after which training stops, or None to take
            every step.
        cpu_threads: Threads of training on a CPU. With one, every run ends with the same bits;
            with more it is faster, and sums may be added up in another order each time.
        workers: Processes that draw the batches of coming steps; 0 for none. Bits do not depend
            on it. A script that trains with workers needs ``if __name__ == "__main__":``.

    Raises:
        SettingError: If a value is out of range, or the final learning rate above the largest.

    >>> TrainingSettings(steps=100).accumulate
    1
    >>> TrainingSettings(steps=0)
    Traceback (most recent call last):
    coa_compress.errors.SettingError: TrainingSettings.steps must be at least 1, got 0
    """

    steps: PositiveInt = 400
    batch_size: PositiveInt = 8
    learning_rate: PositiveFloat = 5e-4
    final_learning_rate: NonNegativeFloat = 1e-6
    warmup_steps: NonNegativeInt = 20
    weight_decay: NonNegativeFloat = 1e-4
    clip_norm: PositiveFloat = 1.0
    ema_decay: Decay = 0.99
    accumulate: PositiveInt = 1
    precision: Precision = "auto"
    checkpoint_every: PositiveInt = 50
    validate_every: PositiveInt = 100
    patience: PositiveInt | None = None
    cpu_threads: PositiveInt = 1
    workers: NonNegativeInt = 0

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.final_learning_rate > self.learning_rate:
            message = (
                f"TrainingSettings.final_learning_rate is {self.final_learning_rate:g}, above "
                f"learning_rate {self.learning_rate:g}: lower it to that or less"
            )
            raise SettingError(message)

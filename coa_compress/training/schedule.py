"""The learning rate at each step: linear warm-up, then a cosine."""

import math

from coa_compress.training.settings import TrainingSettings


def learning_rate_at(step: int, settings: TrainingSettings) -> float:
    """Return the learning rate of a step (cosine of Loshchilov & Hutter 2017, arXiv:1608.03983).

    It rises linearly over ``warmup_steps`` (half of all steps at most), is largest at the first
    step after them, and equals ``final_learning_rate`` at the last step.

    Args:
        step: Number of the step, from 0.
        settings: Gives the number of steps, the warm-up, and the two rates.

    Returns:
        A rate in ``(0, learning_rate]``, or 0 at the last step when the final rate is 0.

    >>> plan = TrainingSettings(
    ...     steps=11, warmup_steps=1, learning_rate=1.0, final_learning_rate=0.0
    ... )
    >>> [round(learning_rate_at(step, plan), 3) for step in (0, 1, 10)]
    [0.5, 1.0, 0.0]
    """
    warmup = min(settings.warmup_steps, settings.steps // 2)
    if step < warmup:
        return settings.learning_rate * (step + 1) / (warmup + 1)
    part = min(1.0, (step - warmup) / max(1, settings.steps - 1 - warmup))
    span = settings.learning_rate - settings.final_learning_rate
    return settings.final_learning_rate + span * 0.5 * (1.0 + math.cos(math.pi * part))

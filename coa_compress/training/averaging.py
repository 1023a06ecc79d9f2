"""The exponential moving average of a network in training."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from coa_compress.copying import copied
from coa_compress.settings import NonNegativeInt, PositiveInt, check_ranges
from coa_compress.training.settings import Decay

Buffers = Literal["average", "copy"]
"""What a mean teacher does with floating buffers: average them too, or take them as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanTeacherSettings:
    """How the slow copy that gives the pseudo-labels follows the network.

    Args:
        decay: How much of it is kept at each update.
        interval: Steps between two updates; CoA's code has 1000.
        warmup_updates: Updates until ``decay`` is reached; it grows linearly from 0. With 0 the
            copy is slow from the start, so that the first labels are those of the network before.
        buffers: Whether floating buffers, the statistics of a BatchNorm, are averaged or copied.

    Raises:
        SettingError: If a value is out of range.
    """

    decay: Decay = 0.95
    interval: PositiveInt = 1
    warmup_updates: NonNegativeInt = 0
    buffers: Buffers = "average"

    def __post_init__(self) -> None:
        check_ranges(self)


def tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter and buffer once, also buffers that a state dict leaves out.

    >>> [name for name, _ in tensors_of(nn.Linear(2, 3))]
    ['weight', 'bias']
    """
    yield from module.named_parameters()
    yield from module.named_buffers()


def averaged_copy(model: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode whose parameters need no gradient.

    >>> averaged_copy(nn.Linear(2, 3)).training
    False
    """
    return copied(model).eval().requires_grad_(requires_grad=False)


def decay_at(step: int, decay: float) -> float:
    """Return the decay of a step: small at first, so that the start is soon forgotten.

    Args:
        step: Number of the step, from 0.
        decay: What it grows to, in [0, 1).

    >>> [round(decay_at(step, 0.99), 3) for step in (0, 8, 10_000)]
    [0.1, 0.5, 0.99]
    """
    return min(decay, (1 + step) / (10 + step))


def follow_(teacher: nn.Module, model: nn.Module, step: int, settings: MeanTeacherSettings) -> None:
    """Update a mean teacher (Tarvainen & Valpola 2017, arXiv:1703.01780) where it is due.

    Args:
        teacher: A copy of the model, changed in place.
        model: The network in training, unchanged.
        step: Optimizer steps done, from 1.
        settings: When and how.

    >>> slow, fast = nn.Linear(1, 1), nn.Linear(1, 1)
    >>> _ = nn.init.zeros_(slow.weight), nn.init.ones_(fast.weight)
    >>> for step in (1, 2):
    ...     follow_(slow, fast, step, MeanTeacherSettings(decay=0.75, interval=2))
    ...     print(slow.weight.item())
    0.0
    0.25
    """
    if step % settings.interval:
        return
    decay, update = settings.decay, step // settings.interval
    if update <= settings.warmup_updates:
        decay *= (update - 1) / settings.warmup_updates
    update_average_(teacher, model, decay, buffers=settings.buffers)


@torch.no_grad()
def update_average_(
    averaged: nn.Module, model: nn.Module, decay: float, *, buffers: Buffers = "average"
) -> None:
    """Move an average towards a model: ``average = decay * average + (1 - decay) * model``.

    Floating parameters and buffers (such as the statistics of a BatchNorm) are averaged,
    anything else, such as a counter, is copied.

    Args:
        averaged: A copy of the model, changed in place.
        model: The model, unchanged.
        decay: How much of the average is kept, in [0, 1).
        buffers: Whether floating buffers are averaged too, or copied.

    >>> slow, fast = nn.Linear(1, 1), nn.Linear(1, 1)
    >>> _ = nn.init.zeros_(slow.weight), nn.init.ones_(fast.weight)
    >>> update_average_(slow, fast, 0.75)
    >>> slow.weight.item()
    0.25
    """
    places = dict(tensors_of(averaged))
    taken = {name for name, _ in model.named_buffers()} if buffers == "copy" else set()
    for name, fast in tensors_of(model):
        slow = places.get(name)
        if slow is None or slow.shape != fast.shape:
            continue  # a cache that a forward pass has made: not a part of what was learned
        if name not in taken and (slow.is_floating_point() or slow.is_complex()):
            slow.lerp_(fast, 1.0 - decay)
        else:
            slow.copy_(fast)

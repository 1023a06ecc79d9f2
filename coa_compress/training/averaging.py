"""The exponential moving average of a network in training."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn


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
    return copy.deepcopy(model).eval().requires_grad_(requires_grad=False)


def decay_at(step: int, decay: float) -> float:
    """Return the decay of a step: small at first, so that the start is soon forgotten.

    Args:
        step: Number of the step, from 0.
        decay: What it grows to, in [0, 1).

    >>> [round(decay_at(step, 0.99), 3) for step in (0, 8, 10_000)]
    [0.1, 0.5, 0.99]
    """
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def update_average_(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    """Move an average towards a model: ``average = decay * average + (1 - decay) * model``.

    Floating parameters and buffers (such as the statistics of a BatchNorm) are averaged,
    anything else, such as a counter, is copied.

    Args:
        averaged: A copy of the model, changed in place.
        model: The model, unchanged.
        decay: How much of the average is kept, in [0, 1).

    >>> slow, fast = nn.Linear(1, 1), nn.Linear(1, 1)
    >>> _ = nn.init.zeros_(slow.weight), nn.init.ones_(fast.weight)
    >>> update_average_(slow, fast, 0.75)
    >>> slow.weight.item()
    0.25
    """
    places = dict(tensors_of(averaged))
    for name, fast in tensors_of(model):
        slow = places.get(name)
        if slow is None or slow.shape != fast.shape:
            continue  # a cache that a forward pass has made: not a part of what was learned
        if slow.is_floating_point() or slow.is_complex():
            slow.lerp_(fast, 1.0 - decay)
        else:
            slow.copy_(fast)

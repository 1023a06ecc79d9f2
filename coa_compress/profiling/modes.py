"""A network in evaluation mode without gradients, and put back as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Switch a network to evaluation and gradients off; every module gets its own mode back.

    Args:
        model: Any network; some of its modules may be in training mode and others not.

    Yields:
        The same network.

    >>> net = nn.Sequential(nn.Dropout(), nn.ReLU().eval())
    >>> with evaluating(net):
    ...     [part.training for part in net]
    [False, False]
    >>> [part.training for part in net]
    [True, False]
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        # not model.eval(): a network may override it
        for module, _ in modes:
            module.training = False
        # inference mode would hand composite operations to the counters in one piece
        with torch.inference_mode(mode=False), torch.no_grad():
            yield model
    finally:
        for module, training in modes:
            module.training = training

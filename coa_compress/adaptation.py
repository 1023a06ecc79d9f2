"""Losses on unlabelled real inputs."""

import torch
from torch import Tensor, nn


def consistency_loss(output: Tensor, average: nn.Module, real: Tensor) -> Tensor:
    """Return the distance of a student's outputs on real inputs from those of its slow average.

    The pseudo-label is the output of the slow average of the student, the mean teacher of
    Tarvainen & Valpola (2017, arXiv:1703.01780), as in the real-domain stage of CoA (Ma et al.,
    CVPR 2025).

    Args:
        output: What the student returned.
        average: Its slow average; no gradient flows into it.
        real: Real inputs, shape ``(batch, channels, height, width)``.

    Returns:
        A scalar: the mean absolute difference.

    >>> real = torch.rand(1, 3, 4, 4)
    >>> consistency_loss(real + 0.5, nn.Identity(), real).item()
    0.5
    """
    with torch.no_grad():
        label: Tensor = average(real)
    return (output - label).abs().mean()

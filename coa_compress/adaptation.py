"""Losses on unlabelled real inputs."""

import torch
from torch import Tensor, nn

from coa_compress.protocols import PseudoLabel


def plain_label(network: nn.Module, real: Tensor, output: Tensor) -> Tensor:
    """Return the output of a network as pseudo-label, as in CoA (Ma et al., CVPR 2025)."""
    del network, real
    return output


def twice_label(network: nn.Module, real: Tensor, output: Tensor) -> Tensor:
    """Return the output on the output, for networks whose output is an input with less defect.

    >>> import torch
    >>> twice_label(nn.Threshold(0.0, 3.0), -torch.ones(1), torch.zeros(1))
    tensor([3.])
    """
    del real
    label: Tensor = network(output)
    return label


PSEUDO_LABELS: dict[str, PseudoLabel] = {"plain": plain_label, "twice": twice_label}
"""Every maker of pseudo-labels that needs no task, by name."""


def label_on_the_way(
    network: nn.Module, real: Tensor, make: PseudoLabel, *, strength: float
) -> Tensor:
    """Return what lies between the output of a network and the pseudo-label made of it.

    Args:
        network: Makes the output, and the label.
        real: Unlabelled inputs.
        make: Makes the label.
        strength: Part of the way from the output to the label, in ``(0, 1]``.

    >>> doubling = nn.LeakyReLU(2.0)
    >>> label_on_the_way(doubling, -torch.ones(1), twice_label, strength=0.5)
    tensor([-3.])
    """
    output: Tensor = network(real)
    return torch.lerp(output, make(network, real, output), strength)


def consistency_loss(output: Tensor, label: Tensor) -> Tensor:
    """Return the distance of a student's outputs on real inputs from their pseudo-labels.

    Args:
        output: What the student returned.
        label: What it should have; no gradient flows into it.

    Returns:
        A scalar: the mean absolute difference.

    >>> import torch
    >>> label = torch.rand(1, 3, 4, 4)
    >>> round(consistency_loss(label + 0.5, label).item(), 6)
    0.5
    """
    return (output - label.detach()).abs().mean()


def cycle_loss(model: nn.Module, degraded: Tensor, label: Tensor) -> Tensor:
    """Return how far a network is from finding back what was degraded.

    A real input has no truth, but its pseudo-label, degraded anew by the physical model, has one.

    Args:
        model: The network.
        degraded: The label, degraded again.
        label: What should come back.

    Returns:
        A scalar: the mean absolute difference.

    >>> import torch
    >>> cycle_loss(nn.Identity(), torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4))
    tensor(1.)
    """
    return consistency_loss(model(degraded), label)

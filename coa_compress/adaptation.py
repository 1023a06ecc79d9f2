"""Losses on unlabelled real inputs."""

from collections.abc import Callable

from torch import Tensor, nn

PseudoLabel = Callable[[nn.Module, Tensor], Tensor]
"""Makes labels of real inputs with a network; called without gradient."""


def plain_label(network: nn.Module, real: Tensor) -> Tensor:
    """Return the output of a network as pseudo-label, as in CoA (Ma et al., CVPR 2025).

    >>> import torch
    >>> plain_label(nn.Identity(), torch.ones(1))
    tensor([1.])
    """
    label: Tensor = network(real)
    return label


def twice_label(network: nn.Module, real: Tensor) -> Tensor:
    """Return the output on the output, for networks whose output is an input with less defect.

    >>> import torch
    >>> twice_label(nn.Threshold(0.0, 3.0), -torch.ones(1))
    tensor([3.])
    """
    label: Tensor = network(network(real))
    return label


PSEUDO_LABELS: dict[str, PseudoLabel] = {"plain": plain_label, "twice": twice_label}
"""Every maker of pseudo-labels that needs no task, by name."""


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

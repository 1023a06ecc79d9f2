"""Running statistics of batch normalization after a cut."""

from dataclasses import dataclass
from typing import TypeAlias, TypeGuard

import torch
from torch import Tensor, nn

Norm: TypeAlias = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
"""A batch normalization."""


def has_statistics(module: nn.Module) -> TypeGuard[Norm]:
    """Return whether a layer is a batch normalization that keeps running statistics.

    >>> has_statistics(nn.BatchNorm2d(3)), has_statistics(nn.InstanceNorm2d(3))
    (True, False)
    """
    norms = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
    return isinstance(module, norms) and module.running_mean is not None


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Sums over the positions of some tensors, for a mean and a variance of each channel.

    Args:
        count: Positions seen.
        sums: Sum of each channel, float64.
        squares: Sum of the squares of each channel, float64.
    """

    count: int
    sums: Tensor
    squares: Tensor

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(
            self.count + other.count, self.sums + other.sums, self.squares + other.squares
        )

    @property
    def mean(self) -> Tensor:
        """Mean of each channel."""
        return self.sums / self.count

    @property
    def variance(self) -> Tensor:
        """Biased variance of each channel."""
        return (self.squares / self.count - self.mean.square()).clamp(min=0)


def moments(tensor: Tensor) -> Moments:
    """Return the moments of a tensor with its channels in dimension 1.

    >>> found = moments(torch.tensor([[1.0], [3.0]]))
    >>> found.mean.item(), found.variance.item()
    (2.0, 1.0)
    """
    rows = tensor.detach().transpose(0, 1).flatten(1).double()
    return Moments(rows.shape[1], rows.sum(1), rows.square().sum(1))


def moved_statistics(module: Norm, teacher: Moments, student: Moments) -> tuple[Tensor, Tensor]:
    """Return running statistics moved by what the cut changed on the calibration examples.

    The mean moves by the difference, the variance by the quotient, of what teacher and student
    show on the same examples. Other than with statistics of these few examples alone, what was
    learned from all training examples stays, and an unchanged network keeps its statistics.

    Args:
        module: The layer of the student.
        teacher: What the layer reads in the teacher, kept channels only.
        student: What it reads in the student.

    Returns:
        Running mean and running variance, float64.
    """
    mean, variance = running_statistics(module)
    floor = 1e-12 + 1e-6 * teacher.variance.mean()
    factor = (student.variance + floor) / (teacher.variance + floor)
    return mean + student.mean - teacher.mean, variance * factor


def running_statistics(module: Norm) -> tuple[Tensor, Tensor]:
    """Return running mean and variance in float64."""
    mean, variance = module.running_mean, module.running_var
    if mean is None or variance is None:
        message = "the layer keeps no running statistics"
        raise TypeError(message)
    return mean.double(), variance.double()


@torch.no_grad()
def set_statistics_(module: Norm, mean: Tensor, variance: Tensor) -> None:
    """Write running statistics into the layer."""
    if module.running_mean is not None and module.running_var is not None:
        module.running_mean.copy_(mean)
        module.running_var.copy_(variance)


def normalize_rows(module: Norm, rows: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Return the output of the layer for rows of its input, with other statistics.

    Args:
        module: The layer; its weight and bias are used.
        rows: Shape ``(n_rows, channels)``.
        mean: Shape ``(channels,)``.
        variance: Shape ``(channels,)``.

    >>> norm = nn.BatchNorm2d(1, eps=0.0)
    >>> normalize_rows(norm, torch.tensor([[3.0]]), torch.tensor([1.0]), torch.tensor([4.0]))
    tensor([[1.]], dtype=torch.float64)
    """
    normed = (rows.double() - mean) / (variance + module.eps).sqrt()
    if module.affine:
        normed = normed * module.weight.detach().double() + module.bias.detach().double()
    return normed

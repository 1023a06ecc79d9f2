"""Running statistics of batch normalization after a cut."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Normalization:
    """A normalization by running statistics: the tensors of the network, not copies.

    Args:
        mean: Running mean, shape ``(channels,)``.
        variance: Running variance, shape ``(channels,)``.
        weight: Factor of each channel, or None.
        bias: What is added to each channel, or None.
        eps: What is added to the variance.
    """

    mean: Tensor
    variance: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float

    def __call__(self, rows: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """Return the output for rows of the input, with other statistics, in float64.

        Args:
            rows: Shape ``(n_rows, channels)``.
            mean: Shape ``(channels,)``.
            variance: Shape ``(channels,)``.

        >>> import torch
        >>> norm = Normalization(torch.zeros(1), torch.ones(1), None, None, eps=0.0)
        >>> norm(torch.tensor([[3.0]]), torch.tensor([1.0]), torch.tensor([4.0]))
        tensor([[1.]], dtype=torch.float64)
        """
        normed = (rows.double() - mean) / (variance + self.eps).sqrt()
        if self.weight is not None:
            normed = normed * self.weight.detach().double()
        return normed if self.bias is None else normed + self.bias.detach().double()

    def moved(self, teacher: "Moments", student: "Moments") -> tuple[Tensor, Tensor]:
        """Return running statistics moved by what the cut changed on the calibration examples.

        The mean moves by the difference, the variance by the quotient, of what teacher and
        student show on the same examples. Other than with statistics of these few examples
        alone, what was learned from all training examples stays, and an unchanged network keeps
        its statistics.

        Args:
            teacher: What the layer reads in the teacher, kept channels only.
            student: What it reads in the student.

        Returns:
            Running mean and running variance, float64.
        """
        floor = 1e-12 + 1e-6 * teacher.variance.mean()
        factor = (student.variance + floor) / (teacher.variance + floor)
        mean = self.mean.double() + student.mean - teacher.mean
        return mean, self.variance.double() * factor


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

    >>> import torch
    >>> found = moments(torch.tensor([[1.0], [3.0]]))
    >>> found.mean.item(), found.variance.item()
    (2.0, 1.0)
    """
    rows = tensor.detach().transpose(0, 1).flatten(1).double()
    return Moments(rows.shape[1], rows.sum(1), rows.square().sum(1))

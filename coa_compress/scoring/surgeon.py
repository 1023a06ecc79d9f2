"""Scores of what a channel costs once its readers are refitted in closed form."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from coa_compress.artifacts import Batch, ChannelGroup, Scores
from coa_compress.protocols import Loss
from coa_compress.scoring.fisher import score_fisher
from coa_compress.scoring.readers import (
    Moments,
    input_moments,
    is_reader,
    reader_paths,
    reading_dim,
)
from coa_compress.scoring.reconstruction import ridged

_TINY = 1e-300


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """How one layer reads a group, while channels are removed one by one.

    Args:
        products: Second moments of all its features, before any is removed.
        precision: Inverse of the second moments of the features that are left.
        weights: Inner products of the weight columns of every two features.
        positions: Features of each channel, shape ``(n_channels, repeats)``.
    """

    products: Tensor
    precision: Tensor
    weights: Tensor
    positions: Tensor

    @property
    def sizes(self) -> Tensor:
        """Mean square of what the layer computes from each channel, ``(n_channels,)``."""
        places = self.positions
        return (_blocks(self.weights, places) * _blocks(self.products, places)).sum((1, 2))

    @property
    def costs(self) -> Tensor:
        """Mean squared error of the layer, refitted without one more channel, ``(n_channels,)``."""
        places = self.positions
        if places.shape[1] == 1:  # the same without a system to solve for each channel
            both = self.weights.diagonal(), self.precision.diagonal()
            weight, precision = (diagonal[places[:, 0]] for diagonal in both)
            return (weight / precision.clamp(min=_TINY)).clamp(min=0)
        left = _blocks(self.precision, places)
        solved: Tensor = torch.linalg.solve(left, _blocks(self.weights, places))
        return solved.diagonal(dim1=1, dim2=2).sum(1).clamp(min=0)

    def without(self, channel: int) -> "Reading":
        """Return the layer after the removal of a channel, its other weights refitted."""
        gone = self.positions[channel]
        rows = torch.linalg.solve(self.precision[gone][:, gone], self.precision[gone])
        precision = self.precision - self.precision[:, gone] @ rows
        # weights w - w[gone] @ rows: products of columns follow
        mixed = self.weights[:, gone] @ rows
        weights = self.weights - mixed - mixed.t() + rows.t() @ self.weights[gone][:, gone] @ rows
        for matrix in (precision, weights):
            matrix[gone, :] = 0
            matrix[:, gone] = 0
        precision[gone, gone] = 1
        return Reading(self.products, precision, weights, self.positions)


def score_surgeon(
    model: nn.Module, groups: Sequence[ChannelGroup], batches: Sequence[Batch], loss: Loss
) -> Scores:
    """Score each channel by its second-order cost after the layers that read it are refitted.

    As in the optimal brain surgeon (Hassibi & Stork 1993), the least costly channel goes first, and
    the weights of the readers make up for it in closed form before the next one is chosen (for the
    error of a layer: Frantar & Alistarh 2022, arXiv:2208.11580). With the inverse ``P`` of the
    second moments of a reader's input, removing channel ``c`` raises its squared error by
    ``|w[c]|**2 / P[c, c]``, and ``w`` becomes ``w - w[c] * P[c] / P[c, c]``. Of two equal channels
    the first is free, and the other then costs what both are worth.

    The error counts as much as the output is sensitive to the group: the ratio of ``score_fisher``
    to the mean square that a channel gives its readers, as the geometric mean over its channels.
    The score of a channel is the highest cost up to its removal, so that channels with the lowest
    scores are those that went first, and the sum of the scores of the channels cut is what cutting
    them together costs.

    Args:
        model: The teacher.
        groups: Its channel groups. Groups that no layer reads with all its outputs have the score
            of ``score_fisher``.
        batches: Examples.
        loss: What the removal must not raise.

    Returns:
        Shape ``(n_channels,)`` by group name, float64, on the CPU.

    Raises:
        SettingError: If there is no example.
        ModelError: If a gradient is not finite.
        StructureError: If a group names a tensor that is not in the model.

    >>> from coa_compress.artifacts import Member
    >>> net = nn.Sequential(nn.Linear(3, 1, bias=False))
    >>> with torch.no_grad(): _ = net[0].weight.copy_(torch.tensor([[1.0, 1.0, 1.0]]))
    >>> member = Member("0.weight", 1, "input", torch.arange(3)[:, None])
    >>> x = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    >>> [round(v, 2) for v in score_surgeon(
    ...     net, [ChannelGroup("in", 3, (member,))], [Batch(x, torch.zeros(2, 1))],
    ...     lambda output, batch: output.sum())["in"].tolist()]
    [0.0, 1.0, 0.25]
    """
    scores = dict(score_fisher(model, groups, batches, loss))
    places = reader_paths(model, groups)
    moments = input_moments(model, sorted({p for r in places.values() for p in r}), batches)
    modules = dict(model.named_modules(remove_duplicate=False))
    for group in groups:
        readings = [
            reading_of(modules[path], moments[path], positions)
            for path, positions in places[group.name].items()
            if path in moments
        ]
        if readings:
            scores[group.name] = _removal_costs(readings, scores[group.name])
    return scores


def reading_of(module: nn.Module, moments: Moments, positions: Tensor) -> Reading:
    """Return how a layer reads channels, in units of the mean square of what it computes.

    Args:
        module: A layer for which ``is_reader`` holds.
        moments: Of its input.
        positions: Input channels of each channel of the group, shape ``(n_channels, repeats)``.

    Raises:
        TypeError: If the layer does not mix its channels linearly.
    """
    if not is_reader(module):
        message = f"a {type(module).__name__} does not read channels linearly"
        raise TypeError(message)
    weight = module.weight.detach().double().cpu().movedim(reading_dim(module), -1)
    columns = weight.reshape(-1, weight.shape[-1])
    weights = torch.zeros_like(moments.products)
    weights[: moments.n_channels, : moments.n_channels] = columns.t() @ columns
    # relative, so that layers of any scale can be added up
    whole = float((weights * moments.products).sum())
    precision = torch.linalg.pinv(ridged(moments), hermitian=True)
    return Reading(moments.products, precision, weights / max(whole, _TINY), positions)


def _removal_costs(readings: Sequence[Reading], fisher: Tensor) -> Tensor:
    sizes = _sum(reading.sizes for reading in readings)
    sensitivity = _geometric_mean(fisher / sizes.clamp(min=_TINY))
    left = torch.ones(len(fisher), dtype=torch.bool)
    scores, highest = torch.zeros_like(fisher), 0.0
    for _ in range(len(fisher)):
        costs = sensitivity * _sum(reading.costs for reading in readings)
        channel = int(costs.masked_fill(~left, torch.inf).argmin())
        highest = max(highest, float(costs[channel]))
        scores[channel] = highest
        left[channel] = False
        readings = [reading.without(channel) for reading in readings]
    return scores


def _geometric_mean(values: Tensor) -> float:
    """Return it over the values above 0, as dead channels say nothing; 0 if there are none."""
    alive = values[values > 0]
    return float(alive.log().mean().exp()) if len(alive) else 0.0


def _blocks(matrix: Tensor, positions: Tensor) -> Tensor:
    return matrix[positions[:, :, None], positions[:, None, :]]


def _sum(tensors: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(tensors)).sum(0)

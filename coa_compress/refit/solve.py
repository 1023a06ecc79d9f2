"""Ridge least squares that stays near the present solution, within a bounded memory."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_LEAST_RIDGE = 1e-10
"""Below this the factorization may fail in float64."""
_BLOCK = 512
"""Features that are widened to float64 at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """A change of weights, and how well it does on rows that it was not fitted to.

    Args:
        update: Shape ``(groups, features, outputs)``; None when no penalty gave one.
        shifts: A constant for each bias and output, shape ``(biases, groups, outputs)``.
        error: Sum of the squares that are left on the rows held out.
        error_before: The same without the change.
    """

    update: Tensor | None
    shifts: Tensor
    error: float
    error_before: float


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Some positions of one run: what is read, and what is missing in the output.

    Args:
        values: Shape ``(groups, n_rows, features)``.
        residual: Shape ``(groups, n_rows, outputs)``, float64.
        held: Which rows judge and are not fitted to, shape ``(n_rows,)``.
        bias: Number of the bias that is added there; -1 for none.
    """

    values: Tensor
    residual: Tensor
    held: Tensor
    bias: int


class NormalEquations:
    """Sums over rows: enough to fit and to judge, whatever the number of rows.

    Args:
        groups: Groups of the operator.
        n_biases: How many biases there are.
    """

    def __init__(self, n_biases: int) -> None:
        self._n_biases = n_biases
        self._sums: dict[bool, tuple[Tensor, Tensor]] = {}
        self._squares = {False: 0.0, True: 0.0}

    def add_(self, rows: Rows) -> None:
        """Add some rows."""
        for held in (False, True):
            chosen = rows.held if held else ~rows.held
            if not chosen.any():
                continue
            values = self._with_constants(rows.values[:, chosen].double(), rows.bias)
            residual = rows.residual[:, chosen]
            across = values.transpose(1, 2)
            gram, right = across @ values, across @ residual
            if held in self._sums:
                self._sums[held][0].add_(gram)
                self._sums[held][1].add_(right)
            else:
                self._sums[held] = gram, right
            self._squares[held] += float(residual.square().sum())

    def _with_constants(self, values: Tensor, bias: int) -> Tensor:
        constants = values.new_zeros(*values.shape[:2], self._n_biases)
        if bias >= 0:
            constants[..., bias] = 1
        return torch.cat([values, constants], dim=2)

    def best(self, ridges: Sequence[float]) -> Fit:
        """Return the fit, of several penalties, that leaves least on the rows held out."""
        if len(self._sums) < 2:
            empty = torch.zeros(self._n_biases, 1, 1)
            return Fit(None, empty, self._squares[True], self._squares[True])
        gram, right = self._sums[False]
        n_features = gram.shape[1] - self._n_biases
        constants = torch.zeros(self._n_biases, *right.shape[::2]).to(right)
        before = self._squares[True]
        best = Fit(None, constants, before, before)
        penalty = self._penalty(gram, n_features)
        for ridge in ridges:
            # a direction that nothing is known of is left alone
            scaled = torch.where(penalty > 0, max(ridge, _LEAST_RIDGE) * penalty, 1.0)
            scaled[:, n_features:] = _LEAST_RIDGE
            factor, failed = torch.linalg.cholesky_ex(gram + torch.diag_embed(scaled))
            if failed.any():
                continue
            solved = torch.cholesky_solve(right, factor)
            error = self._error(solved)
            if error < best.error:
                shifts = solved[:, n_features:].movedim(1, 0)
                best = Fit(solved[:, :n_features], shifts, error, before)
        return best

    def _penalty(self, gram: Tensor, n_features: int) -> Tensor:
        """Return the mean square of a feature about its mean, once for each column."""
        spread = gram.diagonal(dim1=1, dim2=2)[:, :n_features].sum(1)
        for bias in range(n_features, gram.shape[1]):
            count = gram[:, bias, bias].clamp(min=1)
            spread = spread - gram[:, bias, :n_features].square().sum(1) / count
        mean = (spread / n_features).clamp(min=0)
        return mean[:, None].expand(-1, gram.shape[1])

    def _error(self, solved: Tensor) -> float:
        gram, right = self._sums[True]
        explained = 2 * (solved * right).sum() - (solved * (gram @ solved)).sum()
        return max(0.0, self._squares[True] - float(explained))


class FewRows:
    """All rows, kept in single precision: for more features than can be multiplied out.

    The solution is found among combinations of the rows, a matrix of rows by rows.

    Args:
        n_biases: How many biases there are.
    """

    def __init__(self, n_biases: int) -> None:
        self._n_biases = n_biases
        self._parts: list[Rows] = []

    def add_(self, rows: Rows) -> None:
        """Add some rows."""
        self._parts.append(rows)

    def best(self, ridges: Sequence[float]) -> Fit:
        """Return the fit, of several penalties, that leaves least on the rows held out."""
        values = torch.cat([part.values for part in self._parts], dim=1)
        residual = torch.cat([part.residual for part in self._parts], dim=1)
        held = torch.cat([part.held for part in self._parts])
        bias = torch.cat([torch.full_like(p.held, p.bias, dtype=torch.int64) for p in self._parts])
        self._parts.clear()
        middles, levels = self._center_(values, residual, held, bias)
        fitting, judging = ~held, held
        kernel = _inner_products(values, fitting)
        before_rows = residual[:, judging] + self._per_row(levels, bias[judging])
        before = float(before_rows.square().sum())
        best_error, best_solved = before, None
        spread = kernel[:, fitting].diagonal(dim1=1, dim2=2).sum(1) / values.shape[2]
        right = residual[:, fitting]
        for ridge in ridges:
            scaled = torch.where(spread > 0, max(ridge, _LEAST_RIDGE) * spread, 1.0)
            system = kernel[:, fitting] + torch.diag_embed(
                scaled[:, None].expand(-1, len(right[0]))
            )
            factor, failed = torch.linalg.cholesky_ex(system)
            if failed.any():
                continue
            solved = torch.cholesky_solve(right, factor)
            left = residual[:, judging] - kernel[:, judging] @ solved
            error = float(left.square().sum())
            if error < best_error:
                best_error, best_solved = error, solved
        if best_solved is None:
            return Fit(None, levels, before, before)
        update = _combined(values, fitting, best_solved)
        shifts = levels - torch.einsum("bgf,gfo->bgo", middles.to(update), update).double()
        return Fit(update, shifts, best_error, before)

    def _center_(
        self, values: Tensor, residual: Tensor, held: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Take off the means of the rows to fit to, for each bias; return them."""
        middles = values.new_zeros(self._n_biases, len(values), values.shape[2])
        levels = residual.new_zeros(self._n_biases, len(values), residual.shape[2])
        for number in range(self._n_biases):
            own = bias == number
            known = own & ~held
            if known.any():
                middles[number] = values[:, known].mean(1)
                levels[number] = residual[:, known].mean(1)
                values[:, own] -= middles[number][:, None]
                residual[:, own] -= levels[number][:, None]
        return middles, levels

    def _per_row(self, levels: Tensor, bias: Tensor) -> Tensor:
        if self._n_biases == 0:
            return levels.new_zeros(())
        return (levels[bias.clamp(min=0)] * (bias >= 0)[:, None, None]).movedim(0, 1)


def _inner_products(values: Tensor, fitting: Tensor) -> Tensor:
    """Return all rows times the rows to fit to, float64, block of features by block."""
    kernel = values.new_zeros(len(values), values.shape[1], int(fitting.sum()), dtype=torch.float64)
    for block in torch.split(values, _BLOCK, dim=2):
        wide = block.double()
        kernel += wide @ wide[:, fitting].transpose(1, 2)
    return kernel


def _combined(values: Tensor, fitting: Tensor, solved: Tensor) -> Tensor:
    """Return the combination of the rows, in their precision, block of features by block."""
    update = values.new_empty(len(values), values.shape[2], solved.shape[2])
    for start in range(0, values.shape[2], _BLOCK):
        block = values[:, fitting, start : start + _BLOCK].double()
        update[:, start : start + _BLOCK] = (block.transpose(1, 2) @ solved).to(update)
    return update


@dataclass(frozen=True, slots=True)
class Effort:
    """How a system is solved, and from how many rows.

    Args:
        positions: Rows at most.
        multiplied_out: Whether its normal equations are formed.
    """

    positions: int
    multiplied_out: bool


def effort(positions: int, groups: int, features: int, *, max_memory_mb: float) -> Effort:
    """Return how to solve a system within a memory.

    Args:
        positions: Rows that are asked for.
        groups: Groups of the operator.
        features: Features of one group.
        max_memory_mb: What rows and matrices may take, in MiB.

    >>> effort(4096, 1, 576, max_memory_mb=512)
    Effort(positions=4096, multiplied_out=True)
    >>> effort(4096, 1, 36864, max_memory_mb=512)
    Effort(positions=1609, multiplied_out=False)
    """
    memory = max_memory_mb * 2**20
    # two Gram matrices, and two factors that are made of one
    gram_fits = 4 * 8 * groups * features**2 <= memory
    if gram_fits and features <= positions:
        most = int(memory / (8 * groups * features))
        return Effort(max(1, min(positions, most)), multiplied_out=True)
    # rows * features in single precision twice, while they are joined; three matrices of rows
    linear, square = 8.0 * groups * features, 24.0 * groups
    most = (-linear + (linear**2 + 4 * square * memory) ** 0.5) / (2 * square)
    return Effort(max(1, min(positions, int(most))), multiplied_out=False)

"""Ridge least squares that stays near the present solution."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_LEAST_RIDGE = 1e-10
"""Below this the factorization may fail in float64."""


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """A change of weights, and what it leaves unexplained.

    Args:
        update: Float64, shape ``(groups, features, outputs)``.
        shift: Shape ``(groups, outputs)``, or None without intercept.
        left: What is left of the residual on the rows held out, ``(groups, n_held, outputs)``.
    """

    update: Tensor
    shift: Tensor | None
    left: Tensor


def best_update(
    rows: Tensor, residual: Tensor, held: Tensor, *, ridges: Sequence[float], intercept: bool
) -> Fit:
    """Return the update, of several penalties, that leaves least on the rows held out.

    Args:
        rows: Shape ``(groups, n_rows, features)``, float64.
        residual: Shape ``(groups, n_rows, outputs)``, float64.
        held: Which rows judge and are not fitted to, shape ``(n_rows,)``.
        ridges: Penalties, see ``ridge_updates``.
        intercept: Whether a constant may be added.

    Returns:
        The best fit; an update of zero where there is none.

    >>> rows = torch.arange(4.0).double().view(1, 4, 1)
    >>> held = torch.tensor([False, False, False, True])
    >>> fit = best_update(rows, 2 * rows, held, ridges=[0.0, 1.0], intercept=False)
    >>> round(float(fit.update), 4)
    2.0
    """
    shape = (len(rows), rows.shape[2], residual.shape[2])
    best = Fit(rows.new_zeros(shape), None, residual[:, held])
    least = float("inf")
    for update, shift in ridge_updates(
        rows[:, ~held], residual[:, ~held], ridges=ridges, intercept=intercept
    ):
        left = residual[:, held] - rows[:, held] @ update
        if shift is not None:
            left = left - shift[:, None]
        error = float(left.square().sum())
        if error < least:
            best, least = Fit(update, shift, left), error
    return best


def ridge_updates(
    rows: Tensor, residual: Tensor, *, ridges: Sequence[float], intercept: bool
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield the change of weights that best explains a residual, for several penalties.

    Each minimizes ``|rows @ update + shift - residual|**2 + penalty * |update|**2``, where the
    penalty is ``ridge`` times the mean diagonal of the Gram matrix; directions that the rows do
    not show are left alone. Solved in float64, in whichever of the two forms is smaller.

    Args:
        rows: Shape ``(groups, n_rows, features)``.
        residual: Shape ``(groups, n_rows, outputs)``.
        ridges: Penalties, relative; from 0.
        intercept: Whether a constant may be added.

    Yields:
        The update, float64, shape ``(groups, features, outputs)``, and the shift, shape
        ``(groups, outputs)``, or None without intercept; nothing for a penalty that leaves
        the system singular, as values that are not finite do.

    >>> rows = torch.tensor([[[1.0], [2.0], [3.0]]])
    >>> for update, shift in ridge_updates(rows, 2 * rows + 1, ridges=[0.0], intercept=True):
    ...     round(float(update), 4), round(float(shift), 4)
    (2.0, 1.0)
    """
    rows, residual = rows.double(), residual.double()
    middle, level = rows.mean(1, keepdim=True), residual.mean(1, keepdim=True)
    if intercept:
        rows, residual = rows - middle, residual - level
    for update in _solutions(rows, residual, ridges):
        yield update, (level - middle @ update)[:, 0] if intercept else None


def _solutions(rows: Tensor, residual: Tensor, ridges: Sequence[float]) -> Iterator[Tensor]:
    _, n_rows, features = rows.shape
    across = rows.transpose(1, 2)
    primal = features <= n_rows
    gram = across @ rows if primal else rows @ across
    right = across @ residual if primal else residual
    mean_square = rows.square().sum(dim=(1, 2), keepdim=True) / features
    for ridge in ridges:
        # a group that shows nothing gets no update
        penalty = torch.where(mean_square > 0, max(ridge, _LEAST_RIDGE) * mean_square, 1.0)
        factor, failed = torch.linalg.cholesky_ex(gram + penalty * torch.eye(len(gram[0])).to(gram))
        if not failed.any():
            solved = torch.cholesky_solve(right, factor)
            yield solved if primal else across @ solved

"""What a measured sensitivity curve says of the widths between those that were measured."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from coa_compress.artifacts import SensitivityCurve


def curve_losses(curve: SensitivityCurve) -> NDArray[np.float64]:
    """Return the loss at every width from one that was measured at some.

    A loss that falls where the width falls is noise and is raised to that of the next wider one.
    Between two measured widths the logarithm of the loss is interpolated, or the loss itself
    where one of them is 0, as at the full width. Below the least measured width the loss goes on
    as steeply as between the last two, at least with the square of ``1 / width``.

    Args:
        curve: Widths and losses; the last width is the full one.

    Returns:
        Shape ``(n_channels + 1,)``, never rising with the width; 0 at the full width.

    >>> curve_losses(SensitivityCurve(widths=(2, 4, 5), losses=(0.4, 0.1, 0.0))).round(3).tolist()
    [1.6, 1.6, 0.4, 0.2, 0.1, 0.0]
    """
    measured = np.maximum.accumulate(np.maximum(curve.losses, 0.0)[::-1])[::-1]
    measured[-1] = 0.0
    losses = np.zeros(curve.widths[-1] + 1)
    for (low, a), (high, b) in pairwise(zip(curve.widths, measured.tolist(), strict=True)):
        part = (np.arange(low, high + 1) - low) / (high - low)
        between = a ** (1 - part) * b**part if b > 0 else a + (b - a) * part
        losses[low : high + 1] = between
    least = curve.widths[0]
    if least > 0:
        losses[:least] = _below(curve.widths, measured)
    return np.asarray(np.maximum.accumulate(losses[::-1])[::-1])


def _below(widths: Sequence[int], measured: NDArray[np.float64]) -> NDArray[np.float64]:
    least = widths[0]
    under = np.arange(least)
    grown = (least / np.maximum(under, 1)) ** 2.0
    if len(widths) > 1 and measured[1] > 0:
        steepness = (np.log(measured[0]) - np.log(measured[1])) / (widths[1] - least)
        grown = np.maximum(grown, np.exp(np.minimum(steepness * (least - under), 50.0)))
    below: NDArray[np.float64] = measured[0] * grown
    return below

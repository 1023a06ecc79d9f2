"""One loss of several, whose sizes need not be known."""

from collections.abc import Mapping

import torch
from torch import Tensor

from coa_compress.errors import TrainingError

_LEAST = 1e-8


def geometric_mean(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Return the weighted geometric mean of losses (Chennupati et al. 2019, arXiv:1904.08492).

    Its gradient is that of the sum of ``weight * loss / loss.detach()``, times a common factor:
    what counts is by which part each loss falls, whatever its size. The same gradient is that of
    the homoscedastic uncertainty weighting of Kendall et al. 2018 (arXiv:1705.07115) at the best
    uncertainties, so nothing has to be trained along, and nothing remembered from step to step.

    Args:
        losses: Scalars from 0 by name.
        weights: Part of each of them, above 0; losses not named here do not count.

    Raises:
        TrainingError: If no loss has a weight.

    >>> losses = {"a": torch.tensor(1.0), "b": torch.tensor(100.0)}
    >>> geometric_mean(losses, {"a": 1.0, "b": 1.0}).round(decimals=3).item()
    10.0
    """
    total = sum(weights.values())
    if total <= 0:
        message = "no loss has a weight above 0: there is nothing to balance"
        raise TrainingError(message)
    logs = [
        weight / total * losses[name].float().reshape(()).clamp_min(_LEAST).log()
        for name, weight in weights.items()
    ]
    return torch.stack(logs).sum().exp()

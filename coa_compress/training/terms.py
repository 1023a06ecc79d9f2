"""Named loss terms: which ones count, and their values under a common prefix."""

from collections.abc import Mapping

from torch import Tensor

from coa_compress.errors import TrainingError
from coa_compress.protocols import NamedLoss
from coa_compress.registry import did_you_mean


def weighted_terms(
    losses: Mapping[str, NamedLoss], weights: Mapping[str, float], *, where: str
) -> dict[str, float]:
    """Return the weights that are not 0, each checked to belong to a loss.

    Args:
        losses: Every loss that there is.
        weights: Weight of some of them; 0 is allowed and costs nothing.
        where: Key of the recipe, for messages.

    Raises:
        TrainingError: If a weight belongs to no loss, with the closest one.

    >>> weighted_terms({"l1": lambda a, b: a, "ssim": lambda a, b: a}, {"ssim": 0.0}, where="x")
    {}
    """
    for name in weights:
        if name not in losses:
            message = f"{where} names no loss {name!r}: {did_you_mean(name, losses)}"
            raise TrainingError(message)
    return {name: weight for name, weight in weights.items() if weight != 0.0}


def prefixed(prefix: str, weights: Mapping[str, float]) -> dict[str, float]:
    """Return the same weights under longer names.

    >>> prefixed("truth", {"l1": 1.0})
    {'truth.l1': 1.0}
    """
    return {f"{prefix}.{name}": weight for name, weight in weights.items()}


def values_of_terms(
    prefix: str,
    losses: Mapping[str, NamedLoss],
    weights: Mapping[str, float],
    *,
    output: Tensor,
    against: Tensor,
) -> dict[str, Tensor]:
    """Return the unweighted losses that count, under ``<prefix>.<name>``; scalars.

    Args:
        prefix: What the losses are against.
        losses: Every loss that there is.
        weights: Those that count.
        output: What a network returned.
        against: What it is held against, same shape.
    """
    return {f"{prefix}.{name}": losses[name](output, against) for name in weights}

"""The weighted sum of named losses, and the mistakes that would make it mean nothing."""

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from coa_compress.errors import TrainingError
from coa_compress.registry import did_you_mean
from coa_compress.training.processes import ALONE, Processes


def check_weights(weights: Mapping[str, float]) -> None:
    """Check that some loss counts.

    Args:
        weights: Weight of each named loss.

    Raises:
        TrainingError: If a weight is not finite, or none differs from 0.

    >>> check_weights({"l1": 0.0})
    Traceback (most recent call last):
    coa_compress.errors.TrainingError: every loss weight is 0 (l1): give at least one a weight
    """
    for name, weight in weights.items():
        if not math.isfinite(weight):
            message = f"the weight of loss {name!r} is {weight}: it must be a finite number"
            raise TrainingError(message)
    if not any(weights.values()):
        names = ", ".join(sorted(weights)) or "there is none"
        message = f"every loss weight is 0 ({names}): give at least one a weight"
        raise TrainingError(message)


def check_names(returned: Collection[str], weights: Mapping[str, float]) -> None:
    """Check that every weight belongs to a loss that exists.

    Args:
        returned: Names of the losses that were computed.
        weights: Weight of each named loss.

    Raises:
        TrainingError: If a weighted name was not returned, with the closest one that was.

    >>> check_names(["l1", "ssim"], {"sim": 0.1})
    Traceback (most recent call last):
    coa_compress.errors.TrainingError: no loss named 'sim': did you mean ssim? known: l1, ssim
    """
    for name in weights:
        if name not in returned:
            message = f"no loss named {name!r}: {did_you_mean(name, returned)}"
            raise TrainingError(message)


def weighted_total(named: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Return the sum of each loss times its weight, in float32.

    Args:
        named: Scalar losses by name; one without a weight, or with weight 0, does not count.
        weights: Weight of each named loss; at least one differs from 0.

    Returns:
        A scalar that carries a gradient.

    Raises:
        TrainingError: If a loss is not a scalar, or one that counts carries no gradient.

    >>> x = torch.ones(2, requires_grad=True)
    >>> weighted_total({"a": x.sum(), "b": x.prod()}, {"a": 0.5}).item()
    1.0
    """
    total: Tensor | None = None
    for name, loss in named.items():
        if loss.numel() != 1:
            message = f"loss {name!r} has shape {tuple(loss.shape)}: reduce it to one number"
            raise TrainingError(message)
        weight = weights.get(name, 0.0)
        if weight == 0.0:
            continue
        if not loss.requires_grad:
            message = (
                f"loss {name!r} has weight {weight:g} but carries no gradient (a tap without "
                f"gradient): compute it from the trained network, outside no_grad and without "
                f"detach, or set its weight to 0"
            )
            raise TrainingError(message)
        term = weight * loss.float().reshape(())
        total = term if total is None else total + term
    if total is None:
        message = f"no loss has a weight ({', '.join(named)}): give at least one a weight"
        raise TrainingError(message)
    return total


def values_of(named: Mapping[str, Tensor], processes: Processes = ALONE) -> dict[str, float]:
    """Return plain numbers, read from the device in one go.

    Args:
        named: Scalar losses by name.
        processes: The numbers are means over them.

    >>> values_of({"a": torch.tensor(0.5), "b": torch.tensor([2.0])})
    {'a': 0.5, 'b': 2.0}
    """
    if not named:
        return {}
    flat = torch.stack([loss.detach().float().reshape(()) for loss in named.values()])
    return dict(zip(named, processes.mean(flat).tolist(), strict=True))

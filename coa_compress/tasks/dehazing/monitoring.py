"""How an adaptation to real haze goes, told without truth."""

from collections.abc import Callable, Mapping

from torch import nn

from coa_compress.tasks.dehazing.no_reference import HAZE, QUALITY

_ALLOWED_DROP = 0.02
_ALLOWED_LOSS_DB = 0.2
_PRICE = 5.0
_PRICE_OF_DB = 2.0


def monitor(
    measure: Callable[[nn.Module], Mapping[str, float]], reference: nn.Module
) -> Callable[[nn.Module], float]:
    """Return a judge that scores networks by how far haze fell, less what was paid for it.

    Args:
        measure: Measures a network by name: haze measures and quality measures on real images,
            and ``psnr_db`` on labelled ones.
        reference: The student before adaptation; measured once, when first needed.

    Returns:
        A function of a network: 0 for the reference, higher is better.
    """
    known: dict[str, float] = {}

    def score(model: nn.Module) -> float:
        if not known:
            known.update(measure(reference))
        return adaptation_score(known, measure(model))

    return score


def adaptation_score(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """Return the mean relative fall of the haze measures, less the price of losses.

    Quality may fall by 2 % and PSNR by 0.2 dB for nothing; beyond that each percent of quality
    costs five of haze, and each 0.1 dB twenty.

    Args:
        before: Measures before adaptation.
        after: The same measures after it.

    >>> old = {"fade": 2.0, "dark_channel_density": 0.2, "niqe": 4.0, "psnr_db": 27.0}
    >>> new = old | {"fade": 1.5, "dark_channel_density": 0.15}
    >>> round(adaptation_score(old, new), 3), round(adaptation_score(old, new | {"niqe": 4.4}), 3)
    (0.25, -0.15)
    """
    falls = [_relative_fall(before[name], after[name]) for name in HAZE]
    score = sum(falls) / len(falls)
    for name in QUALITY:  # lower is better
        drop = -_relative_fall(before[name], after[name])
        score -= _PRICE * max(0.0, drop - _ALLOWED_DROP)
    lost = before["psnr_db"] - after["psnr_db"]
    return score - _PRICE_OF_DB * max(0.0, lost - _ALLOWED_LOSS_DB)


def _relative_fall(before: float, after: float) -> float:
    return (before - after) / max(abs(before), 1e-12)

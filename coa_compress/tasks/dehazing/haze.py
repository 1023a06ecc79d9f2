"""The scattering model of haze, its inverse, and random haze for training."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from coa_compress.errors import SettingError

_LIGHT = (0.04, 0.25)
_DENSE = (0.2, 0.8)
_INDOOR = (0.1, 1.6)
_HEAVY = {"outdoor": (0.5, 1.3), "indoor": (1.5, 4.0)}
_HEAVY_LIGHT = (0.6, 0.95)
_TYPICAL = {
    "outdoor": ((0.04, 0.2), (0.8, 1.0)),
    "indoor": ((0.1, 1.5), (0.7, 1.0)),
}
_DENSE_PROBABILITY = 0.2
_TINT_PROBABILITY = 0.3
_TINT = 0.08


@dataclass(frozen=True, slots=True, eq=False)
class Haze:
    """How an atmosphere scatters light.

    Args:
        beta: Scattering coefficient, per unit of depth, from 0.
        airlight: Color of the haze, shape ``(3,)``, values in ``[0, 1]``.
    """

    beta: float
    airlight: Tensor


def transmission(depth: Tensor, beta: float) -> Tensor:
    """Return the fraction of light that arrives, ``exp(-beta * depth)``, in ``(0, 1]``.

    Args:
        depth: Distance along the line of sight, any shape, from 0, in the unit of ``1 / beta``.
        beta: Scattering coefficient, from 0.

    Raises:
        SettingError: If ``beta`` is negative.

    >>> transmission(torch.tensor([0.0, 2.0]), 0.5)
    tensor([1.0000, 0.3679])
    """
    if beta < 0:
        message = f"beta must be at least 0, got {beta}"
        raise SettingError(message)
    return torch.exp(-beta * depth)


def add_haze(clear: Tensor, passed: Tensor, airlight: Tensor) -> Tensor:
    """Return ``I = J t + A (1 - t)`` (Koschmieder 1924; Narasimhan and Nayar 2002).

    Args:
        clear: Scene radiance J, shape ``(3, height, width)``, values in ``[0, 1]``.
        passed: Transmission t, shape ``(1, height, width)``, values in ``[0, 1]``.
        airlight: A, shape ``(3,)``, or ``(3, height, width)`` where it differs from place to place.

    Returns:
        Shape ``(3, height, width)``, values in ``[0, 1]``.

    >>> add_haze(torch.zeros(3, 1, 1), torch.full((1, 1, 1), 0.25), torch.ones(3)).flatten()
    tensor([0.7500, 0.7500, 0.7500])
    """
    color = _over_pixels(airlight)
    return color + (clear - color) * passed


def remove_haze(hazy: Tensor, passed: Tensor, airlight: Tensor, *, floor: float = 1e-3) -> Tensor:
    """Return the radiance J that ``add_haze`` made ``hazy`` from; not clamped.

    Args:
        hazy: Shape ``(3, height, width)``.
        passed: Transmission, shape ``(1, height, width)``.
        airlight: Shape ``(3,)`` or ``(3, height, width)``.
        floor: Transmission below this is raised to it, so that noise is not blown up.

    >>> hazy = add_haze(torch.full((3, 1, 1), 0.5), torch.full((1, 1, 1), 0.5), torch.ones(3))
    >>> remove_haze(hazy, torch.full((1, 1, 1), 0.5), torch.ones(3)).flatten()
    tensor([0.5000, 0.5000, 0.5000])
    """
    color = _over_pixels(airlight)
    return color + (hazy - color) / passed.clamp(min=floor)


def sample_haze(domain: str, generator: torch.Generator) -> Haze:
    """Return random haze of the strength that occurs in a domain.

    Args:
        domain: ``outdoor``, where depth has a median of about 3, or ``indoor``, about 1.
        generator: The only source of randomness.

    Raises:
        SettingError: If the domain is neither.
    """
    domain = _checked(domain)
    kind, level, light, tint = torch.rand(4, generator=generator).tolist()
    color = torch.rand(3, generator=generator)
    if domain == "indoor":
        beta = _between(_INDOOR, level)
        brightness = _between((0.7, 1.0), light)
    else:
        dense = kind < _DENSE_PROBABILITY
        beta = _between(_DENSE, level) if dense else _between_logs(_LIGHT, level)
        brightness = _between((0.75, 1.0), light)
    airlight = torch.full((3,), brightness)
    if tint < _TINT_PROBABILITY:
        airlight = (airlight + _TINT * (2 * color - 1)).clamp(0, 1)
    return Haze(beta, airlight)


def heavy_haze(domain: str, generator: torch.Generator) -> Haze:
    """Return haze that lets 2 to 22 % of the light through at the median depth of a domain.

    As thick as in Dense-Haze (Ancuti et al. 2019, arXiv:1904.02904), and as gray.

    Args:
        domain: ``outdoor``, where depth has a median of about 3, or ``indoor``, about 1.
        generator: The only source of randomness.

    Raises:
        SettingError: If the domain is neither.

    >>> heavy_haze("indoor", torch.Generator().manual_seed(0)).beta > 1.5
    True
    """
    betas = _HEAVY[_checked(domain)]
    level, light = torch.rand(2, generator=generator).tolist()
    return Haze(_between(betas, level), torch.full((3,), _between(_HEAVY_LIGHT, light)))


def typical_haze(domain: str, generator: torch.Generator) -> Haze:
    """Return gray haze in the ranges of RESIDE (Li et al. 2019, arXiv:1712.04143), for evaluation.

    Args:
        domain: ``outdoor`` or ``indoor``.
        generator: The only source of randomness.

    Raises:
        SettingError: If the domain is neither.
    """
    betas, lights = _TYPICAL[_checked(domain)]
    level, light = torch.rand(2, generator=generator).tolist()
    return Haze(_between(betas, level), torch.full((3,), _between(lights, light)))


def _over_pixels(airlight: Tensor) -> Tensor:
    return airlight[:, None, None] if airlight.dim() == 1 else airlight


def _checked(domain: str) -> str:
    if domain not in _TYPICAL:
        message = f"no haze domain {domain!r}: use outdoor or indoor"
        raise SettingError(message)
    return domain


def _between(limits: tuple[float, float], position: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * position


def _between_logs(limits: tuple[float, float], position: float) -> float:
    return math.exp(_between((math.log(limits[0]), math.log(limits[1])), position))

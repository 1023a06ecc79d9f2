"""A no-reference estimate of how much haze is in an image."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import torch
from torch import Tensor
from torch.nn import functional

from coa_compress.tasks.dehazing.image_statistics import (
    local_moments,
    luminance,
    normalized_contrast,
)

_LONG_SIDE = 448
_SHORT_SIDE = 32
_BINS = 64
_EPSILON = 1e-3
_REACH = 3.0
_PACKAGE = "coa_compress.tasks.dehazing"


@dataclass(frozen=True, slots=True)
class _Ridge:
    intercept: float
    mean: Mapping[str, float]
    scale: Mapping[str, float]
    weight: Mapping[str, float]


def haze_density(image: Tensor) -> float:
    """Return the estimated haze of an image: the mean of ``1 - t``; lower is clearer.

    A ridge regression from global and local statistics to the logit of ``1 - t``, fitted on
    photographs hazed at random and on real pairs (``benchmarks/fit_measures.py``). It looks at
    contrast, structure, color and entropy, not at the dark channel, so that a network guided by
    the dark channel prior is not judged by what it was trained on.

    Args:
        image: Shape ``(3, height, width)``, values in ``[0, 1]``, any size.

    Returns:
        In (0, 1): about 0.05 for a clear photograph, 0.3 and more in haze.

    >>> gray = torch.full((3, 64, 64), 0.8)
    >>> 0.5 < haze_density(gray) < 1
    True
    """
    model = _model()
    total = model.intercept
    for name, value in haze_features(image).items():
        deviation = (value - model.mean[name]) / model.scale[name]
        total += model.weight[name] * max(-_REACH, min(_REACH, deviation))
    return 1 / (1 + math.exp(-total))


def haze_features(image: Tensor) -> dict[str, float]:
    """Return the statistics that the estimate is made of, by name.

    Args:
        image: Shape ``(3, height, width)``, values in ``[0, 1]``.
    """
    small = _reduced(image.detach().float().cpu().clamp(0, 1))
    gray = luminance(small)
    mean, deviation = local_moments(gray)
    features = _contrast(gray, mean, deviation) | _color(small)
    return features | {f"{name}_squared": value**2 for name, value in features.items()}


def _contrast(gray: Tensor, mean: Tensor, deviation: Tensor) -> dict[str, float]:
    rows, columns = gray.diff(dim=0)[:, :-1], gray.diff(dim=1)[:-1]
    gradient = (rows.square() + columns.square()).sqrt()
    mscn = normalized_contrast(255 * gray)
    low, middle, high = torch.quantile(gray, torch.tensor([0.02, 0.5, 0.98])).tolist()
    counts = torch.histc(gray, bins=_BINS, min=0, max=1)
    share = counts / counts.sum()
    return {
        "deviation": float((deviation + _EPSILON).log().mean()),
        "deviation_median": float((deviation + _EPSILON).median().log()),
        "deviation_spread": float((deviation + _EPSILON).log().std()),
        "weber": float((deviation / (mean + 0.05) + _EPSILON).log().mean()),
        "gradient": float((gradient.mean() + _EPSILON).log()),
        "mscn_variance": float(mscn.var()),
        "low": low,
        "middle": middle,
        "reach": high - low,
        "entropy": float(-(share * (share + 1e-12).log2()).sum()),
    }


def _color(image: Tensor) -> dict[str, float]:
    brightest, darkest = image.amax(dim=0), image.amin(dim=0)
    saturation = (brightest - darkest) / (brightest + 0.02)
    red_green = image[0] - image[1]
    yellow_blue = (image[0] + image[1]) / 2 - image[2]
    spread = (red_green.var() + yellow_blue.var()).sqrt()
    offset = (red_green.mean().square() + yellow_blue.mean().square()).sqrt()
    return {
        "saturation": float(saturation.mean()),
        "saturation_spread": float(saturation.std()),
        "pallor": float((brightest - saturation).mean()),
        "colorfulness": float((spread + 0.3 * offset + 0.01).log()),
    }


def _reduced(image: Tensor) -> Tensor:
    height, width = image.shape[-2:]
    scale = min(1.0, _LONG_SIDE / max(height, width))
    size = tuple(max(_SHORT_SIDE, round(length * scale)) for length in (height, width))
    if size == (height, width):
        return image
    if size[0] <= height and size[1] <= width:
        return functional.interpolate(image[None], size, mode="area")[0]
    return functional.interpolate(image[None], size, mode="bilinear", align_corners=False)[0]


@cache
def _model() -> _Ridge:
    text = (files(_PACKAGE) / "weights" / "haze_density.json").read_text(encoding="utf-8")
    values = json.loads(text)
    return _Ridge(**{name: values[name] for name in ("intercept", "mean", "scale", "weight")})

"""Losses between the features of a student and those of its teacher, by name.

A term gets the features of all taps at once, so that it may weigh them itself. Most terms compare
one tap at a time: ``at_each_tap`` makes such a function a term.
"""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from coa_compress.registry import Registry

Features = Sequence[Tensor]
"""One tensor a tap, each of shape ``(batch, channels, height, width)``."""

FeatureTerm = Callable[[Features, Features, Sequence[float]], Tensor]
"""A scalar loss from 0 of a student's features, its teacher's, and each tap's part of the weight.

Both lists have the same shapes; the parts add up to 1.
"""

FEATURE_TERMS: Registry[FeatureTerm] = Registry("feature term", group="coa_compress.feature_terms")
"""Every term that ``stages.distill.feature`` may give a weight."""

_LEAST = 1e-8
_MOST_POSITIONS = 16
_PATCH = 4


def at_each_tap(one: Callable[[Tensor, Tensor], Tensor]) -> FeatureTerm:
    """Return a term that is the weighted mean of a loss over the taps.

    Args:
        one: A scalar loss of the student's and the teacher's features at one tap.

    >>> term = at_each_tap(lambda student, teacher: (student - teacher).abs().mean())
    >>> zero, one = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
    >>> term([zero, one], [one, one], [0.25, 0.75]).item()
    0.25
    """

    @functools.wraps(one)
    def term(student: Features, teacher: Features, parts: Sequence[float]) -> Tensor:
        pairs = zip(parts, student, teacher, strict=True)
        return torch.stack([part * one(mine, wanted) for part, mine, wanted in pairs]).sum()

    return term


def relative_l2(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared error of the features relative to their mean square.

    Args:
        student: Shape ``(batch, channels, height, width)``.
        teacher: The same shape.

    Returns:
        A scalar; 0 when the features agree, 1 when the student's are all 0.

    >>> relative_l2(torch.full((1, 1, 2, 2), 3.0), torch.full((1, 1, 2, 2), 2.0)).item()
    0.25
    """
    return (student - teacher).square().mean() / (teacher.square().mean() + _LEAST)


def statistics(student: Tensor, teacher: Tensor) -> Tensor:
    """Return how far the mean and the standard deviation of each channel are off.

    Both are taken over the positions of one image. The sum of their squared errors is relative to
    the mean square of the features, and so is never more than ``relative_l2`` of the same features.

    Args:
        student: Shape ``(batch, channels, height, width)``.
        teacher: The same shape.

    >>> x = torch.arange(4.0).reshape(1, 1, 2, 2)
    >>> statistics(x.flip(3), x).item()
    0.0
    """
    means = student.mean(dim=(2, 3)) - teacher.mean(dim=(2, 3))
    spreads = _deviation(student) - _deviation(teacher)
    error = means.square() + spreads.square()
    return error.mean() / (teacher.square().mean() + _LEAST)


def attention(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared distance of the attention maps (Zagoruyko & Komodakis 2017).

    The map of an image is the sum of the squared channels at each position, scaled to a 2-norm of 1
    (arXiv:1612.03928, the sum of absolute values with p = 2).

    Args:
        student: Shape ``(batch, channels, height, width)``.
        teacher: Shape ``(batch, other channels, height, width)``.

    Returns:
        A scalar in [0, 2], the mean over the images.

    >>> x = torch.rand(1, 3, 4, 4)
    >>> attention(2 * x, x).item() < 1e-12
    True
    """
    maps = [
        functional.normalize(x.square().sum(dim=1).flatten(1), dim=1, eps=_LEAST)
        for x in (student, teacher)
    ]
    return (maps[0] - maps[1]).square().sum(dim=1).mean()


def affinity(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean difference of the cosines between positions (FAKD, He et al. 2020).

    The affinity of two positions of an image is the cosine between their channels; the mean is over
    all pairs of positions (similarity-preserving distillation, arXiv:1907.09682, does so with the
    images of a batch). Larger maps are averaged to 16 x 16 first.

    Args:
        student: Shape ``(batch, channels, height, width)``.
        teacher: Shape ``(batch, other channels, height, width)``.

    Returns:
        A scalar in [0, 2].

    >>> x = torch.rand(1, 3, 4, 4)
    >>> affinity(2 * x, x).item() < 1e-6
    True
    """
    return (_cosines(student) - _cosines(teacher)).abs().mean()


def coa_alignment(student: Features, teacher: Features, parts: Sequence[float]) -> Tensor:
    """Return the feature alignment of CoA (CVPR 2025) as its published code computes it.

    Per tap it is the sum of three terms. The "global" one is the mean squared difference of the
    softmax over the positions of each channel: squares of small numbers, in practice next to 0. The
    "local" one is the mean over 4 x 4 patches of the squared difference: over maps that patches
    tile, the plain mean squared error. Neither is an earth mover's distance. The third is the
    squared difference of the mean and of the variance of each channel of an image. Taps are
    weighted by the softmax of the cosines between the features: taps that already agree count more,
    and the gradient flows through these weights. Nothing is relative to the size of the features.

    Args:
        student: Features by tap.
        teacher: The same shapes.
        parts: Without effect: the term weighs the taps itself.

    >>> x = torch.rand(1, 2, 4, 4)
    >>> coa_alignment([x, x], [x, x], [0.5, 0.5]).item()
    0.0
    """
    del parts
    pairs = list(zip(student, teacher, strict=True))
    cosines = [functional.cosine_similarity(s.flatten(1), t.flatten(1)).mean() for s, t in pairs]
    weights = torch.softmax(torch.stack(cosines), dim=0)
    return (weights * torch.stack([_coa_at_tap(s, t) for s, t in pairs])).sum()


def _coa_at_tap(student: Tensor, teacher: Tensor) -> Tensor:
    softmaxes = [torch.softmax(x.flatten(2), dim=2) for x in (student, teacher)]
    anywhere = (softmaxes[0] - softmaxes[1]).square().mean()
    patch = min(_PATCH, *student.shape[-2:])
    height, width = (size // patch * patch for size in student.shape[-2:])
    nearby = (student - teacher)[..., :height, :width].square().mean()
    over = (2, 3)
    mean = (student.mean(over) - teacher.mean(over)).square().mean()
    spread = student.var(over, correction=0) - teacher.var(over, correction=0)
    return anywhere + nearby + mean + spread.square().mean()


def _deviation(x: Tensor) -> Tensor:
    # the root of a variance of 0 has no gradient
    return (x.var(dim=(2, 3), correction=0) + _LEAST).sqrt()


def _cosines(x: Tensor) -> Tensor:
    if max(x.shape[-2:]) > _MOST_POSITIONS:
        height, width = (min(side, _MOST_POSITIONS) for side in x.shape[-2:])
        x = functional.adaptive_avg_pool2d(x, (height, width))
    unit = functional.normalize(x.flatten(2), dim=1, eps=_LEAST)
    return unit.transpose(1, 2) @ unit


FEATURE_TERMS.register("l2")(at_each_tap(relative_l2))
FEATURE_TERMS.register("statistics")(at_each_tap(statistics))
FEATURE_TERMS.register("attention")(at_each_tap(attention))
FEATURE_TERMS.register("affinity")(at_each_tap(affinity))
FEATURE_TERMS.register("coa")(coa_alignment)

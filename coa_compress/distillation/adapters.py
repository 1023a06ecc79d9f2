"""Adapters: from a student's features to its teacher's full width; trained along, then dropped."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from coa_compress.distillation.taps import Tap


class FeatureAdapters(nn.Module):
    """A 1 x 1 convolution for each tap (Romero et al. 2015, FitNets, arXiv:1412.6550).

    Where the student's channels are channels of the teacher, the adapter starts by putting each in
    its place and leaving 0 in the others, so that training starts where a comparison of the kept
    channels is exact. Elsewhere it starts with equal weights. Nothing is random.

    Args:
        taps: Where; one adapter each.
        widths: Channels of student and teacher at each tap.

    >>> adapters = FeatureAdapters([Tap("a", torch.tensor([2]))], [(1, 3)])
    >>> adapters([torch.full((1, 1, 1, 1), 5.0)])[0].flatten().tolist()
    [0.0, 0.0, 5.0]
    """

    def __init__(self, taps: Sequence[Tap], widths: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.paths = tuple(tap.path for tap in taps)
        self.weights = nn.ParameterList(
            _start(tap, mine, wanted) for tap, (mine, wanted) in zip(taps, widths, strict=True)
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return features of the teacher's widths.

        Args:
            features: Of the student, one tensor a tap, ``(batch, channels, height, width)``.
        """
        pairs = zip(features, self.weights, strict=True)
        return [torch.einsum("oi,bihw->bohw", weight, x) for x, weight in pairs]


def adapters_between(
    student: nn.Module, teacher: nn.Module, taps: Sequence[Tap]
) -> FeatureAdapters:
    """Return adapters for taps at convolutions, of the widths that these have.

    Args:
        student: Has a convolution at each tap.
        teacher: Has one too.
        taps: Where.
    """
    widths = [(_width(student, tap.path), _width(teacher, tap.path)) for tap in taps]
    return FeatureAdapters(taps, widths)


def _width(model: nn.Module, path: str) -> int:
    weight = model.get_submodule(path).weight
    assert isinstance(weight, Tensor)  # noqa: S101 - a tap is a convolution
    return len(weight)


def _start(tap: Tap, mine: int, wanted: int) -> nn.Parameter:
    if tap.kept is None:
        return nn.Parameter(torch.full((wanted, mine), 1 / mine))
    weight = torch.zeros(wanted, mine)
    weight[tap.kept.cpu(), torch.arange(mine)] = 1.0
    return nn.Parameter(weight)

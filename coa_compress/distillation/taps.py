"""Where the features of a student and its teacher are compared, chosen from the cut."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from coa_compress.artifacts import Cut
from coa_compress.errors import SettingError
from coa_compress.hooks import captured_outputs
from coa_compress.profiling.modes import evaluating
from coa_compress.structure.patches import weight_name


@dataclass(frozen=True, slots=True, eq=False)
class Tap:
    """A place where features of teacher and student are compared.

    The channels of a cut student are channels of its teacher, so that no adapter is needed: the
    student's features are held against the teacher's in the kept channels.

    Args:
        path: A convolution, the same in both networks.
        kept: Output channels of the teacher that the student still has, int64; None where the
            student's channels are not channels of the teacher, so that an adapter is needed.
        weight: What the tap counts beside the others; above 0.
    """

    path: str
    kept: Tensor | None
    weight: float = 1.0


def feature_taps(
    cut: Cut,
    count: int,
    teacher: nn.Module,
    example: Tensor,
    *,
    importance: Mapping[str, float] | None = None,
) -> tuple[Tap, ...]:
    """Return taps at some of the convolutions whose output was cut.

    Without importance they are spread evenly and count alike. With it the convolutions, in their
    order, are divided into equal stretches, and each stretch gives the one that is most important,
    so that taps stay spread over the depth; one half of all weight is even, the other half goes by
    importance, so that no tap is lost. Left out are convolutions whose weight is used without
    calling them, which have no output to compare, and those of a frozen part, which learn nothing.

    Args:
        cut: The cut that made the student.
        count: How many at most; 0 for none.
        teacher: The network that was cut; it is run once.
        example: One input of it, on the same device.
        importance: Of convolutions by path, from 0, such as the loss that cutting them is expected
            to cause; one that is not named has none.

    Raises:
        SettingError: If an importance is negative or not finite.

    >>> from coa_compress.artifacts import Cut
    >>> net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Conv2d(2, 3, 1))
    >>> kept = torch.tensor([0, 2])
    >>> cut = Cut(net, {"0.weight": {0: kept}, "1.weight": {1: kept}}, ())
    >>> teacher = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    >>> taps = feature_taps(cut, 4, teacher, torch.zeros(1, 3, 8, 8))
    >>> [(tap.path, tap.kept.tolist()) for tap in taps]
    [('0', [0, 2])]
    """
    found = [
        Tap(path, sliced[0])
        for path, module in cut.student.named_modules()
        if isinstance(module, nn.Conv2d)
        and 0 in (sliced := cut.slices.get(f"{path}.{weight_name(module)}", {}))
    ]
    with captured_outputs(teacher, [tap.path for tap in found]) as reached, torch.no_grad():
        teacher(example)
    found = [tap for tap in found if tap.path in reached]
    learning = _with_gradient(cut.student, [tap.path for tap in found], example)
    found = [tap for tap in found if tap.path in learning]
    if importance is not None:
        return _by_importance(found, count, importance)
    if count >= len(found):
        return tuple(found)
    return tuple(found[(2 * i + 1) * len(found) // (2 * count)] for i in range(count))


def _with_gradient(student: nn.Module, paths: Sequence[str], example: Tensor) -> set[str]:
    """Return the modules whose outputs training can change: not those of a part that is frozen."""
    if not paths:
        return set()
    place = next(student.parameters()).device
    with captured_outputs(student, paths) as made, evaluating(student), torch.enable_grad():
        student(example.to(place))
    return {path for path, output in made.items() if output.requires_grad}


def tap_shares(taps: Sequence[Tap]) -> list[float]:
    """Return the weights of taps as parts of 1.

    >>> tap_shares([Tap("a", None, 1.0), Tap("b", None, 3.0)])
    [0.25, 0.75]
    """
    total = sum(tap.weight for tap in taps)
    return [tap.weight / total for tap in taps]


def _by_importance(
    found: Sequence[Tap], count: int, importance: Mapping[str, float]
) -> tuple[Tap, ...]:
    values = [float(importance.get(tap.path, 0.0)) for tap in found]
    for tap, value in zip(found, values, strict=True):
        if not 0.0 <= value < float("inf"):
            message = f"the importance of {tap.path!r} is {value}: it must be a number from 0"
            raise SettingError(message)
    count = min(count, len(found))
    edges = [i * len(found) // count for i in range(count + 1)] if count else []
    stretches = [range(low, high) for low, high in pairwise(edges)]
    chosen = [max(stretch, key=values.__getitem__) for stretch in stretches]
    total = sum(values[i] for i in chosen)
    shares = [values[i] / total if total > 0 else 1 / count for i in chosen]
    return tuple(
        replace(found[i], weight=0.5 / count + 0.5 * share)
        for i, share in zip(chosen, shares, strict=True)
    )

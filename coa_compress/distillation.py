"""Named losses between a student, its teacher and the truth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from coa_compress.artifacts import Cut
from coa_compress.errors import TrainingError
from coa_compress.hooks import captured_outputs


@dataclass(frozen=True, slots=True, eq=False)
class Tap:
    """A place where features of teacher and student are compared.

    The channels of a cut student are channels of its teacher, so that no adapter is needed: the
    student's features are held against the teacher's in the kept channels.

    Args:
        path: A convolution, the same in both networks.
        kept: Output channels of the teacher that the student still has, int64.
    """

    path: str
    kept: Tensor


def feature_taps(cut: Cut, count: int, teacher: nn.Module, example: Tensor) -> tuple[Tap, ...]:
    """Return taps spread evenly over the convolutions whose output was cut.

    A convolution whose weight is used without calling it has no output to compare: it is left out.

    Args:
        cut: The cut that made the student.
        count: How many at most; 0 for none.
        teacher: The network that was cut; it is run once.
        example: One input of it, on the same device.

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
        Tap(path, cut.slices[f"{path}.weight"][0])
        for path, module in cut.student.named_modules()
        if isinstance(module, nn.Conv2d) and 0 in cut.slices.get(f"{path}.weight", {})
    ]
    with captured_outputs(teacher, [tap.path for tap in found]) as reached, torch.no_grad():
        teacher(example)
    found = [tap for tap in found if tap.path in reached]
    if count >= len(found):
        return tuple(found)
    return tuple(found[(2 * i + 1) * len(found) // (2 * count)] for i in range(count))


def feature_loss(
    student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], taps: Sequence[Tap]
) -> Tensor:
    """Return the mean over the taps of the relative squared error of the student's features.

    Args:
        student: Features by path, shape ``(batch, kept, height, width)``.
        teacher: Features by path, shape ``(batch, channels, height, width)``.
        taps: Where to compare.

    Returns:
        A scalar; 0 when the features agree, 1 when the student's are all 0.

    Raises:
        TrainingError: If there is no tap, or a tap was not reached by the forward pass.

    >>> x = torch.rand(1, 4, 2, 2)
    >>> feature_loss({"a": x[:, [1, 3]]}, {"a": x}, [Tap("a", torch.tensor([1, 3]))])
    tensor(0.)
    """
    if not taps:
        message = "the feature loss has no tap: set stages.distill.taps above 0 or its weight to 0"
        raise TrainingError(message)
    terms = []
    for tap in taps:
        if tap.path not in student or tap.path not in teacher:
            message = f"the tap {tap.path!r} is not reached by the forward pass: lower the taps"
            raise TrainingError(message)
        wanted = teacher[tap.path].float().index_select(1, tap.kept.to(teacher[tap.path].device))
        error = (student[tap.path].float() - wanted).square().mean()
        terms.append(error / (wanted.square().mean() + 1e-8))
    return torch.stack(terms).mean()


def frozen(model: nn.Module) -> nn.Module:
    """Return the same network in evaluation mode without gradients; changed in place."""
    return model.eval().requires_grad_(requires_grad=False)

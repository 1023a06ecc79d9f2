"""Which positions of a teacher a pruned network kept, told from the values of its weights."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coa_compress.artifacts import Cut


def matched_cut(teacher: nn.Module, student: nn.Module) -> Cut | None:
    """Return a cut that a library made by selecting, or None if the student is no selection.

    Pruning libraries do not say what they kept. As they only select, every value of the student
    stands somewhere in the teacher's tensor of the same name; where values repeat, the
    positions that explain all of them are searched for.

    Args:
        teacher: The network before.
        student: The network after.

    >>> wide, narrow = nn.Linear(3, 4), nn.Linear(2, 4)
    >>> with torch.no_grad():
    ...     _ = narrow.weight.copy_(wide.weight[:, [0, 2]]), narrow.bias.copy_(wide.bias)
    >>> matched_cut(wide, narrow).slices["weight"][1].tolist()
    [0, 2]
    """
    before, after = teacher.state_dict(), student.state_dict()
    slices: dict[str, dict[int, Tensor]] = {}
    if before.keys() != after.keys():
        return None
    for name, whole in before.items():
        if whole.shape == after[name].shape:
            continue
        found = kept_positions(whole, after[name])
        if found is None:
            return None
        slices[name] = found
    return Cut(student, slices, ())


def kept_positions(whole: Tensor, part: Tensor) -> dict[int, Tensor] | None:
    """Return the kept positions of each dimension that is shorter, or None if there are none.

    >>> kept_positions(torch.arange(6).reshape(2, 3), torch.tensor([[1], [4]]))
    {1: tensor([1])}
    """
    if whole.dim() != part.dim() or any(
        p > w for p, w in zip(part.shape, whole.shape, strict=True)
    ):
        return None
    places = _places(whole.detach().cpu().numpy(), part.detach().cpu().numpy())
    chosen: list[NDArray[np.int64]] = []
    for dim, (old, new) in enumerate(zip(whole.shape, part.shape, strict=True)):
        if old == new:
            chosen.append(np.arange(old))
            continue
        along = np.unravel_index(places, whole.shape)[dim].reshape(part.shape)
        rows = np.moveaxis(along, dim, 0).reshape(new, -1)
        chosen.append(np.array([np.bincount(row, minlength=old).argmax() for row in rows]))
    expected = whole.detach().cpu().numpy()[np.ix_(*chosen)] if chosen else None
    if expected is None or not np.array_equal(expected, part.detach().cpu().numpy()):
        return None
    pairs = zip(chosen, whole.shape, part.shape, strict=True)
    return {
        dim: torch.from_numpy(np.asarray(kept, dtype=np.int64))
        for dim, (kept, old, new) in enumerate(pairs)
        if old != new
    }


def _places(whole: NDArray[np.float64], part: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the flat position in the whole of each value of a part, one-dimensional."""
    order = np.argsort(whole, axis=None, kind="stable")
    values = whole.reshape(-1)[order]
    found = np.searchsorted(values, part.reshape(-1)).clip(max=len(values) - 1)
    places: NDArray[np.int64] = order[found]
    return places

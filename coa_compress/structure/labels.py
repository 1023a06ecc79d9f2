"""Channel labels: equivalence classes of tensor positions, and moving them through an operator."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Vector = NDArray[np.int64]
"""One label for each position of a tensor dimension; label 0 means that the position is frozen."""

Dims = tuple[Vector | None, ...]
"""The labels of each dimension of a tensor; None where the whole dimension is frozen."""


class LabelSpace:
    """Labels that can be made, united and frozen; a union-find forest whose tree 0 is frozen.

    >>> space = LabelSpace()
    >>> a, b = space.fresh(3), space.fresh(3)
    >>> space.meet([a, b]).tolist()
    [1, 2, 3]
    >>> space.freeze(b[:1])
    >>> space.roots(a).tolist()
    [0, 2, 3]
    """

    def __init__(self) -> None:
        self._parent: Vector = np.zeros(1, dtype=np.int64)
        self._count = 1

    @property
    def count(self) -> int:
        """How many labels there are, the frozen one included."""
        return self._count

    def fresh(self, n_labels: int) -> Vector:
        """Return labels that no other position has, shape ``(n_labels,)``."""
        start, self._count = self._count, self._count + n_labels
        size = len(self._parent)
        if self._count > size:
            more = np.arange(size, max(2 * size, self._count), dtype=np.int64)
            self._parent = np.concatenate([self._parent, more])
        return np.arange(start, self._count, dtype=np.int64)

    def roots(self, labels: Vector) -> Vector:
        """Return the representative of each label; 0 for frozen ones."""
        parent = self._parent
        found: Vector = parent[labels]
        while True:
            above: Vector = parent[found]
            if np.array_equal(above, found):
                return found
            found = above

    def canonical(self, labels: Vector | None) -> Vector | None:
        """Return the representatives, or None when every position is frozen."""
        if labels is None:
            return None
        found = self.roots(labels)
        return found if found.any() else None

    def unite(self, first: Vector, second: Vector) -> None:
        """Make the labels at the same positions of two vectors equal."""
        a, b = self.roots(first), self.roots(second)
        differ = a != b
        for x, y in set(zip(a[differ].tolist(), b[differ].tolist(), strict=True)):
            low, high = sorted((self._root(x), self._root(y)))
            self._parent[high] = low

    def freeze(self, labels: Vector | None) -> None:
        """Make labels stay: what has them cannot be cut."""
        if labels is not None:
            self.unite(labels, np.zeros_like(labels))

    def meet(self, vectors: Sequence[Vector | None]) -> Vector | None:
        """Unite the labels of aligned dimensions; one frozen dimension freezes the others."""
        if not vectors:
            return None
        labeled = [vector for vector in vectors if vector is not None]
        if len(labeled) < len(vectors):
            for vector in labeled:
                self.freeze(vector)
            return None
        for vector in labeled[1:]:
            self.unite(labeled[0], vector)
        return self.canonical(labeled[0])

    def tie(self, labels: Vector | None, width: int) -> Vector | None:
        """Unite position ``j`` of every consecutive chunk of ``width`` positions."""
        if labels is None:
            return None
        chunks = labels.reshape(-1, width)
        self.meet(list(chunks))
        return self.canonical(labels)

    def _root(self, label: int) -> int:
        parent = self._parent
        while parent[label] != label:
            parent[label] = parent[parent[label]]
            label = int(parent[label])
        return label


def move(
    space: LabelSpace,
    dims: Sequence[Vector | None],
    shape: Sequence[int],
    operate: Callable[[Tensor], Tensor],
    *,
    keep: int | None = None,
) -> Dims:
    """Return the labels of the result of an operator that only moves positions.

    The operator is applied to the labels themselves. A channel must end up along one dimension;
    where it is spread over several, all but the one with most different positions (the last of
    equal ones) are tied, whatever the sizes of the batch and the image are.

    Args:
        space: Where the labels live.
        dims: Labels of the operand.
        shape: Shape of the operand.
        operate: The operator, called on int64 tensors of that shape.
        keep: The output dimension that shall carry the channels when they are spread.

    >>> space = LabelSpace()
    >>> dims = move(space, [None, space.fresh(4)], [1, 4], lambda x: x.view(1, 2, 2))
    >>> [None if vector is None else vector.tolist() for vector in dims]
    [None, None, [1, 2]]
    """
    present = [(dim, space.canonical(vector)) for dim, vector in enumerate(dims)]
    labeled = [(dim, labels) for dim, labels in present if labels is not None]
    if not labeled:
        return (None,) * operate(_spread(None, 0, shape)).dim()
    landing = [operate(_spread(labels, dim, shape)) for dim, labels in labeled]
    result: list[Vector | None] = [None] * landing[0].dim()
    for moved in landing:
        _land(space, moved, result, keep)
    return tuple(space.canonical(vector) for vector in result)


def _spread(labels: Vector | None, dim: int, shape: Sequence[int]) -> Tensor:
    if labels is None:
        return torch.zeros((), dtype=torch.int64).expand(tuple(shape))
    sizes = [-1 if d == dim else 1 for d in range(len(shape))]
    return torch.from_numpy(labels).view(sizes).expand(tuple(shape))


def _land(space: LabelSpace, moved: Tensor, result: list[Vector | None], keep: int | None) -> None:
    for dim in range(moved.dim()):
        if moved.shape[dim] > 1 and moved.stride(dim) == 0:
            moved = moved.narrow(dim, 0, 1)
    moved = torch.from_numpy(space.roots(moved.contiguous().numpy()))
    varying = [d for d in range(moved.dim()) if bool((moved != moved.narrow(d, 0, 1)).any())]
    for dim in range(moved.dim()):
        moved = moved if dim in varying else moved.narrow(dim, 0, 1)
    if not varying:
        space.freeze(moved.reshape(-1)[:1].numpy())
        return
    along = keep if keep in varying else max(varying, key=lambda d: (_distinct(moved, d), d))
    vector = _tied(space, moved, along)
    present = space.canonical(result[along])
    if present is not None and vector is not None:
        # two labeled axes were merged into one: only the richer can still be cut
        poor, rich = sorted((present, vector), key=lambda labels: len(np.unique(labels)))
        space.freeze(poor)
        vector = rich
    result[along] = space.canonical(vector if vector is not None else present)


def _distinct(moved: Tensor, dim: int) -> int:
    """Return how many different slices there are; a merged batch repeats them."""
    return len(torch.unique(moved.movedim(dim, 0).reshape(moved.shape[dim], -1), dim=0))


def _tied(space: LabelSpace, moved: Tensor, along: int) -> Vector | None:
    columns = moved.movedim(along, 0).reshape(moved.shape[along], -1)
    distinct = torch.unique(columns, dim=1).numpy() if columns.shape[1] > 1 else columns.numpy()
    return space.meet([np.ascontiguousarray(column) for column in distinct.T])

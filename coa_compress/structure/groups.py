"""Channel groups and exact costs from the labels of a graph."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import fx, nn

from coa_compress.artifacts import ChannelGroup, Member, Role
from coa_compress.costs import CostFunction, CostModel, CostTerm, Extent
from coa_compress.structure.calls import Contraction
from coa_compress.structure.graph import place_of
from coa_compress.structure.labels import Vector
from coa_compress.structure.propagation import LabeledGraph

Roles = dict[tuple[str, int], Role]

Spot = tuple[str, int] | int
"""Where a label occurs: a dimension of a tensor, or the number of an operand."""


@dataclass(frozen=True, slots=True, eq=False)
class FoundGroup:
    """A channel group with the labels behind its channels.

    Args:
        group: The group.
        labels: The label of each channel, in channel order.
    """

    group: ChannelGroup
    labels: Vector


def find_groups(labeled: LabeledGraph) -> tuple[FoundGroup, ...]:
    """Return the channel groups of a labeled graph, in the order of the network.

    Two labels are channels of one group when they occur equally often in the same dimensions of
    the same parameters and in the same operands of the same operators: then any of them can go in
    the place of any other, at the same cost.
    """
    index = _Index(_occurrences(labeled), _roles(labeled), _writers(labeled), _restricted(labeled))
    groups: list[FoundGroup] = []
    taken: Counter[str] = Counter()
    learned = {labeled.graph.tensors[node] for node in labeled.graph.parameters}
    classes = [labels for labels in _classes(index) if _is_made(index, labels, learned)]
    for labels in sorted(classes, key=lambda labels: (index.writer(labels), labels[0])):
        found = _build(labeled, labels, index)
        taken[found.group.name] += 1
        if taken[found.group.name] > 1:
            name = f"{found.group.name}#{taken[found.group.name]}"
            found = FoundGroup(replace(found.group, name=name), found.labels)
        groups.append(found)
    return tuple(groups)


def cost_model(labeled: LabeledGraph, model: nn.Module, groups: Sequence[FoundGroup]) -> CostModel:
    """Return exact MACs and parameters as functions of the widths of some groups.

    MACs are multiply-accumulates of convolutions and matrix products, biases not counted;
    parameters are the elements of all parameters, those with several names counted once.
    """
    extent = Extents.by(labeled, groups)
    names = extent.names
    macs = tuple(
        CostTerm(
            owner_of(labeled, item), item.coefficient, tuple(extent.of(v) for v in item.extents)
        )
        for item in labeled.findings.contractions
    )
    params = []
    for name, parameter in model.named_parameters():
        dims = labeled.tensors.get(name, (None,) * parameter.dim())
        fixed = 1
        extents = []
        for vector, size in zip(dims, parameter.shape, strict=True):
            if vector is None:
                fixed *= int(size)
            else:
                extents.append(extent.of(vector))
        params.append(CostTerm(name, fixed, tuple(extents)))
    return CostModel(CostFunction(names, macs), CostFunction(names, tuple(params)))


@dataclass(frozen=True, slots=True, eq=False)
class Extents:
    """The size of any dimension of a labeled graph as a function of the widths of some groups.

    Args:
        labeled: The labels of every tensor.
        owner_of: Number of the group that each label is a channel of; -1 for none.
        names: The groups by number.
    """

    labeled: LabeledGraph
    owner_of: Vector
    names: tuple[str, ...]

    @classmethod
    def by(cls, labeled: LabeledGraph, groups: Sequence[FoundGroup]) -> "Extents":
        """Return the extents of a graph in which only the given groups may be cut."""
        owner_of = np.full(labeled.space.count, -1, dtype=np.int64)
        for index, found in enumerate(groups):
            owner_of[found.labels] = index
        return cls(labeled, owner_of, tuple(found.group.name for found in groups))

    def of(self, vector: Vector) -> Extent:
        """Return the size of a dimension with these labels."""
        roots = self.labeled.space.roots(vector)
        owners = self.owner_of[roots]
        per_channel: dict[str, int] = {}
        for owner in np.unique(owners[owners >= 0]).tolist():
            channels = roots[owners == owner]
            per_channel[self.names[owner]] = len(channels) // len(np.unique(channels))
        return Extent(int((owners < 0).sum()), per_channel)


@dataclass(frozen=True, slots=True, eq=False)
class _Index:
    """What is known about each label.

    Args:
        occurrences: Where it occurs and how often: ``(tensor, dim)``, or the number of an operand.
        roles: Roles of tensor dimensions.
        writers: Number and name of the first operator that writes it.
        restricted: The labels that cannot be removed by zeroing.
    """

    occurrences: Mapping[int, tuple[tuple[Spot, int], ...]]
    roles: Roles
    writers: Mapping[int, tuple[int, str]]
    restricted: frozenset[int]

    def writer(self, labels: Sequence[int]) -> tuple[int, str]:
        """Return the number and the name of the first writer of some labels."""
        none = (len(self.occurrences) + 1, "")
        return min((self.writers[x] for x in labels if x in self.writers), default=none)

    def spots(self, label: int) -> list[tuple[str, int]]:
        """Return the tensor dimensions that a label occurs in."""
        return [spot for spot, _ in self.occurrences[label] if isinstance(spot, tuple)]


def _occurrences(labeled: LabeledGraph) -> dict[int, tuple[tuple[Spot, int], ...]]:
    found: defaultdict[int, list[tuple[Spot, int]]] = defaultdict(list)
    for name, dims in labeled.tensors.items():
        for dim, vector in enumerate(dims):
            for label, count in _counts(labeled, vector):
                found[label].append(((name, dim), count))
    for number, vector in enumerate(_operand_vectors(labeled)):
        for label, count in _counts(labeled, vector):
            if label in found:
                found[label].append((number, count))
    return {label: tuple(spots) for label, spots in found.items()}


def _classes(index: _Index) -> list[list[int]]:
    """Return the labels that occur alike, at least two together."""
    classes: defaultdict[tuple[tuple[Spot, int], ...], list[int]] = defaultdict(list)
    for label, spots in sorted(index.occurrences.items()):
        classes[spots].append(label)
    return [labels for labels in classes.values() if len(labels) > 1]


def _is_made(index: _Index, labels: Sequence[int], learned: Collection[str]) -> bool:
    """Tell channels, which a parameter writes, from positions of data that is kept in a buffer."""
    spots = index.spots(labels[0])
    written = any(index.roles.get(spot) == "output" and spot[0] in learned for spot in spots)
    return written or all(spot[0] in learned for spot in spots)


def _restricted(labeled: LabeledGraph) -> frozenset[int]:
    vectors = labeled.findings.restricted
    return frozenset(label for vector in vectors for label, _ in _counts(labeled, vector))


def _counts(labeled: LabeledGraph, vector: Vector | None) -> Iterator[tuple[int, int]]:
    if vector is not None:
        labels, counts = np.unique(labeled.space.roots(vector), return_counts=True)
        for label, count in zip(labels.tolist(), counts.tolist(), strict=True):
            if label:
                yield label, count


def _operand_vectors(labeled: LabeledGraph) -> Iterator[Vector]:
    for contraction in labeled.findings.contractions:
        yield from contraction.extents
    yield from labeled.findings.restricted


def _parameters_behind(labeled: LabeledGraph, weight: fx.Node) -> list[str]:
    """Return the parameters that a weight operand is computed from."""
    seen: set[fx.Node] = set()
    waiting = [weight]
    names: dict[str, None] = {}
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        name = labeled.graph.tensors.get(node.name) if node.op == "placeholder" else None
        if name is not None and name in labeled.tensors:
            names[name] = None
        waiting.extend(node.all_input_nodes)
    return list(names)


def _roles(labeled: LabeledGraph) -> Roles:
    roles: Roles = {}
    for item in labeled.findings.contractions:
        if item.weight is None:
            continue
        dims = labeled.dims(item.weight)
        ends: tuple[tuple[Role, int], ...] = (("output", item.writes), ("input", item.reads))
        wanted = [(role, _labels_of(labeled, dims[d])) for role, d in ends if d >= 0]
        for name in _parameters_behind(labeled, item.weight):
            direct = item.weight.op == "placeholder"
            for dim, vector in enumerate(labeled.tensors[name]):
                present = _labels_of(labeled, vector)
                for role, labels in wanted:
                    at_end = dim == dict(ends)[role] if direct else bool(present & labels)
                    if at_end and present:
                        roles.setdefault((name, dim), role)
    return roles


def _labels_of(labeled: LabeledGraph, vector: Vector | None) -> set[int]:
    return {label for label, _ in _counts(labeled, vector)}


def _writers(labeled: LabeledGraph) -> dict[int, tuple[int, str]]:
    """Return the number and the name of the first operator that writes each label."""
    writers: dict[int, tuple[int, str]] = {}
    for number, item in enumerate(labeled.findings.contractions):
        if item.weight is None or item.writes < 0:
            continue
        for label in _labels_of(labeled, labeled.dims(item.weight)[item.writes]):
            writers.setdefault(label, (number, owner_of(labeled, item)))
    return writers


def owner_of(labeled: LabeledGraph, item: Contraction) -> str:
    """Return the module that a contraction belongs to; a parameter when that says more."""
    behind = _parameters_behind(labeled, item.weight) if item.weight is not None else []
    if item.weight is not None and item.weight.op == "placeholder" and behind:
        path, _, leaf = behind[0].rpartition(".")
        return path if leaf == "weight" and path else behind[0]
    return place_of(item.node).module or (behind[0] if behind else item.node.name)


def _build(labeled: LabeledGraph, found: Sequence[int], index: _Index) -> FoundGroup:
    writer = index.writer(found)[1]

    def rank(spot: tuple[str, int]) -> tuple[bool, bool]:
        written = index.roles.get(spot) == "output"
        first = spot[0] == writer or spot[0].rpartition(".")[0] == writer
        return (not (first and written), not written)

    spots = sorted(index.spots(found[0]), key=rank)
    roots = [_roots(labeled, spot) for spot in spots]
    labels = _in_order(np.array(found, dtype=np.int64), roots[0])
    members = tuple(
        Member(name, dim, index.roles.get((name, dim), "other"), _positions(labels, own))
        for (name, dim), own in zip(spots, roots, strict=True)
    )
    restricted = not index.restricted.isdisjoint(found)
    group = ChannelGroup(writer or spots[0][0], len(labels), members, restricted)
    return FoundGroup(group, labels)


def _roots(labeled: LabeledGraph, spot: tuple[str, int]) -> Vector:
    vector = labeled.tensors[spot[0]][spot[1]]
    return labeled.space.roots(np.zeros(0, dtype=np.int64) if vector is None else vector)


def _in_order(labels: Vector, roots: Vector) -> Vector:
    """Return labels in the order in which they first occur."""
    present, first = np.unique(roots, return_index=True)
    inside = np.isin(present, labels)
    ordered: Vector = present[inside][np.argsort(first[inside])]
    return ordered


def _positions(labels: Vector, roots: Vector) -> torch.Tensor:
    """Return the positions of each label, which all occur equally often."""
    where = np.flatnonzero(np.isin(roots, labels))
    order = np.argsort(labels)
    channel = order[np.searchsorted(labels, roots[where], sorter=order)]
    by_channel = where[np.argsort(channel, kind="stable")]
    return torch.from_numpy(by_channel.reshape(len(labels), -1))


def module_paths(group: ChannelGroup) -> list[str]:
    """Return the paths of the modules that a group occurs in, sorted."""
    return sorted({member.tensor.rpartition(".")[0] for member in group.members})

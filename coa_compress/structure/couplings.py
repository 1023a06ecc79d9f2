"""Channels that code couples by reading the size of one tensor and giving it to another."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, fx, nn

from coa_compress.copying import copied
from coa_compress.structure.calls import axis
from coa_compress.structure.graph import arguments_of, operator_name, shape_of, words
from coa_compress.structure.labels import LabelSpace, Vector
from coa_compress.structure.propagation import LabeledGraph
from coa_compress.structure.reading import fingerprint
from coa_compress.structure.reference import run_plain, walk
from coa_compress.structure.selection import shape_arguments
from coa_compress.structure.sizes import SHAPE, Key, SizeRead, SizeReads
from coa_compress.structure.torch_export import FAILURES

Use = tuple[SizeRead, fx.Node, int]
"""A size that code gives to an operator: the read, the call, and the output dimension."""


def couple_sizes(
    labeled: LabeledGraph, reads: SizeReads, model: nn.Module, example: Tensor
) -> SizeReads:
    """Unite the labels of dimensions that code makes equal, and say where sizes come from.

    In ``batch, tokens, width = x.shape; ...; y.reshape(batch, tokens, width)`` the channels of
    ``y`` must be as many as those of ``x``. The tensor behind a size is found by its values: the
    graph is run on the input that the sizes were read with.

    Args:
        labeled: The labels of every tensor; some are united.
        reads: The sizes that the code reads.
        model: The network; it is unchanged.
        example: The input that the sizes were read with.

    Returns:
        The same reads with the labels of the dimensions that sizes were read from.
    """
    _tie_attributes(labeled, reads)
    uses = list(_uses(reads))
    mixed = [read for read in reads.reads if read.attributes and read.keys != read.attributes]
    read_from = [*(read for read, _, _ in uses), *mixed]
    wanted = {key[1] for read in read_from for key in read.keys if key[0] == SHAPE}
    if not wanted:
        return reads
    sources = _sources(labeled, wanted, model, example)
    vectors = {
        key: labeled.dims(sources[key[1]])[key[2]]
        for key in reads.values
        if key[0] == SHAPE and key[1] in sources
    }
    for read, node, dim in uses:
        keys = [key for key in read.keys if key in vectors]
        if len(keys) == 1:
            target = labeled.dims(node)[dim]
            _equate(labeled.space, target, vectors[keys[0]], _ratio(read, keys[0], reads.values))
    return replace(reads, sources=vectors)


def _tie_attributes(labeled: LabeledGraph, reads: SizeReads) -> None:
    """Unite the channels whose number code reads from one attribute, in several places.

    ``self.keep`` of two splits is one number: as many channels must be left of both.
    """
    seen: dict[tuple[frozenset[Key], int], Vector] = {}
    for read in reads.reads:
        if len(read.nodes) != 1 or read.keys != read.attributes:
            continue
        labels = labeled.space.canonical(_counted(labeled, read, read.nodes[0]))
        if labels is None or len(labels) != read.value:
            continue
        known = seen.setdefault((read.keys, read.value), labels)
        if not _follows(labeled.space.roots(known), labels, 1):
            labeled.space.unite(known, labels)


def _counted(labeled: LabeledGraph, read: SizeRead, node: fx.Node) -> Vector | None:
    """Return the labels of the positions that an integer argument of a call counts."""
    dims = labeled.known[node]
    if operator_name(node) in _SPLITS:
        if read.position >= len(dims):
            return None
        dim = arguments_of(node)["dim"]
        piece = dims[read.position]
        return piece[axis(dim if isinstance(dim, int) else 0, len(piece))]
    along = dict(shape_arguments(node)).get(read.position)
    return None if along is None else dims[0][along]


_SPLITS = frozenset(words("split split_with_sizes"))


def _uses(reads: SizeReads) -> Iterator[Use]:
    for read in reads.reads:
        if not any(key[0] == SHAPE for key in read.keys):
            continue
        for node in read.nodes:
            dim = dict(shape_arguments(node)).get(read.position)
            if dim is not None and shape_of(node)[dim] == read.value > 1:
                yield read, node, dim


def _sources(
    labeled: LabeledGraph, wanted: set[str], model: nn.Module, example: Tensor
) -> dict[str, fx.Node]:
    """Return the first node that makes each of the wanted tensors."""
    found: dict[str, fx.Node] = {}
    network = copied(model).eval()
    shapes = {digest.split(" ", 1)[1] for digest in wanted}
    try:
        with torch.no_grad():
            for node, value in walk(labeled.graph, network, example, run_plain):
                if not isinstance(value, Tensor) or node not in labeled.known:
                    continue
                if f"{tuple(value.shape)} {value.dtype}" in shapes:
                    digest = fingerprint(value)
                    if digest in wanted:
                        found.setdefault(digest, node)
    except FAILURES:
        return found
    return found


def _ratio(read: SizeRead, key: Key, values: Mapping[Key, int]) -> int:
    """Return how many times the source is larger than the target; negative for smaller."""
    source = values[key]
    if source % read.value == 0:
        return source // read.value
    return -(read.value // source) if read.value % source == 0 else 0


def _equate(space: LabelSpace, target: Vector | None, source: Vector | None, ratio: int) -> None:
    target, source = space.canonical(target), space.canonical(source)
    if ratio == 0 or (target is None and source is None):
        return
    if target is not None and source is not None and _follows(target, source, ratio):
        return
    large, small = (source, target) if ratio > 0 else (target, source)
    if large is None or small is None:
        space.freeze(large)
        space.freeze(small)
        return
    space.meet([*large.reshape(abs(ratio), -1), small])


def _follows(target: Vector, source: Vector, ratio: int) -> bool:
    """Tell whether the sizes stay in proportion whatever is cut."""
    many, few = (source, target) if ratio > 0 else (target, source)
    often = Counter(np.asarray(many).tolist())
    seldom = Counter(np.asarray(few).tolist())
    return often == {label: count * abs(ratio) for label, count in seldom.items()}

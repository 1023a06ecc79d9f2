"""Facts about labels, tagged integers, and rebuilding."""

import numpy as np
import pytest
import torch
from torch import nn

from coa_compress.artifacts import AttributePatch
from coa_compress.errors import StructureError
from coa_compress.structure.graph import export_graph, operator_name, place_of
from coa_compress.structure.labels import LabelSpace, move
from coa_compress.structure.rebuild import apply_shapes_
from coa_compress.structure.sizes import TaggedInt


def groups_of(labels):
    return [np.flatnonzero(labels == label).tolist() for label in dict.fromkeys(labels.tolist())]


def test_a_frozen_operand_freezes_the_others():
    space = LabelSpace()
    labels = space.fresh(3)

    assert space.meet([labels, None]) is None
    assert space.roots(labels).tolist() == [0, 0, 0]


def test_union_reaches_every_member_of_a_class():
    space = LabelSpace()
    a, b, c = space.fresh(4), space.fresh(4), space.fresh(4)

    space.unite(a, b)
    space.unite(b, c[::-1])

    assert space.roots(a).tolist() == space.roots(c[::-1]).tolist()
    assert len(set(space.roots(np.concatenate([a, b, c])).tolist())) == 4


def test_a_shuffle_of_pixels_ties_the_channels_that_become_one():
    space = LabelSpace()
    labels = space.fresh(8)

    moved = move(
        space,
        [None, labels, None, None],
        [1, 8, 2, 2],
        lambda x: nn.functional.pixel_shuffle(x, 2),
        keep=1,
    )

    assert [vector is None for vector in moved] == [True, False, True, True]
    assert groups_of(space.roots(labels)) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_view_as_heads_ties_the_same_channel_of_every_head():
    space = LabelSpace()
    labels = space.fresh(6)

    moved = move(space, [None, labels, None], [1, 6, 4], lambda x: x.view(1, 2, 3, 4))

    assert moved[1] is None
    assert groups_of(space.roots(labels)) == [[0, 3], [1, 4], [2, 5]]


def test_flattening_repeats_the_label_of_a_channel():
    space = LabelSpace()

    moved = move(space, [None, space.fresh(2), None], [1, 2, 3], lambda x: x.flatten(1))

    assert moved[1] is not None
    assert moved[1].tolist() == [1, 1, 1, 2, 2, 2]


def test_a_tagged_integer_knows_its_formula():
    width = TaggedInt.of_attribute(12, ("", "width", -1))
    heads = TaggedInt.of_attribute(3, ("", "heads", -1))

    size = -(1 - 2 * (width // heads) + 7 % heads)

    assert size == -(1 - 8 + 1)
    assert isinstance(size, TaggedInt)
    assert size.keys == {("", "width", -1), ("", "heads", -1)}
    assert size.formula({("", "width", -1): 30, ("", "heads", -1): 5}) == -(1 - 12 + 2)


def test_the_graph_knows_the_module_of_every_call():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.ReLU(inplace=True)))

    calls = [n for n in export_graph(net, torch.zeros(1, 3, 2, 2)).nodes if n.op == "call_function"]

    assert [(operator_name(n), place_of(n).module) for n in calls] == [
        ("conv2d", "0"),
        ("relu_", "1.0"),
    ]


def test_rebuilding_keeps_aliases_and_lists():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1))
    net[1].weight = net[0].weight
    net[0].sizes = [1, 3]

    apply_shapes_(net, [AttributePatch("0", "sizes", (1, 1))], {"0.weight": (2, 3, 1, 1)})

    assert net[0].sizes == [1, 1]
    assert net[1].weight is net[0].weight
    assert net[1].weight.shape == (2, 3, 1, 1)
    assert not net[0].weight.any()


def test_rebuilding_another_network_is_an_error():
    net = nn.Sequential(nn.Conv2d(3, 4, 1))

    with pytest.raises(StructureError, match=r"no parameter or buffer '0.wait' .* mean 0.weight"):
        apply_shapes_(net, [], {"0.wait": (1,)})
    with pytest.raises(StructureError, match="no attribute 'width' in module '0' of Sequential"):
        apply_shapes_(net, [AttributePatch("0", "width", 3)], {})
    with pytest.raises(StructureError, match="no attribute 'width' in module 'body' of Sequential"):
        apply_shapes_(net, [AttributePatch("body", "width", 3)], {})

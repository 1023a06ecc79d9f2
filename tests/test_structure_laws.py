"""Laws of the cut, on random small networks."""

import copy

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nets import random_channels, small_networks

from coa_compress.structure.analysis import analyze
from coa_compress.structure.exactness import exactness_error, zero_removed_

quick = settings(
    deadline=None, max_examples=8, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


@quick
@given(net=small_networks(), seed=st.integers(0, 99))
def test_any_cut_of_any_network_is_exact_and_costs_what_was_promised(net, seed):
    example = torch.rand(1, 3, 8, 8)
    before = copy.deepcopy(net.state_dict())

    structure = analyze(net, example)
    kept = random_channels(structure.widths, seed)
    cut = structure.cut(kept)

    widths = {name: len(channels) for name, channels in kept.items()}
    n_params = sum(parameter.numel() for parameter in cut.student.parameters())
    assert exactness_error(structure, cut, kept, example) < 1e-9
    assert structure.costs.params(widths) == n_params
    assert structure.costs.macs(widths) < structure.costs.macs(structure.widths)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


@quick
@given(net=small_networks(), seed=st.integers(0, 99))
def test_removing_channels_of_zero_weight_changes_no_output(net, seed):
    example = torch.rand(1, 3, 8, 8)
    structure = analyze(net.eval(), example, exclude=restricted_groups(net, example))
    kept = random_channels(structure.widths, seed)
    zero_removed_(structure, net, kept)

    student = structure.cut(kept).student

    torch.testing.assert_close(student(example), net(example), rtol=1e-5, atol=1e-6)


def restricted_groups(net, example):
    groups = analyze(net, example).groups
    restricted = [group.name for group in groups if group.restricted]
    return restricted if len(restricted) < len(groups) else []

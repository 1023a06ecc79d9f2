"""Peak memory by hand arithmetic on the CPU."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from coa_compress.profiling.memory import peak_memory_mb
from coa_compress.tasks.dehazing.networks import HazeUNet

MB = 1e6


class Dense(nn.Module):
    """Keeps every activation to the end."""

    def forward(self, x):
        kept = [x]
        for _ in range(3):
            kept.append(kept[-1] + 1)
        return torch.stack([part.mean() for part in kept])


def test_a_chain_holds_two_activations_and_the_input():
    x = torch.zeros(1, 4, 50, 50)
    net = nn.Sequential(*[nn.Tanh() for _ in range(6)])
    assert peak_memory_mb(net, x) == pytest.approx(3 * x.numel() * 4 / MB)


def test_in_place_operations_and_views_hold_nothing_new():
    x = torch.zeros(1, 4, 50, 50)
    net = nn.Sequential(nn.Tanh(), nn.ReLU(inplace=True), nn.Flatten(), nn.Unflatten(1, (4, 2500)))
    assert peak_memory_mb(net, x) == pytest.approx(2 * x.numel() * 4 / MB)


def test_activations_that_are_kept_add_up():
    x = torch.zeros(1, 1, 500, 500)
    assert peak_memory_mb(Dense(), x) == pytest.approx(4 * x.numel() * 4 / MB, rel=1e-3)


def test_parameters_and_buffers_count_once():
    net = nn.Sequential(nn.Linear(100, 100, bias=False), nn.Linear(100, 100, bias=False))
    net[1].weight = net[0].weight
    net.register_buffer("table", torch.zeros(1000))

    assert peak_memory_mb(net, torch.zeros(1, 100)) == pytest.approx(
        4 * (100 * 100 + 1000 + 3 * 100) / MB
    )


@settings(deadline=None, max_examples=8)
@given(st.integers(8, 24))
def test_the_figure_is_the_same_every_time(width):
    net, x = HazeUNet((width, width), (1, 1)), torch.rand(1, 3, 32, 32)
    first = peak_memory_mb(net, x)

    assert first == peak_memory_mb(net, x)
    assert first > peak_memory_mb(HazeUNet((width - 4, width - 4), (1, 1)), x)
    assert all(module.training for module in net.modules())

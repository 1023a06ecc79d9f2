"""Other counters: what they say, and that they stay quiet and harmless."""

import copy

import pytest
import torch
from torch import nn

from coa_compress.errors import SettingError
from coa_compress.profiling.counting import count_macs
from coa_compress.profiling.cross_check import cross_check_macs, explain_difference


def test_both_agree_on_a_plain_convolution():
    net = nn.Conv2d(8, 8, 3, padding=1)
    assert set(cross_check_macs(net, torch.zeros(1, 8, 16, 16)).values()) == {147_456}


def test_thop_counts_a_transposed_convolution_at_its_output():
    net = nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1)
    checks = cross_check_macs(net, torch.zeros(1, 8, 16, 16))

    assert checks == {"macs_fvcore": 131_072, "macs_thop": 4 * 131_072}
    sentence = explain_difference(count_macs(net, torch.zeros(1, 8, 16, 16)), checks)
    assert sentence.startswith("fvcore agrees; thop counts 300.0 % more")


def test_a_counter_that_fails_says_none():
    class Odd(nn.Module):
        def forward(self, x):
            if torch.jit.is_tracing():
                raise NotImplementedError
            return x

    checks = cross_check_macs(Odd(), torch.zeros(1, 3, 4, 4))
    assert checks == {"macs_fvcore": None, "macs_thop": 0}
    assert "fvcore cannot count this network" in explain_difference(5, checks)


def test_the_model_is_untouched_and_nothing_is_printed(capfd, caplog):
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.PReLU(), nn.Upsample(scale_factor=2)
    )
    before = copy.deepcopy(net.state_dict())

    cross_check_macs(net, torch.zeros(1, 3, 8, 8))

    assert net.training
    assert list(before) == list(net.state_dict())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert sum(len(m._forward_hooks) for m in net.modules()) == 0
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_less_is_explained_too():
    sentence = explain_difference(1000, {"macs_fvcore": 900, "macs_thop": 0})
    assert sentence == (
        "fvcore counts 10.0 % less: it misses fused attention; "
        "thop counts 100.0 % less: it misses functional convolutions and matrix products"
    )


def test_nothing_cannot_be_compared():
    with pytest.raises(SettingError, match="nothing to compare with 0 macs"):
        explain_difference(0, {})

"""Other counters: what they say, and that they stay quiet and harmless."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from coa_compress.errors import ModelError, SettingError
from coa_compress.profiling import cross_check as module
from coa_compress.profiling.counting import count_macs
from coa_compress.profiling.cross_check import cross_check, cross_check_macs, explain_difference


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


class Mixed(nn.Module):
    """A convolution, a functional one, a norm, a transposed one, fused attention."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.weight = nn.Parameter(torch.rand(8, 8, 1, 1))

    def forward(self, x):
        x = functional.conv2d(self.norm(self.conv(x)), self.weight)
        q = x.flatten(2).transpose(1, 2).unsqueeze(1)
        return self.up(x + functional.scaled_dot_product_attention(q, q, q).sum())


def test_each_difference_is_explained_by_operator():
    example = torch.rand(1, 3, 8, 8)
    attention, functional_conv, up = 2 * 64 * 64 * 8, 8 * 8 * 64, 8 * 4 * 4 * 64

    checked = cross_check(Mixed(), example)

    found = {(d.tool, d.operator): (d.ours, d.theirs, d.cause) for d in checked.differences}
    # torch may run fused attention as one kernel or as two products
    fused = found.get(("fvcore", "fused attention")) or found["fvcore", "matrix product"]
    assert fused[:2] == (attention, 0)
    assert "no rule for scaled_dot_product_attention" in fused[2]
    assert found["fvcore", "batch_norm"][0] == 0
    assert "norms, activations, resampling" in found["fvcore", "batch_norm"][2]
    assert ("fvcore", "convolution") not in found
    assert found["thop", "Mixed"][:2] == (attention + functional_conv, 0)
    assert "called as a function" in found["thop", "Mixed"][2]
    assert found["thop", "ConvTranspose2d"][:2] == (up, 4 * up)
    assert "at the size of its output" in found["thop", "ConvTranspose2d"][2]
    assert ("thop", "Conv2d") not in found


def test_the_differences_add_up_to_that_of_the_totals():
    net, example = Mixed(), torch.rand(1, 3, 8, 8)

    checked = cross_check(net, example)

    for tool, theirs in (("fvcore", checked.macs_fvcore), ("thop", checked.macs_thop)):
        apart = sum(d.theirs - d.ours for d in checked.differences if d.tool == tool)
        assert count_macs(net, example) + apart == theirs


def test_a_missing_tool_is_named(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "thop" else object())
    with pytest.raises(ModelError, match=r"thop not installed, .*: pip install thop"):
        cross_check(nn.Conv2d(3, 3, 1), torch.zeros(1, 3, 4, 4))

"""MACs against hand arithmetic, and the network left as it was."""

import copy
import logging
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from coa_compress.errors import ModelError
from coa_compress.profiling.counting import (
    count_activations,
    count_macs,
    count_params,
    file_bytes,
    macs_by_module,
    work_by_module,
    work_by_operator,
)
from coa_compress.tasks.dehazing.networks import HazeUNet


class Lambda(nn.Module):
    def __init__(self, function, **parameters):
        super().__init__()
        self.function = function
        for name, shape in parameters.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))

    def forward(self, x):
        return self.function(self, x)


def tokens(x):
    return x.flatten(2).transpose(1, 2)


def attention_by_matmul(net, x):
    q = tokens(x)
    return (q @ q.transpose(1, 2)).softmax(-1) @ q


def fused_attention(net, x):
    q = tokens(x).unsqueeze(1)
    return functional.scaled_dot_product_attention(q, q, q)


CASES = {
    "conv": (nn.Conv2d(8, 8, 3, padding=1), 8 * 8 * 3 * 3 * 256),
    "depthwise": (nn.Conv2d(8, 8, 3, padding=1, groups=8), 8 * 3 * 3 * 256),
    "transposed": (nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1), 8 * 4 * 16 * 256),
    "raw parameter": (
        Lambda(lambda net, x: functional.conv2d(x, net.w, padding=1), w=(8, 8, 3, 3)),
        147_456,
    ),
    "computed weight": (
        Lambda(lambda net, x: functional.conv2d(x, net.w + net.v, padding=1), w=(8, 8, 3, 3), v=1),
        147_456,
    ),
    "shared kernel": (
        Lambda(
            lambda net, x: functional.conv2d(x, net.w.repeat(8, 1, 1, 1), padding=1, groups=8),
            w=(1, 1, 3, 3),
        ),
        18_432,
    ),
    "attention by matmul": (Lambda(attention_by_matmul), 2 * 256 * 256 * 8),
    "fused attention": (Lambda(fused_attention), 2 * 256 * 256 * 8),
    "einsum": (Lambda(lambda net, x: torch.einsum("bchw,dc->bdhw", x, net.w), w=(8, 8)), 16_384),
    "shuffle and bilinear": (
        Lambda(
            lambda _, x: functional.interpolate(
                functional.pixel_shuffle(x, 2), (64, 64), mode="bilinear"
            )
        ),
        0,
    ),
    "norm and activations": (
        nn.Sequential(nn.BatchNorm2d(8), nn.PReLU(), nn.Sigmoid()),
        0,
    ),
    "linear": (nn.Sequential(nn.Flatten(), nn.Linear(8 * 256, 10)), 8 * 256 * 10),
    "matrix times vector": (Lambda(lambda net, x: tokens(x)[0] @ net.w, w=(8,)), 256 * 8),
    "dot": (Lambda(lambda net, x: x.flatten() @ x.flatten()), 8 * 256),
    "dilated, strided": (nn.Conv2d(8, 4, 3, stride=2, dilation=2, padding=2), 8 * 4 * 9 * 64),
}


@pytest.mark.parametrize("name", CASES)
def test_macs_are_those_of_hand_arithmetic(name):
    net, macs = CASES[name]

    assert count_macs(net, torch.randn(1, 8, 16, 16)) == macs


@pytest.mark.parametrize("name", CASES)
def test_macs_are_the_same_in_inference_mode(name):
    net, macs = CASES[name]
    with torch.inference_mode():
        assert count_macs(net, torch.randn(1, 8, 16, 16)) == macs


def test_multi_head_attention_is_counted_though_pytorch_fuses_it():
    net = nn.MultiheadAttention(8, 2, batch_first=True)
    call = Lambda(lambda self, x: self.net(tokens(x), tokens(x), tokens(x), need_weights=False)[0])
    call.net = net
    fused = torch.backends.mha.get_fastpath_enabled()

    macs = count_macs(call, torch.randn(1, 8, 4, 4))

    assert macs == 4 * 16 * 8 * 8 + 2 * 16 * 16 * 8
    assert torch.backends.mha.get_fastpath_enabled() == fused


def test_a_module_called_on_a_parameter_is_counted():
    class Rearranged(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 8, 3, 3))
            self.turn = nn.Flatten(2)

        def forward(self, x):
            return functional.conv2d(x, self.turn(self.weight).view(8, 8, 3, 3), padding=1)

    assert count_macs(Rearranged(), torch.randn(1, 8, 16, 16)) == 147_456


def test_the_count_is_linear_in_the_batch():
    net = nn.Conv2d(8, 8, 3)
    assert count_macs(net, torch.randn(3, 8, 9, 9)) == 3 * count_macs(net, torch.randn(1, 8, 9, 9))


@settings(deadline=None, max_examples=20)
@given(
    st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 2), st.integers(3, 9)
)
def test_a_convolution_costs_its_weights_at_every_output(cin, cout, kernel, stride, size):
    net = nn.Conv2d(cin, cout, kernel, stride=stride)
    out = (size - kernel) // stride + 1

    assert count_macs(net, torch.zeros(1, cin, size, size)) == net.weight.numel() * out * out


@pytest.mark.parametrize("fails", [False, True])
def test_the_network_is_left_as_it_was(fails):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout().eval())
    before = copy.deepcopy(net.state_dict())
    example = torch.randn(1, 5 if fails else 3, 8, 8)
    for count in (count_macs, macs_by_module):
        if fails:
            with pytest.raises(RuntimeError, match="channels"):
                count(net, example)
        else:
            count(net, example)

    assert [part.training for part in net] == [True, True, False]
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()) == 0
    assert torch.is_grad_enabled()


def test_macs_by_module_name_the_innermost_module_and_add_up():
    net = HazeUNet((8, 8), (1, 1))
    example = torch.rand(1, 3, 16, 16)

    parts = macs_by_module(net, example)

    assert sum(parts.values()) == count_macs(net, example)
    assert parts["stem"] == 12 * 8 * 9 * 64
    assert all(not list(net.get_submodule(path).children()) for path in parts)


ACTIVATIONS = {
    "conv": 8 * 256,
    "depthwise": 8 * 256,
    "transposed": 4 * 1024,
    "raw parameter": 8 * 256,
    "attention by matmul": 256 * 256 + 256 * 8,
    "einsum": 8 * 256,
    "linear": 10,
    "norm and activations": 0,
    "shuffle and bilinear": 0,
}


@pytest.mark.parametrize("case", ACTIVATIONS)
def test_activations_are_what_operators_that_multiply_write(case):
    net, _ = CASES[case]
    assert count_activations(net, torch.randn(1, 8, 16, 16)) == ACTIVATIONS[case]


def test_attention_writes_its_output_and_apart_its_scores_too():
    def attend(net, x):
        q = tokens(x).unsqueeze(1).contiguous()
        return functional.scaled_dot_product_attention(q, q, q)

    written = count_activations(Lambda(attend), torch.randn(1, 8, 16, 16))

    assert written in (256 * 8, 256 * 256 + 256 * 8)


@pytest.mark.parametrize("case", ["conv", "transposed", "attention by matmul", "einsum", "linear"])
def test_activations_are_those_of_fvcore(case):
    nn_of_fvcore = pytest.importorskip("fvcore.nn")
    net, example = CASES[case][0], torch.randn(1, 8, 16, 16)
    analysis = nn_of_fvcore.ActivationCountAnalysis(net, (example,))
    analysis.unsupported_ops_warnings(enabled=False).tracer_warnings("none")

    assert count_activations(net, example) == analysis.total()


def test_work_by_module_and_by_operator_add_up_to_the_same():
    net, example = HazeUNet((8, 8), (1, 1)), torch.rand(1, 3, 16, 16)
    for works in (work_by_module(net, example), work_by_operator(net, example)):
        assert sum(work.macs for work in works.values()) == count_macs(net, example)
        assert sum(work.activations for work in works.values()) == count_activations(net, example)


def test_calls_outside_any_submodule_belong_to_the_network():
    net = Lambda(attention_by_matmul)
    assert list(macs_by_module(net, torch.randn(1, 8, 4, 4))) == [""]


def test_a_recurrent_layer_is_counted_or_named_in_the_log(caplog):
    with caplog.at_level(logging.WARNING):
        macs = count_macs(nn.LSTM(4, 4), torch.randn(2, 1, 4))
    assert macs == 2 * 4 * (4 + 4) * 4 or "no MAC formula for aten::" in caplog.text


def test_a_network_in_inference_mode_of_its_own_is_counted():
    class Guarded(nn.Linear):
        @torch.inference_mode()
        def forward(self, x):
            return super().forward(x)

    assert count_macs(Guarded(8, 4), torch.randn(1, 5, 8)) == 5 * 8 * 4


def test_a_shared_parameter_counts_once():
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    net = nn.Sequential(first, second)

    assert count_params(net) == 16
    assert file_bytes(net) < 2 * 64 + file_bytes(nn.Identity())


def test_a_lazy_network_is_an_error():
    with warnings.catch_warnings(action="ignore"):
        net = nn.LazyLinear(3)
    with pytest.raises(ModelError, match="run the model on one input first"):
        count_params(net)


def test_file_bytes_are_those_of_the_written_file(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).to(memory_format=torch.channels_last)
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, tmp_path / "net")

    assert file_bytes(net) == (tmp_path / "net").stat().st_size

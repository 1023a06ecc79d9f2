"""Merged branches and folded norms compute the same, in double precision, or say why not."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import randomize_
from small_runs import Borrowing, Plain, hooks_of, same_snapshot, seeded, snapshot
from torch import nn

from coa_compress import fold
from coa_compress.errors import NoEffectWarning, StructureError
from coa_compress.structure.folding import ParallelConvs, merge_branches, with_branches
from coa_compress.structure.merging import merged, with_folded_norm

EXAMPLE = torch.rand(2, 4, 9, 10, generator=torch.Generator().manual_seed(0))


def conv(kernel, *, stride=1, groups=1, bias=True, width=4, padding=None):
    padding = kernel // 2 if padding is None else padding
    return nn.Conv2d(4, width, kernel, stride, padding, groups=groups, bias=bias)


def difference(a, b, x=EXAMPLE):
    a, b = a.double().eval(), b.double().eval()
    with torch.no_grad():
        return float((a(x.double()) - b(x.double())).abs().max())


@settings(deadline=None, max_examples=25)
@given(
    kernels=st.lists(st.sampled_from([1, 3, 5, 7]), min_size=1, max_size=4),
    stride=st.sampled_from([1, 2, 3]),
    groups=st.sampled_from([1, 2, 4]),
    bias=st.booleans(),
    normed=st.booleans(),
)
def test_branches_of_any_kernel_are_one_convolution(kernels, stride, groups, bias, normed):
    branches = [conv(k, stride=stride, groups=groups, bias=bias) for k in kernels]
    if normed:
        branches[0] = nn.Sequential(branches[0], nn.BatchNorm2d(4))
    if stride == groups == 1:
        branches += [nn.Identity(), nn.BatchNorm2d(4)]
    both = randomize_(ParallelConvs(*branches)).double().eval()

    one = merged(list(both.branches), channels=4)

    assert one.kernel_size[0] == max([*kernels, 1])
    assert difference(both, one) < 1e-12


def test_branches_may_have_kernels_that_are_not_square():
    both = ParallelConvs(
        nn.Conv2d(4, 2, (3, 1), padding=(1, 0)), nn.Conv2d(4, 2, (1, 5), padding=(0, 2))
    ).double()

    one = merged(list(both.branches), channels=4)

    assert one.kernel_size == (3, 5)
    assert difference(both, one) < 1e-12


@pytest.mark.parametrize(
    ("branches", "message"),
    [
        ([], "there is no branch to merge"),
        ([nn.ReLU()], "a ReLU is no convolution, batch norm or identity"),
        ([conv(3), conv(3, stride=2)], r"other strides, \(1, 1\) and \(2, 2\): they must be the"),
        ([conv(3), conv(1, width=2)], "other channels"),
        ([conv(3), conv(1, groups=2)], "other groups"),
        ([conv(3), conv(3, padding=0)], "other sizes of the output"),
        ([conv(3), nn.Conv2d(4, 4, 3, padding=2, dilation=2)], "other dilations"),
        ([nn.Conv2d(4, 4, 3, padding=2, dilation=2)], "padded with zeros and have no dilation"),
        ([nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")], "padded with zeros"),
        ([nn.Conv2d(4, 4, 4, padding="same")], "even size is padded on one side only"),
        ([nn.BatchNorm2d(4, track_running_stats=False)], "without running statistics"),
    ],
)
def test_branches_that_are_no_sum_of_convolutions_are_an_error(branches, message):
    with pytest.raises(StructureError, match=message):
        merged(branches, channels=4)


def test_a_norm_of_other_channels_is_an_error():
    with pytest.raises(StructureError, match="norm of 3 channels into a convolution of 4"):
        with_folded_norm(conv(3), nn.BatchNorm2d(3))


class Block(nn.Module):
    """Parallel branches, a norm after a convolution, and one that must stay."""

    def __init__(self):
        super().__init__()
        self.first = ParallelConvs(conv(3), conv(1), nn.Identity())
        self.norm = nn.BatchNorm2d(4)
        self.second = conv(3)
        self.used_twice = conv(1)
        self.after = nn.BatchNorm2d(4, affine=False)
        self.stays = nn.BatchNorm2d(4)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        x = self.after(self.second(x))
        twice = self.used_twice(x)
        return twice + self.stays(twice)


def test_a_folded_network_computes_the_same_with_fewer_layers():
    model = randomize_(Block()).eval()
    before = snapshot(model)

    folded = fold(model, EXAMPLE)

    assert same_snapshot(before, snapshot(model))
    assert hooks_of(folded) == 0
    assert isinstance(folded.first, nn.Conv2d)
    assert isinstance(folded.norm, nn.Identity)
    assert isinstance(folded.after, nn.Identity)
    assert isinstance(folded.stays, nn.BatchNorm2d)
    assert folded.second.weight.dtype == torch.float32
    assert difference(model, folded) < 1e-5
    assert difference(model.double(), fold(model.double(), EXAMPLE)) < 1e-12


def test_nothing_to_fold_warns():
    model = seeded(Plain)
    with pytest.warns(NoEffectWarning, match="Plain has no parallel convolutions, and no batch"):
        folded = fold(model, torch.rand(1, 3, 8, 8))
    assert folded is not model


def test_branches_that_are_more_than_a_sum_are_found_by_the_comparison():
    class Louder(ParallelConvs):
        def forward(self, x):
            return 2 * super().forward(x)

    with pytest.raises(
        StructureError, match=r"differs from the one before by .* in double precision"
    ):
        fold(nn.Sequential(Louder(conv(3), conv(1))), EXAMPLE)


def test_what_cannot_be_merged_is_named():
    model = nn.Sequential(ParallelConvs(conv(3), nn.ReLU()))
    with pytest.raises(StructureError, match="cannot merge the branches of '0': a ReLU is no"):
        fold(model, EXAMPLE)


def test_new_branches_change_nothing_until_they_are_trained_and_merge_into_the_same_layers():
    model = seeded(Plain)
    image = torch.rand(1, 3, 8, 8)

    branched = with_branches(model, image)
    assert [n for n, m in branched.named_children() if isinstance(m, ParallelConvs)] == [
        "first",
        "second",
    ]
    assert difference(model, branched, image) == 0.0
    randomize_(branched)
    back = merge_branches(branched, image)

    assert list(back.state_dict()) == list(model.state_dict())
    assert difference(branched, back, image) < 1e-6


def test_a_convolution_that_is_not_called_or_shared_gets_no_branch():
    borrowing = with_branches(seeded(Borrowing), torch.rand(1, 3, 8, 8))
    assert type(borrowing.first) is nn.Conv2d
    assert isinstance(borrowing.second, ParallelConvs)
    shared = conv(3)
    assert type(with_branches(nn.Sequential(shared, shared), EXAMPLE)[0]) is nn.Conv2d

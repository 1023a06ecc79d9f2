"""Facts about the refit of every kind of layer that reads channels, in layers and in plain code."""

import copy
import importlib

import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import randomize_
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from coa_compress.artifacts import Batch, Cut
from coa_compress.refit.calls import Call, Watch
from coa_compress.refit.closed_form import RefitResult, refit
from coa_compress.refit.operators import Convolution, size_of, values_at
from coa_compress.structure.analysis import analyze

WIDTH, KEPT = 8, 3
CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
TRANSPOSED = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


def images(n: int = 10, *, size: int = 8, seed: int = 0) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    return [Batch(torch.rand(n, 3, size, size, generator=generator))]


@torch.no_grad()
def calls_of(run) -> list[Call]:
    calls: list[Call] = []
    with Watch(calls.append):
        run()
    return calls


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_sampled_rows_times_the_matrix_are_the_output_of_every_convolution(data):
    rank = data.draw(st.integers(1, 3))
    groups, ins, outs = (data.draw(st.integers(1, 3)) for _ in range(3))
    sizes = st.lists(st.integers(1, 3), min_size=rank, max_size=rank)
    kernel, stride, padding, dilation = (data.draw(sizes) for _ in range(4))
    transposed = data.draw(st.booleans())
    torch.manual_seed(0)
    x = torch.rand(2, groups * ins, *[9] * rank)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    shape = (groups * ins, outs) if transposed else (groups * outs, ins)
    weight, bias = torch.rand(*shape, *kernel), torch.rand(groups * outs)

    function = (TRANSPOSED if transposed else CONVOLUTIONS)[rank]
    (call,) = calls_of(lambda: function(x, weight, bias, **options))

    assert isinstance(call.operator, Convolution)
    size = size_of(call.output, 1)
    places = torch.arange(torch.Size(size).numel())
    matrices = call.operator.matrices(weight)
    rows = call.operator.rows(call.given(), places, size, weight.shape)
    torch.testing.assert_close(
        (rows @ matrices).movedim(0, 1).flatten(1) + bias, values_at(call.output, places, 1)
    )
    assert torch.equal(call.operator.weight(matrices, weight.shape), weight)


class Plain(nn.Module):
    """A stem of redundant channels, and something that reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 1)
        self.build()

    def build(self) -> None:
        self.reader = nn.Conv2d(WIDTH, 4, 3)

    def read(self, x: Tensor) -> Tensor:
        return self.reader(x)

    def forward(self, image: Tensor) -> Tensor:
        return self.read(self.stem(image))


class Line(Plain):
    def build(self):
        self.reader = nn.Conv1d(WIDTH, 4, 3, padding=1, stride=2)

    def read(self, x):
        return self.reader(x.flatten(2))


class Volume(Plain):
    def build(self):
        self.reader = nn.Conv3d(WIDTH, 4, (1, 3, 3), padding=(0, 1, 1))

    def read(self, x):
        return self.reader(x.unflatten(2, (2, -1)))


class TransposedLine(Plain):
    def build(self):
        self.reader = nn.ConvTranspose1d(WIDTH, 4, 4, stride=2)

    def read(self, x):
        return self.reader(x.flatten(2))


class TransposedVolume(Plain):
    def build(self):
        self.reader = nn.ConvTranspose3d(WIDTH, 4, 2)

    def read(self, x):
        return self.reader(x.unflatten(2, (2, -1)))


class Functional(Plain):
    def build(self):
        self.kernel = nn.Parameter(torch.randn(4, WIDTH, 3, 3))
        self.level = nn.Parameter(torch.randn(4))

    def read(self, x):
        return functional.conv2d(x, weight=self.kernel, bias=self.level, padding=1)


class Product(Plain):
    def build(self):
        self.matrix = nn.Parameter(torch.randn(WIDTH, 4))

    def read(self, x):
        return x.movedim(1, -1) @ self.matrix


class ProductFromTheLeft(Plain):
    def build(self):
        self.matrix = nn.Parameter(torch.randn(4, WIDTH))

    def read(self, x):
        return torch.matmul(self.matrix, x.flatten(2))


class Einsum(Plain):
    def build(self):
        self.matrix = nn.Parameter(torch.randn(WIDTH, 4))

    def read(self, x):
        return torch.einsum("bchw,cd->bdhw", x, self.matrix)


class EinsumEllipsis(Plain):
    def build(self):
        self.matrix = nn.Parameter(torch.randn(4, WIDTH))

    def read(self, x):
        return torch.einsum("...c,dc->...d", x.movedim(1, -1), self.matrix)


class SumOfKernels(Plain):
    """As DEConv: a difference kernel, and an ordinary one beside it."""

    def build(self):
        self.rough = nn.Conv2d(WIDTH, 4, 3)
        self.plain = nn.Conv2d(WIDTH, 4, 3)

    def read(self, x):
        rough = self.rough.weight
        weight = rough - rough.mean(dim=(2, 3), keepdim=True) + self.plain.weight
        return functional.conv2d(x, weight, self.rough.bias + self.plain.bias, padding=1)


class Doubled(nn.Module):
    def forward(self, half):
        return 2 * half

    def right_inverse(self, whole):
        return whole / 2


class Parametrized(Plain):
    def build(self):
        self.reader = nn.Conv2d(WIDTH, 4, 3)
        parametrize.register_parametrization(self.reader, "weight", Doubled())


class Twice(Plain):
    def build(self):
        self.reader = nn.Conv2d(WIDTH, 4, 3)

    def read(self, x):
        return torch.cat([self.reader(x), self.reader(x.square())], dim=1)


class Shared(Plain):
    """One weight, two layers, each with a bias of its own."""

    def build(self):
        self.one, self.two = nn.Conv2d(WIDTH, 4, 3), nn.Conv2d(WIDTH, 4, 3)
        self.two.weight = self.one.weight

    def read(self, x):
        return self.one(x) * self.two(x + 1)


class IntoASum(Plain):
    def build(self):
        self.reader, self.skip = nn.Conv2d(WIDTH, 4, 1), nn.Conv2d(WIDTH, 4, 1)

    def read(self, x):
        return torch.relu(self.reader(x) + self.skip(x.abs()))


RECOVERED = [
    Plain, Line, Volume, TransposedLine, TransposedVolume, Functional, Product,
    ProductFromTheLeft, Einsum, EinsumEllipsis, SumOfKernels, Parametrized, Shared,
]  # fmt: skip


def redundant(kind: type[Plain]) -> Plain:
    """Return a network whose stem has channels that are combinations of the first ones."""
    torch.manual_seed(0)
    net = kind()
    with torch.no_grad():
        mix = torch.randn(WIDTH - KEPT, KEPT)
        mixed = (mix @ net.stem.weight[:KEPT].flatten(1)).view_as(net.stem.weight[KEPT:])
        net.stem.weight[KEPT:] = mixed
        net.stem.bias[KEPT:] = mix @ net.stem.bias[:KEPT]
    return net.eval()


def cut_stem(net: nn.Module, kept: Tensor) -> Cut:
    structure = analyze(net, images(1)[0].input)
    return structure.cut({"stem": kept})


def output_error(net: nn.Module, teacher: nn.Module) -> float:
    x = images(4, seed=1)[0].input
    with torch.no_grad():
        return float((net(x) - teacher(x)).square().mean())


@pytest.mark.parametrize("kind", RECOVERED)
def test_what_depends_on_kept_channels_is_recovered_exactly(kind):
    teacher = redundant(kind)
    cut = cut_stem(teacher, torch.arange(KEPT))

    result = refit(teacher, cut, images(), ridge=0.0)

    assert dict(result.skipped) == {}
    (layer,) = result.layers
    assert layer.accepted
    assert layer.error_before > 1e-3
    assert layer.error_after < 1e-8
    assert output_error(result.student, teacher) < 1e-7 < output_error(cut.student, teacher)


@pytest.mark.parametrize("kind", [Twice, IntoASum])
def test_several_calls_and_sums_are_fitted_together(kind):
    teacher = redundant(kind)
    cut = cut_stem(teacher, torch.arange(KEPT))

    result = refit(teacher, cut, images())

    assert all(layer.accepted for layer in result.layers)
    assert output_error(result.student, teacher) < 0.5 * output_error(cut.student, teacher)


def test_a_layer_that_reads_its_own_output_is_judged_by_what_really_comes_out():
    class Recurrent(Plain):
        def build(self):
            self.reader = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
            self.last = nn.Conv2d(WIDTH, 3, 1)

        def read(self, x):
            for _ in range(3):
                x = torch.tanh(3 * self.reader(x))
            return self.last(x)

    torch.manual_seed(0)
    teacher = Recurrent().eval()
    cut = analyze(teacher, images(1)[0].input).cut({"stem": torch.arange(4)})

    result = refit(teacher, cut, images())

    for layer in result.layers:
        assert layer.accepted == (layer.error_after < 0.999 * layer.error_before)


@pytest.mark.parametrize(
    "norm",
    [nn.GroupNorm(1, WIDTH), nn.InstanceNorm2d(WIDTH, affine=True), nn.LayerNorm([WIDTH])],
)
def test_factors_of_a_normalization_follow_what_the_cut_did_to_it(norm):
    class Normed(Plain):
        def build(self):
            self.norm = copy.deepcopy(norm)
            self.reader = nn.Conv2d(WIDTH, 4, 1)

        def read(self, x):
            if isinstance(self.norm, nn.LayerNorm):
                return self.reader(self.norm(x.movedim(1, -1)).movedim(-1, 1))
            return self.reader(self.norm(x))

    torch.manual_seed(0)
    teacher = Normed().eval()
    with torch.no_grad():
        teacher.stem.weight[KEPT + 1 :] *= 4  # what is cut decides the spread of a whole position
    cut = cut_stem(teacher, torch.arange(KEPT + 1))

    result = refit(teacher, cut, images())

    by_path = {layer.path: layer for layer in result.layers}
    assert by_path["norm"].accepted or norm.__class__ is nn.InstanceNorm2d
    assert by_path["reader"].accepted
    assert by_path["norm"].error_after <= by_path["norm"].error_before
    assert not torch.equal(result.student.norm.weight, cut.student.norm.weight) or (
        not by_path["norm"].accepted
    )


@pytest.mark.parametrize("groups", [2, 4])
def test_grouped_transposed_convolutions_find_their_outputs_again(groups):
    torch.manual_seed(0)
    teacher = nn.Sequential(
        nn.Conv2d(3, WIDTH, 1), nn.ConvTranspose2d(WIDTH, WIDTH, 2, groups=groups), nn.ReLU(),
        nn.Conv2d(WIDTH, 3, 1),
    ).eval()  # fmt: skip
    structure = analyze(teacher, images(1)[0].input)
    kept = {g.name: torch.arange(g.n_channels // 2) for g in structure.groups}
    cut = structure.cut(kept)

    result = refit(teacher, cut, images())

    assert dict(result.skipped) == {}
    assert output_error(result.student, teacher) < output_error(cut.student, teacher)


def skipped_of(kind: type[Plain]) -> tuple[RefitResult, Cut]:
    torch.manual_seed(0)
    teacher = kind().eval()
    cut = cut_stem(teacher, torch.arange(4))
    return refit(teacher, cut, images()), cut


class ByTheInput(Plain):
    def build(self):
        self.kernel = nn.Parameter(torch.randn(4, WIDTH, 1, 1))

    def read(self, x):
        return functional.conv2d(x, self.kernel * x.mean(), None)


class Squared(Plain):
    def build(self):
        self.kernel = nn.Parameter(torch.randn(4, WIDTH, 1, 1))

    def read(self, x):
        return functional.conv2d(x, self.kernel.square())


class HandWritten(Plain):
    def build(self):
        self.kernel = nn.Parameter(torch.randn(4, WIDTH))

    def read(self, x):
        return (self.kernel[:, :, None] * x.flatten(2)[:, None]).sum(2)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (ByTheInput, "its weight is computed from the input of the network"),
        (Squared, "its weight is computed from others in a way that cannot be undone"),
        (HandWritten, "no convolution, linear layer, product or normalization was seen to use it"),
    ],
)
def test_what_is_left_alone_is_said_with_the_reason(kind, words):
    result, cut = skipped_of(kind)

    assert result.layers == ()
    assert dict(result.skipped) == {"kernel": words}
    assert torch.equal(result.student.kernel, cut.student.kernel)


@pytest.mark.parametrize("name", list(zoo.names()))
def test_no_network_of_the_zoo_gets_worse(name):
    module = importlib.import_module(f"zoo.{name}")
    torch.manual_seed(0)
    example = module.example()
    teacher = randomize_(module.build()).eval()
    structure = analyze(teacher, example)
    kept = {n: torch.arange((width + 1) // 2) for n, width in structure.widths.items()}
    cut = structure.cut(kept)
    x = torch.cat([example] * 5) + 0.1 * torch.rand(5, *example.shape[1:])
    before = {n: t.clone() for n, t in cut.student.state_dict().items()}

    result = refit(teacher, cut, [Batch(part) for part in x.split(1)], positions=200)

    for layer in result.layers:
        assert layer.accepted == (1e-10 < layer.error_before > layer.error_after / 0.999)
    if not any(layer.accepted for layer in result.layers):
        after = result.student.state_dict()
        assert all(torch.equal(before[n], t) for n, t in after.items())

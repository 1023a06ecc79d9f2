"""Refitted in one run of the student, layers become what they become one after the other."""

import warnings

import pytest
import torch
from torch import nn

from coa_compress.artifacts import Batch
from coa_compress.errors import SettingError
from coa_compress.refit.closed_form import refit
from coa_compress.structure.analysis import analyze

SIZE = 8


class Layered(nn.Module):
    """Depthwise and plain convolutions, running and measured statistics; counts its runs."""

    runs = 0

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.Conv2d(8, 8, 1),
            nn.InstanceNorm2d(8, affine=True),
            nn.ReLU(),
            nn.ConvTranspose2d(8, 3, 2, stride=2),
        )

    def forward(self, x):
        type(self).runs += 1
        return self.body(x)


class Twice(nn.Module):
    """A layer that runs twice between layers that run once."""

    def __init__(self):
        super().__init__()
        self.first, self.again = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 3, 1)

    def forward(self, x):
        return self.last(self.again(self.again(self.first(x)).relu()).relu())


class SequenceFirst(nn.Module):
    """Examples in the second dimension, as in sequences."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 3)

    def forward(self, x):
        tokens = x.flatten(2).permute(2, 0, 1)
        return self.last(self.first(tokens).relu()).permute(1, 2, 0).view_as(x)


class SameForAll(nn.Module):
    """A branch that does not see the input."""

    def __init__(self):
        super().__init__()
        self.places = nn.Buffer(torch.rand(SIZE, 2))
        self.hidden, self.shift = nn.Linear(2, 8), nn.Linear(8, 6)
        self.first, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 3, 1)

    def forward(self, x):
        shift = self.shift(self.hidden(self.places).relu())
        return self.last((self.first(x) + shift.t()[:, :, None]).relu())


class TwoAtOnce(nn.Module):
    """Code that knows the size of the batch."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x):
        return self.last(self.first(x.reshape(2, 3, SIZE, SIZE)).relu())


def half_of(net, example):
    structure = analyze(net.eval(), example)
    kept = {name: torch.arange(0, full, 2) for name, full in structure.widths.items()}
    return structure.cut(kept)


def batches_of(*counts):
    generator = torch.Generator().manual_seed(1)
    return [Batch(torch.rand(n, 3, SIZE, SIZE, generator=generator)) for n in counts]


@pytest.mark.parametrize("kind", [Layered, Twice, SequenceFirst, SameForAll, TwoAtOnce])
def test_one_run_or_one_for_each_layer_is_the_same(kind):
    torch.manual_seed(0)
    net = kind()
    batches = batches_of(2, 2, 2) if kind is TwoAtOnce else batches_of(4, 3, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cut = half_of(net, batches[0].input[:2])

    together = refit(net, cut, batches, positions=200)
    apart = refit(net, cut, batches, positions=200, max_activations_mb=1e-9)

    assert any(layer.accepted for layer in together.layers)
    assert [layer.path for layer in together.layers] == [layer.path for layer in apart.layers]
    ours, theirs = together.student.state_dict(), apart.student.state_dict()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-3, atol=1e-4)


def test_the_student_runs_once_for_all_layers():
    torch.manual_seed(0)
    net, batches = Layered(), batches_of(4, 3, 2)
    cut = half_of(net, batches[0].input[:2])

    counts = []
    for limit in (1e3, 1e-9):
        Layered.runs = 0
        layers = refit(net, cut, batches, max_activations_mb=limit).layers
        counts.append(Layered.runs)

    # traces of both, memory, the teacher on three batches; then a trace on all, and the refit
    assert len(layers) == 5
    assert counts == [2 + 1 + 3 + 1 + 1, 2 + 1 + 3 + 5 * 3]


class Heavy(Layered):
    """Far more weights than activations."""

    def __init__(self):
        super().__init__()
        wide = [nn.Conv2d(512, 512, 1) for _ in range(2)]
        self.body = nn.Sequential(nn.Conv2d(3, 512, 1), *wide, nn.Conv2d(512, 3, 1))


def test_weights_do_not_count_as_activations():
    torch.manual_seed(0)
    net = Heavy()
    cut = half_of(net, batches_of(2)[0].input)
    small = [Batch(batch.input[..., :2, :2]) for batch in batches_of(4, 3, 2)]
    weights_mb = sum(p.nbytes for p in cut.student.parameters()) / 1e6

    Heavy.runs = 0
    layers = refit(net, cut, small, max_activations_mb=weights_mb).layers

    assert len(layers) == 3
    assert Heavy.runs == 2 + 1 + 3 + 1 + 1


def test_no_memory_for_activations_is_refused():
    net, batches = Layered(), batches_of(2)
    cut = half_of(net, batches[0].input)

    with pytest.raises(SettingError, match=r"max_activations_mb must be above 0, got 0\.0"):
        refit(net, cut, batches, max_activations_mb=0.0)

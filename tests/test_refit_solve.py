"""Facts about the least squares behind the refit, and about the memory that it takes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from coa_compress.artifacts import Batch, Cut
from coa_compress.errors import SettingError
from coa_compress.profiling.memory import _LiveBytes
from coa_compress.refit.closed_form import refit
from coa_compress.refit.solve import FewRows, NormalEquations, Rows, effort

SYSTEMS = [NormalEquations, FewRows]


def rows_of(values, residual, *, bias: int = -1, n_held: int = 4) -> Rows:
    held = torch.zeros(values.shape[1], dtype=torch.bool)
    held[-n_held:] = True
    return Rows(values.clone(), residual.double().clone(), held, bias)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 99),
    groups=st.integers(1, 3),
    features=st.integers(1, 12),
    n_rows=st.integers(6, 30),
    n_biases=st.integers(0, 2),
    ridge=st.sampled_from([1e-4, 0.1, 10.0]),
)
def test_both_forms_of_the_solution_agree(seed, groups, features, n_rows, n_biases, ridge):
    generator = torch.Generator().manual_seed(seed)
    fits = []
    parts = [
        (
            torch.rand(groups, n_rows, features, generator=generator),
            torch.rand(groups, n_rows, 2, generator=generator),
            number % n_biases if n_biases else -1,
        )
        for number in range(2)
    ]
    for kind in SYSTEMS:
        system = kind(n_biases)
        for values, residual, bias in parts:
            system.add_(rows_of(values, residual, bias=bias))
        fits.append(system.best([ridge]))

    first, second = fits
    assert first.error_before == pytest.approx(second.error_before)
    assert first.error == pytest.approx(second.error, rel=1e-3)
    assert first.error <= first.error_before
    if first.update is not None and second.update is not None:
        torch.testing.assert_close(first.update, second.update.double(), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(first.shifts, second.shifts, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", SYSTEMS)
def test_the_pull_is_towards_the_present_weights(kind):
    system, values = kind(1), torch.rand(1, 9, 2)
    system.add_(rows_of(values, torch.ones(1, 9, 1), bias=0))

    fit = system.best([1e12])

    assert fit.update is not None
    assert float(fit.update.abs().max()) < 1e-6
    assert float(fit.shifts) == pytest.approx(1.0, rel=1e-6)
    assert fit.error < 1e-6 * fit.error_before


@pytest.mark.parametrize("kind", SYSTEMS)
def test_rows_that_show_nothing_change_nothing(kind):
    system = kind(1)
    system.add_(rows_of(torch.zeros(1, 9, 3), torch.zeros(1, 9, 2), bias=0))

    fit = system.best([0.0])

    assert fit.error == fit.error_before == 0
    assert fit.update is None


@pytest.mark.parametrize("kind", SYSTEMS)
@pytest.mark.parametrize("n_held", [0, 9])
def test_without_rows_to_fit_to_or_to_judge_nothing_changes(kind, n_held):
    values = torch.rand(1, 9, 2)
    rows = rows_of(values, values, bias=0, n_held=9)
    system = kind(1)
    system.add_(Rows(rows.values, rows.residual, rows.held & (n_held > 0), 0))

    assert system.best([1e-4]).update is None


def test_the_best_of_several_pulls_is_taken():
    torch.manual_seed(0)
    values = torch.rand(1, 60, 2)
    system = NormalEquations(0)
    system.add_(rows_of(values, values @ torch.tensor([[1.0], [2.0]]), n_held=20))

    assert system.best([1e4, 1e-8]).error < 1e-9 * system.best([1e4]).error


@given(
    positions=st.integers(1, 10**6),
    groups=st.integers(1, 4096),
    features=st.integers(1, 10**5),
    max_memory_mb=st.floats(1.0, 1e5),
)
def test_a_system_fits_in_the_memory_that_it_may_take(positions, groups, features, max_memory_mb):
    found = effort(positions, groups, features, max_memory_mb=max_memory_mb)

    n = found.positions
    assert 1 <= n <= positions
    if n > 1:
        rows = 4 * groups * n * features
        square = features**2 if found.multiplied_out else n**2
        assert rows + 2 * 8 * groups * square <= max_memory_mb * 2**20


def wide_cut(channels: int) -> tuple[nn.Module, Cut]:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Conv2d(3, channels + 8, 1), nn.Conv2d(channels + 8, 4, 3, padding=1))
    student = nn.Sequential(nn.Conv2d(3, channels, 1), nn.Conv2d(channels, 4, 3, padding=1))
    kept = torch.arange(channels)
    slices = {"0.weight": {0: kept}, "0.bias": {0: kept}, "1.weight": {1: kept}}
    for name, dims in slices.items():
        value = teacher.get_parameter(name).detach()
        for dim, positions in dims.items():
            value = value.index_select(dim, positions)
        student.get_parameter(name).data = value.clone()
    with torch.no_grad():
        student[1].bias.copy_(teacher[1].bias)
    return teacher, Cut(student, slices, ())


def test_a_layer_that_reads_4096_channels_keeps_within_the_memory():
    teacher, cut = wide_cut(4096)
    batches = [Batch(torch.rand(5, 3, 16, 16))]
    limit_mb = 64
    held = [*teacher.parameters(), *cut.student.parameters(), batches[0].input]

    with _LiveBytes(held) as memory:
        before = memory.live
        result = refit(teacher, cut, batches, positions=1200, max_memory_mb=limit_mb)

    # the two copies of the networks, and what the passes over 5 images hold, come on top
    networks = sum(t.numel() * 4 for net in (teacher, cut.student) for t in net.parameters())
    activations = 3 * 5 * 4104 * 16 * 16 * 4
    assert memory.peak - before < limit_mb * 2**20 + networks + activations
    gram_bytes = 8 * (9 * 4096) ** 2
    assert memory.peak < gram_bytes / 10
    (layer,) = result.layers
    assert layer.accepted
    assert layer.error_after < 0.9 * layer.error_before


def test_no_memory_is_an_error():
    teacher, cut = wide_cut(8)
    with pytest.raises(SettingError, match=r"max_memory_mb must be above 0, got 0\.0"):
        refit(teacher, cut, [Batch(torch.rand(5, 3, 4, 4))], max_memory_mb=0.0)

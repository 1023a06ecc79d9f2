"""Facts about measured sensitivity curves and the compensation of a cut."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from coa_compress.artifacts import Batch, SensitivityCurve
from coa_compress.curves import curve_losses
from coa_compress.errors import ModelError, SettingError, StructureError
from coa_compress.protocols import SilentObserver
from coa_compress.scoring.curves import CurvePlan, curve_widths, measure_curves
from coa_compress.scoring.readers import input_moments
from coa_compress.scoring.reconstruction import compensate_
from coa_compress.stages.score import Score, ScoreSettings
from coa_compress.stages.state import Context, State
from coa_compress.structure.analysis import analyze

WIDTH = 8
IMAGE = torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def two_convs() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, WIDTH, 3, padding=1), nn.ReLU(), nn.Conv2d(WIDTH, 3, 1)
    ).eval()


def redundant() -> nn.Sequential:
    """Channels 4 to 7 are sums of the first four, up to a constant."""
    net = two_convs()
    net[1] = nn.Identity()
    with torch.no_grad():
        net[0].weight[4:] = net[0].weight[:4] + net[0].weight[:4].roll(1, 0)
        net[0].bias[4:] = 1.0
    return net


def random_scores(net: nn.Module) -> dict[str, torch.Tensor]:
    structure = analyze(net, IMAGE[:1])
    generator = torch.Generator().manual_seed(1)
    return {g.name: torch.rand(g.n_channels, generator=generator) for g in structure.groups}


def test_a_curve_is_the_measured_change_of_the_output():
    net = two_convs()
    structure, scores = analyze(net, IMAGE[:1]), {"0": torch.arange(float(WIDTH))}
    with torch.no_grad():
        whole = net(IMAGE)
        small = structure.cut({"0": torch.tensor([4, 5, 6, 7])}).student(IMAGE)
    expected = (whole - small).square().sum() / (whole - whole.mean()).square().sum()

    curve = measure_curves(
        net, structure, scores, [Batch(IMAGE)], plan=CurvePlan(n_widths=3, refit=False)
    )["0"]

    assert curve.widths == (1, 4, 7, 8)
    assert curve.losses[1] == pytest.approx(float(expected), rel=1e-4)
    assert curve.losses[-1] == 0


def test_losses_never_fall_as_channels_go_and_a_refit_never_costs():
    net = two_convs()
    structure, scores = analyze(net, IMAGE[:1]), random_scores(net)

    plain, fitted = (
        measure_curves(net, structure, scores, [Batch(IMAGE)], plan=CurvePlan(refit=refit))[
            "0"
        ].losses
        for refit in (False, True)
    )

    assert list(plain) == sorted(plain, reverse=True)
    assert list(fitted) == sorted(fitted, reverse=True)
    assert all(after <= before for before, after in zip(plain, fitted, strict=True))
    assert fitted[0] < plain[0]


def test_channels_that_others_can_tell_cost_nothing_after_the_refit():
    net = redundant()
    structure, scores = analyze(net, IMAGE[:1]), {"0": torch.arange(float(WIDTH)).flip(0)}

    plain, fitted = (
        measure_curves(
            net, structure, scores, [Batch(IMAGE)], plan=CurvePlan(n_widths=3, refit=refit)
        )["0"]
        for refit in (False, True)
    )

    assert plain.losses[1] > 0.1
    assert fitted.losses[1] < 1e-3 * plain.losses[1]


def test_the_network_is_left_as_it_was():
    net = two_convs().train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}

    measure_curves(net, analyze(net, IMAGE[:1]), random_scores(net), [Batch(IMAGE)])

    assert net.training
    assert all(torch.equal(before[name], t) for name, t in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize(
    "layers",
    [
        lambda: [nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1)],
        lambda: [nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 6, 2, stride=2)],
        lambda: [nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1, bias=False)],
        lambda: [nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=4), nn.Conv2d(8, 4, 1)],
    ],
)
def test_every_kind_of_reader_is_cut_and_compensated(layers):
    torch.manual_seed(0)
    net = nn.Sequential(*layers()).eval()
    structure = analyze(net, IMAGE[:1])

    curves = measure_curves(
        net, structure, random_scores(net), [Batch(IMAGE)], plan=CurvePlan(n_widths=2)
    )

    assert set(curves) == {group.name for group in structure.groups}
    assert all(curve.losses[0] >= curve.losses[-1] == 0 for curve in curves.values())


def test_compensation_is_the_least_squares_solution():
    net = two_convs()
    cut = analyze(net, IMAGE[:1]).cut({"0": torch.tensor([0, 2, 3, 6, 7])})
    moments = input_moments(net, ["2"], [Batch(IMAGE)])
    with torch.no_grad():
        wanted = net(IMAGE).movedim(1, -1).reshape(-1, 3).double()
        features = cut.student[:2](IMAGE).movedim(1, -1).reshape(-1, 5).double()
        features = torch.cat([features, torch.ones(len(features), 1)], dim=1)
        best = features @ (torch.linalg.pinv(features) @ wanted)

        compensate_(cut, net, moments, ridge=0.0)
        found = cut.student(IMAGE).movedim(1, -1).reshape(-1, 3).double()

    torch.testing.assert_close(found, best, rtol=1e-3, atol=1e-4)


@settings(deadline=None, max_examples=50)
@given(n_channels=st.integers(1, 300), n_widths=st.integers(1, 12))
def test_measured_widths_ascend_to_the_full_one(n_channels, n_widths):
    widths = curve_widths(n_channels, n_widths)

    assert list(widths) == sorted(set(widths))
    assert widths[0] >= 1
    assert widths[-1] == n_channels
    assert len(widths) <= n_widths + 1


@settings(deadline=None, max_examples=50)
@given(
    steps=st.lists(st.floats(0, 3), min_size=1, max_size=5),
    gaps=st.lists(st.integers(1, 9), min_size=6, max_size=6),
)
def test_the_loss_between_measured_widths_never_rises_with_the_width(steps, gaps):
    widths = [sum(gaps[: i + 1]) for i in range(len(steps) + 1)]
    losses = [sum(steps[i:]) for i in range(len(steps))] + [0.0]
    curve = SensitivityCurve(tuple(widths), tuple(losses))

    values = curve_losses(curve)

    assert all(a >= b - 1e-9 for a, b in pairwise(values))
    for width, loss in zip(widths, losses, strict=True):
        assert values[width] == pytest.approx(loss, rel=1e-6, abs=2e-9)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"batches": []}, SettingError, "no example to measure curves on"),
        ({"scores": {}}, StructureError, "no scores for group '0'"),
        ({"batches": [Batch(IMAGE * float("nan"))]}, ModelError, "not finite with group '0' cut"),
    ],
)
def test_what_cannot_be_measured_is_an_error(given, error, words):
    net = two_convs()
    arguments = {"scores": random_scores(net), "batches": [Batch(IMAGE)], **given}
    structure = analyze(net, IMAGE[:1])

    with pytest.raises(error, match=words):
        measure_curves(
            net,
            structure,
            arguments["scores"],
            arguments["batches"],
            plan=CurvePlan(n_widths=2, refit=False),
        )


class Images:
    """As much of a task as the stage asks for."""

    def calibration_batches(self):
        return [Batch(IMAGE)]

    def example_input(self):
        return IMAGE[:1]


@pytest.mark.parametrize("n_widths", [0, 2])
def test_the_stage_keeps_its_curves(tmp_path, n_widths):
    net, task = two_convs(), Images()
    structure = analyze(net, task.example_input())
    context = Context(
        task=task,
        seed=0,
        device="cpu",
        observer=SilentObserver(),
        structure=lambda teacher: structure,
        example=task.example_input(),
    )
    stage = Score(ScoreSettings(curves=n_widths))
    before = State(teacher=net)

    after = stage.run(before, context)
    stage.save(after, tmp_path)
    loaded = stage.load(replace(before), tmp_path)

    assert (after.curves is None) is (n_widths == 0)
    assert loaded.curves == after.curves
    assert list(loaded.scores) == ["0"]


def test_a_number_of_curve_widths_out_of_range_is_an_error():
    with pytest.raises(SettingError, match=r"ScoreSettings\.curves must be at least 0, got -1"):
        ScoreSettings(curves=-1)
    with pytest.raises(SettingError, match=r"CurvePlan\.n_widths must be at least 1, got 0"):
        CurvePlan(n_widths=0)

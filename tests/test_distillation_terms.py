"""What the terms of distillation compute, each held against an independent account of it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import hooks_of
from torch import nn
from torch.nn import functional

from coa_compress.artifacts import Batch
from coa_compress.distillation import FEATURE_TERMS, FeatureAdapters, Objective, Tap, Terms
from coa_compress.distillation.adapters import adapters_between
from coa_compress.distillation.balancing import geometric_mean
from coa_compress.distillation.contrastive import TappedNetwork, contrastive_ratio
from coa_compress.distillation.features import relative_l2, statistics
from coa_compress.distillation.objective import check_gradients, compared
from coa_compress.errors import ModelError, TrainingError
from coa_compress.training.image_losses import l1

NAMES = FEATURE_TERMS.names()


def features(seed, shape=(2, 4, 8, 8), count=2):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 999), height=st.integers(1, 20), width=st.integers(1, 20))
def test_a_term_is_0_for_equal_features_and_finite_with_a_gradient_for_any(
    name, seed, height, width
):
    term = FEATURE_TERMS.get(name)
    wanted = features(seed, (2, 3, height, width))
    other = [x.requires_grad_() for x in features(seed + 1, (2, 3, height, width))]

    assert float(term(wanted, wanted, [0.3, 0.7])) == pytest.approx(0.0, abs=1e-12)
    loss = term(other, wanted, [0.3, 0.7])
    loss.backward()

    assert float(loss.detach()) >= 0.0
    assert math.isfinite(float(loss.detach()))
    assert all(bool(x.grad.isfinite().all()) for x in other)


@pytest.mark.parametrize("name", NAMES)
def test_a_term_of_features_that_are_all_0_has_a_finite_gradient(name):
    zero = torch.zeros(1, 2, 4, 4, requires_grad=True)

    FEATURE_TERMS.get(name)([zero], [torch.ones(1, 2, 4, 4)], [1.0]).backward()

    assert bool(zero.grad.isfinite().all())


@pytest.mark.parametrize("name", [name for name in NAMES if name != "coa"])
def test_a_term_is_the_weighted_mean_over_taps(name):
    term = FEATURE_TERMS.get(name)
    mine, wanted = features(0), features(1)
    alone = [float(term([a], [b], [1.0])) for a, b in zip(mine, wanted, strict=True)]

    assert float(term(mine, wanted, [0.25, 0.75])) == pytest.approx(
        0.25 * alone[0] + 0.75 * alone[1]
    )


@settings(deadline=None, max_examples=20)
@given(scale=st.floats(0.0, 3.0), seed=st.integers(0, 99))
def test_l2_is_a_relative_squared_error(scale, seed):
    (wanted,) = features(seed, count=1)

    assert float(relative_l2(scale * wanted, wanted)) == pytest.approx((scale - 1) ** 2, abs=1e-6)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 999))
def test_statistics_are_never_further_off_than_the_features(seed):
    mine, wanted = features(seed)

    assert float(statistics(mine, wanted)) <= float(relative_l2(mine, wanted)) + 1e-9


def test_statistics_see_no_position():
    (x,) = features(0, count=1)
    order = torch.randperm(64)

    assert float(statistics(x.flatten(2)[..., order].reshape(x.shape), x)) == pytest.approx(
        0, abs=1e-15
    )


def test_attention_and_affinity_take_other_widths_and_see_no_scale():
    (x,) = features(0, count=1)
    doubled = torch.cat([x, x], dim=1)
    for name in ("attention", "affinity"):
        term = FEATURE_TERMS.get(name)
        assert float(term([3 * doubled], [x], [1.0])) == pytest.approx(0.0, abs=1e-12)
        assert float(term([x.flip(3)], [x], [1.0])) > 1e-3


def test_attention_by_hand():
    mine = torch.tensor([[[[1.0, 0.0]], [[0.0, 0.0]]]])
    wanted = torch.tensor([[[[0.0, 3.0]], [[0.0, 4.0]]]])

    assert float(FEATURE_TERMS.get("attention")([mine], [wanted], [1.0])) == pytest.approx(2.0)


def test_affinity_by_hand():
    mine = torch.tensor([[[[1.0, 1.0]], [[0.0, 0.0]]]])
    wanted = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])

    assert float(FEATURE_TERMS.get("affinity")([mine], [wanted], [1.0])) == pytest.approx(0.5)


def test_the_alignment_of_coa_is_what_its_loops_compute():
    mine, wanted = features(3), features(4)
    cosines, taps = [], []
    for s, t in zip(mine, wanted, strict=True):
        cosines.append(
            sum(
                float(torch.dot(a.flatten(), b.flatten()) / a.norm() / b.norm())
                for a, b in zip(s, t, strict=True)
            )
            / len(s)
        )
        soft = [functional.softmax(x.reshape(2, 4, 64), dim=-1) for x in (s, t)]
        patches = [functional.unfold(x, 4, stride=4) for x in (s, t)]
        means = [x.mean(dim=(2, 3)) for x in (s, t)]
        variances = [((x - x.mean(dim=(2, 3), keepdim=True)) ** 2).mean(dim=(2, 3)) for x in (s, t)]
        taps.append(sum(float(((a - b) ** 2).mean()) for a, b in (soft, patches, means, variances)))
    total = sum(math.exp(c) for c in cosines)
    expected = sum(math.exp(c) / total * tap for c, tap in zip(cosines, taps, strict=True))

    assert float(FEATURE_TERMS.get("coa")(mine, wanted, [0.5, 0.5])) == pytest.approx(expected)


def test_the_contrast_by_hand():
    right, wrong = [torch.zeros(1, 2), torch.zeros(1, 2)], [torch.ones(1, 2), 4 * torch.ones(1, 2)]
    anchor = [torch.full((1, 2), 0.5), torch.full((1, 2), 1.0)]

    loss = contrastive_ratio(anchor, right, wrong, [0.5, 0.5])

    assert float(loss) == pytest.approx(0.5 * 1 + 0.5 / 3, rel=1e-5)
    with pytest.raises(TrainingError, match=r"no features: set stages\.distill\.taps above 0"):
        contrastive_ratio([], [], [], [])


def test_contrast_pulls_to_the_right_and_only_moves_the_anchor():
    right, wrong = torch.zeros(1, 2, requires_grad=True), torch.ones(1, 2, requires_grad=True)
    anchor = torch.full((1, 2), 0.25, requires_grad=True)

    contrastive_ratio([anchor], [right], [wrong], [1.0]).backward()

    assert bool((anchor.grad > 0).all())
    assert right.grad is None
    assert wrong.grad is None


def test_a_tapped_network_stops_at_its_last_tap_and_leaves_no_hook():
    calls = []

    class Counting(nn.Identity):
        def forward(self, x):
            calls.append(1)
            return x

    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 3, 1), Counting())
    x = torch.rand(1, 1, 4, 4, requires_grad=True)

    found = TappedNetwork(net, ["1", "0"])(x)
    found[0].sum().backward()

    assert [f.shape[1] for f in found] == [3, 2]
    assert calls == []
    assert bool((x.grad != 0).any())
    assert hooks_of(net) == 0
    net.spare = nn.Conv2d(1, 1, 1)
    net.forward = lambda x: x
    with pytest.raises(ModelError, match="Sequential does not reach 'spare': take other taps"):
        TappedNetwork(net, ["spare"])(x)
    assert hooks_of(net) == 0


@settings(deadline=None, max_examples=20)
@given(a=st.floats(0.01, 100), b=st.floats(0.01, 100), weight=st.floats(0.1, 5))
def test_the_geometric_mean_counts_relative_falls(a, b, weight):
    x = torch.tensor([a, b], dtype=torch.float64, requires_grad=True)

    mean = geometric_mean({"a": x[0], "b": x[1], "c": x[0]}, {"a": weight, "b": 2 * weight})
    mean.backward()

    assert float(mean.detach()) == pytest.approx(a ** (1 / 3) * b ** (2 / 3), rel=1e-4)
    relative = x.grad * x.detach() / mean.detach()
    assert relative.tolist() == pytest.approx([1 / 3, 2 / 3], rel=1e-4)


def test_a_geometric_mean_with_a_loss_of_0_is_finite_and_needs_a_weight():
    zero = torch.zeros((), requires_grad=True)

    geometric_mean({"a": zero, "b": torch.ones(())}, {"a": 1.0, "b": 1.0}).backward()

    assert zero.grad is None or math.isfinite(float(zero.grad))
    with pytest.raises(TrainingError, match="there is nothing to balance"):
        geometric_mean({"a": zero}, {})


@settings(deadline=None, max_examples=20)
@given(kept=st.sets(st.integers(0, 5), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_adapters_start_by_putting_each_channel_in_its_place(kept, seed):
    channels = torch.tensor(sorted(kept))
    wanted = torch.rand(2, 6, 3, 3, generator=torch.Generator().manual_seed(seed))
    adapters = FeatureAdapters([Tap("a", channels)], [(len(channels), 6)])

    (adapted,) = adapters([wanted[:, channels]])

    assert torch.equal(adapted[:, channels], wanted[:, channels])
    others = [channel for channel in range(6) if channel not in kept]
    assert not bool(adapted[:, others].any())


def test_adapters_for_other_channels_have_the_widths_of_both_networks():
    student, teacher = nn.Sequential(nn.Conv2d(3, 2, 1)), nn.Sequential(nn.Conv2d(3, 5, 1))

    adapters = adapters_between(student, teacher, [Tap("0", None)])

    assert [tuple(weight.shape) for weight in adapters.weights] == [(5, 2)]
    assert adapters([torch.ones(1, 2, 1, 1)])[0].flatten().tolist() == pytest.approx([1.0] * 5)


def test_features_that_cannot_be_compared_are_an_error():
    x = torch.ones(1, 2, 1, 1)

    with pytest.raises(TrainingError, match=r"no tap: set stages\.distill\.taps above 0"):
        compared({}, {}, [])
    with pytest.raises(TrainingError, match="the tap 'a' is not reached by the forward pass"):
        compared({}, {"a": x}, [Tap("a", torch.arange(2))])
    with pytest.raises(TrainingError, match="other channels at the tap 'a': set adapters: true"):
        compared({"a": x}, {"a": x}, [Tap("a", None)])


def test_a_tap_or_an_adapter_without_gradient_is_an_error_that_names_it():
    x, y = (torch.ones(1, 1, 1, 1, requires_grad=True) for _ in range(2))
    taps = [Tap("a", torch.arange(1)), Tap("b", torch.arange(1))]

    check_gradients((x + y).sum(), {"a": x, "b": y}, taps)
    with pytest.raises(TrainingError, match="the tap 'b' gets no gradient from the feature terms"):
        check_gradients(x.sum(), {"a": x, "b": y}, taps)
    with pytest.raises(TrainingError, match="the tap 'a' gets no gradient"):
        check_gradients(y.sum(), {"a": x.detach(), "b": y}, taps)
    with pytest.raises(TrainingError, match="the tap 'a' gets no gradient"):
        check_gradients((x + y).sum().detach(), {"a": x, "b": y}, taps)
    adapters = FeatureAdapters(taps, [(1, 1), (1, 1)])
    used = adapters([x, y])[0].sum() + y.sum()
    with pytest.raises(TrainingError, match="the adapter of the tap 'b' gets no gradient"):
        check_gradients(used, {"a": x, "b": y}, taps, adapters)


def objective(student, **more):
    teacher = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 1))
    taps = (Tap("0", torch.arange(2)),)
    return Objective(terms=Terms(feature={"l2": 1.0}), known={"l1": l1}, teacher=teacher, taps=taps)


def test_a_part_of_the_student_that_is_not_trained_is_found_at_the_first_step():
    student = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Conv2d(2, 3, 1))
    batch = Batch(torch.rand(1, 3, 4, 4))
    losses = objective(student).losses(student, batch)
    assert list(losses) == ["feature.l2"]
    student[0].requires_grad_(requires_grad=False)

    with pytest.raises(TrainingError, match="the tap '0' gets no gradient"):
        objective(student).losses(student, batch)
    with torch.no_grad():  # nobody trains
        objective(student).losses(student, batch)


def test_the_teacher_is_only_asked_where_it_counts():
    student = nn.Conv2d(3, 3, 1)

    class Silent(nn.Module):
        def forward(self, x):
            raise AssertionError

    made = Objective(terms=Terms(truth={"l1": 1.0}), known={"l1": l1}, teacher=Silent())
    batch = Batch(torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4))

    assert list(made.losses(student, batch)) == ["truth.l1"]

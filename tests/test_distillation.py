"""Distillation: where features are compared, what the losses mean, and that they are learned."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import Borrowing, Doubling, Plain, hooks_of, seeded, small_recipe
from torch import nn

from coa_compress import Compressor
from coa_compress.artifacts import Cut
from coa_compress.distillation import Tap, feature_loss, feature_taps, frozen
from coa_compress.errors import TrainingError
from coa_compress.structure.analysis import analyze

EXAMPLE = torch.zeros(1, 3, 16, 16)


def chain(length, width=4):
    """Return a teacher of some convolutions, and a cut that keeps half of every hidden width."""
    widths = [3, *[width] * length, 3]
    teacher = nn.Sequential(*[nn.Conv2d(a, b, 1) for a, b in pairwise(widths)])
    structure = analyze(teacher, EXAMPLE)
    return teacher, structure.cut({g.name: torch.arange(width // 2) for g in structure.groups})


@settings(deadline=None, max_examples=15)
@given(length=st.integers(1, 6), count=st.integers(0, 8))
def test_taps_are_spread_over_the_convolutions_that_were_cut(length, count):
    teacher, cut = chain(length)

    taps = feature_taps(cut, count, teacher, EXAMPLE)

    numbers = [int(tap.path) for tap in taps]
    assert len(taps) == min(count, length)
    assert numbers == sorted(set(numbers))
    assert all(0 <= number < length for number in numbers)
    assert all(tap.kept.tolist() == [0, 1] for tap in taps)
    assert hooks_of(teacher) == 0


def test_a_single_tap_is_in_the_middle():
    teacher, cut = chain(5)

    assert [tap.path for tap in feature_taps(cut, 1, teacher, EXAMPLE)] == ["2"]


def test_a_convolution_that_is_not_called_is_no_tap():
    teacher = seeded(Borrowing)
    structure = analyze(teacher, EXAMPLE)
    cut = structure.cut({g.name: torch.arange(4) for g in structure.groups})

    assert "first.weight" in cut.slices
    assert [tap.path for tap in feature_taps(cut, 6, teacher, EXAMPLE)] == ["second"]


def test_what_was_not_cut_has_no_tap():
    teacher = seeded(Plain)

    assert feature_taps(Cut(teacher, {}, ()), 6, teacher, EXAMPLE) == ()


@settings(deadline=None, max_examples=20)
@given(scale=st.floats(0.0, 3.0), seed=st.integers(0, 99))
def test_the_feature_loss_is_a_relative_squared_error(scale, seed):
    wanted = torch.rand(2, 4, 3, 3, generator=torch.Generator().manual_seed(seed)) + 0.1
    kept = torch.tensor([0, 2])

    loss = feature_loss({"a": scale * wanted[:, kept]}, {"a": wanted}, [Tap("a", kept)])

    assert float(loss) == pytest.approx((scale - 1) ** 2, abs=1e-4)


def test_the_feature_loss_is_the_mean_over_taps():
    wanted, kept = torch.rand(1, 2, 2, 2) + 1, torch.arange(2)
    taps = [Tap("a", kept), Tap("b", kept)]

    loss = feature_loss({"a": wanted, "b": 0 * wanted}, {"a": wanted, "b": wanted}, taps)

    assert float(loss) == pytest.approx(0.5, abs=1e-6)


def test_a_feature_loss_without_features_is_an_error():
    tap = Tap("a", torch.arange(1))

    with pytest.raises(TrainingError, match=r"no tap: set stages\.distill\.taps above 0"):
        feature_loss({}, {}, [])
    with pytest.raises(TrainingError, match="the tap 'a' is not reached"):
        feature_loss({}, {"a": torch.ones(1, 1, 1, 1)}, [tap])


def test_a_frozen_network_has_no_gradient_and_no_mode():
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Dropout())

    assert frozen(net) is net
    assert not any(module.training for module in net.modules())
    assert not any(p.requires_grad for p in net.parameters())


class Strong(Doubling):
    """The teacher's hidden channels matter, so that cutting them hurts."""

    def build_teacher(self):
        teacher = super().build_teacher()
        with torch.no_grad():
            for parameter in teacher.parameters():
                parameter.mul_(3)
        return teacher


def run(tmp_path, **overrides):
    recipe = small_recipe(
        stages__allocate__keep_macs=0.4,
        stages__allocate__allocator="uniform",
        stages__refit="off",
        stages__distill__training="{steps: 200, batch_size: 4, learning_rate: 0.01, ema_decay: 0}",
        **overrides,
    )
    return Compressor(recipe=recipe, task=Strong(), out=tmp_path / "run").run()


@pytest.mark.parametrize(
    ("weights", "falling"),
    [
        ({"truth": "{l1: 1}", "teacher": "{l1: 0}", "feature": 0}, "truth.l1"),
        ({"truth": "{l1: 0}", "teacher": "{l1: 1}", "feature": 0}, "teacher.l1"),
        ({"truth": "{}", "teacher": "{}", "feature": 1}, "feature"),
    ],
)
def test_each_loss_alone_is_learned_and_no_other_is_computed(tmp_path, weights, falling):
    overrides = {f"stages__distill__{name}": value for name, value in weights.items()}

    losses = run(tmp_path, **overrides).report.histories["distill"].losses

    assert list(losses) == [falling]
    values = losses[falling]
    assert sum(values[-10:]) < sum(values[:10])


def test_the_teacher_is_not_trained_along(tmp_path):
    task = Strong()
    result = run(tmp_path)

    expected = task.build_teacher().state_dict()
    assert all(torch.equal(t, expected[n]) for n, t in result.teacher.state_dict().items())
    assert all(p.grad is None for p in result.teacher.parameters())


def test_nothing_to_learn_from_is_an_error_at_once(tmp_path):
    with pytest.raises(TrainingError, match="every loss weight is 0"):
        run(
            tmp_path,
            stages__distill__truth="{l1: 0}",
            stages__distill__teacher="{}",
            stages__distill__feature=0,
        )
    assert not (tmp_path / "run").exists()

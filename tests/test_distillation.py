"""Distillation: where features are compared, what the losses mean, and that they are learned."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import Borrowing, Doubling, Plain, hooks_of, seeded, small_recipe
from torch import nn

from coa_compress import Compressor, load
from coa_compress.artifacts import Cut
from coa_compress.distillation import feature_taps
from coa_compress.distillation.objective import frozen
from coa_compress.distillation.taps import tap_shares
from coa_compress.errors import NoEffectWarning, RecipeError, SettingError, TrainingError
from coa_compress.protocols import SilentObserver
from coa_compress.stages.distill import Distill, DistillSettings
from coa_compress.stages.state import Context, State
from coa_compress.structure.analysis import analyze
from coa_compress.training.settings import TrainingSettings

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


def test_the_most_important_convolution_of_each_stretch_is_tapped():
    teacher, cut = chain(6)
    importance = {"0": 1.0, "1": 3.0, "2": 2.0, "4": 1.0}

    taps = feature_taps(cut, 3, teacher, EXAMPLE, importance=importance)

    assert [tap.path for tap in taps] == ["1", "2", "4"]
    assert [tap.weight for tap in taps] == pytest.approx(
        [1 / 6 + 1 / 4, 1 / 6 + 1 / 6, 1 / 6 + 1 / 12]
    )
    assert hooks_of(teacher) == 0


@settings(deadline=None, max_examples=15)
@given(
    length=st.integers(1, 6), count=st.integers(0, 8), values=st.lists(st.floats(0, 9), max_size=6)
)
def test_taps_by_importance_are_as_many_and_share_one_weight(length, count, values):
    teacher, cut = chain(length)
    importance = {str(number): value for number, value in enumerate(values)}

    taps = feature_taps(cut, count, teacher, EXAMPLE, importance=importance)

    numbers = [int(tap.path) for tap in taps]
    assert len(taps) == min(count, length)
    assert numbers == sorted(set(numbers))
    assert sum(tap.weight for tap in taps) == pytest.approx(1.0 if taps else 0.0)
    assert all(tap.weight >= 0.5 / len(taps) - 1e-9 for tap in taps)
    assert sum(tap_shares(taps)) == pytest.approx(1.0 if taps else 0.0)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_an_importance_must_be_a_number_from_0(value):
    teacher, cut = chain(2)

    with pytest.raises(
        SettingError, match=r"the importance of '1' is .*: it must be a number from 0"
    ):
        feature_taps(cut, 1, teacher, EXAMPLE, importance={"1": value})


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


def run(tmp_path, *, steps=100, **overrides):
    recipe = small_recipe(
        stages__allocate__keep_macs=0.4,
        stages__allocate__allocator="uniform",
        stages__refit="off",
        stages__distill__training=f"{{steps: {steps}, batch_size: 4, learning_rate: 0.01, "
        "ema_decay: 0}",
        **overrides,
    )
    return Compressor(recipe=recipe, task=Strong(), out=tmp_path / "run").run()


@pytest.mark.parametrize(
    ("weights", "falling"),
    [
        ({"truth": "{l1: 1}", "teacher": "{l1: 0}", "feature": 0}, "truth.l1"),
        ({"truth": "{l1: 0}", "teacher": "{l1: 1}", "feature": 0}, "teacher.l1"),
        ({"truth": "{}", "teacher": "{}", "feature": 1}, "feature.l2"),
        ({"truth": "{}", "teacher": "{}", "feature": "{affinity: 1}"}, "feature.affinity"),
        ({"truth": "{}", "teacher": "{}", "feature": 0, "contrastive": 1}, "contrastive"),
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


def test_every_part_of_distillation_works_in_a_run_and_adapters_are_dropped(tmp_path):
    result = run(
        tmp_path,
        steps=20,
        stages__distill__feature="{l2: 0.5, statistics: 0.1, attention: 0.1, affinity: 1, coa: 1}",
        stages__distill__contrastive=0.1,
        stages__distill__adapters="true",
        stages__distill__tap_choice="expected_loss",
        stages__distill__balance="geometric",
    )

    losses = result.report.histories["distill"].losses
    names = [f"feature.{n}" for n in ("l2", "statistics", "attention", "affinity", "coa")]
    assert list(losses) == ["teacher.l1", "truth.l1", *names, "contrastive", "balanced"]
    assert losses["balanced"][-1] < losses["balanced"][0]
    plain = run(tmp_path / "other", steps=1, stages__distill__feature=0)
    assert list(result.student.state_dict()) == list(plain.student.state_dict())


def test_a_number_is_the_weight_of_l2():
    assert DistillSettings(feature=0.5).feature_weights() == {"l2": 0.5}
    assert DistillSettings(feature=0.0).feature_weights() == {}
    assert DistillSettings(feature={"coa": 0.5, "l2": 0.0}).feature_weights() == {"coa": 0.5}


def test_a_feature_term_that_does_not_exist_is_an_error_with_its_line():
    with pytest.raises(
        RecipeError, match="no feature term named 'attentio': did you mean attention"
    ):
        small_recipe(stages__distill__feature="{attentio: 1}")


def test_contrast_without_taps_warns(tmp_path):
    with pytest.warns(
        NoEffectWarning, match=r"stages\.distill\.contrastive has no effect: .*taps is 0"
    ):
        run(
            tmp_path,
            steps=1,
            stages__distill__feature=0,
            stages__distill__contrastive=0.1,
            stages__distill__taps=0,
        )


class Seeing(Strong):
    """A task with a network of its own for contrast."""

    def feature_network(self, device):
        self.seen = []

        def features(images):
            self.seen.append(images.requires_grad)
            return [images.mean(dim=1, keepdim=True), images.square()]

        return features


def test_a_task_may_bring_its_own_network_for_contrast(tmp_path):
    task = Seeing()
    recipe = small_recipe(
        stages__distill__truth="{}",
        stages__distill__teacher="{}",
        stages__distill__feature=0,
        stages__distill__contrastive=1,
        stages__distill__taps=0,
        stages__distill__training="{steps: 20, batch_size: 2, learning_rate: 0.01}",
    )

    result = Compressor(recipe=recipe, task=task, out=tmp_path / "run").run()

    losses = result.report.histories["distill"].losses["contrastive"]
    assert losses[-1] < losses[0]
    assert task.seen[:3] == [False, False, True]


@pytest.mark.parametrize("balance", ["fixed", "geometric"])
def test_a_distillation_that_is_killed_ends_with_the_same_bits(tmp_path, balance):
    class KilledError(Exception):
        pass

    def job(stop):
        state, context = started(Strong(), tmp_path / f"{balance}{stop}")

        def progress(done, total, values):
            if done == stop:
                raise KilledError

        return state, replace(context, observer=Watching(progress))

    settings = DistillSettings(
        training=TrainingSettings(steps=6, batch_size=2, checkpoint_every=2),
        feature={"l2": 0.5},
        adapters=True,
        balance=balance,
    )
    whole = Distill(settings).run(*job(None)).student
    with pytest.raises(KilledError):
        Distill(settings).run(*job(3))
    state, context = started(Strong(), tmp_path / f"{balance}3")
    resumed = Distill(settings).run(state, context).student

    pairs = zip(whole.parameters(), resumed.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


class Watching(SilentObserver):
    def __init__(self, progress):
        self.on_progress = progress


def started(task, folder):
    """Return a cut student and a context, without a run."""
    teacher = task.build_teacher()
    structure = analyze(teacher, task.example_input())
    cut = structure.cut({group.name: torch.arange(4) for group in structure.groups})
    context = Context(
        task=task,
        seed=0,
        device="cpu",
        observer=SilentObserver(),
        structure=lambda _: structure,
        example=task.example_input(),
        folder=folder,
    )
    return State(teacher=teacher, cut=cut, student=cut.student), context


def test_branches_are_merged_into_a_student_that_saves_and_loads(tmp_path):
    result = run(
        tmp_path, steps=5, stages__distill__branches="true", stages__distill__truth="{l1: 1}"
    )

    plain = run(tmp_path / "other", steps=1, stages__distill__truth="{l1: 1}")
    assert list(result.student.state_dict()) == list(plain.student.state_dict())
    folder = tmp_path / "saved"
    result.save(folder)
    loaded = load(folder, model=Strong().build_teacher())
    image = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(loaded(image), result.student.cpu()(image))


def test_branches_without_effect_warn(tmp_path):
    state, context = started(Strong(), None)
    small = nn.Sequential(nn.Conv2d(3, 3, 1))
    training = TrainingSettings(steps=1, batch_size=1)
    stage = Distill(DistillSettings(training=training, feature=0.0, branches=True))

    with pytest.warns(NoEffectWarning, match=r"stages\.distill\.branches has no effect"):
        stage.run(replace(state, student=small), context)

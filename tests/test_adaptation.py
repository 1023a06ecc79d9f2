"""Adaptation: the pseudo-label, and what becomes of a refused student."""

import pytest
import torch
from small_runs import Doubling, small_recipe
from torch import nn

from coa_compress import Compressor
from coa_compress.adaptation import consistency_loss
from coa_compress.errors import ModelError, RecipeError, TrainingError
from coa_compress.gate import DomainMeasures


def test_no_gradient_flows_into_the_pseudo_label():
    student, average = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)
    real = torch.rand(1, 1, 4, 4)

    consistency_loss(student(real), average(real)).backward()

    assert student.weight.grad is not None
    assert average.weight.grad is None


class Dimming(Doubling):
    """Real inputs are images; what is wrong with an output is how bright it is."""

    guidance = {"bright": lambda output, real: output.mean() + 1}  # noqa: RUF012

    def monitor(self, reference):
        start = brightness(reference)
        return lambda model: start - brightness(model)

    def degrade(self, clear, real, generator):
        return clear + torch.rand(clear.shape[0], 1, 1, 1, generator=generator)

    def real_batch(self, batch_size, generator):
        return torch.rand(batch_size, 3, 16, 16, generator=generator)

    @torch.no_grad()
    def domain_measures(self, model):
        output = model(self.calibration_batches()[0].input)
        bright = [float(image.mean()) + 1 for image in output]
        return DomainMeasures(defects={"bright": bright}, qualities={"look": [1.0]}, skill=[1.0])


ADAPT = """{training: {steps: 30, batch_size: 1, learning_rate: 1.0e-2, ema_decay: 0.9},
            prior: {bright: 1.0}, consistency: 0.0, replay: {}, gate: {min_defect_fall: FALL}}"""


def adapted(tmp_path, fall, task=None, **overrides):
    recipe = small_recipe(stages__adapt=ADAPT.replace("FALL", str(fall)), **overrides)
    return Compressor(recipe=recipe, task=task or Dimming(), out=tmp_path / "run").run()


def brightness(network):
    with torch.no_grad():
        return float(network(Doubling().calibration_batches()[0].input).mean())


def test_an_accepted_adaptation_is_the_result(tmp_path):
    result = adapted(tmp_path, 0.001)

    gate = result.report.gate
    assert gate["accepted"]
    assert gate["reasons"] == []
    assert gate["findings"][0]["after"] < gate["findings"][0]["before"]
    assert brightness(result.student) + 1 == pytest.approx(gate["findings"][0]["after"], abs=1e-5)
    assert "was adapted to real inputs" in result.summary
    history = result.report.histories["adapt"].losses["prior.bright"]
    assert history[-1] < history[0]


def test_a_refused_adaptation_changes_nothing(tmp_path):
    result = adapted(tmp_path, 99.0)

    gate = result.report.gate
    assert not gate["accepted"]
    assert brightness(result.student) + 1 == pytest.approx(gate["findings"][0]["before"], abs=1e-5)
    assert "its adaptation to real inputs was refused" in result.summary
    measured = result.report.measurements
    assert measured["adapted"]["l1"] == measured["student"]["l1"]


def test_replay_and_consistency_are_losses_by_name(tmp_path):
    overrides = {"stages__adapt__replay": "{l1: 1}", "stages__adapt__consistency": 0.5}

    result = adapted(tmp_path, 0.0, **overrides)

    losses = result.report.histories["adapt"].losses
    assert set(losses) == {"prior.bright", "consistency", "replay.l1"}


def test_the_teacher_can_make_the_pseudo_labels(tmp_path):
    def losses(labeler):
        settings = {"training": "{steps: 300, batch_size: 2, learning_rate: 1.0e-2}"}
        settings |= {"prior": "{}", "consistency": 1.0, "labeler": labeler}
        named = {f"stages__adapt__{key}": value for key, value in settings.items()}
        result = adapted(tmp_path / labeler, 0.0, **named)
        return result.report.histories["adapt"].losses["consistency"]

    of_teacher = losses("teacher")

    assert of_teacher[-1] < 0.8 * of_teacher[0]
    assert losses("student")[0] < 0.5 * of_teacher[0]


def label_losses(tmp_path, strength):
    """Return the first distance to the mean teacher's label on the way to its output twice."""
    settings = {"label": "twice", "label_strength": strength, "consistency": 1.0, "prior": "{}"}
    named = {f"stages__adapt__{key}": value for key, value in settings.items()}
    history = adapted(tmp_path / str(strength), 0.0, **named).report.histories["adapt"]
    return history.losses["consistency"][0]


def test_a_label_goes_as_far_from_the_output_as_its_strength_says(tmp_path):
    whole = label_losses(tmp_path, 1.0)

    assert whole > 0
    assert label_losses(tmp_path, 0.25) == pytest.approx(0.25 * whole, rel=0.05)


def test_what_the_teacher_does_on_replayed_inputs_is_retained_without_truth(tmp_path):
    def distance_at_the_end(weight):
        named = {"stages__adapt__retain": f"{{l1: {weight}}}"}
        history = adapted(tmp_path / str(weight), 0.0, Unlabelled(), **named).report.histories
        assert set(history["adapt"].losses) == {"prior.bright", "retain.l1"}
        return history["adapt"].losses["retain.l1"][-1]

    assert distance_at_the_end(100.0) < 0.3 * distance_at_the_end(1e-6)


def student_of(result):
    return [p.detach().clone() for p in result.student.parameters()]


@pytest.mark.parametrize("order", ["unrolled", "first_order"])
def test_a_bilevel_adaptation_lowers_the_real_loss_and_logs_every_term(tmp_path, order):
    result = adapted(
        tmp_path,
        0.001,
        stages__adapt__mode="bilevel",
        stages__adapt__bilevel=order,
        stages__adapt__replay="{l1: 0.01}",
    )

    losses = result.report.histories["adapt"].losses
    assert set(losses) == {"prior.bright", "bilevel", "replay.l1"}
    assert losses["bilevel"] == pytest.approx(losses["prior.bright"], rel=1e-5)
    assert losses["bilevel"][-1] < losses["bilevel"][0]
    assert result.report.gate["accepted"]


@pytest.mark.parametrize(
    "overrides",
    [
        {"mode": "bilevel", "retain": "{l1: 1}", "update": "low_rank"},
        {"consistency": 1.0, "mean_teacher": "{decay: 0.5, interval: 3, warmup_updates: 2}"},
        {"cycle": 1.0, "label": "twice", "update": "low_rank", "rank": 1},
    ],
)
def test_an_interrupted_adaptation_ends_with_the_same_bits(tmp_path, overrides):
    named = {f"stages__adapt__{key}": value for key, value in overrides.items()}
    named["stages__adapt__training__checkpoint_every"] = 4
    whole = adapted(tmp_path / "whole", 0.0, **named)

    class Stopping(Dimming):
        batches = 0

        def real_batch(self, batch_size, generator):
            self.batches += 1
            if self.batches == 11:
                raise KeyboardInterrupt
            return super().real_batch(batch_size, generator)

    with pytest.raises(KeyboardInterrupt):
        adapted(tmp_path / "broken", 0.0, Stopping(), **named)
    resumed = adapted(tmp_path / "broken", 0.0, Dimming(), **named)

    assert all(map(torch.equal, student_of(whole), student_of(resumed)))
    assert {type(m) for m in resumed.student.modules()} == {
        type(m) for m in whole.student.modules()
    }


def test_patience_ends_the_training_and_returns_the_best_step(tmp_path):
    class Worsening(Dimming):
        def monitor(self, reference):
            seen = []

            def score(model):
                seen.append(model)
                return 1.0 if len(seen) == 2 else -float(len(seen))

            return score

    overrides = {"training__validate_every": 2, "training__patience": 6}
    named = {f"stages__adapt__{key}": value for key, value in overrides.items()}
    history = adapted(tmp_path, 0.0, Worsening(), **named).report.histories["adapt"]

    assert [step for step, _ in history.validation] == [2, 4, 6, 8, 10]
    assert history.steps[-1] == 10


class Plainest(Doubling):
    """Real inputs, and nothing that is optional."""

    guidance = Dimming.guidance
    real_batch = Dimming.real_batch
    domain_measures = Dimming.domain_measures


@pytest.mark.parametrize(
    ("overrides", "error", "match"),
    [
        ({"cycle": 1.0}, RecipeError, "Plainest has no method degrade: set it to 0"),
        ({"training__patience": 5}, RecipeError, "Plainest has no method monitor: remove it"),
        ({"retain": "{l2: 1}"}, TrainingError, r"stages\.adapt\.retain names no loss 'l2'"),
        ({"label_strength": 0}, RecipeError, r"label_strength=0: must be above 0\.0"),
        ({"label": "twise"}, TrainingError, r"stages\.adapt\.label is 'twise': did you mean twice"),
        (
            {"mode": "bilevel"},
            TrainingError,
            r"two levels and lacks stages\.adapt\.replay or retain",
        ),
        (
            {"mode": "bilevel", "prior": "{}", "replay": "{l1: 1}"},
            TrainingError,
            "two levels and lacks a term on real inputs",
        ),
        (
            {"mode": "bilevel", "training__precision": "bf16"},
            RecipeError,
            "precision is bf16, which drowns the differences",
        ),
    ],
)
def test_what_the_task_or_the_mode_lacks_is_an_error_before_anything_runs(
    tmp_path, overrides, error, match
):
    named = {f"stages__adapt__{key}": value for key, value in overrides.items()}
    with pytest.raises(error, match=match):
        adapted(tmp_path, 0.0, Plainest(), **named)
    assert not (tmp_path / "run").exists()


def test_norm_only_updates_need_norm_layers(tmp_path):
    with pytest.raises(ModelError, match="has no norm layer with weights of its own"):
        adapted(tmp_path, 0.0, stages__adapt__update="norm")


class Unlabelled(Dimming):
    """Not a single truth."""

    def training_batch(self, batch_size, generator):
        return type(super().training_batch(1, generator))(self.real_batch(batch_size, generator))

    def calibration_batches(self):
        return [self.training_batch(2, torch.Generator().manual_seed(0))]

    def validate(self, model):
        return 0.0


def test_without_truth_replay_is_an_error_before_anything_runs(tmp_path):
    with pytest.raises(TrainingError, match=r"stages\.adapt\.replay needs ground truth"):
        adapted(tmp_path, 0.0, Unlabelled(), stages__adapt__replay="{l1: 1}")
    assert not (tmp_path / "run").exists()

    assert adapted(tmp_path, 0.0, Unlabelled()).report.gate is not None


@pytest.mark.parametrize(
    ("overrides", "error", "match"),
    [
        ({"stages__adapt__prior": "{brigt: 1}"}, TrainingError, "'brigt': did you mean bright"),
        ({"stages__adapt__prior": "{bright: 0}"}, TrainingError, "every loss weight is 0"),
        ({"stages__prune": "off", "stages__refit": "off"}, RecipeError, "needs stage 'prune'"),
    ],
)
def test_what_cannot_adapt_is_an_error_before_anything_runs(tmp_path, overrides, error, match):
    with pytest.raises(error, match=match):
        adapted(tmp_path, 0.0, **overrides)
    assert not (tmp_path / "run").exists()

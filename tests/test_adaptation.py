"""Adaptation: the pseudo-label, and what becomes of a refused student."""

import pytest
import torch
from small_runs import Doubling, small_recipe
from torch import nn

from coa_compress import Compressor
from coa_compress.adaptation import consistency_loss
from coa_compress.errors import RecipeError, TrainingError
from coa_compress.gate import DomainMeasures


def test_no_gradient_flows_into_the_pseudo_label():
    student, average = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)
    real = torch.rand(1, 1, 4, 4)

    consistency_loss(student(real), average, real).backward()

    assert student.weight.grad is not None
    assert average.weight.grad is None


class Dimming(Doubling):
    """Real inputs are images; what is wrong with an output is how bright it is."""

    guidance = {"bright": lambda output, real: output.mean() + 1}  # noqa: RUF012

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

"""Adaptation: the pseudo-label, the gate, and what becomes of a refused student."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import Doubling, small_recipe
from torch import nn

from coa_compress import Compressor
from coa_compress.adaptation import consistency_loss, judge
from coa_compress.artifacts import DomainMeasures, GateRules
from coa_compress.errors import RecipeError, TrainingError

OLD = DomainMeasures(defect=0.5, quality=10.0, skill=27.0)


@pytest.mark.parametrize(
    ("after", "reasons"),
    [
        ({}, ()),
        ({"quality": 9.81, "skill": 26.71}, ()),
        ({"defect": 0.4951}, ("the defect .* fell by 1.0%, less than the 1.0% asked for",)),
        ({"defect": 0.6}, ("the defect .* fell by -20.0%",)),
        ({"quality": 9.7}, ("quality .* fell by 3.0%, more than the 2.0% allowed",)),
        ({"skill": 26.6}, ("skill .* fell by 0.40, more than the 0.30 allowed",)),
        ({"defect": 0.5, "quality": 9.0, "skill": 20.0}, ("the defect", "quality", "skill")),
        ({"defect": float("nan")}, ("the defect .* nan",)),
        ({"quality": float("nan"), "skill": float("nan")}, ("quality .* nan", "skill .* nan")),
    ],
)
def test_every_rule_that_fails_is_a_reason(after, reasons):
    new = DomainMeasures(**({"defect": 0.4, "quality": 10.0, "skill": 27.0} | after))

    gate = judge(OLD, new, GateRules())

    assert gate.accepted == (not reasons)
    assert len(gate.reasons) == len(reasons)
    for text, pattern in zip(gate.reasons, reasons, strict=True):
        assert re.search(pattern, text)


finite = st.floats(-100, 100, allow_nan=False)


@settings(deadline=None, max_examples=50)
@given(before=st.tuples(finite, finite, finite), after=st.tuples(finite, finite, finite))
def test_what_is_accepted_stays_accepted_when_it_is_better(before, after):
    def measures(values):
        return DomainMeasures(defect=values[0], quality=values[1], skill=values[2])

    old, new = measures(before), measures(after)
    better = measures((after[0] - 1, after[1] + 1, after[2] + 1))

    assert not judge(old, new, GateRules()).accepted or judge(old, better, GateRules()).accepted
    same = judge(old, old, GateRules())
    assert not same.accepted
    assert judge(old, old, GateRules(min_defect_fall=0.0)).accepted


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
        return DomainMeasures(defect=float(output.mean()) + 1, quality=1.0, skill=1.0)


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
    assert gate["after"]["defect"] < gate["before"]["defect"]
    assert brightness(result.student) + 1 == pytest.approx(gate["after"]["defect"], abs=1e-5)
    assert "was adapted to real inputs" in result.summary
    history = result.report.histories["adapt"].losses["prior.bright"]
    assert history[-1] < history[0]


def test_a_refused_adaptation_changes_nothing(tmp_path):
    result = adapted(tmp_path, 99.0)

    gate = result.report.gate
    assert not gate["accepted"]
    assert brightness(result.student) + 1 == pytest.approx(gate["before"]["defect"], abs=1e-5)
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

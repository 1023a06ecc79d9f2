"""Everything that is registered keeps the promises that plug-ins must keep, and these bite."""

import dataclasses

import pytest
import torch
from small_runs import Doubling, Plain, seeded

from coa_compress.allocation.catalog import ALLOCATORS
from coa_compress.errors import ModelError
from coa_compress.recipe.files import TASKS
from coa_compress.scoring.catalog import SCORERS
from coa_compress.testing import check_allocator, check_scorer, check_task

SMALL = {
    "dehazing": {
        "teacher": "random",
        "crop": 32,
        "validation_images": 1,
        "calibration_images": 2,
        "example_size": (32, 32),
    },
    "restoration": {
        "crop": 16,
        "example_size": (16, 16),
        "validation_images": 1,
        "calibration_images": 2,
        "test_images": 1,
    },
}


@pytest.mark.parametrize("name", SCORERS.names())
def test_every_scorer_conforms(name):
    check_scorer(SCORERS.get(name))


@pytest.mark.parametrize("name", ALLOCATORS.names())
def test_every_allocator_conforms(name):
    check_allocator(ALLOCATORS.get(name))


@pytest.mark.parametrize("name", TASKS.names())
def test_every_task_conforms(name, images):
    task_class = TASKS.get(name)
    given = {"model": seeded(Plain)} if name == "restoration" else {}

    folders = {split: str(images / split) for split in ("train", "real", "test")}
    settings = SMALL[name] | (folders if name == "dehazing" else {})

    check_task(task_class(task_class.Settings(**settings), **given))
    assert dataclasses.is_dataclass(task_class.Settings)


def test_a_task_object_conforms():
    check_task(Doubling())


def ones(groups):
    return {g.name: torch.ones(g.n_channels, dtype=torch.float64) for g in groups}


def forgets_a_group(model, groups, batches, loss):
    return ones(groups[1:])


def of_wrong_shape(model, groups, batches, loss):
    return {g.name: torch.ones(1) for g in groups}


def not_finite(model, groups, batches, loss):
    return {name: values / 0 for name, values in ones(groups).items()}


def below_zero(model, groups, batches, loss):
    return {name: -values for name, values in ones(groups).items()}


def changes_weights(model, groups, batches, loss):
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    return ones(groups)


def changes_statistics(model, groups, batches, loss):
    model.train()
    model(batches[0].input)
    model.eval()
    return ones(groups)


def leaves_gradients(model, groups, batches, loss):
    loss(model(batches[0].input), batches[0]).backward()
    return ones(groups)


def leaves_training_mode(model, groups, batches, loss):
    model.train()
    return ones(groups)


def leaves_a_hook(model, groups, batches, loss):
    model[0].register_forward_hook(lambda *_: None)
    return ones(groups)


def is_random(model, groups, batches, loss):
    return {g.name: torch.rand(g.n_channels) for g in groups}


@pytest.mark.parametrize(
    ("scorer", "match"),
    [
        (forgets_a_group, "group '0' has no score"),
        (of_wrong_shape, r"scores must have shape \(n_channels,\)"),
        (not_finite, "scores must be finite"),
        (below_zero, "scores must be at least 0"),
        (changes_weights, "the model was changed"),
        (changes_statistics, "the model was changed"),
        (leaves_gradients, "gradients were left in the model"),
        (leaves_training_mode, "the model was left in another mode"),
        (leaves_a_hook, "a hook was left in the model"),
        (is_random, "scores must be the same for the same model and examples"),
    ],
)
def test_a_broken_scorer_is_found(scorer, match):
    with pytest.raises(ModelError, match=match):
        check_scorer(scorer)


def full(groups, scores, costs, budget):
    return {g.name: g.n_channels for g in groups}


def least(groups, scores, costs, budget):
    return {g.name: budget.min_channels for g in groups}


def odd(groups, scores, costs, budget):
    return {g.name: min(5, g.n_channels) for g in groups}


def one_only(groups, scores, costs, budget):
    return {groups[0].name: 4}


@pytest.mark.parametrize(
    ("allocator", "match"),
    [
        (full, "the budget of 60% was exceeded"),
        (least, "a budget of 100% must keep everything"),
        (odd, r"width 5 of .* is not in \(4, 8, "),
        (one_only, "group '3' has no width"),
    ],
)
def test_a_broken_allocator_is_found(allocator, match):
    with pytest.raises(ModelError, match=match):
        check_allocator(allocator)


class InTrainingMode(Doubling):
    def build_teacher(self):
        return seeded(Plain).train()


class OfTwo(Doubling):
    def example_input(self):
        return torch.zeros(2, 3, 16, 16)


class Unrepeatable(Doubling):
    def training_batch(self, batch_size, generator):
        return super().training_batch(batch_size, torch.default_generator)


class OneTooMany(Doubling):
    def training_batch(self, batch_size, generator):
        return super().training_batch(batch_size + 1, generator)


class WithoutCalibration(Doubling):
    def calibration_batches(self):
        return []


class ChangingCalibration(Doubling):
    def calibration_batches(self):
        return [super().training_batch(2, torch.default_generator)]


class WithoutLosses(Doubling):
    losses = {}  # noqa: RUF012 - nobody changes it


class LossOfEach(Doubling):
    losses = {"l1": lambda output, target: (output - target).abs()}  # noqa: RUF012


class LossNotFinite(Doubling):
    losses = {"log": lambda output, target: (output - target).sum() / 0}  # noqa: RUF012


class ValidatesToTensor(Doubling):
    def validate(self, model):
        return torch.tensor(1.0)


class MeasuresFlat(Doubling):
    def measure(self, model):
        return {"l1": 0.5}


class Lacking:
    """Has nothing of a task."""


class RealOfOne(Doubling):
    guidance = {"dark": lambda output, real: output.mean()}  # noqa: RUF012

    def real_batch(self, batch_size, generator):
        return torch.rand(1, 3, 16, 16, generator=generator)

    def domain_measures(self, model):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("task", "match"),
    [
        (InTrainingMode, "build_teacher must return a network in evaluation mode"),
        (OfTwo, "example_input must have a batch of 1"),
        (Unrepeatable, "training_batch must depend on the generator alone"),
        (OneTooMany, "training_batch must return as many examples as asked for"),
        (WithoutCalibration, "calibration_batches must return at least one batch"),
        (ChangingCalibration, "calibration_batches must always return the same"),
        (WithoutLosses, "losses must name at least one loss"),
        (LossOfEach, "loss 'l1' must return one number"),
        (LossNotFinite, "loss 'log' must be finite"),
        (ValidatesToTensor, "validate must return a float"),
        (MeasuresFlat, "measure must return values by split, by measure"),
        (Lacking, "Lacking lacks a method of coa_compress.protocols.Task"),
        (RealOfOne, "real_batch must return as many inputs as asked for"),
    ],
)
def test_a_broken_task_is_found(task, match):
    with pytest.raises(ModelError, match=match):
        check_task(task())

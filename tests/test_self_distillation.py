import copy

import pytest
import torch
from torch import nn

from coa_compress.errors import ModelError, SettingError
from coa_compress.protocols import Explained, Task
from coa_compress.tasks.self_distillation import (
    SelfDistillationSettings,
    SelfDistillationTask,
    input_channels,
)

SMALL = SelfDistillationSettings(
    crop=32, example_size=(24, 40), validation_images=3, calibration_images=5, test_images=2
)


def tiny(channels=3):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, channels, 1)
    )


def test_it_is_a_task():
    task = SelfDistillationTask(SMALL, model=tiny())

    assert isinstance(task, Task)
    assert isinstance(task, Explained)
    assert set(task.explanations) == set(task.measure(tiny()))


@pytest.mark.parametrize("channels", [1, 3, 4, 7])
def test_inputs_fit_the_network(channels):
    model = tiny(channels)
    task = SelfDistillationTask(SMALL, model=model)

    batch = task.training_batch(2, torch.Generator().manual_seed(0))

    assert batch.input.shape == (2, channels, 32, 32)
    assert batch.target is None
    assert model(batch.input).shape == batch.input.shape
    assert task.example_input().shape == (1, channels, 24, 40)
    assert [len(b.input) for b in task.calibration_batches()] == [4, 1]


def test_the_teacher_equals_the_model_and_is_not_it():
    model = tiny()
    before = copy.deepcopy(model.state_dict())
    task = SelfDistillationTask(SMALL, model=model)

    teacher = task.build_teacher()
    with torch.no_grad():
        teacher[0].weight.zero_()

    assert not teacher.training
    assert all(p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert task.validate(model) == 100.0


def test_a_farther_student_is_worse():
    model = tiny()
    task = SelfDistillationTask(SMALL, model=model)
    near, far = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        near[2].bias.add_(0.01)
        far[2].bias.add_(0.1)

    near_db, far_db = task.validate(near), task.validate(far)

    assert near_db - far_db == pytest.approx(20.0, abs=0.1)
    assert task.measure(near)["psnr_to_teacher_db"]["builtin"] > 20
    assert near.training


def test_losses_fit_the_output():
    task = SelfDistillationTask(SMALL, model=tiny())

    assert set(task.losses) == {"l1", "ssim"}
    assert float(task.losses["l1"](torch.zeros(1, 10), torch.ones(1, 10))) == 1.0


def test_channels_come_from_the_first_weight():
    assert input_channels(nn.Linear(5, 2)) == 5
    with pytest.raises(ModelError, match="ReLU has no weights to infer its input from"):
        input_channels(nn.ReLU())


def test_channels_are_those_that_the_network_runs_on():
    networks = {
        channels: nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * channels, 8, 1))
        for channels in (1, 3, 4)
    }

    assert {channels: input_channels(net) for channels, net in networks.items()} == {
        1: 1,
        3: 3,
        4: 4,
    }


def test_without_a_network_it_says_so():
    task = SelfDistillationTask(SMALL)

    with pytest.raises(ModelError, match=r"no network: give --model, or Compressor\(model\)"):
        task.build_teacher()
    with pytest.raises(ModelError, match="no network"):
        task.validate(tiny())


def test_settings_are_checked():
    with pytest.raises(SettingError, match="crop must be at least 16, got 8"):
        SelfDistillationSettings(crop=8)
    with pytest.raises(SettingError, match="example_size must be a height and a width"):
        SelfDistillationSettings(example_size=(8, 0))

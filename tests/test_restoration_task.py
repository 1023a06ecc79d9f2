"""Any network from images to images as a task, on what is built in and on folders."""

import copy
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from coa_compress.errors import DataError, ModelError, SettingError
from coa_compress.protocols import Explained, Noted, Task, no_progress
from coa_compress.tasks.dice import Dice
from coa_compress.tasks.restoration.channels import input_channels
from coa_compress.tasks.restoration.data import _BUILTIN_VERSION as VERSION
from coa_compress.tasks.restoration.degradations import DEGRADATIONS, WEIGHTS, blurred, degraded
from coa_compress.tasks.restoration.settings import RestorationSettings
from coa_compress.tasks.restoration.task import RestorationTask

SMALL = RestorationSettings(
    crop=32, example_size=(24, 40), validation_images=3, calibration_images=5, test_images=2
)


def tiny(channels=3):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, channels, 1)
    )


def test_it_is_a_task():
    task = RestorationTask(SMALL, model=tiny())

    assert isinstance(task, Task)
    assert isinstance(task, Explained)
    assert isinstance(task, Noted)
    assert set(task.explanations) == set(task.measure(tiny()))


def test_who_gives_no_images_is_told_what_they_are_worth(tmp_path):
    pairs(tmp_path)
    task = RestorationTask(SMALL, model=tiny())

    assert len(task.notes) == 1
    assert task.notes[0].startswith("task.train: only built-in images were used; ")
    given = of_folders(train=f"builtin,{tmp_path / 'input'}")
    assert RestorationTask(given, model=tiny()).notes == ()
    # images of other than one or three channels cannot be given
    assert RestorationTask(SMALL, model=tiny(4)).notes == ()


@pytest.mark.parametrize("channels", [1, 3, 4, 7])
def test_inputs_fit_the_network(channels):
    model = tiny(channels)
    task = RestorationTask(replace(SMALL, test="builtin"), model=model)

    batch = task.training_batch(2, torch.Generator().manual_seed(0))

    assert batch.input.shape == (2, channels, 32, 32)
    assert batch.target is None
    assert model(batch.input).shape == batch.input.shape
    assert task.example_input().shape == (1, channels, 24, 40)
    assert [len(b.input) for b in task.calibration_batches()] == [4, 1]


def test_the_teacher_equals_the_model_and_is_not_it():
    model = tiny()
    before = copy.deepcopy(model.state_dict())
    task = RestorationTask(SMALL, model=model)

    teacher = task.build_teacher()
    with torch.no_grad():
        teacher[0].weight.zero_()

    assert not teacher.training
    assert all(p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert task.validate(model) == 100.0


def test_a_farther_student_is_worse():
    model = tiny()
    task = RestorationTask(SMALL, model=model)
    near, far = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        near[2].bias.add_(0.01)
        far[2].bias.add_(0.1)

    near_db, far_db = task.validate(near), task.validate(far)

    assert near_db - far_db == pytest.approx(20.0, abs=0.1)
    assert task.measure(near)["psnr_to_teacher_db"]["builtin"] > 20
    assert near.training


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_degradations_keep_shape_and_range(kind):
    image = torch.rand(3, 24, 17, generator=torch.Generator().manual_seed(0))

    results = [
        DEGRADATIONS[kind](image, Dice(torch.Generator().manual_seed(seed))) for seed in (1, 1, 2)
    ]

    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert all(r.shape == image.shape and 0 <= r.min() <= r.max() <= 1 for r in results)
    assert not torch.equal(results[0], image)


def test_blur_keeps_a_flat_image_and_smooths_another():
    flat, image = torch.full((3, 9, 9), 0.4), torch.rand(3, 32, 32)

    torch.testing.assert_close(blurred(flat, Dice(torch.Generator().manual_seed(0))), flat)
    assert blurred(image, Dice(torch.Generator().manual_seed(0))).std() < 0.7 * image.std()


def test_every_kind_of_built_in_image_is_drawn():
    clear, hazy = torch.full((3, 8, 8), 0.5), torch.full((3, 8, 8), 0.9)
    dice = Dice(torch.Generator().manual_seed(0))

    drawn = [degraded(hazy, clear, dice) for _ in range(400)]

    as_it_is = sum(torch.equal(image, clear) for image in drawn)
    haze = sum(torch.equal(image, hazy) for image in drawn)
    # a flat image is not changed by blur
    assert as_it_is == pytest.approx(400 * (WEIGHTS["none"] + WEIGHTS["blur"]), abs=60)
    assert haze == pytest.approx(400 * WEIGHTS["haze"], abs=40)
    assert sum(WEIGHTS.values()) == pytest.approx(1.0)
    assert set(WEIGHTS) == {"none", "haze", *DEGRADATIONS}


def test_losses_fit_the_output():
    task = RestorationTask(SMALL, model=tiny())

    assert set(task.losses) == {"l1", "charbonnier", "psnr", "frequency", "ssim"}
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
    task = RestorationTask(SMALL)

    with pytest.raises(ModelError, match=r"no network: give --model, or Compressor\(model\)"):
        task.build_teacher()
    with pytest.raises(ModelError, match="no network"):
        task.validate(tiny())


def test_settings_are_checked():
    with pytest.raises(SettingError, match="crop must be at least 16, got 8"):
        RestorationSettings(crop=8)
    with pytest.raises(SettingError, match="example_size must be a height and a width"):
        RestorationSettings(example_size=(8, 0))


def put(path, level, size=(40, 36)):
    """Write a picture with a gradient, of a width and a height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, columns = np.mgrid[: size[1], : size[0]]
    image = np.stack([rows * 2, columns * 2, np.full_like(rows, level)], axis=2)
    Image.fromarray(image.astype(np.uint8)).save(path)


def pairs(root, count=6, scale=1, inputs="input", targets="target"):
    for number in range(count):
        put(root / inputs / f"{number}.png", number)
        put(root / targets / f"{number}.png", 200 + number, (40 * scale, 36 * scale))
    return root


def of_folders(**given):
    paths = {
        name: str(value) if isinstance(value, Path) else value for name, value in given.items()
    }
    return RestorationSettings(crop=32, example_size=(32, 32), calibration_images=2, **paths)


def enlarging(channels=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(channels, 4 * channels, 3, padding=1), nn.PixelShuffle(2))


def numbers(images):
    return sorted(int(image.name) for image in images)


def test_crops_of_pairs_show_the_same_place(tmp_path):
    # input and target are one picture, the target at twice the size
    for number in range(4):
        put(tmp_path / "input" / f"{number}.png", number)
        with Image.open(tmp_path / "input" / f"{number}.png") as image:
            doubled = image.resize((80, 72), Image.Resampling.NEAREST)
        (tmp_path / "target").mkdir(exist_ok=True)
        doubled.save(tmp_path / "target" / f"{number}.png")
    task = RestorationTask(of_folders(train=tmp_path), model=enlarging())

    batch = task.training_batch(16, torch.Generator().manual_seed(0))

    assert batch.input.shape == (16, 3, 32, 32)
    assert torch.equal(batch.target, nn.functional.interpolate(batch.input, scale_factor=2))
    # some are turned, some mirrored: the red ramp of rows does not always go down
    assert (
        len({tuple(crop[0, [0, 0, -1], [0, -1, 0]].argsort().tolist()) for crop in batch.input}) > 1
    )


def test_what_is_held_out_is_never_trained_on(tmp_path):
    pairs(tmp_path)
    task = RestorationTask(of_folders(train=tmp_path, validation_images=2), model=tiny())
    held = numbers(task.data.held_out)

    seen = set()
    for seed in range(12):
        batch = task.training_batch(4, torch.Generator().manual_seed(seed))
        seen |= {round(float(crop[2].mean()) * 255) for crop in batch.input}

    assert len(held) == 2
    assert seen == set(range(6)) - set(held)
    assert numbers(task.data.test_splits["held out"]) == held


def test_all_inputs_of_one_target_are_held_out_together(tmp_path):
    for number in range(4):
        put(tmp_path / "gt" / f"{number}.png", 200)
        for level in range(3):
            put(tmp_path / "hazy" / f"{number}_{level}.png", 10 * number)
    task = RestorationTask(of_folders(train=tmp_path, validation_images=1), model=tiny())
    (held,) = task.data.held_out

    batch = task.training_batch(64, torch.Generator().manual_seed(0))

    levels = {round(float(crop[2].mean()) * 255) for crop in batch.input}
    assert levels == {0, 10, 20, 30} - {10 * int(held.name[0])}


def test_pairs_are_validated_and_measured_against_their_targets(tmp_path):
    pairs(tmp_path / "train")
    pairs(tmp_path / "test", count=3)
    task = RestorationTask(
        of_folders(train=tmp_path / "train", test=tmp_path / "test"), model=nn.Conv2d(3, 3, 1)
    )
    right = nn.Conv2d(3, 3, 1)
    with torch.no_grad():
        right.weight.copy_(torch.eye(3)[..., None, None])
        right.bias.copy_(torch.tensor([0.0, 0.0, 200 / 255]))

    assert task.validate(right) == 100.0
    assert task.measure(right) == {
        "psnr_db": {"test": 100.0},
        "ssim": {"test": pytest.approx(1, abs=1e-3)},
    }
    assert task.measure(nn.Identity())["psnr_db"]["test"] == pytest.approx(
        10 * np.log10(3 / (200 / 255) ** 2), abs=1e-3
    )


def test_luma_and_border_are_those_of_published_tables(tmp_path):
    pairs(tmp_path, count=2)
    of = {name: of_folders(test=tmp_path, **given) for name, given in
          {"rgb": {}, "y": {"colors": "y"}, "inner": {"border": 4}}.items()}  # fmt: skip
    tasks = {name: RestorationTask(given, model=nn.Conv2d(3, 3, 1)) for name, given in of.items()}
    image = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(0))

    found = {name: task.measure(nn.Identity())["psnr_db"] for name, task in tasks.items()}

    # only blue differs, which is a tenth of the luma of BT.601
    difference = 24.966 / 255 * 200 / 255
    assert found["y"][tmp_path.name] == pytest.approx(-20 * np.log10(difference), abs=1e-2)
    assert found["rgb"] == pytest.approx(found["inner"], abs=1e-6)
    luma = 16 + 65.481 * image[0] + 128.553 * image[1] + 24.966 * image[2]
    torch.testing.assert_close(tasks["y"]._fidelity._compared(image) * 255, luma[None])
    assert tasks["y"].explanations["psnr_db"] == (
        "Peak signal-to-noise ratio against the target, of the luma of BT.601."
    )
    shown = [row.captions["student"] for row in tasks["y"].pictures({"student": nn.Identity()})]
    assert shown == [f"{found['y'][tmp_path.name]:.1f} dB"] * 2
    assert tasks["inner"]._fidelity._compared(image).shape == (3, 12, 22)


def test_images_alone_are_held_against_the_teacher(tmp_path):
    pairs(tmp_path)
    model = tiny()
    given = of_folders(train=tmp_path / "input", test=f"builtin,{tmp_path / 'target'}")
    task = RestorationTask(given, model=model)

    assert task.training_batch(2, torch.Generator().manual_seed(0)).target is None
    assert task.validate(model) == 100.0
    assert task.measure(model) == {"psnr_to_teacher_db": {"target": 100.0, "builtin": 100.0}}
    # another network from images to no images, such as a classifier, can be held against itself
    labels = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    task = RestorationTask(given, model=labels)
    assert task.validate(labels) == 100.0
    assert task.pictures({"teacher": labels}) == ()


def test_a_gray_network_is_given_gray_images(tmp_path):
    pairs(tmp_path / "data")
    model = enlarging(1)
    task = RestorationTask(of_folders(train=tmp_path / "data" / "input"), model=model)

    batch = task.training_batch(2, torch.Generator().manual_seed(0))
    written = task.apply_folder(model, tmp_path / "data" / "input", tmp_path / "out", no_progress)

    assert batch.input.shape == (2, 1, 32, 32)
    with Image.open(written[0]) as image:
        assert (image.mode, image.size) == ("L", (80, 72))


def test_pictures_show_input_models_and_target_at_one_size(tmp_path):
    pairs(tmp_path, scale=2)
    task = RestorationTask(of_folders(train=tmp_path), model=enlarging())

    (first, _) = task.pictures({"teacher": enlarging(), "student": enlarging()})

    assert list(first.images) == ["input", "teacher", "student", "truth"]
    assert {tuple(image.shape) for image in first.images.values()} == {(72, 80, 3)}
    assert set(first.captions) == {"input", "teacher", "student"}
    assert len(RestorationTask(SMALL, model=tiny()).pictures({"teacher": tiny()})) == 2


def test_the_fingerprint_follows_the_files_of_each_setting(tmp_path):
    pairs(tmp_path / "train")
    pairs(tmp_path / "test")

    def printed():
        given = of_folders(train=tmp_path / "train", test=tmp_path / "test")
        return RestorationTask(given, model=tiny()).fingerprint()

    before = printed()
    put(tmp_path / "test" / "target" / "0.png", 7)
    os.utime(tmp_path / "test" / "target" / "0.png", (0, 0))

    assert printed()["train"] == before["train"]
    assert printed()["test"] != before["test"]
    assert len(before["train"]) == 1  # built-in images are not read
    assert RestorationTask(SMALL, model=tiny()).fingerprint() == {
        "train": [VERSION],
        "test": [VERSION],
    }
    assert "test" in RestorationTask.read_by


@pytest.mark.parametrize(
    ("given", "model", "expected"),
    [
        ({"train": "builtin,pairs"}, tiny(), "built-in images have no target, and those of"),
        ({"train": "pairs", "test": "builtin"}, tiny(), "built-in images have no target"),
        ({"train": "pairs,pairs/input"}, tiny(), "has none: name folders of one kind"),
        ({"train": "pairs", "test": "pairs/input"}, tiny(), "name folders of one kind"),
        ({"train": "pairs"}, enlarging(), "makes images 2 times as large, and pairs/target/0.png"),
        ({"test": "twice"}, tiny(), "is 2 times as large as its input: give pairs of one scale"),
        ({"train": "pairs/input"}, tiny(4), "takes 4 channels, and images in folders have 1 or 3"),
        (
            {"train": "small"},
            tiny(),
            "0.png is 20x20, smaller than a crop of 32: set task.crop to 20",
        ),
        ({"test": "small"}, tiny(), "smaller than a crop of 32: set task.crop to 20 or less"),
    ],
)
def test_folders_that_do_not_fit_are_refused(tmp_path, monkeypatch, given, model, expected):
    monkeypatch.chdir(tmp_path)
    pairs(Path("pairs"))
    pairs(Path("twice"), scale=2)
    put(Path("small/0.png"), 0, (20, 20))

    with pytest.raises(DataError) as caught:
        RestorationTask(of_folders(**given), model=model)

    assert expected in str(caught.value)


def test_an_image_in_both_train_and_test_is_warned_of(tmp_path, caplog):
    pairs(tmp_path)

    RestorationTask(of_folders(train=tmp_path, test=tmp_path), model=tiny())

    assert "is in both train and test: its figures mean little" in caplog.text


def test_another_process_draws_the_same_batch(tmp_path):
    task = RestorationTask(of_folders(train=pairs(tmp_path)), model=tiny())
    batch = task.training_batch(3, torch.Generator().manual_seed(5))

    same = pickle.loads(pickle.dumps(task)).training_batch(3, torch.Generator().manual_seed(5))

    assert torch.equal(batch.input, same.input)
    assert torch.equal(batch.target, same.target)


def test_a_task_for_use_knows_the_channels_of_its_network():
    task = RestorationTask.deployed({"example_size": (24, 40), "train": "gone"}, enlarging(1))

    assert task.example_input().shape == (1, 1, 24, 40)
    assert task.settings.train == "builtin"


def test_a_single_pair_is_trained_and_validated_on(tmp_path, caplog):
    pairs(tmp_path, count=1)
    task = RestorationTask(of_folders(train=tmp_path), model=tiny())

    assert task.training_batch(2, torch.Generator().manual_seed(0)).input.shape == (2, 3, 32, 32)
    assert 0 < task.validate(tiny()) < 40
    assert "0.png is all there is to train on: it is validated on too" in caplog.text


def test_folders_of_one_name_are_told_apart(tmp_path):
    for place in ("a", "b"):
        pairs(tmp_path / place / "test", count=2)
    both = f"{tmp_path / 'a' / 'test'},{tmp_path / 'b' / 'test'}"

    task = RestorationTask(of_folders(test=both, max_test_images=1), model=tiny())

    assert {name: len(images) for name, images in task.data.test_splits.items()} == {
        "test": 1,
        "b_test": 1,
    }

import dataclasses
import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from coa_compress.errors import DataError, SettingError, WeightsError
from coa_compress.protocols import (
    Adaptable,
    Comparable,
    Deployable,
    Explained,
    Fingerprinted,
    ReadByStage,
    Rebuildable,
    Showable,
    Task,
    no_progress,
)
from coa_compress.stages.order import STAGES
from coa_compress.tasks.dehazing.data import DehazingData
from coa_compress.tasks.dehazing.networks import HazeUNet
from coa_compress.tasks.dehazing.references import known_networks
from coa_compress.tasks.dehazing.settings import DehazingSettings, MixtureSettings
from coa_compress.tasks.dehazing.task import DehazingTask
from coa_compress.tasks.folders import locations, spaced

SHARED = Path(__file__).parents[2] / "shared" / "data"


def put(path, seed=0, size=(40, 36)):
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(levels).save(path)


def put_pairs(root, count=6, first=0):
    for number in range(first, first + count):
        put(root / "hazy" / f"{number}_1.png", number)
        put(root / "hazy" / f"{number}_2.png", number + 50)
        put(root / "gt" / f"{number}.png", number + 100)


@pytest.fixture
def folders(tmp_path):
    put_pairs(tmp_path / "train" / "pairs")
    put_pairs(tmp_path / "test" / "one", 3, first=20)
    put_pairs(tmp_path / "test" / "two", 2, first=30)
    for number in range(7):
        put(tmp_path / "real" / f"{number}.png", number)
    return tmp_path


def task_on(root, **changes):
    values = {
        "teacher": "random",
        "train": str(root / "train"),
        "real": str(root / "real"),
        "test": str(root / "test"),
        "crop": 32,
        "calibration_images": 6,
        **changes,
    }
    return DehazingTask(DehazingSettings(**values), seed=3)


@pytest.fixture(scope="module")
def builtin():
    settings = DehazingSettings(
        teacher="random", crop=64, calibration_images=6, validation_images=2, max_test_images=2
    )
    return DehazingTask(settings)


class Brighter(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.1))

    def forward(self, image):
        return image * self.gain


def test_the_task_satisfies_every_protocol(builtin):
    asked = (Task, Adaptable, Comparable, Showable, Deployable, Fingerprinted, Rebuildable)
    asked += (Explained, ReadByStage)
    for protocol in asked:
        assert isinstance(builtin, protocol)


def test_what_it_measures_has_words(builtin):
    haze_and_quality = {"fade", "dark_channel_density", "niqe"}
    assert set(builtin.gate_labels) == {*haze_and_quality, "skill"}
    assert set(builtin.explanations) == haze_and_quality


def test_a_batch_depends_on_the_generator_only(builtin):
    first = builtin.training_batch(3, torch.Generator().manual_seed(1))
    builtin.training_batch(2, torch.Generator().manual_seed(9))
    again = builtin.training_batch(3, torch.Generator().manual_seed(1))
    other = builtin.training_batch(3, torch.Generator().manual_seed(2))

    assert first.input.shape == first.target.shape == (3, 3, 64, 64)
    assert torch.equal(first.input, again.input)
    assert torch.equal(first.target, again.target)
    assert not torch.equal(first.input, other.input)
    for images in (first.input, first.target):
        assert 0 <= images.min() <= images.max() <= 1


def test_real_batches_are_repeatable(builtin):
    first, again = (builtin.real_batch(2, torch.Generator().manual_seed(1)) for _ in range(2))

    assert first.shape == (2, 3, 64, 64)
    assert torch.equal(first, again)


def test_calibration_is_always_the_same(builtin):
    batches = builtin.calibration_batches()

    assert [len(batch.input) for batch in batches] == [4, 2]
    assert builtin.calibration_batches() is batches


def test_built_in_measurements_and_pictures(builtin):
    measured = builtin.measure(nn.Identity())
    rows = builtin.pictures({"teacher": nn.Identity(), "student": Brighter()})

    assert set(measured) == {"psnr_db", "ssim", "fade", "dark_channel_density", "niqe"}
    assert set(measured["psnr_db"]) == {"builtin"}
    assert set(measured["fade"]) == {"builtin", "real"}
    assert 5 < measured["psnr_db"]["builtin"] < 30
    assert list(rows[0].images) == ["hazy", "teacher", "student"]
    assert list(rows[-1].images) == ["hazy", "teacher", "student", "truth"]
    assert rows[-1].captions["hazy"].endswith(" dB")
    for row in rows:
        for image in row.images.values():
            assert image.dtype == torch.uint8
            assert image.shape[1] <= 384
            assert image.shape[2] == 3


def test_domain_measures_see_less_haze_in_a_darker_image(builtin):
    class Darker(nn.Module):
        def forward(self, image):
            return ((image - 0.4) * 1.6).clamp(0, 1)

    before = builtin.domain_measures(nn.Identity())
    after = builtin.domain_measures(Darker())

    for name in ("fade", "dark_channel_density"):
        pairs = list(zip(before.defects[name], after.defects[name], strict=True))
        assert np.mean([new < old for old, new in pairs]) > 0.8
    assert before.lower_is_better == ("niqe",)
    assert np.mean(before.skill) == pytest.approx(builtin.validate(nn.Identity()))


def test_validation_runs_in_evaluating(builtin):
    model = nn.BatchNorm2d(3)

    builtin.validate(model)

    assert model.training
    assert model.num_batches_tracked == 0


def test_an_untrained_teacher_depends_on_the_seed_and_leaves_the_generator_alone():
    state = torch.random.get_rng_state()
    first, again = (task.build_teacher() for task in (random_task(1), random_task(1)))
    other = random_task(2).build_teacher()

    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(first.stem.weight, again.stem.weight)
    assert not torch.equal(first.stem.weight, other.stem.weight)
    assert not first.training


def random_task(seed):
    return DehazingTask(DehazingSettings(teacher="random"), seed=seed)


def test_a_teacher_is_loaded_from_a_file(tmp_path):
    weights = HazeUNet().state_dict()
    save_file(weights, tmp_path / "teacher.safetensors")
    settings = DehazingSettings(teacher=str(tmp_path / "teacher.safetensors"))

    teacher = DehazingTask(settings).build_teacher()

    assert all(torch.equal(weights[name], value) for name, value in teacher.state_dict().items())


def test_a_missing_teacher_is_named(tmp_path):
    task = DehazingTask(DehazingSettings(teacher=str(tmp_path / "gone.pth")))
    with pytest.raises(WeightsError, match=r"no weight file .*gone\.pth: give task\.teacher an"):
        task.build_teacher()


def test_the_record_builds_the_teacher_again():
    factory, arguments = random_task(0).teacher_record()

    assert factory == "coa_compress.tasks.dehazing.networks:HazeUNet"
    assert arguments == {}


def test_folders_give_splits_by_name(folders):
    task = task_on(folders)

    measured = task.measure(nn.Identity())

    assert set(measured["psnr_db"]) == {"one", "two"}
    assert set(measured["fade"]) == {"one", "two", "real"}
    assert len(task.data.test["one"]) == 6


def test_validation_is_kept_out_of_training_with_all_its_haze_levels(folders):
    data = task_on(folders, validation_images=2).data
    held = {example.name.split("_")[0] for example in data.validation}

    pairs = data.training.parts[0][1].pairs

    assert len(held) == 2
    assert {pair.clear.stem for pair in pairs} == {str(n) for n in range(6)} - held
    again = task_on(folders, validation_images=2).data
    assert [e.name for e in again.validation] == [e.name for e in data.validation]


def test_a_single_pair_is_trained_on_and_validated_elsewhere(folders):
    put_pairs(folders / "few", 1)

    data = task_on(folders, train=str(folders / "few"), validation_images=1).data

    assert len(data.training.parts[0][1].pairs) == 2
    assert data.validation[0].name == "rocket"


def put_scene(root):
    put(root / "clear" / "a.png", 1)
    Image.fromarray(np.full((36, 40), 90, dtype=np.uint8)).save(make(root / "depth") / "a.png")
    (root / "index.csv").write_text(
        "clear,depth,dmax,domain\nclear/a.png,depth/a.png,5.0,outdoor\n"
    )


def make(folder):
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_built_in_data_have_a_constant_fingerprint(builtin, folders):
    constant = {use: ["builtin-1"] for use in ("train", "real", "test")}
    assert builtin.data.fingerprint() == constant
    assert builtin.fingerprint() == random_task(7).fingerprint()
    assert builtin.fingerprint().items() > constant.items()
    assert task_on(folders).fingerprint() != builtin.fingerprint()


def test_the_fingerprint_is_the_same_for_the_same_files(folders):
    first, again = task_on(folders).fingerprint(), task_on(folders).fingerprint()

    assert first == again == json.loads(json.dumps(first))
    assert [len(first[use][1]) for use in ("train", "real", "test")] == [16, 16, 16]


def test_settings_that_few_stages_read_are_settings_and_stages(builtin):
    fields = {field.name for field in dataclasses.fields(DehazingSettings)}
    assert set(builtin.read_by) < fields
    assert {stage for stages in builtin.read_by.values() for stage in stages} < {
        stage.name for stage in STAGES
    }
    assert set(builtin.fingerprint()) < fields


@pytest.mark.parametrize(
    "name",
    [
        "train/pairs/hazy/0_1.png",
        "train/pairs/gt/0.png",
        "train/scenes/clear/a.png",
        "train/scenes/depth/a.png",
        "real/3.png",
        "test/one/hazy/20_1.png",
        "test/photos/a.png",
    ],
)
def test_the_fingerprint_changes_with_every_file_that_is_used(folders, name):
    put_scene(folders / "train" / "scenes")
    put(folders / "test" / "photos" / "a.png")
    path = folders / name
    before = task_on(folders).fingerprint()

    found = path.stat()
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + 1))
    touched = task_on(folders).fingerprint()
    with path.open("ab") as file:
        file.write(b"more")
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    grown = task_on(folders).fingerprint()

    use = name.split("/")[0]
    assert len({tuple(value[use]) for value in (before, touched, grown)}) == 3
    for other in {"train", "real", "test"} - {use}:
        assert before[other] == touched[other] == grown[other]


def test_the_fingerprint_changes_with_the_number_of_files_and_the_index(folders):
    put_scene(folders / "train" / "scenes")
    values = [task_on(folders).fingerprint()]
    put(folders / "real" / "new.png")
    values.append(task_on(folders).fingerprint())
    index = folders / "train" / "scenes" / "index.csv"
    index.write_text(index.read_text().replace("5.0", "6.0"))
    values.append(task_on(folders).fingerprint())

    assert len({json.dumps(value) for value in values}) == 3


def test_the_fingerprint_ignores_files_that_are_not_used(folders):
    before = task_on(folders).fingerprint()
    (folders / "train" / "notes.txt").write_text("no image")
    put(folders / "train" / "extra.png")

    assert task_on(folders).fingerprint() == before


def test_a_file_that_is_gone_is_named(folders):
    task = task_on(folders)
    (folders / "real" / "3.png").unlink()

    with pytest.raises(DataError, match=r"cannot read .*3\.png: No such file"):
        task.fingerprint()


def test_a_test_split_is_known_by_its_files_wherever_they_lie(folders, tmp_path):
    before = task_on(folders).data.test_digests()
    shutil.move(folders / "test", tmp_path / "moved")
    moved = task_on(folders, test=str(tmp_path / "moved")).data.test_digests()
    fewer = task_on(folders, test=str(tmp_path / "moved"), max_test_images=1).data.test_digests()

    assert set(before) == {"one", "two"}
    assert moved == before
    assert all(fewer[split] != before[split] for split in before)


def test_only_networks_that_saw_the_same_images_are_references(builtin, folders):
    known = DehazingTask(DehazingSettings(teacher="random")).references()
    assert len(known) > 1
    assert all(set(network.measures["psnr_db"]) == {"builtin"} for network in known)
    assert builtin.data.test_digests().keys() == {"builtin"}
    assert builtin.references() == []
    assert task_on(folders).references() == []
    assert known_networks({"builtin": "another"}) == []


def test_real_images_are_held_out_for_the_gate(folders):
    data = task_on(folders).data

    adapting, judging = set(data.adaptation.images), set(data.gate.images)
    assert len(judging) == 3
    assert len(adapting) == 4
    assert not adapting & judging


def test_few_photographs_are_said_to_be_few_unless_the_built_in_ones_join(folders, caplog):
    real = folders / "real"
    assert task_on(folders, real=f"builtin,{real}").data.gate.images
    assert not caplog.messages

    assert task_on(folders).data.gate.images

    assert caplog.messages == [
        f"few real photographs for a verdict, 7: add the built-in ones, task.real=builtin,{real}"
    ]


def test_photographs_beside_the_test_pairs_are_the_real_test(folders):
    put(folders / "test" / "haze_photos" / "a.png")

    data = task_on(folders).data

    assert [path.name for path in data.test_real.images] == ["a.png"]


def test_several_folders_and_built_in_images_mix(folders):
    put_pairs(folders / "more", 2, first=60)
    setting = f"{folders / 'train'},{folders / 'more'}, builtin"

    data = task_on(folders, train=setting, validation_images=1).data

    weights = [weight for weight, _ in data.training.parts]
    assert weights[-1] == 0.5
    assert len(data.training.parts[0][1].pairs) >= 14


@pytest.mark.parametrize(
    ("mixture", "weights"),
    [
        ({}, [0.538, 0.412, 0.05]),
        ({"outdoor": 1, "pairs": 3}, [0.237, 0.712, 0.05]),
        ({"outdoor": 0}, [0.95, 0.05]),
    ],
)
def test_the_mixture_says_how_often_each_kind_is_drawn(folders, mixture, weights):
    put_scene(folders / "scenes")
    setting = f"{folders / 'train'},{folders / 'scenes'}"

    training = task_on(folders, train=setting, mixture=MixtureSettings(**mixture)).data.training

    assert [round(weight, 3) for weight, _ in training.parts] == weights


def test_a_mixture_that_draws_nothing_is_refused(folders):
    with pytest.raises(SettingError, match=r"MixtureSettings.pairs must be at least 0.0, got -1"):
        MixtureSettings(pairs=-1)
    with pytest.raises(
        DataError, match=r"task.mixture gives 0 to all that .*train holds \(pairs\): give one"
    ):
        task_on(folders, mixture=MixtureSettings(pairs=0))


def test_training_on_the_test_folder_is_warned_of(folders, caplog):
    with caplog.at_level(logging.WARNING):
        task_on(folders, train=str(folders / "test"))

    assert "is in both train and test" in caplog.text


@pytest.mark.parametrize("setting", ["train", "real", "test"])
def test_a_missing_folder_fails_when_the_task_is_built(folders, setting):
    with pytest.raises(DataError, match=r"no folder .*gone: give an existing folder of images"):
        task_on(folders, **{setting: str(folders / "gone")})


def test_settings_out_of_range_are_refused():
    with pytest.raises(SettingError, match="crop must be a multiple of 16, got 100: use 96"):
        DehazingSettings(crop=100)
    with pytest.raises(SettingError, match="crop must be at least 32, got 16"):
        DehazingSettings(crop=16)
    with pytest.raises(SettingError, match="example_size must be a height and a width"):
        DehazingSettings(example_size=(0, 8))
    with pytest.raises(SettingError, match="no folder in ' , ': name a folder or use builtin"):
        locations(" , ")


def test_the_example_has_the_asked_size():
    task = DehazingTask(DehazingSettings(example_size=(48, 80)))

    assert task.example_input().shape == (1, 3, 48, 80)


def test_a_folder_is_restored_under_the_same_names(folders):
    put(folders / "photos" / "a.JPG", size=(40, 37))
    put(folders / "photos" / "b.png")
    (folders / "photos" / "notes.txt").write_text("no image")
    seen = []

    written = task_on(folders).apply_folder(
        nn.Identity(),
        folders / "photos",
        folders / "deep" / "out",
        lambda done, total, values: seen.append((done, total)),
    )

    assert [path.name for path in written] == ["a.png", "b.png"]
    assert seen == [(1, 2), (2, 2)]
    with Image.open(written[0]) as image:
        assert image.size == (40, 37)
    source = np.asarray(Image.open(folders / "photos" / "b.png"))
    assert np.array_equal(np.asarray(Image.open(written[1])), source)


def test_nothing_is_written_when_something_is_wrong(folders):
    task, photos, out = task_on(folders), folders / "photos", folders / "out"

    def apply(source, target):
        return task.apply_folder(nn.Identity(), source, target, no_progress)

    put(photos / "a.png")
    with pytest.raises(DataError, match="source and out are both"):
        apply(photos, photos)
    (photos / "z.png").write_bytes((photos / "a.png").read_bytes()[:900])
    with pytest.raises(DataError, match=r"cannot read image .*z\.png"):
        apply(photos, out)
    (photos / "z.png").unlink()
    put(photos / "a.jpg")
    with pytest.raises(DataError, match=r"would both become .*a\.png: rename one"):
        apply(photos, out)
    assert not out.exists()
    (photos / "a.jpg").unlink()
    put(out / "a.png", seed=5)
    before = (out / "a.png").read_bytes()
    with pytest.raises(DataError, match=r"a\.png exists and would be overwritten: choose another"):
        apply(photos, out)
    assert (out / "a.png").read_bytes() == before
    (folders / "empty").mkdir()
    with pytest.raises(DataError, match=r"no images in .*empty: give a folder"):
        apply(folders / "empty", out)
    with pytest.raises(DataError, match="is a file: choose a folder as --out"):
        apply(photos, out / "a.png")


def test_a_folder_of_pairs_is_evaluated(folders):
    put(folders / "perfect" / "hazy" / "a.png")
    put(folders / "perfect" / "gt" / "a.png")
    seen = []

    measured = task_on(folders).evaluate_folder(
        nn.Identity(), folders / "perfect", lambda done, total, values: seen.append(done)
    )

    assert measured["psnr_db"] == {"perfect": 100.0}
    assert measured["ssim"]["perfect"] == pytest.approx(1.0)
    assert seen == [1]
    with pytest.raises(DataError, match=r"no pairs in .*real: only images without truth"):
        task_on(folders).evaluate_folder(nn.Identity(), folders / "real", no_progress)


def test_a_limit_takes_evenly_spaced_images():
    assert list(spaced(range(10), 4)) == [0, 2, 5, 7]
    assert list(spaced(range(3), 4)) == [0, 1, 2]


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the development data")
def test_the_development_data_trains_every_domain():
    data = DehazingData(
        DehazingSettings(
            train=str(SHARED / "train"), real=str(SHARED / "train"), test=str(SHARED / "test")
        )
    )

    assert [round(weight, 2) for weight, _ in data.training.parts] == [0.3, 0.42, 0.23, 0.05]
    assert len(data.validation) == 8
    assert len(data.gate.images) == 16
    assert len(data.adaptation.images) == 119
    assert len(data.stopping.images) == 10
    assert {name: len(examples) for name, examples in data.test.items()} == {
        "real_pairs": 26,
        "sots_indoor": 25,
        "sots_outdoor": 40,
    }
    assert len(data.test_real.images) == 50

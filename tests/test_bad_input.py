"""Whatever a person gets wrong is one clear line, exit code 2, and nothing is lost or left."""

import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from small_runs import DEHAZE, files_in, put_image, put_images

from coa_compress import compressor
from coa_compress.structure.analysis import analyze
from coa_compress.tasks.dehazing.networks import HazeUNet
from coa_compress.tasks.dehazing.task import DehazingTask


@pytest.fixture(scope="module")
def structure():
    net = DehazingTask(DehazingTask.Settings(teacher="random")).build_teacher()
    return analyze(net, torch.zeros(1, 3, 48, 64))


@pytest.fixture
def place(tmp_path, monkeypatch, structure):
    """A folder with images and a recipe that is right; the analysis takes no time."""
    monkeypatch.setattr(compressor, "analyze", lambda *_, **__: structure)
    monkeypatch.chdir(tmp_path)
    put_images(tmp_path / "images")
    (tmp_path / "r.yaml").write_text(DEHAZE.format(images="images"), encoding="utf-8")
    return tmp_path


def refused(said, before, place):
    """Return the lines of an error after checking what holds for every one of them."""
    assert said.code == 2, said.err
    assert said.out == ""
    assert "Traceback" not in said.err
    assert said.err.startswith("error: ")
    assert said.err.endswith("\n")
    assert files_in(place) == before
    assert not (place / "run").exists()
    return said.err.removeprefix("error: ").splitlines()


def only_line(said, before, place):
    lines = refused(said, before, place)
    assert len(lines) == 1, lines
    return lines[0]


def cut_off(path, size=(64, 48)):
    """Write an image file without its last part."""
    noisy = Image.effect_noise(size, 90).convert("RGB")
    path.parent.mkdir(parents=True, exist_ok=True)
    noisy.save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def without_truth(root):
    (root / "train" / "gt" / "2.png").unlink()


def of_other_size(root):
    put_image(root / "train" / "gt" / "2.png", 0, size=(48, 64))


def text_as_image(root):
    (root / "train" / "hazy" / "1.png").write_text("no image", encoding="utf-8")


def empty_image(root):
    (root / "real" / "1.png").write_bytes(b"")


def cut_off_png(root):
    cut_off(root / "train" / "hazy" / "3.png")


def cut_off_jpeg(root):
    cut_off(root / "real" / "cut.jpg")


def scene_without_file(root):
    put_image(root / "scenes" / "clear" / "a.png", 0)
    put_image(root / "scenes" / "depth" / "a.png", 0)
    (root / "scenes" / "index.csv").write_text(
        "clear,depth,dmax,domain\nclear/a.png,depth/a.png,9,outdoor\n"
        "clear/b.png,depth/b.png,9,outdoor\n",
        encoding="utf-8",
    )


def empty_folder(root):
    (root / "empty").mkdir()


def nothing(root):
    """Leave the images as they are."""


@pytest.mark.parametrize(
    ("prepare", "override", "expected"),
    [
        (nothing, "task.train=images/none", "no folder images/none: give an existing folder"),
        (nothing, "task.real=images/none", "no folder images/none: give an existing folder"),
        (nothing, "task.test=images/none", "no folder images/none: give an existing folder"),
        (nothing, "task.test=r.yaml", "no folder r.yaml: give an existing folder"),
        (nothing, "task.train=','", "no folder in ',': name a folder or use builtin"),
        (
            empty_folder,
            "task.train=images/empty",
            "no images in images/empty: found nothing; expected hazy/ and",
        ),
        (
            empty_folder,
            "task.real=images/empty",
            "no images in images/empty: found nothing; expected",
        ),
        (nothing, "task.train=images/real", "no pairs in images/real: only images without truth"),
        (cut_off_png, "seed=0", "cannot read image images/train/hazy/3.png: "),
        (cut_off_jpeg, "seed=0", "cannot read image images/real/cut.jpg: "),
        (text_as_image, "seed=0", "cannot read image images/train/hazy/1.png: not an image"),
        (empty_image, "seed=0", "cannot read image images/real/1.png: the file is empty"),
        (of_other_size, "seed=0", "sizes differ: images/train/hazy/2.png is 64x48, images/train"),
        (without_truth, "seed=0", "no truth for images/train/hazy/2.png in images/train/gt"),
        (
            scene_without_file,
            "task.train=images/scenes",
            "images/scenes/index.csv:3 names images/scenes/clear/b.png, which does not exist",
        ),
    ],
)
def test_images_that_cannot_be_used(place, call, prepare, override, expected):
    prepare(place / "images")
    before = files_in(place)

    said = call("recipe", "r.yaml", "--set", override, "--out", "run")

    line = only_line(said, before, place)
    assert expected in line
    assert line.partition(": ")[2], "the remedy is missing"


class Evil:
    """A pickle that would run code."""

    def __reduce__(self):
        return Path.touch, (Path("evil"),)


def pickled(path):
    with path.with_suffix(".pth").open("wb") as file:
        torch.save({"state_dict": Evil()}, file, pickle_module=pickle)


def whole_network(path):
    torch.save(HazeUNet(widths=(8, 8, 8), depths=(1, 1, 1)), path.with_suffix(".pth"))


def truncated(path):
    save_file(HazeUNet().state_dict(), path.with_suffix(".safetensors"))
    data = path.with_suffix(".safetensors").read_bytes()
    path.with_suffix(".safetensors").write_bytes(data[: len(data) // 2])


def of_another_network(path):
    save_file(torch.nn.Conv2d(3, 3, 1).state_dict(), path.with_suffix(".safetensors"))


def of_other_widths(path):
    small = HazeUNet(widths=(8, 8, 8), depths=(2, 3, 4))
    save_file(small.state_dict(), path.with_suffix(".safetensors"))


def no_weights(path):
    path.with_suffix(".safetensors").write_text("hello", encoding="utf-8")


def not_there(path):
    """Write nothing."""


@pytest.mark.parametrize(
    ("write", "name", "expected"),
    [
        (not_there, "t.safetensors", "no weight file t.safetensors: give task.teacher an existing"),
        (not_there, "t.onnx", "no weight file t.onnx"),
        (pickled, "t.pth", "t.pth needs pickle to load, which can run any code: convert it"),
        (whole_network, "t.pth", "t.pth needs pickle to load, which can run any code: convert it"),
        (truncated, "t.safetensors", "t.safetensors is damaged or no safetensors file"),
        (no_weights, "t.safetensors", "t.safetensors is damaged or no safetensors file"),
        (of_another_network, "t.safetensors", "t.safetensors does not fit HazeUNet: "),
        (of_other_widths, "t.safetensors", "of another shape (stem.weight (8, 48, 3, 3) in the"),
    ],
)
def test_weights_that_cannot_be_used(place, call, write, name, expected):
    write(place / "t")
    before = files_in(place)

    said = call("recipe", "r.yaml", "--set", f"task.teacher={name}", "--out", "run")

    assert expected in only_line(said, before, place)
    assert not (place / "evil").exists()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["stages.allocate.keep_macs=0"], ["keep_macs=0: must be above 0"]),
        (["stages.allocate.keep_macs=1.5"], ["keep_macs=1.5: must be "]),
        (["stages.allocate.keep_macs=half"], ["keep_macs=half: must be a number"]),
        (["stages.allocate.keep_macs=null"], ["no budget given: set keep_macs or keep_params"]),
        (["stages.allocate.keep_mac=0.5"], ["unknown key 'keep_mac': did you mean keep_macs"]),
        (["stages.score.scorer=tailor"], ["no scorer named 'tailor': did you mean taylor"]),
        (["stages.allocate.allocator=greed"], ["no allocator named 'greed': did you mean greedy"]),
        (["stages.distil={}"], ["unknown stage 'distil': did you mean distill"]),
        (["task.name=dehaze"], ["unknown task 'dehaze': did you mean dehazing"]),
        (["task.crop=40"], ["crop must be a multiple of 16, got 40: use"]),
        (["task.crop=[32]"], ["must be a whole number, got a list of 1"]),
        (["seed=-1"], ["seed=-1: must be at least 0"]),
        (["name=a/b"], ["name=a/b: must be letters, digits"]),
        (["device=gpu"], ["device=gpu: must be auto, cpu, cuda or cuda:N"]),
        (["stages.distill.training.steps=0"], ["steps=0: must be at least 1"]),
        (["stages.distill.truth.l1=-1"], ["l1=-1: must be at least 0"]),
        (["stages.adapt.gate.max_skill_drop=-1"], ["must be at least 0.0, got -1"]),
        (["sed=1", "task.crp=3"], ["unknown key 'sed'", "unknown key 'crp': did you mean crop"]),
    ],
)
def test_recipes_that_are_wrong(place, call, overrides, expected):
    before = files_in(place)

    said = call("recipe", "r.yaml", "--set", *overrides, "--out", "run")

    lines = refused(said, before, place)
    assert len(lines) == len(expected), lines
    for line, text in zip(lines, expected, strict=True):
        assert text in line


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("stages.allocate.keep_macs=0.001", "cannot keep 0.1% of macs .*: the least is [0-9.]+%"),
        ("stages.distill.truth.l11=1", "truth names no loss 'l11': did you mean l1"),
        ("stages.distill.teacher.sim=0", "teacher names no loss 'sim': did you mean ssim"),
        ("stages.adapt.prior.dark=1", "prior names no loss 'dark'"),
        ("stages.adapt.replay={ssmi: 1}", "replay names no loss 'ssmi': did you mean ssim"),
        ("stages.train={losses: {l2: 1}}", "stages.train.losses names no loss 'l2'"),
        ("stages.train={losses: {l1: 0}}", "every loss weight is 0 .stages.train.losses.l1."),
        ("stages.prune=off", "stage 'refit' needs stage 'prune': add it to the recipe"),
        ("device=cuda:7", "device 'cuda:7' is not there, torch sees [0-9] GPUs: use auto or cpu"),
    ],
)
def test_what_cannot_work_is_known_before_anything_runs(place, call, override, expected):
    before = files_in(place)

    said = call("recipe", "r.yaml", "--set", override, "--out", "run")

    assert re.search(expected, only_line(said, before, place))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_said_at_once(place, call):
    before = files_in(place)

    said = call("recipe", "r.yaml", "--device", "cuda", "--out", "run")

    expected = "device 'cuda' is not there, torch sees 0 GPUs: use auto or cpu"
    assert only_line(said, before, place) == expected


def test_zero_weights_are_allowed_for_any_loss(place, call):
    zeros = ["distill.truth={l1: 0, ssim: 0}", "distill.feature=0", "adapt.consistency=0"]
    zeros += ["adapt.prior={dark_channel: 0, rehaze: 0, saturation: 0, color: 0}"]

    said = call(
        "recipe", "r.yaml", "--plan", "--set", *(f"stages.{item}" for item in zeros), "--out", "run"
    )

    assert said.code == 0, said.err
    assert "macs" in said.out


def test_a_recipe_that_is_not_there(place, call):
    before = files_in(place)

    assert "no recipe file none.yaml" in only_line(call("recipe", "none.yaml"), before, place)
    assert "r.yaml" in files_in(place)


def no_photos(place):
    (place / "photos").mkdir()
    (place / "photos" / "notes.txt").write_text("none", encoding="utf-8")


def photos(place):
    put_image(place / "photos" / "a.png", 0)


def cut_off_photo(place):
    photos(place)
    cut_off(place / "photos" / "b.jpg")


def output_there(place):
    photos(place)
    (place / "out").mkdir()
    (place / "out" / "a.png").write_bytes(b"mine")


def same_names(place):
    photos(place)
    put_image(place / "photos" / "a.jpg", 0)


@pytest.mark.parametrize(
    ("prepare", "out", "expected"),
    [
        (nothing, "out", "photos does not exist: give a folder of images"),
        (no_photos, "out", "no images in photos: give a folder with PNG or JPEG files"),
        (photos, "photos", "--out photos is the folder of the photos, which would be lost"),
        (photos, "r.yaml", "r.yaml is a file: choose a folder as --out"),
        (cut_off_photo, "out", "cannot read image photos/b.jpg: "),
        (output_there, "out", "out/a.png exists and would be overwritten: choose another --out"),
        (same_names, "out", "would both become out/a.png: rename one"),
    ],
)
def test_photos_that_cannot_be_used(place, call, whole_run, prepare, out, expected):
    prepare(place)
    before = files_in(place)

    said = call("apply", whole_run.folder, "photos", "--out", out)

    lines = said.err.splitlines()
    assert said.code == 2
    assert lines[-1].startswith("error: ")
    assert expected in lines[-1]
    assert not any(line.startswith("error") for line in lines[:-1])
    assert "Traceback" not in said.err
    assert files_in(place) == before


def damaged_record(folder):
    (folder / "student.json").write_text("{", encoding="utf-8")


def damaged_weights(folder):
    weights = folder / "student.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def weights_gone(folder):
    (folder / "student.safetensors").unlink()


def another_class(folder):
    record = folder / "student.json"
    text = record.read_text(encoding="utf-8").replace(":HazeUNet", ":NoSuchNet")
    record.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (None, "no student in images: give a run folder, or builtin:teacher"),
        (damaged_record, "student.json is damaged"),
        (damaged_weights, "student.safetensors is damaged or does not belong to student.json"),
        (weights_gone, "cannot read"),
        (another_class, "NoSuchNet"),
    ],
)
@pytest.mark.parametrize("command", ["apply", "evaluate"])
def test_a_folder_that_holds_no_student(place, call, whole_run, command, damage, expected):
    source = "images"
    if damage is not None:
        source = "student"
        shutil.copytree(whole_run.folder / "student", place / source)
        damage(place / source)
    before = files_in(place)
    rest = ["images/real", "--out", "run"] if command == "apply" else ["--data", "images/test"]

    assert expected in only_line(call(command, source, *rest), before, place)


@pytest.mark.parametrize(
    ("source", "data", "expected"),
    [
        ("run", "images/real", "no pairs in images/real: only images without truth"),
        ("run", "images/none", "images/none does not exist: give a folder of images"),
        ("builtin:student", "images/test", "there is no builtin:student: the only built-in"),
    ],
)
def test_pairs_that_cannot_be_used(place, call, whole_run, source, data, expected):
    before = files_in(place)
    source = whole_run.folder if source == "run" else source

    said = call("evaluate", source, "--data", data, "--json")

    assert said.code == 2
    assert said.out == ""
    assert expected in said.err.splitlines()[-1]
    assert "Traceback" not in said.err
    assert files_in(place) == before


def test_a_run_folder_that_cannot_be_made(place, call):
    before = files_in(place)

    said = call("recipe", "r.yaml", "--out", "r.yaml/run")

    assert only_line(said, before, place).startswith("cannot use ")


def test_a_task_that_needs_a_network_says_so(place, call):
    (place / "self.yaml").write_text(
        "name: mine\ntask: restoration\nstages: {measure: }\n", encoding="utf-8"
    )
    before = files_in(place)

    said = call("recipe", "self.yaml", "--out", "run")

    assert "restoration has no network: give --model, or Compressor(model)" in only_line(
        said, before, place
    )

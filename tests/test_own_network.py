"""A network that a recipe names: the page about it, and what can go wrong."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from small_runs import DEHAZE, SELF, Plain, files_in, in_subprocess, put_image, small_recipe

import coa_compress
from coa_compress import Compressor
from coa_compress.errors import WeightsError
from coa_compress.factories import build_network
from coa_compress.recipe.files import default_recipe, load_recipe
from coa_compress.report.write import read_report
from coa_compress.sources import open_source
from coa_compress.students import read_student_record

ROOT = Path(__file__).parents[1]
PUBLISHED = """
import torch
from torch import nn


class DerainNet(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.down = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.body = nn.Conv2d(width, width, 3, padding=1)
        self.up = nn.ConvTranspose2d(width, 3, 2, stride=2)

    def forward(self, x):
        hidden = torch.relu(self.body(torch.relu(self.down(x))))
        return [nn.functional.avg_pool2d(x, 2), x + self.up(hidden)]
"""
MERGING = """

class Conv3XC(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.branch = nn.Conv2d(width, width, 1)
        self.eval_conv = nn.Conv2d(width, width, 1)

    def forward(self, x):
        if self.training:
            return 2 * self.branch(x)
        self.eval_conv.weight.data = 2 * self.branch.weight.data
        self.eval_conv.bias.data = 2 * self.branch.bias.data
        return self.eval_conv(x)


class Upscaler(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.body = nn.Sequential(Conv3XC(16), nn.ReLU(), Conv3XC(16))
        self.last = nn.Conv2d(16, 12, 3, padding=1)

    def forward(self, x):
        return nn.functional.pixel_shuffle(self.last(self.body(self.first(x))), 2)
"""
NORMED = """

class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.utils.spectral_norm(nn.Conv2d(3, 16, 3, padding=1))
        self.body = nn.utils.spectral_norm(nn.Conv2d(16, 24, 3, padding=1))
        self.last = nn.Conv2d(24, 3, 3, padding=1)

    def forward(self, x):
        return x + self.last(torch.relu(self.body(torch.relu(self.first(x)))))


def normed_generator() -> Generator:
    network = Generator()
    network.load_state_dict(torch.load("generator.pth"))
    return network.eval()
"""
DEHAZER = """
from torch import nn
from published import DerainNet


class Dehazer(DerainNet):
    def __init__(self, width: int = 16) -> None:
        super().__init__(width)

    def forward(self, x):
        return super().forward(x)[-1]


def dehaze() -> "Dehazer":
    return Dehazer(24)


class Enlarging(Dehazer):
    def forward(self, x):
        return nn.functional.interpolate(super().forward(x), scale_factor=2)


class Two(Dehazer):
    def forward(self, x, level):
        return super().forward(x) + level


class Broken(Dehazer):
    def forward(self, x):
        return {}["scale"]


def parallel() -> nn.DataParallel:
    return nn.DataParallel(Dehazer())


def unannotated():
    return Dehazer(24)
"""
PTH = ("--weights", "derain.pth")
MODULES = ("published", "my_nets", "dehazers", "merged", "unnormed")


@pytest.fixture
def place(tmp_path, monkeypatch, images):
    """A working directory with two modules, weights, and recipes."""
    page = (ROOT / "docs/own_network.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", page, flags=re.DOTALL)
    assert [name for name, _ in blocks] == ["my_nets.py", "merged.py", "unnormed.py"]
    for name, block in blocks:
        (tmp_path / name).write_text(block, encoding="utf-8")
    (tmp_path / "published.py").write_text(PUBLISHED + MERGING + NORMED, encoding="utf-8")
    (tmp_path / "dehazers.py").write_text(DEHAZER, encoding="utf-8")
    (tmp_path / "self.yaml").write_text(SELF, encoding="utf-8")
    (tmp_path / "haze.yaml").write_text(DEHAZE.format(images=images), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    import dehazers
    import published

    torch.manual_seed(0)
    torch.save(published.DerainNet(32).state_dict(), tmp_path / "derain.pth")
    torch.save(published.Upscaler().state_dict(), tmp_path / "upscaler.pth")
    generator = published.Generator()
    for _ in range(20):  # finds the singular vectors
        generator(torch.rand(1, 3, 8, 8))
    torch.save(generator.state_dict(), tmp_path / "generator.pth")
    trained = torch.nn.DataParallel(dehazers.Dehazer(24)).state_dict()
    torch.save({"epoch": 3, "model_state_dict": trained}, tmp_path / "dehaze.pth")
    yield tmp_path
    for module in MODULES:
        sys.modules.pop(module, None)


def test_the_network_of_the_page_is_compressed_and_its_student_loaded(place, call):
    said = call("recipe", "self.yaml", "--model", "my_nets:Derain", *PTH, "--out", "run")

    assert said.code == 0, said.err
    student = coa_compress.load(place / "run" / "student")
    assert type(student).__name__ == "Derain"
    assert student.net.down.out_channels < 32
    source = open_source("run", size=(64, 64))
    assert source.model.net.down.out_channels == student.net.down.out_channels
    assert load_recipe(place / "run" / "recipe.yaml").model == "my_nets:Derain"
    put_image(place / "photos" / "odd.png", 3, size=(53, 41))
    used = call("apply", "run", "photos", "--out", "clear")
    assert used.code == 0, used.err
    assert (place / "clear" / "odd.png").exists()


def test_a_factory_may_wrap_its_network(place, call):
    made = call("recipe", "self.yaml", "--model", "dehazers:parallel", "--out", "run")
    profiled = call("profile", "dehazers:parallel", "--size", "32x32")

    assert (made.code, profiled.code) == (0, 0), made.err + profiled.err
    assert "module." not in profiled.out
    student = coa_compress.load(place / "run" / "student")
    import dehazers

    given = coa_compress.load(place / "run" / "student", model=dehazers.parallel())
    assert type(student) is type(given) is dehazers.Dehazer


def test_a_network_without_its_spectral_norms_is_refitted_as_the_page_says(place, call):
    closeness = {}
    for name in ("published:normed_generator", "unnormed:generator"):
        out = name.partition(":")[0]
        made = call("recipe", "self.yaml", "--model", name, "--out", out)
        assert made.code == 0, made.err
        measured = read_report(place / out)["measurements"]["student"]["psnr_to_teacher_db"]
        closeness[out] = min(measured.values())
    image = torch.rand(1, 3, 16, 16)

    assert closeness["unnormed"] > closeness["published"] + 6
    normed, plain = (build_network(n)(image) for n in ("published:normed_generator", name))
    assert torch.allclose(normed, plain, atol=1e-6)
    student = coa_compress.load(place / "unnormed" / "student")
    assert not hasattr(student.body, "weight_orig")


def test_a_network_that_merges_its_branches_is_compressed_as_the_page_says(place, call):
    refused = call("recipe", "self.yaml", "--model", "published:Upscaler", "--out", "refused")
    made = call("recipe", "self.yaml", "--model", "merged:upscaler", "--out", "run")

    assert refused.code == 2
    assert "writes new values into body.0.eval_conv.weight" in refused.err
    assert "merge its branches before, and give the merged network" in refused.err
    assert made.code == 0, made.err
    student = coa_compress.load(place / "run" / "student")
    assert student.body[0].out_channels < 16
    import published

    trained = published.Upscaler().eval()
    trained.load_state_dict(torch.load("upscaler.pth"))
    image = torch.rand(1, 3, 16, 16)
    assert torch.equal(build_network("merged:upscaler").eval()(image), trained(image))


def test_commands_find_the_module_of_the_working_directory(place):
    # another process, on whose path the working directory is not
    command = ["recipe", "self.yaml", "--model", "my_nets:Derain", "--weights", "derain.pth"]

    made = in_subprocess(*command, "--out", "run", cwd=place)
    shown = in_subprocess("profile", "run", "--size", "32x32", "--rounds", "1", cwd=place)

    assert made.returncode == 0, made.stderr
    assert shown.returncode == 0, shown.stderr
    assert "net.down" in shown.stdout


def test_a_published_dehazing_network_is_compressed_adapted_and_used(place, call, images):
    made = call(
        *("recipe", "haze.yaml", "--model", "dehazers:dehaze", "--weights", "dehaze.pth"),
        *("--out", "run"),
    )

    assert made.code == 0, made.err
    record = read_student_record(place / "run" / "student")
    assert (record.factory, record.arguments) == ("dehazers:dehaze", {})
    assert read_report(place / "run")["allocation"]["macs_kept"] <= 0.3
    # it wants even sizes, and photographs have any
    put_image(place / "photos" / "odd.png", 3, size=(53, 41))
    used = call("apply", "run", "photos", "--out", "clear")
    assert used.code == 0, used.err
    assert (place / "clear" / "odd.png").exists()
    for source in ("run", "dehazers:dehaze --weights dehaze.pth"):
        judged = call("evaluate", *source.split(), "--data", images / "test")
        assert judged.code == 0, judged.err
        assert re.search(r"^psnr_db +[0-9.]+$", judged.out, flags=re.MULTILINE)
    refused = call("evaluate", "run", "--weights", "dehaze.pth", "--data", images / "test")
    assert refused.code == 2
    assert "run has weights of its own: give dehaze.pth to package.module" in refused.err
    again = call(
        *("recipe", "haze.yaml", "--model", "dehazers:dehaze", "--weights", "dehaze.pth"),
        *("--out", "run"),
    )
    assert again.err.count("read from the run folder") == 7


UPSCALER = """
from torch import nn


class Upscaler(nn.Sequential):
    def __init__(self) -> None:
        layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 12, 3, padding=1)]
        super().__init__(*layers, nn.PixelShuffle(2))
"""
ON_PAIRS = """
name: on_pairs
task: {name: restoration, train: pairs/train, test: pairs/test, crop: 16, colors: y, border: 2,
       calibration_images: 2, validation_images: 1, example_size: [16, 16]}
stages:
  train: {training: {steps: 2, batch_size: 2}}
  score:
  allocate: {keep_macs: 0.5, round_to: 4, min_channels: 4}
  prune:
  refit:
  distill: {training: {steps: 2, batch_size: 2}}
  measure: {latency_rounds: 2}
"""


def test_super_resolution_on_pairs_is_compressed_resumed_and_used(place, call):
    (place / "upscalers.py").write_text(UPSCALER, encoding="utf-8")
    (place / "pairs.yaml").write_text(ON_PAIRS, encoding="utf-8")
    for split, count in (("train", 3), ("test", 2)):
        for number in range(count):
            put_image(place / f"pairs/{split}/LR/{number}x2.png", number, size=(24, 20))
            put_image(place / f"pairs/{split}/HR/{number}.png", number, size=(48, 40))
    made = call("recipe", "pairs.yaml", "--model", "upscalers:Upscaler", "--out", "run")

    assert made.code == 0, made.err
    report = read_report(place / "run")
    assert report["allocation"]["macs_kept"] <= 0.5
    final = report["measurements"]["student"]
    assert {"psnr_db", "ssim"} < set(final)
    assert list(final["psnr_db"]) == ["test"]
    used = call("apply", "run", "pairs/test/LR", "--out", "large")
    assert used.code == 0, used.err
    with Image.open(place / "large" / "0x2.png") as image:
        assert image.size == (48, 40)
    # as the recipe says: the luma, without the border
    judged = call("evaluate", "run", "--data", "pairs/test", "--json")
    found = json.loads(judged.out)["measures"]
    assert found["psnr_db"]["test"] == pytest.approx(final["psnr_db"]["test"], abs=1e-3)
    # other test images leave everything before the measurement as it is
    again = call(
        *("recipe", "pairs.yaml", "--model", "upscalers:Upscaler", "--out", "run"),
        *("--set", "task.test=pairs/train"),
    )
    assert again.code == 0, again.err
    assert again.err.count("read from the run folder") == 6


def test_a_function_without_annotation_asks_for_it_when_its_student_is_loaded(place, call):
    made = call("recipe", "self.yaml", "--model", "dehazers:unannotated", "--out", "run")

    assert made.code == 0, made.err
    with pytest.raises(WeightsError, match="nor a function annotated to return one, to import"):
        coa_compress.load("run/student")
    model = build_network("dehazers:dehaze")
    assert coa_compress.load("run/student", model=model).down.out_channels < 24


def test_a_network_given_from_python_is_the_one_that_counts(place):
    recipe = small_recipe(model="my_nets:Derain", weights="gone.pth", out=place / "run")

    result = Compressor(Plain(), recipe=recipe).run()

    assert isinstance(result.student, Plain)
    assert load_recipe(place / "run" / "recipe.yaml").model == ""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model", "my_nets"], "model must be package.module:factory, or empty for the task's"),
        (["--set", "model=net.pth"], "--set model=net.pth: must be package.module:factory, or"),
        (["--model", "my_nets:rain"], "'my_nets:rain' is not there: module my_nets has no rain"),
        (["--model", "gone:net"], "cannot import 'gone' of 'gone:net': No module named 'gone'"),
        (["--model", "published:DerainNet"], "cannot be called without arguments: "),
        (
            ["--model", "dehazers:Two"],
            "missing 1 required positional argument: 'level': give example=..., or a network that",
        ),
        (
            ["--model", "dehazers:Broken"],
            "does not run on an input of shape (1, 3, 48, 64): 'scale'",
        ),
        (
            ["--model", "dehazers:Enlarging", "--set", "stages.allocate.keep_macs=0.9"],
            "stages.distill.truth.l1 cannot be computed for the output of Enlarging, of shape "
            "(1, 3, 64, 64): shapes differ: (1, 3, 64, 64) and (1, 3, 32, 32): choose another",
        ),
        (["--weights", "dehaze.pth"], "is 'dehaze.pth' without the network they are of: set model"),
        (["--model", "dehazers:dehaze", "--weights", "gone.pth"], "gone.pth"),
        (
            ["--model", "dehazers:Dehazer", "--weights", "dehaze.pth"],
            "dehaze.pth does not fit Dehazer: 5 of another shape (down.weight (24, 3, 3, 3) in",
        ),
    ],
)
def test_what_is_wrong_with_a_network_is_one_line_and_nothing_is_written(
    place, call, arguments, expected
):
    before = files_in(place)

    said = call("recipe", "haze.yaml", *arguments, "--out", "run")

    assert said.code == 2
    assert expected in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert {name for name in files_in(place) if "__pycache__" not in name} == {
        name for name in before if "__pycache__" not in name
    }


def test_the_recipe_for_any_network_is_the_default():
    recipe, default = load_recipe(ROOT / "recipes/any_network.yaml"), default_recipe()

    assert recipe.task == default.task
    assert recipe.stages == default.stages


@pytest.mark.parametrize(
    "command",
    ["profile NET", "sensitivity NET", "export NET --out net.onnx", "evaluate NET --data photos"],
)
def test_every_command_that_takes_a_factory_takes_its_weights(place, call, command):
    put_image(place / "photos" / "a.png", 1)

    said = call(*command.replace("NET", "dehazers:dehaze").split(), "--weights", "gone.pth")

    assert said.code == 2
    assert said.err == (
        "error: cannot read gone.pth: No such file or directory: check the path and its rights\n"
    )

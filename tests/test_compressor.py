"""One call from a network to its student: what comes out, and what is left as it was."""

import gc
import json
import re
import subprocess
import sys
import textwrap
from typing import Any, ClassVar

import pytest
import torch
from small_runs import (
    SELF,
    Attributed,
    Borrowing,
    Doubling,
    Empty,
    MaskedAttributes,
    Pixelwise,
    Plain,
    Sized,
    environment,
    files_in,
    hooks_of,
    same_snapshot,
    seeded,
    small_recipe,
    snapshot,
)
from torch import nn
from torch.nn.utils.parametrize import register_parametrization
from torch.optim.swa_utils import AveragedModel

from coa_compress import Compressor, Result, compressor, load
from coa_compress.artifacts import Batch
from coa_compress.errors import (
    CoaWarning,
    ModelError,
    NoEffectWarning,
    RecipeError,
    WeightsError,
)
from coa_compress.opening import open_student
from coa_compress.profiling.counting import count_macs
from coa_compress.protocols import SilentObserver
from coa_compress.report.document import to_document
from coa_compress.report.write import read_report
from coa_compress.tasks.dehazing.task import DehazingTask
from coa_compress.tasks.restoration.task import RestorationTask
from coa_compress.training.image_losses import l1

EXAMPLE = torch.zeros(1, 3, 16, 16)


@pytest.fixture
def small_default(monkeypatch):
    """``Compressor(model)`` alone takes seconds instead of minutes."""
    monkeypatch.setattr(compressor, "default_recipe", small_recipe)


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory):
    model = seeded(Plain).train()
    model.first.weight.requires_grad_(requires_grad=False)
    model.first.register_forward_hook(lambda *_: None)
    before, random_numbers = snapshot(model), torch.get_rng_state()

    result = Compressor(model, recipe=small_recipe(), out=tmp_path_factory.mktemp("run")).run()

    return model, before, torch.equal(torch.get_rng_state(), random_numbers), result


def test_the_student_keeps_to_its_budget(plain_run):
    model, _, _, result = plain_run
    student, teacher = (count_macs(net, EXAMPLE) for net in (result.student, model))

    assert student <= 0.6 * teacher
    assert student == result.report.measurements["student"]["macs"]
    assert result.report.allocation["macs_kept"] == student / teacher


def test_the_student_is_a_plain_module_of_the_same_class(plain_run):
    student = plain_run[3].student

    assert type(student) is Plain
    assert not any(module.training for module in student.modules())
    assert student.first.weight.shape[0] == student.first.out_channels < 8
    assert student(torch.rand(3, 3, 7, 9)).shape == (3, 3, 7, 9)
    assert isinstance(plain_run[3], Result)


def test_the_model_given_is_unchanged(plain_run):
    model, before, same_random_numbers, _ = plain_run

    assert before["hooks"] == 1
    assert same_snapshot(before, snapshot(model))
    assert same_random_numbers
    assert torch.is_grad_enabled()


def test_the_result_keeps_the_teacher_and_no_hook_of_ours(plain_run):
    model, _, _, result = plain_run
    tensors = result.teacher.state_dict()

    assert all(torch.equal(tensors[name], value) for name, value in model.state_dict().items())
    assert hooks_of(result.teacher) == 1
    assert hooks_of(result.student) == 1
    assert not result.student.first.weight.requires_grad


def test_the_report_on_disk_has_the_same_figures(plain_run):
    result = plain_run[3]
    on_disk = read_report(result.report_path.parent)

    assert on_disk == json.loads(json.dumps(to_document(result.report)))
    assert on_disk["headline"] == result.summary
    assert re.search(r"reproduces the output of the teacher at [0-9.]+.dB\.$", result.summary)


@pytest.mark.parametrize("make", [Plain, lambda: Sized(10)])
def test_a_saved_student_gives_equal_outputs(small_default, tmp_path, make):
    model, image = seeded(make), torch.rand(1, 3, 20, 12)

    result = Compressor(model).run()
    folder = result.save(tmp_path / "student")

    student = load(folder, model=make())
    assert type(student) is type(model)
    assert torch.equal(student(image), result.student(image))
    if isinstance(model, Sized):
        with pytest.raises(WeightsError, match=r"Sized.* cannot be built .*: pass model="):
            load(folder)
    else:
        assert torch.equal(load(folder)(image), result.student(image))


def test_a_class_inside_a_function_needs_the_model_to_be_opened(small_default, tmp_path):
    class Local(Plain):
        pass

    folder = Compressor(Local()).run().save(tmp_path)

    with pytest.raises(WeightsError, match="pass model="):
        load(folder)
    assert isinstance(load(folder, model=Local()), Local)


def test_a_model_alone_leaves_nothing_behind_but_its_result(small_default, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = Compressor(seeded(Plain)).run()
    page = result.report_path

    assert page.is_file()
    del result
    gc.collect()
    assert not page.parent.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_may_be_a_path_and_the_folder_an_argument(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(SELF, encoding="utf-8")

    result = Compressor(seeded(Plain), recipe=path, out=tmp_path / "run").run()

    assert result.report.name == "small"
    assert result.report_path == tmp_path / "run" / "report.html"


@pytest.mark.parametrize("model", [None, seeded(Plain, 1)])
def test_a_task_may_be_an_object(tmp_path, model):
    result = Compressor(model, recipe=small_recipe(), task=Doubling(), out=tmp_path).run()

    expected = seeded(Plain) if model is None else model
    assert torch.equal(result.teacher.first.weight, expected.first.weight)
    assert result.report.measurements["student"]["l1"]["all"] > 0
    assert "truth.l1" in result.report.histories["distill"].losses


def test_the_same_seed_gives_the_same_student_and_another_one_another(tmp_path):
    def weights(folder, seed):
        recipe = small_recipe(seed=seed)
        result = Compressor(None, recipe=recipe, task=Doubling(), out=tmp_path / folder).run()
        return result.student.second.weight

    first = weights("a", 0)
    assert torch.equal(first, weights("b", 0))
    other = weights("c", 1)
    assert first.shape != other.shape or not torch.equal(first, other)


class Broken(SilentObserver):
    """Whoever watches fails in the middle of training."""

    def on_progress(self, done, total, values):
        if "teacher.l1" in values and done == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("task", "observer", "error"),
    [(Doubling(fails_at=3), None, OSError), (Doubling(), Broken(), KeyboardInterrupt)],
)
def test_a_failure_leaves_the_model_as_it_was(tmp_path, task, observer, error):
    model = seeded(Plain)
    before = snapshot(model)
    kwargs = {"recipe": small_recipe(), "task": task, "out": tmp_path / "run"}

    with pytest.raises(error, match=r"the disk is gone|^$"):
        Compressor(model, observer=observer, **kwargs).run()

    assert same_snapshot(before, snapshot(model))
    task.fails_at = None
    assert Compressor(model, **kwargs).run().student is not None  # the folder is free again


def test_a_frozen_network_is_trained_and_frozen_parts_stay_frozen(small_default):
    frozen = seeded(Plain).requires_grad_(requires_grad=False)
    part = seeded(Plain)
    part.last.weight.requires_grad_(requires_grad=False)

    whole, partly = Compressor(frozen).run(), Compressor(part).run()

    assert all(p.requires_grad for p in whole.student.parameters())
    assert not any(p.requires_grad for p in frozen.parameters())
    assert [n for n, p in partly.student.named_parameters() if not p.requires_grad] == [
        "last.weight"
    ]


@pytest.mark.parametrize(("make", "whole"), [(Pixelwise, "[]"), (Borrowing, "[last]")])
def test_features_without_a_convolution_to_compare_warn_and_do_not_stop(tmp_path, make, whole):
    recipe = small_recipe(structure__exclude=whole)
    with pytest.warns(NoEffectWarning, match=r"stages\.distill\.feature has no effect"):
        result = Compressor(seeded(make), recipe=recipe, out=tmp_path).run()

    assert result.report.allocation["macs_kept"] <= 0.6
    losses = result.report.histories["distill"].losses
    assert not any(name.startswith("feature") for name in losses)


def test_keeping_everything_keeps_every_channel(tmp_path):
    recipe = small_recipe(stages__allocate__keep_macs=1.0, stages__distill__feature=0)

    result = Compressor(seeded(Plain), recipe=recipe, out=tmp_path).run()

    assert result.report.allocation["macs_kept"] == 1.0
    assert result.student.second.weight.shape == result.teacher.second.weight.shape


def test_a_network_that_is_false_is_still_a_network(small_default):
    assert count_macs(Compressor(seeded(Empty)).run().student, EXAMPLE) < count_macs(
        Empty(), EXAMPLE
    )


def test_an_example_decides_channels_and_the_size_that_is_counted(tmp_path):
    class Late(nn.Module):
        """The first convolution in the order of the modules is not the first that runs."""

        def __init__(self):
            super().__init__()
            self.last = nn.Conv2d(12, 3, 3, padding=1)
            self.first = nn.Conv2d(5, 12, 3, padding=1)

        def forward(self, x):
            return self.last(torch.relu(self.first(x)))

    model, example = seeded(Late), torch.zeros(1, 5, 24, 20)
    with pytest.raises(ModelError, match=r"does not run on .* \(1, 12, 16, 16\): .*example="):
        Compressor(model, recipe=small_recipe(), out=tmp_path / "run").run()
    assert not (tmp_path / "run").exists()

    result = Compressor(model, recipe=small_recipe(), example=example, out=tmp_path / "run").run()

    measured = result.report.measurements
    assert measured["teacher"]["macs"] == 24 * 20 * 9 * 12 * (5 + 3) == count_macs(model, example)
    assert measured["student"]["macs"] == count_macs(result.student, example)
    assert result.report.provenance["example_size"] == [1, 5, 24, 20]


def test_a_plan_trains_and_writes_nothing(tmp_path):
    table = Compressor(seeded(Plain), recipe=small_recipe(), out=tmp_path / "run").plan()

    lines = table.splitlines()
    assert lines[0].split() == ["group", "teacher", "student"]
    assert lines[1].split()[:2] == ["first", "8"]
    assert lines[-1] == "stages  score -> allocate -> prune -> refit -> distill -> measure"
    assert list(tmp_path.iterdir()) == []


def test_a_plan_needs_something_to_plan(tmp_path):
    recipe = small_recipe(
        **{f"stages__{name}": "off" for name in ("score", "allocate", "prune", "refit", "distill")}
    )

    with pytest.raises(RecipeError, match="nothing to plan: add stages 'score' and 'allocate'"):
        Compressor(seeded(Plain), recipe=recipe, out=tmp_path).plan()


class Leaky(nn.Sequential):
    def __init__(self, slope: float = 0.01, depth: int = 1):
        inner = [nn.Conv2d(8, 8, 1) for _ in range(depth)]
        super().__init__(nn.Conv2d(3, 8, 1), nn.LeakyReLU(slope), *inner, nn.Conv2d(8, 3, 1))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Leaky(slope=0.5),
        lambda: Leaky(depth=2),
        lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 3, 1)),
    ],
)
def test_a_class_that_was_given_arguments_is_never_opened_without_them(
    small_default, tmp_path, make
):
    result = Compressor(seeded(make)).run()
    result.save(tmp_path)

    with pytest.raises(WeightsError, match=r"pass model=\.\.\., a freshly built teacher"):
        load(tmp_path)
    image = torch.rand(1, 3, 5, 5)
    assert torch.equal(load(str(tmp_path), model=make())(image), result.student(image))


def test_a_run_folder_opens_as_a_student_and_its_task(small_default, tmp_path):
    result = Compressor(seeded(Plain), out=tmp_path / "run").run()

    assert result.report.notes[0].startswith("task.train: only built-in images were used")
    for place in (tmp_path / "run", tmp_path / "run" / "student"):
        student, task = open_student(str(place))
        assert torch.equal(student(EXAMPLE), result.student(EXAMPLE))
        assert isinstance(task, RestorationTask)


def test_the_report_says_what_the_stages_warned_of(tmp_path):
    recipe = small_recipe(stages__distill__feature=0.5)
    said = "stages.distill.feature has no effect: no convolution that is called was cut"

    with pytest.warns(NoEffectWarning, match=re.escape(said)):
        first = Compressor(seeded(Pixelwise), recipe=recipe, out=tmp_path / "run").run()
    again = Compressor(seeded(Pixelwise), recipe=recipe, out=tmp_path / "run").run()

    assert first.report.notes == again.report.notes
    assert first.report.notes.count(said) == 1
    assert said in (tmp_path / "run" / "report.md").read_text()


def test_a_task_given_from_python_is_recorded_as_what_it_is(tmp_path):
    out = tmp_path / "run"
    result = Compressor(seeded(Plain), recipe=small_recipe(), task=Doubling(), out=out).run()
    path = f"{Doubling.__module__}:{Doubling.__qualname__}"

    assert f"task: an object of {path}; the task of the recipe was not used" in result.report.notes
    assert torch.equal(load(out / "student")(EXAMPLE), result.student(EXAMPLE))
    with pytest.raises(
        WeightsError, match=rf"has a task of its own, {path}: name another with --task"
    ):
        open_student(str(out))
    _, task = open_student(str(out), task="dehazing")
    assert isinstance(task, DehazingTask)


def test_a_student_is_judged_as_its_recipe_says(tmp_path):
    recipe = small_recipe(task__colors="y", task__border=2)
    Compressor(seeded(Plain), recipe=recipe, out=tmp_path / "run").run()

    for named in ("", "restoration"):
        _, task = open_student(str(tmp_path / "run"), task=named)
        assert (task.settings.colors, task.settings.border) == ("y", 2)
    assert task.example_input().shape == (1, 3, 16, 16)
    _, task = open_student(str(tmp_path / "run"), task="dehazing")
    assert isinstance(task, DehazingTask)


@pytest.mark.parametrize(
    "wrap",
    [
        torch.compile,
        nn.DataParallel,
        lambda net: nn.DataParallel(torch.compile(net)),
        AveragedModel,
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
def test_what_is_inside_a_wrapper_is_compressed(tmp_path, wrap):
    result = Compressor(wrap(seeded(Plain)), recipe=small_recipe(), out=tmp_path / "run").run()

    assert type(result.student) is Plain
    assert torch.equal(load(tmp_path / "run" / "student")(EXAMPLE), result.student(EXAMPLE))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_in_another_format_are_compressed_in_float32(tmp_path, dtype):
    model = seeded(Plain).to(dtype)
    said = f"Plain has weights in {str(dtype)[6:]}: it is compressed in float32"

    with pytest.warns(CoaWarning, match=said):
        result = Compressor(model, recipe=small_recipe(), out=tmp_path / "run").run()

    assert said in result.report.notes
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert {p.dtype for p in result.student.parameters()} == {torch.float32}
    assert torch.equal(load(tmp_path / "run" / "student")(EXAMPLE), result.student(EXAMPLE))


class HalfFrozen(Plain):
    def __init__(self):
        super().__init__()
        self.first.requires_grad_(requires_grad=False)


def test_a_part_that_is_frozen_on_purpose_is_cut_and_not_trained(small_default, tmp_path):
    result = Compressor(seeded(HalfFrozen), out=tmp_path / "run").run()

    first = result.student.first.weight
    assert not first.requires_grad
    assert first.shape[0] < 8
    kept = result.record.kept["first"]
    assert torch.equal(first, seeded(HalfFrozen).first.weight[kept])


class Centered(nn.Module):
    """Takes the mean off a weight, and says nothing of the way back."""

    def forward(self, weight):
        return weight - weight.mean(dim=(1, 2, 3), keepdim=True)


class CenteredNet(Plain):
    def __init__(self):
        super().__init__()
        register_parametrization(self.second, "weight", Centered())


def test_a_weight_that_cannot_be_set_is_not_refitted(small_default, tmp_path):
    result = Compressor(seeded(CenteredNet), out=tmp_path / "run").run()

    (note,) = (note for note in result.report.notes if note.startswith("refit: "))
    assert "second: its weight is computed from others in a way that cannot be undone" in note


class Spectral(Plain):
    """Its first parameter is complex, so that it says nothing of the type of its input."""

    def __init__(self):
        super().__init__()
        self.filter = nn.Parameter(torch.ones(8, 1, 1, dtype=torch.complex64))

    def forward(self, image):
        hidden = torch.fft.fft2(torch.relu(self.first(image))) * self.filter
        return image + self.last(torch.relu(self.second(torch.fft.ifft2(hidden).real)))


def test_a_network_with_complex_parameters_is_compressed(small_default, tmp_path):
    result = Compressor(seeded(Spectral), out=tmp_path / "run").run()

    assert result.student.filter.dtype == torch.complex64
    assert result.student.second.weight.shape[0] < 8
    assert torch.equal(load(tmp_path / "run" / "student")(EXAMPLE), result.student(EXAMPLE))


class Sampling:
    """A task on any kind of input, without truth."""

    losses: ClassVar[dict[str, Any]] = {"l1": l1}

    def __init__(self, teacher, make):
        self.teacher, self.make = teacher, make

    def build_teacher(self):
        return self.teacher

    def example_input(self):
        return self.make(1, torch.Generator().manual_seed(0))

    def training_batch(self, batch_size, generator):
        return Batch(self.make(batch_size, generator))

    def calibration_batches(self):
        return [self.training_batch(4, torch.Generator().manual_seed(1))]

    def validate(self, model):
        given = self.calibration_batches()[0].input
        with torch.no_grad():
            return -float((model(given) - self.teacher(given)).abs().mean())

    def measure(self, model):
        return {"l1": {"validation": -self.validate(model)}}


def uniform(*shape):
    return lambda count, generator: torch.rand(count, *shape, generator=generator)


def tokens(count, generator):
    return torch.randint(0, 50, (count, 12), generator=generator)


@pytest.mark.parametrize(
    ("layers", "make"),
    [
        ([nn.Conv1d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv1d(8, 3, 3)], uniform(3, 32)),
        ([nn.Conv3d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, 3, 1)], uniform(3, 4, 8, 8)),
        ([nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 2)], uniform(10)),
        ([nn.Embedding(50, 16), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 50)], tokens),
    ],
)
def test_networks_that_take_no_images_are_compressed(tmp_path, layers, make):
    task = Sampling(nn.Sequential(*layers).eval(), make)

    recipe = small_recipe(stages__distill__feature=0)
    result = Compressor(task=task, recipe=recipe, out=tmp_path / "run").run()

    assert result.report.allocation["macs_kept"] <= 0.6
    assert result.student(task.example_input()).shape == task.teacher(task.example_input()).shape


class Masking(Plain):
    """Makes a mask for each new size, and keeps it."""

    def __init__(self):
        super().__init__()
        self.mask = None

    def forward(self, image):
        if self.mask is None or self.mask.shape[-2:] != image.shape[-2:]:
            self.mask = image.new_ones(image.shape[-2:])
        return super().forward(image * self.mask)


def test_what_forward_keeps_for_a_size_is_no_setting(small_default, tmp_path):
    result = Compressor(seeded(Masking), out=tmp_path / "run").run()

    assert result.record.assigned == ("mask",)
    assert result.student.mask.shape == EXAMPLE.shape[-2:]
    assert torch.equal(load(tmp_path / "run" / "student")(EXAMPLE), result.student(EXAMPLE))


class Noting(Plain):
    """Keeps a value of its last forward pass, as networks do that invert a change of colors."""

    gain = 0.0

    def forward(self, x):
        self.gain = x.mean().item()
        return super().forward(x)


def test_what_forward_notes_is_no_setting(small_default, tmp_path):
    result = Compressor(seeded(Noting), out=tmp_path / "run").run()

    assert result.record.assigned == ("gain",)
    student, _ = open_student(str(tmp_path / "run"))
    assert torch.equal(student(EXAMPLE), result.student(EXAMPLE))


@pytest.mark.parametrize(
    ("setting", "wrong", "text"),
    [
        ("tile", "x", "must be a whole number, got 'x'"),
        ("tile", -1, "task.tile: "),
        ("example_size", [16], "must be a list of 2, got a list of 1"),
        ("colors", "red", "unknown value 'red'"),
    ],
)
def test_a_record_that_was_edited_is_said_in_a_line(tmp_path, setting, wrong, text):
    out = tmp_path / "run"
    Compressor(seeded(Plain), recipe=small_recipe(), out=out).run()
    path = out / "student" / "student.json"
    record = json.loads(path.read_text())
    record["task"] |= {setting: wrong, "once": 1}
    path.write_text(json.dumps(record))

    with pytest.raises(RecipeError) as error:
        open_student(str(out))
    assert re.fullmatch(rf"{re.escape(str(path))}: task\.{setting}: [^\n]+", str(error.value))
    assert text in str(error.value)


def test_a_student_opens_in_another_process(small_default, tmp_path):
    (tmp_path / "mine.py").write_text(
        textwrap.dedent("""
            from torch import nn
            class Net(nn.Sequential):
                def __init__(self):
                    super().__init__(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 3, 1))
        """),
        encoding="utf-8",
    )
    script = f"""
import sys; sys.path.insert(0, {str(tmp_path)!r})
import coa_compress, torch
print(coa_compress.load({str(tmp_path / "student")!r})(torch.ones(1, 3, 2, 2)).sum().item())
"""
    sys.path.insert(0, str(tmp_path))
    try:
        from mine import Net  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(tmp_path))
    result = Compressor(seeded(Net)).run()
    result.save(tmp_path / "student")

    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=1800,
    )

    assert float(done.stdout) == result.student(torch.ones(1, 3, 2, 2)).sum().item()


@pytest.mark.slow
def test_the_default_recipe_halves_a_network_with_nothing_else_given():
    class Pointwise(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Conv2d(3, 32, 1), nn.ReLU(), nn.Conv2d(32, 3, 1))

    model = seeded(Pointwise)
    before = snapshot(model)

    result = Compressor(model).run()

    example = torch.zeros(1, 3, 128, 128)
    assert type(result.student) is Pointwise
    assert count_macs(result.student, example) <= 0.5 * count_macs(model, example)
    assert same_snapshot(before, snapshot(model))
    assert result.report.measurements["student"]["psnr_to_teacher_db"]["builtin"] > 30
    assert files_in(result.report_path.parent).keys() >= {"report.html", "report.json"}


@pytest.mark.parametrize(("kind", "mode"), [(MaskedAttributes, "module"), (Attributed, "graph")])
def test_tensors_in_attributes_are_saved_with_the_student(tmp_path, kind, mode):
    net = seeded(kind)
    net.mean, net.shifts["up"] = torch.full((3, 1, 1), 0.4), torch.full((1,), 0.2)
    recipe = small_recipe(structure__mode=mode)

    result = Compressor(net, recipe=recipe, out=tmp_path / "run").run()

    image = torch.rand(1, 3, 16, 16)
    opened = load(tmp_path / "run/student")
    with torch.no_grad():
        assert torch.equal(opened(image), result.student(image))
    assert {"mean", "shifts['up']"} <= set(result.record.attributes)
    if mode == "module":
        assert torch.equal(opened.mean, net.mean)
        assert "mask" not in result.record.attributes

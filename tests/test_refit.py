"""Facts about the closed-form refit, on networks of two or three layers."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from coa_compress.allocation.allocate import make_allocation
from coa_compress.artifacts import Batch, Budget, Cut
from coa_compress.errors import SettingError
from coa_compress.refit.closed_form import refit
from coa_compress.refit.statistics import Moments, Normalization, moments
from coa_compress.scoring.catalog import SCORERS
from coa_compress.structure.analysis import analyze
from coa_compress.tasks.dehazing.networks import HazeUNet

WIDTH = 8


def images(n: int = 10, *, size: int = 12, seed: int = 0) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    return [Batch(torch.rand(n, 3, size, size, generator=generator))]


def cut_of(teacher: nn.Module, slices: dict[str, dict[int, Tensor]]) -> Cut:
    """Return the cut that keeps these positions, written into a copy."""
    student = copy.deepcopy(teacher)
    for name, dims in slices.items():
        path, _, attribute = name.rpartition(".")
        module = student.get_submodule(path)
        value = getattr(module, attribute).detach()
        for dim, kept in dims.items():
            value = value.index_select(dim, kept)
        if attribute in module._parameters:
            setattr(module, attribute, nn.Parameter(value))
        else:
            setattr(module, attribute, value)
        if isinstance(module, nn.Conv2d) and module.groups > 1 and attribute == "weight":
            module.groups = module.in_channels = module.out_channels = len(value)
    return Cut(student, slices, ())


def cut_middle(teacher: nn.Module, kept: Tensor, *, last: str, middle: str = "0") -> Cut:
    """Cut the output of one layer, and the input of another."""
    slices: dict[str, dict[int, Tensor]] = {
        f"{middle}.weight": {0: kept},
        f"{middle}.bias": {0: kept},
    }
    reader = teacher.get_submodule(last)
    slices[f"{last}.weight"] = {0 if isinstance(reader, nn.ConvTranspose2d) else 1: kept}
    for path, module in teacher.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            for name in ("weight", "bias", "running_mean", "running_var"):
                slices[f"{path}.{name}"] = {0: kept}
        if isinstance(module, nn.Conv2d) and module.groups == WIDTH:
            slices[f"{path}.weight"] = {0: kept}
            slices[f"{path}.bias"] = {0: kept}
    return cut_of(teacher, slices)


def depend_(layer: nn.Conv2d, first: int) -> None:
    """Make all filters from ``first`` on combinations of those before."""
    with torch.no_grad():
        mix = torch.randn(WIDTH - first, first)
        layer.weight[first:] = (mix @ layer.weight[:first].flatten(1)).view_as(layer.weight[first:])
        layer.bias[first:] = mix @ layer.bias[:first]


def mean_error(net: nn.Module, teacher: nn.Module, batches: list[Batch]) -> float:
    with torch.no_grad():
        pairs = [(net(b.input), teacher(b.input)) for b in batches]
    return sum(float((a - b).square().mean()) for a, b in pairs) / len(pairs)


def reader(kind: str) -> nn.Module:
    return {
        "plain": lambda: nn.Conv2d(WIDTH, 4, 1),
        "padded": lambda: nn.Conv2d(WIDTH, 4, 3, padding=1),
        "same": lambda: nn.Conv2d(WIDTH, 4, (3, 2), padding="same"),
        "valid": lambda: nn.Conv2d(WIDTH, 4, 3, padding="valid"),
        "reflected": lambda: nn.Conv2d(WIDTH, 4, 3, padding=1, padding_mode="reflect"),
        "strided": lambda: nn.Conv2d(WIDTH, 4, (3, 5), stride=(2, 3), padding=(1, 2)),
        "dilated": lambda: nn.Conv2d(WIDTH, 4, 3, dilation=2, padding=2),
        "no bias": lambda: nn.Conv2d(WIDTH, 4, 3, padding=1, bias=False),
        "transposed": lambda: nn.ConvTranspose2d(
            WIDTH, 4, 4, stride=2, padding=1, output_padding=1
        ),
        "transposed dilated": lambda: nn.ConvTranspose2d(WIDTH, 4, 3, stride=3, dilation=2),
    }[kind]()


KINDS = [
    "plain", "padded", "same", "valid", "reflected", "strided", "dilated", "no bias",
    "transposed", "transposed dilated",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_removed_channels_that_depend_on_kept_ones_are_recovered_exactly(kind):
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Conv2d(3, WIDTH, 1), reader(kind))
    depend_(teacher[0], 3)
    kept = torch.arange(3)
    cut = cut_middle(teacher, kept, last="1")
    batches = images()

    result = refit(teacher, cut, batches, ridge=0.0)

    (layer,) = result.layers
    assert layer.accepted
    assert layer.error_before > 1e-3
    assert layer.error_after < 1e-8
    fresh = images(4, seed=1)
    assert mean_error(result.student, teacher, fresh) < 1e-8
    assert mean_error(cut.student, teacher, fresh) > 1e-4


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 999), n_kept=st.integers(2, WIDTH - 1))
def test_the_error_falls_on_random_networks(seed, n_kept):
    torch.manual_seed(seed)
    teacher = nn.Sequential(
        nn.Conv2d(3, WIDTH, 3, padding=1),
        nn.BatchNorm2d(WIDTH),
        nn.ReLU(),
        nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH),
        nn.Conv2d(WIDTH, 3, 1),
    ).eval()
    cut = cut_middle(teacher, torch.randperm(WIDTH)[:n_kept].sort().values, last="4")

    result = refit(teacher, cut, images(), positions=1000)

    assert [layer.path for layer in result.layers] == ["1", "3", "4"]
    for layer in result.layers:
        assert layer.accepted == (layer.error_after < 0.999 * layer.error_before > 1e-10)
    assert result.layers[-1].accepted
    fresh = images(4, seed=1)
    assert mean_error(result.student.eval(), teacher, fresh) < mean_error(
        cut.student.eval(), teacher, fresh
    )


def deep_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, WIDTH, 3, padding=1),
        nn.BatchNorm2d(WIDTH),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(WIDTH, 3, 3, padding=1),
    )


@pytest.mark.parametrize("training", [True, False])
def test_teacher_and_cut_student_are_unchanged_and_no_hook_is_left(training):
    teacher = deep_net().train(training)
    cut = cut_middle(teacher, torch.arange(4), last="4")
    cut.student[1].eval()
    teacher_before = copy.deepcopy(teacher.state_dict())
    student_before = copy.deepcopy(cut.student.state_dict())

    result = refit(teacher, cut, images())

    for net, before in ((teacher, teacher_before), (cut.student, student_before)):
        assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    for net in (teacher, cut.student, result.student):
        assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()) == 0
    assert teacher.training is training
    assert result.student.training is training
    assert result.student[1].training is False
    assert result.student[0] is not cut.student[0]
    assert all(parameter.requires_grad for parameter in result.student.parameters())


def test_when_nothing_was_cut_nothing_changes():
    teacher = deep_net()

    result = refit(teacher, Cut(copy.deepcopy(teacher), {}, ()), images())

    assert result.layers == ()
    before = teacher.state_dict()
    assert all(torch.equal(before[n], value) for n, value in result.student.state_dict().items())


def test_a_layer_that_does_not_get_better_is_left_alone():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Conv2d(3, WIDTH, 1), nn.Conv2d(WIDTH, 4, 3))
    with torch.no_grad():
        teacher[1].weight[:, 4:] = 0
    cut = cut_middle(teacher, torch.arange(4), last="1")

    result = refit(teacher, cut, images())

    (layer,) = result.layers
    assert not layer.accepted
    assert layer.error_before < 1e-10
    assert torch.equal(result.student[1].weight, cut.student[1].weight)


def test_noise_is_rejected_by_the_examples_held_out():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Conv2d(3, WIDTH, 5), nn.ReLU(), nn.Conv2d(WIDTH, 4, 5))
    with torch.no_grad():
        teacher[2].weight[:, :-1] *= 100
    cut = cut_middle(teacher, torch.arange(WIDTH - 1), last="2")

    result = refit(teacher, cut, images(), positions=12, ridge=0.0)

    (layer,) = result.layers
    assert not layer.accepted
    assert layer.error_after >= layer.error_before
    assert torch.equal(result.student[2].weight, cut.student[2].weight)


def test_the_same_call_gives_the_same_student():
    teacher = deep_net()
    cut = cut_middle(teacher, torch.arange(4), last="4")

    first, second = (refit(teacher, cut, images()).student.state_dict() for _ in range(2))

    assert all(torch.equal(first[name], second[name]) for name in first)


def test_statistics_follow_the_student():
    torch.manual_seed(0)
    teacher = nn.Sequential(
        nn.Conv2d(3, WIDTH, 1), nn.Conv2d(WIDTH, 4, 1, bias=False), nn.BatchNorm2d(4)
    ).eval()
    kept = torch.arange(3)
    slices = {"0.weight": {0: kept}, "0.bias": {0: kept}, "1.weight": {1: kept}}
    with torch.no_grad():
        for batch in images(64):
            hidden = teacher[1](teacher[0](batch.input))
        teacher[2].running_mean.copy_(hidden.mean(dim=(0, 2, 3)))
        teacher[2].running_var.copy_(hidden.var(dim=(0, 2, 3)))
        teacher[1].weight[:, 3:] *= 3
        teacher[2].running_mean.copy_(teacher[1](teacher[0](batch.input)).mean(dim=(0, 2, 3)))

    result = refit(teacher, cut_of(teacher, slices), images())

    norm = result.layers[-1]
    assert (norm.path, norm.accepted) == ("2", True)
    with torch.no_grad():
        inputs = result.student[1](result.student[0](images()[0].input))
    torch.testing.assert_close(
        result.student[2].running_mean, inputs.mean(dim=(0, 2, 3)), rtol=0.1, atol=0.1
    )


def test_an_unchanged_input_keeps_the_statistics():
    norm = Normalization(torch.randn(2), torch.rand(2) + 0.5, None, None, eps=1e-5)
    seen = moments(torch.rand(3, 2, 4, 4))

    mean, variance = norm.moved(seen, seen)

    torch.testing.assert_close(mean.float(), norm.mean)
    torch.testing.assert_close(variance.float(), norm.variance)


def test_moments_of_parts_add_up():
    x = torch.rand(6, 3, 4)

    together, parts = moments(x), moments(x[:2]) + moments(x[2:])

    assert isinstance(parts, Moments)
    torch.testing.assert_close(parts.mean, x.double().mean(dim=(0, 2)))
    torch.testing.assert_close(parts.variance, together.variance)
    torch.testing.assert_close(parts.variance, x.double().var(dim=(0, 2), correction=0))


def test_linear_layers_are_refitted():
    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.Linear(3, WIDTH)
            self.down = nn.Linear(WIDTH, 3)

        def forward(self, image):
            return self.down(input=self.up(image.movedim(1, -1))).movedim(-1, 1)

    torch.manual_seed(0)
    teacher = Mixer()
    kept = torch.arange(4)
    slices = {"up.weight": {0: kept}, "up.bias": {0: kept}, "down.weight": {1: kept}}
    result = refit(teacher, cut_of(teacher, slices), images(), ridge=0.0)

    assert [(layer.path, layer.accepted) for layer in result.layers] == [("down", True)]
    assert mean_error(result.student, teacher, images(seed=1)) < 1e-8


def test_few_examples_are_judged_by_positions():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Conv2d(3, WIDTH, 1), nn.Conv2d(WIDTH, 4, 3, padding=1))
    depend_(teacher[0], 3)

    result = refit(teacher, cut_middle(teacher, torch.arange(3), last="1"), images(1), ridge=0.0)

    assert result.layers[0].accepted


def test_several_batches_of_different_size_are_one_set():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Conv2d(3, WIDTH, 1), nn.Conv2d(WIDTH, 4, 3, padding=1))
    depend_(teacher[0], 3)
    batches = images(3) + images(2, size=20, seed=1) + images(1, size=8, seed=2)

    result = refit(teacher, cut_middle(teacher, torch.arange(3), last="1"), batches, ridge=0.0)

    assert result.layers[0].accepted
    assert mean_error(result.student, teacher, batches) < 1e-8


def test_progress_counts_the_layers():
    teacher, calls = deep_net(), []

    refit(
        teacher,
        cut_middle(teacher, torch.arange(4), last="4"),
        images(),
        progress=lambda done, total, values: calls.append((done, total, sorted(values))),
    )

    assert calls == [(1, 2, ["error"]), (2, 2, ["error"])]


def test_values_that_are_not_finite_change_nothing():
    teacher = deep_net()
    cut = cut_middle(teacher, torch.arange(4), last="4")
    with torch.no_grad():
        cut.student[0].weight[0] = float("nan")

    result = refit(teacher, cut, images())

    assert not any(layer.accepted for layer in result.layers)
    assert torch.equal(result.student[4].weight, cut.student[4].weight)


@pytest.mark.parametrize(
    ("batches", "options", "words"),
    [
        ([], {}, "at least one calibration batch"),
        (images(), {"ridge": -1.0}, r"ridge must be at least 0, got -1\.0"),
        (images(), {"positions": 0}, "positions must be at least 1, got 0"),
    ],
)
def test_bad_settings_are_errors(batches, options, words):
    teacher = deep_net()
    with pytest.raises(SettingError, match=words):
        refit(teacher, cut_middle(teacher, torch.arange(4), last="4"), batches, **options)


@pytest.fixture(scope="module")
def haze_net():
    torch.manual_seed(0)
    net = HazeUNet(widths=(16, 24), depths=(1, 2))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
    return net.eval()


@pytest.fixture(scope="module")
def haze_structure(haze_net):
    return analyze(haze_net, torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("scorer", ["magnitude", "taylor"])
@pytest.mark.parametrize("allocator", ["greedy", "uniform"])
def test_score_allocate_cut_and_refit_the_built_in_network(
    haze_net, haze_structure, scorer, allocator
):
    batches = [Batch(b.input, b.input.flip(0)) for b in images(10, size=32)]
    groups, costs = haze_structure.groups, haze_structure.costs
    budget = Budget(keep_macs=0.5, keep_params=0.6, round_to=4, min_channels=4)

    scores = SCORERS.get(scorer)(
        haze_net, groups, batches, lambda output, batch: (output - batch.target).square().mean()
    )
    allocation = make_allocation(groups, scores, costs, budget, allocator)
    cut = haze_structure.cut(allocation.kept)
    result = refit(haze_net, cut, batches, positions=2000)

    counted = sum(parameter.numel() for parameter in result.student.parameters())
    assert counted == allocation.params <= 0.6 * allocation.teacher_params
    assert 0.4 * allocation.teacher_macs < allocation.macs <= 0.5 * allocation.teacher_macs
    assert result.skipped == {}
    fresh = images(4, size=32, seed=1)
    before = mean_error(cut.student, haze_net, fresh)
    assert mean_error(result.student, haze_net, fresh) < 0.9 * before

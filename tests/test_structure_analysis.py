"""What the analysis finds, refuses, and leaves alone."""

import copy
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from nets import randomize_
from torch import Tensor, nn
from torch.nn import functional

from coa_compress.errors import NoEffectWarning, StructureError
from coa_compress.profiling.counting import count_macs
from coa_compress.protocols import Structure
from coa_compress.structure.analysis import analyze
from coa_compress.structure.exactness import check_exact, exactness_error
from coa_compress.structure.modes import choose_mode, freeze_inexact
from coa_compress.tasks.dehazing.networks import HazeUNet


class Around(nn.Module):
    """A stem, something in the middle, and a head."""

    def __init__(self, middle=None, width=8, out=8, **parts) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.head = nn.Conv2d(out, 3, 1)
        self.other = nn.Conv2d(3, 6, 1)
        self.tail = nn.Conv2d(6, 3, 1)
        self.middle = middle
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        y = y if self.middle is None else self.middle(self, y)
        return self.head(y) + self.tail(torch.sigmoid(self.other(x)))


def image(size=8) -> Tensor:
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))


def hard_halves(net, x):
    return x[:, :4] * torch.sigmoid(x[:, 4:])


def first_channels_in_place(net, x):
    y = x.clone()
    y[:, :3] = y[:, :3] * 2
    return y


def width_dependent_scale(net, x):
    return x * (x.sum(1, keepdim=True) / x.shape[1])


def width_dependent_branch(net, x):
    return x * 2 if x.shape[1] > 7 else x * 3


def scale_by_attribute(net, x):
    return (x.view(x.shape[0], net.size, -1) / net.size).view(x.shape)


def multi_head(net, x):
    tokens = x.flatten(2).transpose(1, 2)
    mixed = net.attend(tokens, tokens, tokens, need_weights=False)[0]
    return mixed.transpose(1, 2).reshape(x.shape)


UNFOLLOWED = {
    "hard_halves": lambda: Around(hard_halves, out=4),
    "width_dependent_scale": lambda: Around(width_dependent_scale),
    "width_dependent_branch": lambda: Around(width_dependent_branch),
    "scale_by_attribute": lambda: Around(scale_by_attribute, size=8),
    "multi_head": lambda: Around(multi_head, attend=nn.MultiheadAttention(8, 2, batch_first=True)),
}


def fixed_positions(net, x):
    return x[:, [0, 3, 5, 7]]


def positions_written_in_place(net, x):
    y = torch.sigmoid(x)
    y[:, [0, 3, 5]] = x[:, :3]
    return y


def written_slice(net, x):
    return torch.slice_scatter(x, x[:, 5:] * 2, dim=1, end=3)


def written_position(net, x):
    return torch.select_scatter(x, x[:, 5] * 2, dim=1, index=3)


def rows_written_by_mask(net, x):
    y = torch.sigmoid(x)
    y[x.mean((1, 2, 3)) > -9] = 0.5 * x
    return y


def constant_by_channel(net, x):
    return x + torch.arange(8.0).view(1, 8, 1, 1)


def rolled(net, x):
    return x.roll(3, dims=1)


def accumulated(net, x):
    return x.cumsum(1)


def position_of_maximum(net, x):
    return x * (x.argmax(1, keepdim=True) > 3)


def convolved_along_channels(net, x):
    pooled = x.mean((2, 3)).unsqueeze(1)
    return x * torch.sigmoid(net.along(pooled)).squeeze(1)[:, :, None, None]


def unscaled_attention(net, x):
    tokens = x.flatten(2).transpose(1, 2)
    mixed = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
    return mixed.transpose(1, 2).reshape(x.shape)


def scaled_by_buffer(net, x):
    return x * net.table


FROZEN = {
    "first_channels_in_place": lambda: Around(first_channels_in_place),
    "fixed_positions": lambda: Around(fixed_positions, out=4),
    "positions_written_in_place": lambda: Around(positions_written_in_place),
    "written_slice": lambda: Around(written_slice),
    "written_position": lambda: Around(written_position),
    "rows_written_by_mask": lambda: Around(rows_written_by_mask),
    "constant_by_channel": lambda: Around(constant_by_channel),
    "rolled": lambda: Around(rolled),
    "accumulated": lambda: Around(accumulated),
    "position_of_maximum": lambda: Around(position_of_maximum),
    "convolved_along_channels": lambda: Around(
        convolved_along_channels, along=nn.Conv1d(1, 1, 3, padding=1)
    ),
    "unscaled_attention": lambda: Around(unscaled_attention),
}


@pytest.mark.parametrize("name", FROZEN)
def test_channels_that_cannot_be_cut_are_frozen_silently(name):
    structure = analyze(FROZEN[name](), image(), mode="module")

    assert structure.widths == {"other": 6}


def test_a_buffer_follows_the_channels_that_meet_it():
    net = Around(scaled_by_buffer, table=nn.Buffer(torch.rand(1, 8, 1, 1)))

    structure = analyze(net, image(), mode="module")

    assert structure.widths == {"stem": 8, "other": 6}
    student = structure.cut({"stem": torch.tensor([1, 2, 6])}).student
    assert torch.equal(student.table, net.table[:, [1, 2, 6]])


def read_by_a_layer(net, x):
    return x + net.read(net.table).mean(0)[None, :, None, None]


def test_positions_of_data_in_a_buffer_are_no_channels():
    net = Around(read_by_a_layer, read=nn.Linear(4, 8), table=nn.Buffer(torch.rand(5, 4)))

    assert analyze(net, image(), mode="module").widths == {"stem": 8, "other": 6}


@pytest.mark.parametrize("name", UNFOLLOWED)
def test_channels_whose_width_the_code_fixes_are_frozen_with_a_warning(name):
    with pytest.warns(NoEffectWarning, match="fixes their widths: stem"):
        structure = analyze(UNFOLLOWED[name](), image(), mode="module")

    assert structure.widths == {"other": 6}
    kept = {"other": torch.tensor([1, 4])}
    check_exact(structure, structure.cut(kept), kept, image())


def test_an_unknown_operator_freezes_what_enters_it_and_is_named():
    net = Around(lambda net, x: torch.cummax(x, 2)[0])

    structure = analyze(net, image(), mode="module")

    assert structure.unknown_ops == ("cummax",)
    assert structure.widths == {"other": 6}


def grouped_queries(net, x):
    tokens = x.flatten(2).transpose(1, 2)
    queries = tokens.unflatten(-1, (4, 2)).transpose(1, 2)
    keys = tokens[..., :4].unflatten(-1, (2, 2)).transpose(1, 2)
    mixed = functional.scaled_dot_product_attention(queries, keys, keys, enable_gqa=True)
    return mixed.transpose(1, 2).flatten(2).transpose(1, 2).reshape(x.shape)


def test_products_that_no_rule_follows_are_counted_all_the_same():
    net = Around(grouped_queries)

    structure = analyze(net, image())

    kept = {"other": torch.tensor([0, 3])}
    student = structure.cut(kept).student
    assert structure.widths == {"other": 6}
    assert structure.costs.macs({"other": 6}) == count_macs(net, image())
    assert structure.costs.macs({"other": 2}) == count_macs(student, image())


def test_a_structure_that_only_the_graph_has_is_taken_however_little_it_is():
    by_code = analyze(Around(), image())
    nothing = by_code.restricted_to([])
    little = by_code.restricted_to(["other"])

    assert choose_mode(nothing, lambda: little, image()).widths == {"other": 6}


_HALVED = """
import torch
from test_structure_analysis import Around, image
from coa_compress.structure.analysis import analyze

analyze(Around(lambda net, x: x[:, :, ::2] + x[:, :, 1::2]), image(7))
"""


def test_what_torch_logs_of_a_size_that_does_not_fit_is_not_printed():
    done = subprocess.run(
        [sys.executable, "-c", _HALVED],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )

    assert "StructureError: cannot export Around" in done.stderr
    assert "fake_tensor.py" not in done.stderr


def test_haze_network_has_the_expected_groups():
    teacher = randomize_(HazeUNet((8, 12, 16), (1, 1, 1))).train()
    example = image(32)

    structure: Structure = analyze(teacher, example)

    assert {"stem", "down.0", "down.1", "up.0.expand", "up.1.expand", "fuse.0", "fuse.1"} <= set(
        structure.widths
    )
    assert not any(group.name == "head" for group in structure.groups)
    assert not any(group.restricted for group in structure.groups)
    expand = next(group for group in structure.groups if group.name == "up.0.expand")
    written = expand.members[0]
    assert (written.tensor, written.dim, written.role) == ("up.0.expand.weight", 0, "output")
    assert written.positions.shape == (8, 4)
    assert written.positions[1].tolist() == [4, 5, 6, 7]
    kept = {name: torch.arange(1, width, 2) for name, width in structure.widths.items()}
    check_exact(structure, structure.cut(kept), kept, example)
    assert teacher.training


def test_roles_of_a_residual_trunk():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 1))

    (group,) = analyze(net, image()).groups

    roles = {(member.tensor, member.dim): member.role for member in group.members}
    assert roles[("0.weight", 0)] == "output"
    assert roles[("3.weight", 1)] == "input"
    assert roles[("0.bias", 0)] == roles[("1.running_mean", 0)] == "other"
    assert (group.name, group.members[0].tensor) == ("0", "0.weight")


def test_a_mean_over_channels_makes_a_group_restricted():
    net = Around(lambda net, x: x - x.mean(1, keepdim=True))

    restricted = {group.name: group.restricted for group in analyze(net, image()).groups}

    assert restricted == {"stem": True, "other": False}


def test_include_and_exclude_choose_groups_by_name_or_module():
    assert analyze(Around(), image(), include=["stem"]).widths == {"stem": 8}
    assert analyze(Around(), image(), include=["tail"]).widths == {"other": 6}
    assert analyze(Around(), image(), exclude=["st*"]).widths == {"other": 6}


def test_costs_count_only_the_groups_that_are_left():
    structure = analyze(Around(), image(), include=["stem"])

    assert structure.costs.macs.group_names == ("stem",)
    assert structure.costs.params({"stem": 3}) == 3 * 28 + 3 * 4 + 6 * 4 + 21


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_is_named_with_close_matches(option):
    with pytest.raises(StructureError, match=r"'stam' matches no channel group: did you mean stem"):
        analyze(Around(), image(), **{option: ["stam"]})


def test_excluding_everything_is_an_error():
    with pytest.raises(StructureError, match="no channel group is left of stem, other"):
        analyze(Around(), image(), exclude=["*"])


def test_a_network_without_inner_channels_is_an_error():
    with pytest.raises(StructureError, match="no channel group to cut in Conv2d"):
        analyze(nn.Conv2d(3, 3, 1), image())


def test_a_network_that_does_not_run_is_an_error_of_one_line():
    with pytest.raises(
        StructureError, match=r"^cannot export Sequential at input \(1, 3, 8, 8\): "
    ):
        analyze(nn.Sequential(nn.Conv2d(4, 8, 1)), image())


def _larger(net, x):
    return x if x.sum() > 0 else -x


def _chosen(net, x):
    return [x, -x][int(x.sum() > 0)]


@pytest.mark.parametrize("decide", [_larger, _chosen])
def test_a_network_that_decides_by_values_is_told_where(decide, capfd):
    with pytest.raises(StructureError) as error:
        analyze(Around(decide), image())

    line = decide.__code__.co_firstlineno + 1
    assert re.fullmatch(
        r"cannot export Around at input \(1, 3, 8, 8\): its code decides by the values of a "
        rf"tensor \({re.escape(__file__)}:{line}: return .*\): make it run the same calls for "
        "every input",
        str(error.value),
    )
    assert capfd.readouterr() == ("", "")


def gathered(net, x):
    return x * x[x > 0.5].mean()


def counted(net, x):
    return x + torch.ones((x > 0.5).sum().item()).mean()


@pytest.mark.parametrize(
    ("middle", "widths"), [(gathered, {"other": 6}), (counted, {"stem": 8, "other": 6})]
)
def test_what_is_gathered_where_values_decide_stays_whole(middle, widths):
    structure = analyze(randomize_(Around(middle)).eval(), image())
    kept = {name: torch.arange(width // 2) for name, width in structure.widths.items()}

    assert structure.widths == widths
    assert check_exact(structure, structure.cut(kept), kept, image()).error <= 1e-9
    assert len(structure.workload().operations) > 0


class Merging(nn.Module):
    """Writes a kernel anew in each pass, as networks do that merge branches for deployment."""

    def __init__(self):
        super().__init__()
        self.branch = nn.Conv2d(3, 8, 1)
        self.merged = nn.Conv2d(3, 8, 1)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x):
        self.merged.weight.data = self.branch.weight.data * 2
        return self.head(self.merged(x))


class MergingDetached(Merging):
    """The same by a way that torch exports, with the kernel as a constant."""

    def forward(self, x):
        self.merged.weight.data = self.branch.weight.detach() * 2
        return self.head(self.merged(x))


@pytest.mark.parametrize("kind", [Merging, MergingDetached])
def test_a_network_that_writes_its_own_weights_is_told_to_merge_them(kind):
    with pytest.raises(StructureError) as error:
        analyze(kind(), image())

    assert str(error.value) == (
        f"cannot export {kind.__name__} at input (1, 3, 8, 8): its forward writes new values into "
        "merged.weight: merge its branches before, and give the merged network"
    )


def test_a_network_with_random_output_is_an_error():
    net = Around(lambda net, x: x + torch.rand_like(x))

    with pytest.raises(StructureError, match="does not compute in double precision"):
        analyze(net, image())


def test_a_network_that_asks_for_single_precision_is_checked_all_the_same():
    net = Around(lambda net, x: torch.softmax(x, dim=1, dtype=torch.float32) * x.float())
    net.kernel = torch.rand(1)

    assert analyze(net, image()).widths == {"stem": 8, "other": 6}


def test_analysis_leaves_the_network_and_its_hooks_alone():
    calls = []
    net = randomize_(Around()).train()
    net.stem.register_forward_hook(lambda *_: calls.append("stem"))
    before = copy.deepcopy(net)
    attributes = {path: set(vars(module)) for path, module in net.named_modules()}

    analyze(net, image())

    assert net.training
    assert len(net.stem._forward_hooks) == 1
    assert attributes == {path: set(vars(module)) for path, module in net.named_modules()}
    for name, value in before.state_dict().items():
        assert torch.equal(net.state_dict()[name], value)
    assert torch.get_default_dtype() == torch.float32


def test_a_default_data_type_survives_a_failing_check():
    structure = analyze(Around(), image())
    cut = structure.cut({"stem": torch.arange(3)})
    cut.student.stem = nn.Conv2d(3, 5, 1)

    assert exactness_error(structure, cut, {"stem": torch.arange(3)}, image()) == float("inf")
    assert torch.get_default_dtype() == torch.float32


def test_the_first_wrong_module_is_named():
    structure = analyze(Around(), image())
    kept = {"stem": torch.arange(3)}
    cut = structure.cut(kept)
    with torch.no_grad():
        cut.student.stem.weight.add_(0.5)

    with pytest.raises(StructureError, match="module 'stem' is the first that differs"):
        check_exact(structure, cut, kept, image())


def test_a_failing_student_is_reported_with_the_module_before():
    structure = analyze(Around(), image())
    kept = {"stem": torch.arange(3)}
    cut = structure.cut(kept)
    cut.student.head = nn.Conv2d(7, 3, 1)

    with pytest.raises(StructureError, match="it fails after module 'stem'"):
        check_exact(structure, cut, kept, image())


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"stam": torch.arange(2)}, "no channel group named 'stam': did you mean stem"),
        ({"stem": torch.arange(0)}, r"'stem' needs a list of channels in \[0, 7\] to keep"),
        ({"stem": torch.ones(8, dtype=torch.bool)}, r"'stem' needs a list .*torch.bool"),
        ({"stem": torch.tensor([0, 8])}, r"'stem' has channels in \[0, 7\], got 8"),
        ({"stem": torch.tensor([-1, 2])}, r"'stem' has channels in \[0, 7\], got -1"),
        ({"stem": torch.tensor([2, 1, 2])}, "'stem' keeps channel 2 twice"),
    ],
)
def test_a_wrong_choice_of_channels_is_an_error(kept, message):
    structure = analyze(Around(), image())

    with pytest.raises(StructureError, match=message):
        structure.cut(kept)


def test_a_cut_keeps_what_is_not_cut():
    net = Around().train()
    net.stem.weight.requires_grad_(requires_grad=False)
    structure = analyze(net, image())

    cut = structure.cut({"stem": torch.tensor([6, 1])})

    assert cut.student.training
    assert not cut.student.stem.weight.requires_grad
    assert cut.student.head.weight.requires_grad
    assert cut.slices["stem.weight"][0].tolist() == [1, 6]
    assert torch.equal(cut.student.stem.bias, net.stem.bias[[1, 6]])
    assert cut.student.other.weight.shape == net.other.weight.shape
    assert cut.student.other.weight is not net.other.weight
    patched = {(patch.module, patch.attribute): patch.value for patch in cut.patches}
    assert patched == {("stem", "out_channels"): 2, ("head", "in_channels"): 2}


def test_aliases_stay_aliases():
    net = Around(lambda net, x: torch.sigmoid(net.twin(x)), twin=nn.Conv2d(8, 8, 1))
    net.twin.weight = net.again = nn.Parameter(torch.rand(8, 8, 1, 1))
    structure = analyze(net, image())

    kept = {name: torch.arange(3) for name in structure.widths}
    student = structure.cut(kept).student

    assert student.again is student.twin.weight
    assert student.again.shape == (3, 3, 1, 1)
    assert structure.costs.params(structure.widths) == sum(p.numel() for p in net.parameters())


def test_a_cut_uses_the_present_weights():
    net = Around()
    structure = analyze(net, image())
    with torch.no_grad():
        net.stem.weight.fill_(2.0)

    student = structure.cut({"stem": torch.arange(2)}).student

    assert bool((student.stem.weight == 2.0).all())


def test_freezing_an_exact_structure_changes_nothing():
    structure = analyze(Around(), image())

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert freeze_inexact(structure, image()) is structure


def test_sizes_given_from_one_tensor_to_another_tie_their_channels():
    net = Around(
        lambda net, x: net.lift(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape),
        lift=nn.Linear(8, 8),
    )

    structure = analyze(net, image())

    assert structure.widths == {"stem": 8, "other": 6}

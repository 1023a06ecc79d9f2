"""Saved students: exact, safe to open, and clear when damaged."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from coa_compress.artifacts import AttributePatch
from coa_compress.errors import WeightsError
from coa_compress.students import (
    STUDENT_RECORD,
    STUDENT_WEIGHTS,
    StudentRecord,
    apply_shapes_,
    load_student,
    read_student_record,
    save_student,
)

HERE = __name__


class Net(nn.Module):
    """A teacher with tied weights, a split width, and a buffer that no state dict holds."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.width = width
        self.first = nn.Linear(3, 2 * width, bias=False)
        self.second = nn.Linear(3, 2 * width, bias=False)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 1)
        self.register_buffer("gain", torch.ones(width), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = (self.first(x) + self.second(x)).split(self.width, dim=1)
        return self.head(self.norm(left * right) * self.gain)


def net_of_width(command: str = "") -> Net:
    """Return what a record may ask for, though never with arguments of its own."""
    if command:
        (Path(command.split()[1])).touch()
    return Net(5)


def student_and_record(width=3, **changes):
    student = Net(width)
    student.gain = torch.rand(width)
    student.norm.running_mean = torch.rand(width)
    teacher = dict(Net().named_parameters()) | dict(Net().named_buffers())
    mine = dict(student.named_parameters()) | dict(student.named_buffers())
    values = {
        "factory": f"{HERE}:Net",
        "kept": {"first": list(range(width))},
        "patches": [AttributePatch("", "width", width)],
        "shapes": {n: list(t.shape) for n, t in mine.items() if t.shape != teacher[n].shape},
        "task": {"name": "none"},
        "recipe_digest": "0123",
        "versions": {"torch": "2"},
    }
    return student.eval(), StudentRecord(**(values | changes))


@settings(deadline=None, max_examples=10)
@given(width=st.integers(1, 8), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_a_saved_and_loaded_student_gives_equal_outputs(tmp_path_factory, width, dtype):
    folder = tmp_path_factory.mktemp("student")
    student, record = student_and_record(width)
    student = student.to(dtype)
    x = torch.rand(5, 3, dtype=dtype)
    teacher = Net()

    save_student(folder, student, record=record)

    for model in (None, teacher):
        loaded = load_student(folder, model=model)
        assert torch.equal(loaded(x), student(x))
        assert loaded.first.weight is loaded.second.weight
        assert not loaded.training
    assert teacher.width == 8
    assert teacher.training
    assert read_student_record(folder) == record
    assert sorted(path.name for path in folder.iterdir()) == [STUDENT_RECORD, STUDENT_WEIGHTS]


def edit_record(folder: Path, **changes: object) -> None:
    path = folder / STUDENT_RECORD
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "factory",
    [
        "os:system",
        "torch:load",
        "builtins:exec",
        "no.such.module:Net",
        f"{HERE}:Absent",
        "torch.nn",
        "torch.nn:Linear.forward",
        "torch.nn:__dict__",
        f"{HERE}:net_of_width",
        "os;x:y",
        3,
    ],
)
def test_nothing_but_a_network_class_is_called(tmp_path, factory):
    student, record = student_and_record()
    save_student(tmp_path, student, record=record)
    edit_record(tmp_path, factory=factory, arguments={"command": f"touch {tmp_path / 'bad'}"})

    with pytest.raises(
        WeightsError, match=r"is no network class, .*: pass model=\.\.\., a freshly"
    ):
        load_student(tmp_path)

    assert not (tmp_path / "bad").exists()
    assert torch.equal(load_student(tmp_path, model=Net()).gain, student.gain)


def test_a_function_annotated_to_return_a_network_is_called_without_arguments(tmp_path):
    student, record = student_and_record(factory=f"{HERE}:net_of_width")
    save_student(tmp_path, student, record=record)

    assert torch.equal(load_student(tmp_path).gain, student.gain)


def test_arguments_that_are_not_recorded_ask_for_a_model(tmp_path):
    linear = nn.Linear(2, 3)
    save_student(tmp_path, linear, record=StudentRecord(factory="torch.nn:Linear"))
    with pytest.raises(
        WeightsError, match=r"'torch.nn:Linear' of .*: pass model=\.\.\., a freshly"
    ):
        load_student(tmp_path)
    assert torch.equal(load_student(tmp_path, model=nn.Linear(2, 3)).weight, linear.weight)

    arguments = {"in_features": 2, "out_features": 3}
    record = StudentRecord(factory="torch.nn:Linear", arguments=arguments)
    save_student(tmp_path, linear, record=record)
    assert torch.equal(load_student(tmp_path).bias, linear.bias)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"format": 2}, "no student record of format 1"),
        ({"shapes": [1]}, "student.json is damaged"),
        ({"shapes": {"head.weight": [-1, 3]}}, "sizes .* must not be negative"),
        ({"patches": [{"module": ""}]}, "student.json is damaged"),
        (
            {"patches": [{"module": "", "attribute": "forward", "value": 1}]},
            "Net has no size 'forward' to set to 1",
        ),
        (
            {"patches": [{"module": "no", "attribute": "x", "value": [1, 2]}]},
            r"Net has no size 'no.x' to set to \(1, 2\)",
        ),
        ({"shapes": {"no.weight": [1]}}, "no parameter or buffer 'no.weight' in Net"),
        ({"shapes": {}}, "7 of another shape"),
        ({"weights_sha256": "0"}, "does not belong to student.json"),
    ],
)
def test_a_wrong_record_is_an_error(tmp_path, changes, text):
    student, record = student_and_record()
    save_student(tmp_path, student, record=record)
    edit_record(tmp_path, **changes)
    with pytest.raises(WeightsError, match=text):
        load_student(tmp_path)


def test_missing_or_damaged_files_of_a_student_are_errors(tmp_path):
    with pytest.raises(WeightsError, match=r"cannot read .*student.json: No such file"):
        load_student(tmp_path / "none")
    student, record = student_and_record()
    save_student(tmp_path, student, record=record)
    weights = (tmp_path / STUDENT_WEIGHTS).read_bytes()
    (tmp_path / STUDENT_WEIGHTS).write_bytes(weights[:-3])
    with pytest.raises(WeightsError, match=r"student\.safetensors is damaged or does not belong"):
        load_student(tmp_path)
    (tmp_path / STUDENT_WEIGHTS).unlink()
    with pytest.raises(WeightsError, match=r"cannot read .*student.safetensors"):
        load_student(tmp_path)
    (tmp_path / STUDENT_RECORD).write_text("{")
    with pytest.raises(WeightsError, match=r"student\.json is damaged"):
        read_student_record(tmp_path)


def test_a_record_that_is_no_json_is_an_error_and_nothing_is_written(tmp_path):
    student, record = student_and_record(arguments={"path": Path("x")})
    with pytest.raises(WeightsError, match=r"cannot record the student .*PosixPath"):
        save_student(tmp_path, student, record=record)
    assert list(tmp_path.iterdir()) == []


def test_shapes_keep_tied_parameters_tied():
    net = Net()
    net.first.weight.requires_grad_(requires_grad=False)
    apply_shapes_(net, [AttributePatch("", "width", 2)], {"second.weight": [4, 3], "gain": [2]})
    assert net.first.weight is net.second.weight
    assert net.first.weight.shape == (4, 3)
    assert not net.first.weight.requires_grad
    assert net.width == 2
    assert "gain" not in net.state_dict()

"""Networks named on a command line."""

import sys

import pytest
import torch
from torch import nn

from coa_compress.errors import ModelError, WeightsError
from coa_compress.factories import build_network
from coa_compress.sources import open_source

CODE = """
import torch

def small():
    return torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3), torch.nn.Conv2d(8, 4, 3))

def needs(width):
    return torch.nn.Conv2d(3, width, 1)

def number():
    return 3

def broken():
    return torch.zeros(2) @ torch.zeros(3)

class Nested:
    Layer = torch.nn.Identity

VALUE = 5
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "networks_of_mine.py").write_text(CODE)
    (tmp_path / "bad_code.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield "networks_of_mine"
    sys.modules.pop("networks_of_mine", None)


def test_a_factory_of_the_working_directory_is_opened_with_the_generic_task(module):
    path = list(sys.path)

    source = open_source(f"{module}:small", size=(24, 40))

    assert source.example.shape == (1, 4, 24, 40)
    assert not source.model.training
    assert torch.equal(source.task.build_teacher()[0].weight, source.model[0].weight)
    assert sys.path == path


def test_the_built_in_teacher_is_opened_at_any_size():
    source = open_source("builtin:teacher", size=(32, 48))

    assert source.example.shape == (1, 3, 32, 48)
    assert next(source.model.parameters()).device.type == "cpu"


def test_a_class_within_a_class_is_a_factory(module):
    assert isinstance(build_network(f"{module}:Nested.Layer"), nn.Identity)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("no_such_package.models:Net", "cannot import 'no_such_package.models' of .*No module"),
        ("bad_code:f", "cannot import 'bad_code' of 'bad_code:f': invalid syntax"),
        ("networks_of_mine:absent", "is not there: module networks_of_mine has no absent"),
        ("networks_of_mine:needs", "cannot be called without arguments: .*missing 1 required"),
        ("networks_of_mine:broken", "cannot be called without arguments: "),
        ("networks_of_mine:number", "returns a int: give one that returns a network"),
        ("networks_of_mine:VALUE", "is a int: give a class or a function"),
    ],
)
def test_a_factory_that_cannot_be_used_is_one_line(module, factory, message):
    with pytest.raises(ModelError, match=message) as caught:
        open_source(factory)

    assert "\n" not in str(caught.value)


def test_a_size_below_one_is_an_error():
    with pytest.raises(ModelError, match="at least 1, got 0x8"):
        open_source("builtin:teacher", size=(0, 8))


@pytest.mark.parametrize("name", ["nowhere", "builtin:student", "a b:c"])
def test_what_is_no_network_is_named(name):
    with pytest.raises(WeightsError, match=name):
        open_source(name)

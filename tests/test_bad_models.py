"""Networks and recipes given in Python that cannot work: one clear line before anything runs."""

import warnings

import pytest
import torch
from small_runs import Plain, seeded, small_recipe
from torch import nn

from coa_compress import Compressor
from coa_compress.errors import (
    BudgetError,
    CoaError,
    ModelError,
    RecipeError,
    StructureError,
)


def two(x):
    return x, x


class Pair(Plain):
    def forward(self, image):
        return two(super().forward(image))


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer releases of torch say that it is deprecated
        return torch.jit.script(Plain())


class Uncopyable(Plain):
    def __init__(self):
        super().__init__()
        self.rows = (row for row in self.first.weight)


class OneByOne(Plain):
    def forward(self, image):
        return super().forward(image).reshape(1, 3, 16, 16)


class Supervised(Plain):
    """Returns one more tensor in training, as networks with a loss of their own for it do."""

    def forward(self, image):
        output = super().forward(image)
        return (output, image) if self.training else output


class Lazy(nn.Sequential):
    def __init__(self):
        super().__init__(nn.LazyConv2d(8, 3, padding=1), nn.LazyConv2d(3, 1))


class Listed(Plain):
    def __init__(self):
        super().__init__()
        self.more = [nn.Conv2d(3, 3, 1)]

    def forward(self, image):
        return self.more[0](super().forward(image))


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: "net.pth", ModelError, r"must be a torch\.nn\.Module, got str"),
        (scripted, ModelError, "compiled by TorchScript"),
        (
            Uncopyable,
            ModelError,
            "cannot copy Uncopyable: cannot pickle .*: remove what is no parameter",
        ),
        (Pair, ModelError, "Pair returns a tuple: it must return one tensor"),
        (OneByOne, ModelError, r"does not run on what its task gives, a batch of .*take any size"),
        (Supervised, ModelError, "returns a tuple in training mode: it must return one tensor"),
        (Lazy, ModelError, "'0.weight' has no shape yet: run the model on one input first"),
        (Listed, StructureError, "does not compute in double precision .*layers in plain lists"),
        (nn.Identity, ModelError, "Identity has no weights to infer its input from: give example"),
        (lambda: nn.Conv2d(3, 3, 1), StructureError, "no channel group to cut in Conv2d"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_a_model_that_cannot_be_compressed_is_one_clear_line(tmp_path, make, error, match):
    with pytest.raises(error, match=match) as caught:
        Compressor(make(), recipe=small_recipe(), out=tmp_path / "run").run()

    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_task_that_gives_other_inputs_is_one_clear_line(tmp_path):
    net, signal = nn.Sequential(nn.Conv1d(3, 8, 3), nn.Conv1d(8, 3, 3)), torch.zeros(1, 3, 64)

    with pytest.raises(ModelError, match=r"does not run on what its task gives.*give a task that"):
        Compressor(net, recipe=small_recipe(), example=signal, out=tmp_path / "run").run()
    with pytest.raises(ModelError, match=r"Plain does not run on an input of shape \(1, 4, 9, 9\)"):
        Compressor(Plain(), recipe=small_recipe(), example=torch.zeros(1, 4, 9, 9)).run()


@pytest.mark.parametrize(
    ("overrides", "error", "match"),
    [
        ({"stages__prune": "off"}, RecipeError, "stage 'refit' needs stage 'prune': add it"),
        ({"stages__score": "off"}, RecipeError, "stage 'allocate' needs stage 'score'"),
        ({"stages__adapt": "on"}, RecipeError, "RestorationTask has no real inputs"),
        ({"stages__train": "on"}, CoaError, "stages.train needs ground truth"),
        ({"stages__distill__teacher": "{l11: 1}"}, CoaError, "no loss 'l11': did you mean l1"),
        ({"stages__allocate__keep_macs": 0.01}, BudgetError, r"cannot keep 1.0% of macs .*least"),
        ({"device": "cuda:99"}, RecipeError, "device 'cuda:99' is not there, torch sees"),
    ],
)
def test_what_is_wrong_from_the_start_leaves_nothing_behind(tmp_path, overrides, error, match):
    with pytest.raises(error, match=match):
        Compressor(seeded(Plain), recipe=small_recipe(**overrides), out=tmp_path / "run").run()

    assert list(tmp_path.iterdir()) == []

"""Networks and recipes given in Python that cannot work: one clear line before anything runs."""

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


class Uncopyable(Plain):
    def __init__(self):
        super().__init__()
        self.rows = (row for row in self.first.weight)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: "net.pth", ModelError, r"must be a torch\.nn\.Module, got str"),
        (lambda: torch.jit.script(Plain()), ModelError, "compiled by TorchScript"),
        (
            Uncopyable,
            ModelError,
            "cannot copy Uncopyable: cannot pickle .*: remove what is no parameter",
        ),
        (Pair, ModelError, "Pair returns a tuple: it must return one tensor"),
        (Plain().double, ModelError, r"Plain does not run on an input of shape \(1, 3, 16, 16\)"),
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

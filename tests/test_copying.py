"""Copies of networks that hold what a pass has computed."""

import copy
import threading

import pytest
import torch
from small_runs import Plain, seeded, small_recipe
from torch import nn
from torch.nn.utils import prune

from coa_compress import Compressor, load
from coa_compress.copying import copied
from coa_compress.errors import ModelError

IMAGE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Keeping(Plain):
    """Keeps features of its last pass: as they are, and in containers."""

    def forward(self, image):
        self.features = torch.relu(self.first(image))
        self.kept = {"all": [self.features, (self.features * 2,)]}
        return image + self.last(torch.relu(self.second(self.features)))


class HookNormed(Plain):
    """Its weights are computed by hooks of the kind that torch calls deprecated."""

    def __init__(self):
        super().__init__()
        nn.utils.weight_norm(self.first)
        nn.utils.spectral_norm(self.second)


class Sparse(Plain):
    """Weights that torch's own pruning has set to zero, by a mask."""

    def __init__(self):
        super().__init__()
        prune.l1_unstructured(self.second, "weight", 0.3)
        prune.random_structured(self.first, "weight", 0.25, dim=0)


@pytest.mark.parametrize("make", [Keeping, HookNormed, Sparse])
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
def test_a_network_is_copied_after_a_pass_with_gradients(make):
    model = seeded(make)
    with torch.no_grad():
        model(IMAGE)  # a spectral norm moves its vectors
    output = model.eval()(IMAGE)
    with pytest.raises(RuntimeError, match="graph leaves"):
        copy.deepcopy(model)

    found = copied(model)

    assert torch.equal(found(IMAGE), output)
    mine = {t.data_ptr() for t in (*model.parameters(), *model.buffers())}
    assert mine.isdisjoint(t.data_ptr() for t in (*found.parameters(), *found.buffers()))
    output.mean().backward()  # the graph of the original is whole
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert all(p.grad is None for p in found.parameters())


def test_what_is_kept_in_containers_is_copied_by_value():
    model = seeded(Keeping)
    model(IMAGE)

    found = copied(model)

    assert type(found.kept["all"][1]) is tuple
    assert torch.equal(found.kept["all"][0], model.features)
    assert found.kept["all"][0] is found.features
    assert found.features.grad_fn is None
    assert model.features.grad_fn is not None


def test_what_cannot_be_copied_is_one_line():
    model = seeded(Plain)
    model.lock = threading.Lock()

    with pytest.raises(ModelError, match=r"^cannot copy Plain: .*lock.*: remove what is no param"):
        copied(model)


def test_weights_with_masks_keep_them_in_the_student(tmp_path):
    result = Compressor(seeded(Sparse), recipe=small_recipe(), out=tmp_path / "run").run()

    student = result.student
    assert student.second.weight_mask.shape == student.second.weight_orig.shape
    assert student.second.weight_orig.shape < (8, 8)
    student(IMAGE)
    assert bool((student.second.weight[student.second.weight_mask == 0] == 0).all())
    again = load(tmp_path / "run" / "student", model=Sparse())
    assert torch.equal(again(IMAGE), student(IMAGE))


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
def test_weights_computed_by_hooks_go_through_every_stage(tmp_path):
    model = seeded(HookNormed)

    result = Compressor(model, recipe=small_recipe(), out=tmp_path / "run").run()

    assert result.student.first.weight_v.shape[0] < 8
    assert result.student.second.weight_u.shape[0] < 8
    again = load(tmp_path / "run" / "student", model=HookNormed())
    assert torch.equal(again(IMAGE), result.student(IMAGE))

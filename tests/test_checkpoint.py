"""Weight files: exact, safe to read, and clear when damaged."""

import os
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from coa_compress.checkpoint import load_tensors, load_weights_, save_tensors
from coa_compress.errors import WeightsError


def test_tensors_that_share_memory_are_saved(tmp_path):
    base = torch.rand(4, 4)
    tensors = {"a": base, "b": base, "c": base[1:3], "d": base.t(), "e": torch.empty(0)}
    path = tmp_path / "sub" / "a.safetensors"
    save_tensors(path, tensors, {"note": "x"})
    loaded = load_tensors(path)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], value) for name, value in tensors.items())


@pytest.mark.parametrize("wrapper", [None, "state_dict", "params", "model"])
@pytest.mark.parametrize("zipped", [True, False])
def test_plain_torch_files_are_read(tmp_path, wrapper, zipped):
    net = nn.Linear(2, 3)
    content = net.state_dict() if wrapper is None else {"epoch": 3, wrapper: net.state_dict()}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    other = nn.Linear(2, 3)
    load_weights_(other, tmp_path / "a.pth")
    assert torch.equal(other.weight, net.weight)


@pytest.mark.parametrize("outer", ["module.", "_orig_mod.", "_orig_mod.module."])
def test_names_of_parallel_and_compiled_models_fit(tmp_path, outer):
    net, other = nn.Linear(2, 3), nn.Linear(2, 3)
    content = {outer + name: tensor for name, tensor in net.state_dict().items()}
    torch.save(content, tmp_path / "a.pth")

    load_weights_(other, tmp_path / "a.pth")

    assert torch.equal(other.weight, net.weight)
    holder = nn.Module()
    holder.module = nn.Linear(2, 3)
    load_weights_(holder, tmp_path / "a.pth")
    assert torch.equal(holder.module.bias, net.bias)


def test_names_of_the_network_that_is_wrapped_fit(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    torch.save({"state_dict": net.state_dict()}, tmp_path / "a.pth")
    wrapper, two = nn.Module(), nn.Module()
    wrapper.inner = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    two.first, two.second = nn.Linear(1, 1), nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))

    load_weights_(wrapper, tmp_path / "a.pth")

    assert torch.equal(wrapper.inner[0].weight, net[0].weight)
    with pytest.raises(WeightsError, match="9 missing"):
        load_weights_(two, tmp_path / "a.pth")


def test_weights_that_training_code_has_saved_fit(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    theirs = nn.Sequential(nn.Conv2d(1, 1, 1))
    kept = {
        "epoch": 3,
        "best": np.float32(31.5),
        "losses": np.arange(3.0),
        "options": Namespace(lr=0.1, out=Path("runs")),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []},
    }
    inside = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    around = {**inside, "loss.0.weight": torch.ones(1), "step": torch.tensor(3)}
    layouts = {
        "under another name": {"netD": theirs.state_dict(), "netG": net.state_dict(), **kept},
        "of a module for training": {"state_dict": around, **kept},
        "two deep": {"state": {"generator": net.state_dict()}, **kept},
    }
    for name, content in layouts.items():
        torch.save(content, tmp_path / "a.pth")
        other = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))

        load_weights_(other, tmp_path / "a.pth")

        assert torch.equal(other[0].weight, net[0].weight), name


def test_of_several_sets_that_do_not_fit_the_nearest_is_named(tmp_path):
    content = {"optimizer": {"step": torch.ones(1)}, "net": nn.Linear(2, 4).state_dict()}
    torch.save(content, tmp_path / "a.pth")

    with pytest.raises(WeightsError, match=r"2 of another shape \(weight \(4, 2\) in the file"):
        load_weights_(nn.Linear(2, 3), tmp_path / "a.pth")


def test_the_average_of_weights_is_taken_before_the_last_ones(tmp_path):
    last, average, other = nn.Linear(2, 3), nn.Linear(2, 3), nn.Linear(2, 3)
    content = {"params": last.state_dict(), "params_ema": average.state_dict()}
    torch.save(content, tmp_path / "a.pth")

    load_weights_(other, tmp_path / "a.pth")

    assert torch.equal(other.weight, average.weight)


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("harm",))


@pytest.mark.parametrize("thing", [Evil(), nn.Linear(1, 1), Namespace(a=Evil())])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_needs_pickle_is_refused(tmp_path, monkeypatch, thing, zipped):
    monkeypatch.chdir(tmp_path)
    content = {"state_dict": {"w": torch.ones(1)}, "thing": thing}
    torch.save(content, "x.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"needs pickle to load, .*: convert it") as caught:
        load_tensors(Path("x.pth"))
    assert "\n" not in str(caught.value)
    assert not Path("harm").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_file_is_damaged_wherever_it_ends(tmp_path, suffix):
    whole = tmp_path / f"whole{suffix}"
    if suffix == ".pth":
        torch.save({"w": torch.ones(3)}, whole)
    else:
        save_tensors(whole, {"w": torch.ones(3)})
    data = whole.read_bytes()
    broken = tmp_path / f"broken{suffix}"
    for length in {0, 1, 7, 9, 60, len(data) // 2, len(data) - 1}:
        broken.write_bytes(data[:length])
        with pytest.raises(WeightsError, match=r"is damaged or no .*: get or save it again"):
            load_tensors(broken)
    broken.write_text("<html>not found</html>")
    with pytest.raises(WeightsError, match=r"is damaged or no .*: get or save it again"):
        load_tensors(broken)


def test_other_files_are_errors(tmp_path):
    with pytest.raises(WeightsError, match=r"cannot read .*a.pth: No such file"):
        load_tensors(tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"a.txt is no weight file: it must end in"):
        load_tensors(tmp_path / "a.txt")
    torch.save({"epoch": 3}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"holds no tensors by name but keys \['epoch'\]"):
        load_tensors(tmp_path / "a.pth")
    torch.save([torch.ones(1)], tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="holds no tensors by name but list"):
        load_tensors(tmp_path / "a.pth")
    endless = {"epoch": 3}
    endless["itself"] = endless
    torch.save(endless, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"holds no tensors by name but keys \['epoch', 'itself"):
        load_tensors(tmp_path / "a.pth")


def test_weights_that_do_not_fit_are_listed_and_change_nothing(tmp_path):
    net = nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"0.weight": torch.ones(3, 2), "x": torch.ones(1)})
    text = (
        r"a.safetensors does not fit Sequential: 5 missing \(0.bias, 1.weight, 1.bias, ...\); "
        r"1 unexpected \(x\); 1 of another shape \(0.weight \(3, 2\) in the file, \(2, 2\) in"
    )
    with pytest.raises(WeightsError, match=text):
        load_weights_(net, path)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_a_file_that_cannot_be_written_is_an_error(tmp_path, monkeypatch):
    def fail(_handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(WeightsError, match=r"cannot write .*b.safetensors: No space left"):
        save_tensors(tmp_path / "b.safetensors", {"w": torch.ones(1)})
    assert list(tmp_path.iterdir()) == []

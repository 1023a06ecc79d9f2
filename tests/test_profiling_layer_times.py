"""Time by layer: whose it is, that it adds up, and that nothing is left in the network."""

import time

import pytest
import torch
from small_runs import hooks_of
from torch import nn
from torch.nn import functional

from coa_compress.errors import ModelError, SettingError
from coa_compress.hooks import watched_calls
from coa_compress.profiling import layer_times
from coa_compress.profiling.counting import macs_by_module
from coa_compress.profiling.layer_times import layer_paths, measure_layer_times


class Sleeping(nn.Module):
    def __init__(self, seconds, *, fails=False):
        super().__init__()
        self.seconds, self.fails = seconds, fails

    def forward(self, x):
        time.sleep(self.seconds)
        if self.fails:
            message = "broken"
            raise RuntimeError(message)
        return x


class Scaled(nn.Module):
    """A layer with a parameter of its own around another layer."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        time.sleep(0.004)
        return self.scale * self.inner(x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.twice = Sleeping(0.003)
        self.block = nn.Sequential(Scaled(Sleeping(0.002)))
        self.unused = nn.Linear(4, 4)

    def forward(self, x):
        time.sleep(0.005)
        return self.block(functional.relu(self.twice(self.twice(x))))


def measured(net, **settings):
    return measure_layer_times({"net": net}, torch.zeros(1, 4), rounds=3, **settings)["net"]


def test_the_time_of_a_layer_is_its_own():
    found = measured(Net())

    assert [layer.path for layer in found.layers] == ["twice", "block.0", "block.0.inner"]
    took = {layer.path: layer.least_ms for layer in found.layers}
    assert took["twice"] >= 6.0
    assert took["block.0.inner"] >= 2.0
    assert took["block.0"] >= 4.0
    assert found.elsewhere_least_ms >= 5.0
    assert [layer.params for layer in found.layers] == [0, 1, 0]
    assert found.rounds == 3


def test_layers_and_elsewhere_add_up_to_the_whole():
    found = measured(Net())

    parts = [*(layer.ms for layer in found.layers), found.elsewhere_ms]
    assert sum(parts) == pytest.approx(found.total_ms)
    assert found.total_ms >= 17.0
    assert all(layer.least_ms <= layer.ms for layer in found.layers)


def test_a_network_that_is_one_layer_is_a_row():
    (layer,) = measured(nn.Linear(4, 2)).layers
    assert (layer.path, layer.kind, layer.params) == ("", "Linear", 10)


@pytest.mark.parametrize("fails", [False, True])
def test_no_hook_is_left_and_the_mode_is_as_it_was(fails):
    net = nn.Sequential(nn.Linear(4, 4), Sleeping(0.0, fails=fails))
    if fails:
        with pytest.raises(RuntimeError, match="broken"):
            measured(net)
    else:
        measured(net)
    assert hooks_of(net) == 0
    assert net.training


class Forgiving(nn.Module):
    def __init__(self):
        super().__init__()
        self.risky = Sleeping(0.002, fails=True)
        self.safe = nn.Linear(4, 4)

    def forward(self, x):
        try:
            return self.risky(x)
        except RuntimeError:
            time.sleep(0.003)
            return self.safe(x)


def test_a_layer_that_fails_and_is_caught_ends_there():
    found = measured(Forgiving())
    took = {layer.path: layer.least_ms for layer in found.layers}
    assert took.keys() == {"risky", "safe"}
    assert found.elsewhere_least_ms >= 3.0


def test_networks_take_turns_and_time_is_limited():
    calls = []
    nets = {name: nn.Sequential(Sleeping(0.0)) for name in "ab"}
    for name, net in nets.items():
        net.register_forward_pre_hook(lambda *_, name=name: calls.append(name))

    measure_layer_times(nets, torch.zeros(1), rounds=3)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert measured(nn.Sequential(Sleeping(0.01)), max_seconds=0.001).rounds == 1


def test_a_gpu_is_timed_by_events(monkeypatch):
    ticks = iter([10.0, 12.5, 13.0, 14.0])

    class Event:
        def __init__(self, enable_timing):
            self.at = None

        def record(self, stream):
            self.at = next(ticks)

        def synchronize(self):
            assert self.at is not None

        def elapsed_time(self, end):
            return end.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: device)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)

    class OnDevice:
        device = torch.device("cuda")

    net = nn.Sequential(nn.Identity())
    spans = layer_times._timed_pass(net, OnDevice())
    assert spans == {(None, 0): 2.5, ("0", 0): 0.5, (None, 1): 1.0}


@pytest.mark.parametrize(
    ("models", "settings", "said"),
    [
        ({}, {}, "no model to time: give at least one, as {name: model}"),
        ({"a": nn.ReLU()}, {"rounds": 0}, "rounds=0"),
        ({"a": nn.ReLU()}, {"max_seconds": 0.0}, r"max_seconds=0.0"),
    ],
)
def test_nothing_to_time_is_an_error(models, settings, said):
    with pytest.raises(SettingError, match=said):
        measure_layer_times(models, torch.zeros(1), **settings)


def test_every_module_that_multiplies_by_itself_is_a_layer_or_elsewhere():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1)))
    assert set(macs_by_module(net, torch.zeros(1, 1, 8, 8))) <= set(layer_paths(net))


def test_a_module_that_is_not_there_cannot_be_watched():
    net = nn.Sequential(nn.ReLU())
    nothing = str.strip
    with pytest.raises(ModelError, match="no module '1' in Sequential"):  # noqa: SIM117
        with watched_calls(net, ["0", "1"], enter=nothing, leave=nothing):
            pass
    assert hooks_of(net) == 0

"""The order, the limits and the traces of timing; not the times themselves."""

import time

import pytest
import torch
from torch import nn

from coa_compress.errors import SettingError
from coa_compress.profiling.timing import measure_latency_ms


class Recorder(nn.Module):
    def __init__(self, name, calls, seconds=0.0):
        super().__init__()
        self.name, self.calls, self.seconds = name, calls, seconds

    def forward(self, x):
        self.calls.append(self.name)
        time.sleep(self.seconds)
        return x


def test_models_are_interleaved_and_the_order_rotates():
    calls = []
    models = {name: Recorder(name, calls) for name in "abc"}

    latencies = measure_latency_ms(models, torch.zeros(1), rounds=4, warmup=1)

    assert "".join(calls) == "abc" + "abc" + "bca" + "cab" + "abc"
    assert all(latency.rounds == 4 for latency in latencies.values())
    assert all(model.training for model in models.values())


def test_the_slower_model_takes_longer():
    models = {"fast": Recorder("f", []), "slow": Recorder("s", [], seconds=0.003)}

    latencies = measure_latency_ms(models, torch.zeros(1), rounds=5, warmup=0)

    slow = latencies["slow"]
    assert slow.median_ms >= 3.0 > latencies["fast"].median_ms
    assert slow.p10_ms <= slow.median_ms <= slow.p90_ms
    assert slow.device == "cpu"
    assert slow.threads == torch.get_num_threads()


def test_time_is_limited_but_one_round_is_always_timed():
    models = {"slow": Recorder("s", [], seconds=0.02)}
    assert measure_latency_ms(models, torch.zeros(1), max_seconds=0.001)["slow"].rounds == 1


def test_no_model_is_an_error():
    with pytest.raises(SettingError, match="no model to time"):
        measure_latency_ms({}, torch.zeros(1))


@pytest.mark.parametrize("bad", [{"rounds": 0}, {"warmup": -1}, {"max_seconds": 0.0}])
def test_numbers_out_of_range_are_errors(bad):
    with pytest.raises(SettingError, match=f"{next(iter(bad))}={next(iter(bad.values()))}"):
        measure_latency_ms({"id": nn.Identity()}, torch.zeros(1), **bad)

"""How long networks take, measured side by side so that drift hits all of them alike."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from coa_compress.errors import SettingError
from coa_compress.profiling.modes import evaluating


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Time of one forward pass.

    Args:
        median_ms: Median over the rounds.
        p10_ms: Time that one round in ten stays under.
        p90_ms: Time that nine rounds in ten stay under.
        rounds: How many forward passes were timed.
        threads: CPU threads that PyTorch may use inside an operation.
        device: Where it ran: ``cpu``, or the name of the GPU.
    """

    median_ms: float
    p10_ms: float
    p90_ms: float
    rounds: int
    threads: int
    device: str


def measure_latency_ms(
    models: Mapping[str, nn.Module],
    example: Tensor,
    *,
    rounds: int = 20,
    warmup: int = 3,
    max_seconds: float = 20,
) -> dict[str, Latency]:
    """Time several networks on one input, interleaved: each round runs every network once.

    The order is rotated from round to round, so that whatever slows the machine down for a while
    slows all networks down, and none always runs first. CUDA is timed by events, the CPU by a
    monotonic clock.

    Args:
        models: Networks by name, on the device of the example; unchanged.
        example: The input of all of them.
        rounds: Most rounds to time, from 1.
        warmup: Untimed rounds before, from 0.
        max_seconds: No round begins after this time, but one is always timed.

    Returns:
        The latency of each network, by name.

    Raises:
        SettingError: If there is no network, or a number is out of range.

    >>> latencies = measure_latency_ms({"id": nn.Identity()}, torch.zeros(1), rounds=2)
    >>> latencies["id"].rounds, latencies["id"].device
    (2, 'cpu')
    """
    times_ms = times_in_turns_ms(
        models, example, rounds=rounds, warmup=warmup, max_seconds=max_seconds
    )
    return {name: summarized(values, example.device) for name, values in times_ms.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedLatency:
    """Two networks timed in turns, and how the one compares with the other.

    Args:
        kept: Median over the rounds of the first's time by the second's, both of one round.
        kept_p10: Quotient that one round in ten stays under.
        kept_p90: Quotient that nine rounds in ten stay under.
        first: Time of the first network.
        second: Time of the second.
    """

    kept: float
    kept_p10: float
    kept_p90: float
    first: Latency
    second: Latency


def compare_latency(
    first: nn.Module,
    second: nn.Module,
    example: Tensor,
    *,
    rounds: int = 20,
    warmup: int = 3,
    max_seconds: float = 20,
) -> PairedLatency:
    """Time two networks in turns and return the quotient of their times, round by round.

    A load on the machine that lasts longer than a round slows both networks down and leaves the
    quotient as it is.

    Args:
        first: A network on the device of the example; unchanged.
        second: What it is compared with; unchanged.
        example: The input of both.
        rounds: Most rounds to time, from 1.
        warmup: Untimed rounds before, from 0.
        max_seconds: No round begins after this time, but one is always timed.

    Raises:
        SettingError: If a number is out of range.

    >>> compared = compare_latency(nn.Identity(), nn.ReLU(), torch.zeros(1000, 1000), rounds=3)
    >>> compared.kept < 0.5
    True
    """
    models = {"first": first, "second": second}
    times_ms = times_in_turns_ms(
        models, example, rounds=rounds, warmup=warmup, max_seconds=max_seconds
    )
    p10, median, p90 = quotients(times_ms["first"], times_ms["second"])
    return PairedLatency(
        kept=median,
        kept_p10=p10,
        kept_p90=p90,
        first=summarized(times_ms["first"], example.device),
        second=summarized(times_ms["second"], example.device),
    )


def device_name(device: torch.device) -> str:
    """Return ``cpu``, or the name of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def run_ms(call: Callable[[], object], device: torch.device) -> float:
    """Return how long one call takes: by events on CUDA, else by a monotonic clock."""
    if device.type != "cuda":
        begin = time.perf_counter()
        call()
        return 1000.0 * (time.perf_counter() - begin)
    with torch.cuda.device(device):
        first = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        last = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        first.record()
        call()
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last))


def times_in_turns_ms(
    models: Mapping[str, nn.Module],
    example: Tensor,
    *,
    rounds: int = 20,
    warmup: int = 3,
    max_seconds: float = 20,
) -> dict[str, list[float]]:
    """Return the times of each round by network; the order is rotated from round to round.

    Args:
        models: Networks by name, on the device of the example; unchanged.
        example: The input of all of them.
        rounds: Most rounds to time, from 1.
        warmup: Untimed rounds before, from 0.
        max_seconds: No round begins after this time, but one is always timed.

    Raises:
        SettingError: If there is no network, or a number is out of range.
    """
    check_timing(models, rounds=rounds, warmup=warmup, max_seconds=max_seconds)
    times_ms: dict[str, list[float]] = {name: [] for name in models}
    start = time.perf_counter()
    with ExitStack() as stack:
        for model in models.values():
            stack.enter_context(evaluating(model))
        for i in range(warmup):
            if i and time.perf_counter() - start > max_seconds / 2:
                break
            for model in models.values():
                model(example)
        for name in in_turns(list(models), rounds=rounds, until=start + max_seconds):
            times_ms[name].append(run_ms(partial(models[name], example), example.device))
    return times_ms


def in_turns(names: Sequence[str], *, rounds: int, until: float) -> Iterator[str]:
    """Yield every name once a round; who begins changes from round to round.

    Args:
        names: What takes turns.
        rounds: Most rounds.
        until: No round but the first begins after this moment of ``time.perf_counter``.

    >>> list(in_turns(["a", "b", "c"], rounds=2, until=float("inf")))
    ['a', 'b', 'c', 'b', 'c', 'a']
    """
    for i in range(rounds):
        if i and time.perf_counter() > until:
            break
        turn = i % len(names)
        yield from names[turn:]
        yield from names[:turn]


def check_timing(
    models: Mapping[str, nn.Module], *, rounds: int, warmup: int, max_seconds: float
) -> None:
    """Raise unless there is something to time, for some time.

    Raises:
        SettingError: If there is no network, or a number is out of range.
    """
    if not models:
        message = "no model to time: give at least one, as {name: model}"
        raise SettingError(message)
    if rounds < 1 or warmup < 0 or not max_seconds > 0:
        message = (
            "timing needs rounds from 1, warmup from 0 and max_seconds above 0, "
            f"got rounds={rounds}, warmup={warmup}, max_seconds={max_seconds}"
        )
        raise SettingError(message)


def quotients(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """Return the 10th percentile, the median and the 90th of quotients, round by round.

    >>> quotients([1.0, 2.0, 9.0], [2.0, 2.0, 6.0])[1]
    1.0
    """
    found = np.array(first) / np.maximum(second, 1e-9)
    p10, median, p90 = (float(value) for value in np.percentile(found, [10, 50, 90]))
    return p10, median, p90


def summarized(times_ms: Sequence[float], device: torch.device) -> Latency:
    """Return the median and the spread of times that were measured on a device."""
    p10, median, p90 = (float(value) for value in np.percentile(times_ms, [10, 50, 90]))
    return Latency(
        median_ms=median,
        p10_ms=p10,
        p90_ms=p90,
        rounds=len(times_ms),
        threads=torch.get_num_threads(),
        device=device_name(device),
    )

"""Where the time of one pass goes: the layers of several networks, timed side by side."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from coa_compress.hooks import watched_calls
from coa_compress.profiling.modes import evaluating
from coa_compress.profiling.timing import check_timing, in_turns

Spans = dict[tuple[str | None, int], float]
"""Milliseconds by path of a layer, None for what is in no layer, and the number of the span."""

_ELSEWHERE = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTime:
    """Time that one layer takes by itself, without the layers inside it.

    Args:
        path: Dotted path; empty for a network that is a single layer.
        kind: Name of its class, ``depthwise`` before it where it is such a convolution.
        params: Elements of its own parameters.
        ms: Milliseconds in one pass, the median over the rounds, summed over its calls.
        least_ms: The least of the rounds instead: whatever disturbs a run only adds to its time.
    """

    path: str
    kind: str
    params: int
    ms: float
    least_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTimes:
    """Where the time of one pass goes; layers and the rest add up to the whole.

    Args:
        total_ms: Time of a pass with a clock at each layer.
        elsewhere_ms: Part of it outside all layers: functional operations.
        elsewhere_least_ms: The least of the rounds instead.
        layers: Every layer that ran, in order of first use.
        rounds: How many passes were timed.
    """

    total_ms: float
    elsewhere_ms: float
    elsewhere_least_ms: float
    layers: tuple[LayerTime, ...]
    rounds: int


def measure_layer_times(
    models: Mapping[str, nn.Module],
    example: Tensor,
    *,
    rounds: int = 20,
    max_seconds: float = 1.5,
) -> dict[str, LayerTimes]:
    """Time the layers of several networks on one input, interleaved.

    A layer is a module without modules in it, or with parameters of its own. Time inside a layer
    that is inside another one counts for the inner one, and several calls of a layer are summed.
    Each span between two of its clock readings is the median over the rounds. CUDA is timed by
    events on the current stream, the CPU by a monotonic clock.

    Args:
        models: Networks by name, on the device of the example; unchanged, no hook is left.
        example: The input of all of them.
        rounds: Most rounds to time, from 1.
        max_seconds: No round begins after this time, but one is always timed.

    Returns:
        The times of each network, by name.

    Raises:
        SettingError: If there is no network, or a number is out of range.

    >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    >>> times = measure_layer_times({"net": net}, torch.zeros(1, 4), rounds=2)["net"]
    >>> [(layer.path, layer.kind, layer.params) for layer in times.layers]
    [('0', 'Linear', 20), ('1', 'ReLU', 0)]
    >>> abs(sum(layer.ms for layer in times.layers) + times.elsewhere_ms - times.total_ms) < 1e-6
    True
    """
    check_timing(models, rounds=rounds, warmup=1, max_seconds=max_seconds)
    passes: dict[str, list[Spans]] = {name: [] for name in models}
    with ExitStack() as stack:
        for model in models.values():
            stack.enter_context(evaluating(model))
            model(example)
        until = time.perf_counter() + max_seconds
        for name in in_turns(list(models), rounds=rounds, until=until):
            passes[name].append(_timed_pass(models[name], example))
    return {name: _summary(models[name], passes[name]) for name in models}


def layer_paths(model: nn.Module) -> tuple[str, ...]:
    """Return the modules that count as layers: leaves, and those with parameters of their own.

    >>> layer_paths(nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU())))
    ('0', '1.0')
    """
    return tuple(
        path
        for path, module in model.named_modules()
        if not any(True for _ in module.children())
        or any(True for _ in module.parameters(recurse=False))
    )


def layer_kind(module: nn.Module) -> str:
    """Return the name of a layer's class, and whether it is a depthwise convolution.

    >>> layer_kind(nn.Conv2d(8, 8, 3, groups=8)), layer_kind(nn.ReLU())
    ('depthwise Conv2d', 'ReLU')
    """
    name = type(module).__name__
    groups, channels = getattr(module, "groups", 1), getattr(module, "in_channels", 0)
    depthwise = isinstance(groups, int) and groups > 1 and groups == channels
    return f"depthwise {name}" if depthwise else name


def _timed_pass(model: nn.Module, example: Tensor) -> Spans:
    """Return the milliseconds of one pass by layer."""
    stamp, passed_ms = _clock(example.device)
    active: list[str] = []
    marks: list[tuple[str | None, Any]] = []

    def enter(path: str) -> None:
        active.append(path)
        marks.append((path, stamp()))

    def leave(_path: str) -> None:
        active.pop()
        marks.append((active[-1] if active else _ELSEWHERE, stamp()))

    with watched_calls(model, layer_paths(model), enter=enter, leave=leave):
        marks.append((_ELSEWHERE, stamp()))
        model(example)
        marks.append((_ELSEWHERE, stamp()))
    turns: Counter[str | None] = Counter()
    spans: Spans = {}
    for (layer, begin), (_, end) in pairwise(marks):
        spans[layer, turns[layer]] = passed_ms(begin, end)
        turns[layer] += 1
    return spans


def _clock(device: torch.device) -> tuple[Callable[[], Any], Callable[[Any, Any], float]]:
    """Return how to take a moment, and how many milliseconds lie between two."""
    if device.type != "cuda":
        return time.perf_counter, lambda begin, end: 1000.0 * (end - begin)

    def stamp() -> Any:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(device))
        return event

    def passed_ms(begin: Any, end: Any) -> float:
        end.synchronize()
        return float(begin.elapsed_time(end))

    torch.cuda.synchronize(device)
    return stamp, passed_ms


def _summary(model: nn.Module, passes: Sequence[Spans]) -> LayerTimes:
    """Return sums of the medians and of the least of all spans, by layer."""
    took: dict[str | None, tuple[float, float]] = {_ELSEWHERE: (0.0, 0.0)}
    # span by span: on a busy machine some part of every pass is disturbed, but seldom the same
    for layer, turn in dict.fromkeys(span for spans in passes for span in spans):
        times = [spans.get((layer, turn), 0.0) for spans in passes]
        ms, least_ms = took.get(layer, (0.0, 0.0))
        took[layer] = ms + median(times), least_ms + min(times)
    modules = dict(model.named_modules())
    layers = tuple(
        LayerTime(
            path=path,
            kind=layer_kind(modules[path]),
            params=sum(p.numel() for p in modules[path].parameters(recurse=False)),
            ms=ms,
            least_ms=least_ms,
        )
        for path, (ms, least_ms) in took.items()
        if path is not _ELSEWHERE
    )
    return LayerTimes(
        total_ms=sum(ms for ms, _ in took.values()),
        elsewhere_ms=took[_ELSEWHERE][0],
        elsewhere_least_ms=took[_ELSEWHERE][1],
        layers=layers,
        rounds=len(passes),
    )

"""The table behind a latency budget: each operation of a network, timed alone on one device."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from coa_compress.artifacts import Operand, Operation, Workload
from coa_compress.atomic import write_atomic
from coa_compress.costs import Extent, Widths
from coa_compress.errors import DataError, SettingError, first_line
from coa_compress.profiling.latency_model import (
    Fit,
    LatencyModel,
    OperationTimes,
    fit_times,
    plain_times,
    read_times,
)
from coa_compress.profiling.timing import device_name, run_ms

_FORMAT = 1
_MOST_SIZES = 16
"""Sizes of one axis that are timed while the others are full."""
_MOST_CORNERS = 4
_STEP = 8
_PASSES, _CHECKS = 4, 2
"""Visits of each operation, and how many of them, the last ones, look at doubtful times alone."""
_LEAST_RUNS, _MOST_RUNS, _ENOUGH_MS = 3, 20, 6.0

Sizes = tuple[int, ...]
"""The size of each axis of an operation."""

Progress = Callable[[int, int, Mapping[str, float]], None]


@dataclass(frozen=True, slots=True, eq=False)
class LatencyTable:
    """Measured times of the operations of one network at one input size on one device.

    Args:
        device: ``cpu``, or the name of the GPU.
        threads: CPU threads that PyTorch may use inside an operation.
        operations: Times by the geometry of the operation.
        fit: How they make up the time of the network.
        measured: Networks that were fitted to: widths, measured ms and fitted ms.
    """

    device: str
    threads: int
    operations: Mapping[str, OperationTimes]
    fit: Fit
    measured: Sequence[Mapping[str, object]] = ()


def time_operations(
    workload: Workload, full: Widths, device: torch.device, progress: Progress
) -> dict[str, OperationTimes]:
    """Return the times of every operation at many sizes, by its geometry.

    Args:
        workload: What the network does.
        full: Its widths.
        device: Where to run; random numbers stand in for tensors.
        progress: Told after each operation.
    """
    by_geometry = {geometry(one, full): one for one in workload.operations}
    plans = {key: _Plan.of(operation, full) for key, operation in by_geometry.items()}
    visits = list(product(range(_PASSES), plans.items()))
    for done, (number, (key, plan)) in enumerate(visits, start=1):
        # a load on the machine may last for the whole of one visit: each point gets several
        plan.visit_(by_geometry[key], device, doubtful=number >= _PASSES - _CHECKS)
        progress(done, len(visits), {})
    return {key: plan.times() for key, plan in plans.items()}


def fitted_table(
    workload: Workload,
    operations: Mapping[str, OperationTimes],
    networks: Sequence[tuple[Widths, float]],
    device: torch.device,
) -> LatencyTable:
    """Return a table that is fitted to the measured times of whole networks.

    Args:
        workload: What the network does.
        operations: What ``time_operations`` returned.
        networks: Widths and measured milliseconds; the full widths first.
        device: Where both were measured.
    """
    alone = Fit(1.0, 0.0, 0.0)
    table = LatencyTable(device_name(device), torch.get_num_threads(), operations, alone)
    model = latency_model(table, workload, networks[0][0])
    vectors = np.array([[widths[n] for n in model.group_names] for widths, _ in networks])
    measured = np.array([ms for _, ms in networks])
    fit = fit_times(model.operations_ms(vectors), workload.traffic.of_vectors(vectors), measured)
    table = LatencyTable(table.device, table.threads, operations, fit)
    fitted = latency_model(table, workload, networks[0][0]).of_vectors(vectors)
    rows = [
        {"widths": dict(widths), "measured_ms": ms, "fitted_ms": float(value)}
        for (widths, ms), value in zip(networks, fitted, strict=True)
    ]
    return LatencyTable(table.device, table.threads, operations, fit, rows)


def latency_model(table: LatencyTable, workload: Workload, full: Widths) -> LatencyModel:
    """Return the predicted time of one pass as a function of the widths.

    Raises:
        SettingError: If the table was built for another network or input size.
    """
    operations: list[tuple[Sequence[Extent], OperationTimes]] = []
    for operation in workload.operations:
        key = geometry(operation, full)
        if key not in table.operations:
            message = f"the latency table lacks {key} of {operation.owner!r}: "
            message += "build it for this network and input size"
            raise SettingError(message)
        operations.append((tuple(operation.axes.values()), table.operations[key]))
    return LatencyModel(workload.traffic.group_names, operations, workload.traffic, table.fit)


def check_place(table: LatencyTable, device: torch.device) -> None:
    """Raise unless a table was built on this device with as many threads.

    Raises:
        SettingError: Naming both.
    """
    here = (device_name(device), torch.get_num_threads())
    if (table.device, table.threads) != here:
        message = (
            f"the latency table was built on {table.device} with {table.threads} threads, "
            f"this is {here[0]} with {here[1]}: build it again here"
        )
        raise SettingError(message)


def save_table(table: LatencyTable, file: Path) -> None:
    """Write a table as JSON."""
    content = {
        "format": _FORMAT,
        "device": table.device,
        "threads": table.threads,
        "fit": {
            "operations": table.fit.operations,
            "fixed_ms": table.fit.fixed_ms,
            "ms_per_element": table.fit.ms_per_element,
        },
        "measured": list(table.measured),
        "operations": {key: plain_times(times) for key, times in table.operations.items()},
    }
    write_atomic(file, json.dumps(content, indent=1) + "\n")


def load_table(file: Path) -> LatencyTable:
    """Return the table in a file.

    Raises:
        DataError: If there is none.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["format"] != _FORMAT:
            message = f"{file} has format {found['format']}, expected {_FORMAT}: build it again"
            raise DataError(message)
        return LatencyTable(
            device=found["device"],
            threads=found["threads"],
            operations={key: read_times(times) for key, times in found["operations"].items()},
            fit=Fit(**found["fit"]),
            measured=found["measured"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = f"{file} is no latency table: {first_line(error)}: "
        message += "write one by coa-compress profile --table"
        raise DataError(message) from None


def geometry(operation: Operation, full: Widths) -> str:
    """Return what the time of an operation depends on, as one line of text.

    >>> from coa_compress.artifacts import Operand
    >>> operation = Operation("stem", "linear", torch.ops.aten.linear.default,
    ...     {"input": Operand((5, "a"), torch.float32), "weight": Operand((8, "a"), torch.float32)},
    ...     {"a": Extent(0, {"g": 1})})
    >>> geometry(operation, {"g": 16})
    'linear input=5xa:float32 weight=8xa:float32 | a=16'
    """
    parts = [f"{name}={_plain(value)}" for name, value in operation.arguments.items()]
    sizes = [f"{name}={extent(full)}" for name, extent in operation.axes.items()]
    return " ".join([operation.kind, *parts, "|", *sizes])


def _plain(value: object) -> str:
    if isinstance(value, Operand):
        return "x".join(str(size) for size in value.shape) + f":{str(value.dtype).split('.')[-1]}"
    if isinstance(value, list | tuple):
        return f"({','.join(_plain(item) for item in value)})"
    return str(value)


@dataclass(slots=True, eq=False)
class _Plan:
    """The points of one operation, and the least time of each so far."""

    whole: Sizes
    axes: list[list[int]]
    corners: list[list[int]]
    known: dict[Sizes, float]

    @classmethod
    def of(cls, operation: Operation, full: Widths) -> "_Plan":
        axes = [_axis_sizes(extent, full) for extent in operation.axes.values()]
        corners = [_spaced(sizes, _MOST_CORNERS if len(axes) < 3 else 3) for sizes in axes]
        whole = tuple(sizes[-1] for sizes in axes)
        plan = cls(whole, axes, corners, {})
        along = (point for number in range(len(axes)) for point in plan.sweep(number))
        plan.known = dict.fromkeys([*along, *product(*corners)], float("inf"))
        return plan

    def sweep(self, number: int) -> list[Sizes]:
        """Return the points along one axis while the others are full."""
        before, after = self.whole[:number], self.whole[number + 1 :]
        return [(*before, size, *after) for size in self.axes[number]]

    def visit_(self, operation: Operation, device: torch.device, *, doubtful: bool) -> None:
        """Time every point again, or those that took longer than one that is larger."""
        for point in sorted(self.known):
            if not doubtful or self._is_doubtful(point):
                took = _operation_ms(operation, point, self.whole, device)
                self.known[point] = min(self.known[point], took)

    def _is_doubtful(self, point: Sizes) -> bool:
        larger = (
            ms
            for other, ms in self.known.items()
            if other != point and all(a >= b for a, b in zip(other, point, strict=True))
        )
        return self.known[point] > min(larger, default=float("inf"))

    def times(self) -> OperationTimes:
        """Return what was measured."""
        grid = np.array([self.known[point] for point in product(*self.corners)])
        return OperationTimes(
            sizes=tuple(np.array(sizes, dtype=np.float64) for sizes in self.axes),
            sweeps=tuple(
                np.array([self.known[point] for point in self.sweep(number)])
                for number in range(len(self.axes))
            ),
            corners=tuple(np.array(sizes, dtype=np.float64) for sizes in self.corners),
            grid=grid.reshape([len(sizes) for sizes in self.corners]),
        )


def _axis_sizes(extent: Extent, full: Widths) -> list[int]:
    """Return ascending sizes that an axis can have, up to the full one."""
    most = max(full[name] for name in extent.per_channel)
    step = _STEP if most > _STEP else max(1, most // 4)
    step *= -(-most // (step * _MOST_SIZES))
    kept = [*range(step, most, step), most]
    sizes = {
        extent.fixed + sum(n * min(w, full[name]) for name, n in extent.per_channel.items())
        for w in kept
    }
    return sorted(sizes)


def _spaced(sizes: list[int], count: int) -> list[int]:
    picked = np.unique(np.linspace(0, len(sizes) - 1, min(count, len(sizes))).round().astype(int))
    return [sizes[index] for index in picked]


def _operation_ms(operation: Operation, sizes: Sizes, whole: Sizes, device: torch.device) -> float:
    """Return the least time of some runs: what disturbs a run only adds to it."""
    at = dict(zip(operation.axes, sizes, strict=True))
    given = {n: _made(value, at, device) for n, value in operation.arguments.items()}
    if operation.grouped is not None:
        full = dict(zip(operation.axes, whole, strict=True))[operation.grouped]
        given["groups"] = max(1, int(str(given["groups"])) * at[operation.grouped] // full)
    with torch.no_grad():
        runs = _runs(lambda: operation.target(**given), device)
        return min(runs)


def _runs(call: Callable[[], object], device: torch.device) -> Iterator[float]:
    run_ms(call, device)
    began = time.perf_counter()
    for number in range(_MOST_RUNS):
        yield run_ms(call, device)
        enough = 1000 * (time.perf_counter() - began) > _ENOUGH_MS
        if number + 1 >= _LEAST_RUNS and enough:
            return


def _made(value: object, at: Mapping[str, int], device: torch.device) -> object:
    if isinstance(value, Operand):
        shape = [size if isinstance(size, int) else at[size] for size in value.shape]
        return _random(shape, value.dtype, device)
    if isinstance(value, tuple) and any(isinstance(item, Operand) for item in value):
        return [_made(item, at, device) for item in value]
    return value


def _random(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    if dtype.is_floating_point or dtype.is_complex:
        return torch.rand(tuple(shape), dtype=dtype, device=device) - 0.5
    return torch.zeros(tuple(shape), dtype=dtype, device=device)

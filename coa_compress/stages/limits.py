"""What the allocate stage measures: a table of the device, and the students it builds."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from coa_compress.artifacts import Allocation, Budget, MeasuredLimit, Workload
from coa_compress.copying import placed
from coa_compress.costs import CostModel, Widths
from coa_compress.profiling.latency_table import (
    LatencyTable,
    Progress,
    check_place,
    fitted_table,
    latency_model,
    load_table,
    time_operations,
)
from coa_compress.profiling.memory import peak_memory_mb
from coa_compress.profiling.timing import (
    PairedLatency,
    compare_latency,
    device_name,
    measure_latency_ms,
)
from coa_compress.protocols import Structure

_PARTS = (1.0, 0.75, 0.5, 0.25)
"""Widths of the networks that the table is fitted to, as parts of the full ones."""
_FIT_ROUNDS = 11


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where limits hold: a teacher, on a device, at an input size.

    Args:
        structure: The channel groups of the teacher.
        teacher: The network, on the device.
        example: The input, on the device.
    """

    structure: Structure
    teacher: nn.Module
    example: Tensor

    @property
    def full(self) -> Widths:
        """The widths of the teacher."""
        return {group.name: group.n_channels for group in self.structure.groups}


def build_table(place: Place, progress: Progress) -> LatencyTable:
    """Return the latency table of a network on a device; takes about a minute.

    Every operation is timed alone at many widths. Then students of some even widths are built and
    timed in turns, and what single operations do not explain is fitted to them.

    Args:
        place: The network, the input and the device.
        progress: Told how far it is.
    """
    workload, device = place.structure.workload(), place.example.device
    operations = time_operations(workload, place.full, device, progress)
    students: dict[str, nn.Module] = {}
    widths: dict[str, Widths] = {}
    for part in _PARTS:
        kept = {n: torch.arange(max(1, math.ceil(part * w))) for n, w in place.full.items()}
        widths[f"{part}"] = {name: len(channels) for name, channels in kept.items()}
        students[f"{part}"] = placed(place.structure.cut(kept).student, device)
    timed = measure_latency_ms(students, place.example, rounds=_FIT_ROUNDS)
    networks = [(widths[name], latency.median_ms) for name, latency in timed.items()]
    return fitted_table(workload, operations, networks, device)


def limited_costs(
    place: Place, budget: Budget, table_file: Path | None, progress: Progress
) -> CostModel:
    """Return the costs of a network with those that a budget limits, beside MACs and parameters.

    Args:
        place: The network, the input and the device.
        budget: Says what is limited.
        table_file: A latency table, or None to build one where latency is limited.
        progress: Told how far the table is.

    Raises:
        DataError: If the file is no latency table.
        SettingError: If the table is of another network, input size, device or thread count.
    """
    costs = place.structure.costs
    if not budget.limits_latency and not budget.limits_memory:
        return costs
    workload: Workload = place.structure.workload()
    if budget.limits_memory:
        costs = replace(costs, memory_bytes=workload.memory)
    if budget.limits_latency:
        table = build_table(place, progress) if table_file is None else load_table(table_file)
        check_place(table, place.example.device)
        costs = replace(costs, latency_ms=latency_model(table, workload, place.full))
    return costs


def measurer(
    place: Place, budget: Budget, costs: CostModel, rounds: int
) -> Callable[[Allocation], Mapping[str, MeasuredLimit]]:
    """Return what builds the student of an allocation and measures what the budget limits.

    Args:
        place: The teacher, the input and the device.
        budget: Says what is limited.
        costs: For the predictions, to be reported beside.
        rounds: Timed passes of teacher and student in turns; two such series are taken, and the
            one in which the student does worse counts.
    """
    memory_mb = peak_memory_mb(place.teacher, place.example) if budget.limits_memory else 0.0

    def measure(allocation: Allocation) -> Mapping[str, MeasuredLimit]:
        student = placed(place.structure.cut(allocation.kept).student, place.example.device)
        found: dict[str, MeasuredLimit] = {}
        if budget.limits_latency:
            series = [
                compare_latency(student, place.teacher, place.example, rounds=rounds)
                for _ in range(2)
            ]
            worse = max(series, key=lambda one: one.kept)
            found["latency"] = _latency_limit(worse, allocation, costs, place)
        if budget.limits_memory:
            found["memory"] = _memory_limit(student, memory_mb, allocation, costs, place)
        return found

    return measure


def _latency_limit(
    compared: PairedLatency, allocation: Allocation, costs: CostModel, place: Place
) -> MeasuredLimit:
    model = costs.latency_ms
    whole = 0.0
    if model is not None:
        whole = float(model.of_vectors(np.array([[place.full[n] for n in model.group_names]]))[0])
    return MeasuredLimit(
        kept=compared.kept,
        kept_p10=compared.kept_p10,
        kept_p90=compared.kept_p90,
        student=compared.first.median_ms,
        teacher=compared.second.median_ms,
        predicted=allocation.predicted["latency"] * whole,
        rounds=1,
        device=compared.first.device,
        threads=compared.first.threads,
    )


def _memory_limit(
    student: nn.Module, teacher_mb: float, allocation: Allocation, costs: CostModel, place: Place
) -> MeasuredLimit:
    measured = peak_memory_mb(student, place.example)
    predicted = 0.0 if costs.memory_bytes is None else costs.memory_bytes(allocation.widths) / 1e6
    kept = measured / teacher_mb
    return MeasuredLimit(
        kept=kept,
        kept_p10=kept,
        kept_p90=kept,
        student=measured,
        teacher=teacher_mb,
        predicted=predicted,
        rounds=1,
        device=device_name(place.example.device),
        threads=torch.get_num_threads(),
    )

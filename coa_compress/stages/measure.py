"""Measure teacher, student and adapted student side by side."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from coa_compress.artifacts import Picture
from coa_compress.copying import placed
from coa_compress.profiling.counting import count_params, file_bytes, macs_by_module
from coa_compress.profiling.cross_check import cross_check_macs, explain_difference
from coa_compress.profiling.layer_times import measure_layer_times
from coa_compress.profiling.memory import peak_memory_mb
from coa_compress.profiling.timing import measure_latency_ms
from coa_compress.protocols import Showable
from coa_compress.report.layers import describe_layers
from coa_compress.settings import PositiveInt, check_ranges
from coa_compress.stages.files import load_pictures, read_json, save_pictures, write_json
from coa_compress.stages.state import Context, State


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureSettings:
    """How much is measured.

    Args:
        latency_rounds: Timed forward passes of each network, interleaved; the layers of teacher
            and student are timed in as many, for about two seconds at most.
    """

    latency_rounds: PositiveInt = 20

    def __post_init__(self) -> None:
        check_ranges(self)


class Measure:
    """From the networks of a run to the figures and pictures of its report."""

    name = "measure"
    Settings = MeasureSettings
    needs: tuple[str, ...] = ()

    def __init__(self, settings: MeasureSettings) -> None:
        self.settings = settings

    def check(self, state: State, context: Context) -> None:
        """Do nothing: whatever comes before decides."""

    def run(self, state: State, context: Context) -> State:
        """Return the state with measurements and pictures."""
        networks = {name: placed(net, context.device) for name, net in networks_of(state).items()}
        example = context.example.to(context.device)
        steps = len(networks) + 2
        macs = _macs_by_module(networks, example)
        latencies = measure_latency_ms(networks, example, rounds=self.settings.latency_rounds)
        layer_times = self._layer_times(networks, example, macs)
        context.progress(1, steps, {})
        measurements: dict[str, dict[str, Any]] = {}
        for done, (role, network) in enumerate(networks.items(), start=2):
            latency = latencies[role]
            same = _same_network(role, networks)
            measured = (
                {k: measurements[same][k] for k in measurements[same] if "latency" not in k}
                if same
                else {**_costs(network, example, macs[role]), **context.task.measure(network)}
            )
            measurements[role] = {
                **measured,
                "latency_ms": latency.median_ms,
                "latency_p10_ms": latency.p10_ms,
                "latency_p90_ms": latency.p90_ms,
            }
            context.progress(done, steps, {})
        pictures: tuple[Picture, ...] = ()
        if isinstance(context.task, Showable):
            pictures = tuple(context.task.pictures(_distinct(networks)))
        context.progress(steps, steps, {})
        teacher = measurements["teacher"]
        checks = {name: teacher[name] for name in ("macs_fvcore", "macs_thop")}
        notes = (*state.notes, explain_difference(int(teacher["macs"]), checks))
        return replace(
            state,
            measurements=measurements,
            layer_times=layer_times,
            pictures=pictures,
            notes=notes,
        )

    def save(self, state: State, folder: Path) -> None:
        """Write the measurements and the pictures."""
        content = {
            "measurements": state.measurements,
            "layer_times": state.layer_times,
            "notes": list(state.notes),
        }
        save_pictures(folder, tuple(state.pictures))
        write_json(folder / "measurements.json", content)

    def load(self, state: State, folder: Path) -> State:
        """Return the state with the measurements of the files."""
        found = read_json(folder / "measurements.json")
        return replace(
            state,
            measurements=found["measurements"],
            layer_times=found.get("layer_times"),
            pictures=load_pictures(folder),
            notes=tuple(found["notes"]),
        )

    def _layer_times(
        self,
        networks: Mapping[str, nn.Module],
        example: Tensor,
        macs: Mapping[str, Mapping[str, int]],
    ) -> dict[str, Any] | None:
        """Return where the time of teacher and student goes; None without a student."""
        compared = {role: networks[role] for role in ("teacher", "student") if role in networks}
        if len(compared) < 2:
            return None
        times = measure_layer_times(compared, example, rounds=self.settings.latency_rounds)
        return describe_layers(times, macs)


def networks_of(state: State) -> dict[str, nn.Module]:
    """Return the networks that a run has made, by role, in order."""
    found = {"teacher": state.teacher, "student": state.student, "adapted": state.adapted}
    return {role: network for role, network in found.items() if network is not None}


def _macs_by_module(networks: dict[str, nn.Module], example: Tensor) -> dict[str, dict[str, int]]:
    return {
        role: macs_by_module(network, example)
        for role, network in networks.items()
        if _same_network(role, networks) is None
    }


def _costs(network: nn.Module, example: Tensor, macs: Mapping[str, int]) -> dict[str, Any]:
    return {
        "params": count_params(network),
        "macs": sum(macs.values()),
        **cross_check_macs(network, example),
        "peak_memory_mb": peak_memory_mb(network, example),
        "file_bytes": file_bytes(network),
    }


def _same_network(role: str, networks: dict[str, nn.Module]) -> str | None:
    """Return the earlier role that holds the very same weights: a refused adaptation."""
    if role == "adapted" and "student" in networks:
        ours, theirs = networks["adapted"].state_dict(), networks["student"].state_dict()
        if all(ours[name].equal(theirs[name]) for name in ours):
            return "student"
    return None


def _distinct(networks: dict[str, nn.Module]) -> dict[str, nn.Module]:
    return {r: n for r, n in networks.items() if _same_network(r, networks) is None}

"""How long the built-in teacher and its students take, side by side on one device.

    python -m benchmarks.latency [--device cuda] [--keep 0.5 0.25 0.125] [--size 256x256 ...]
        [--dtype fp32 fp16] [--mode eager compiled graph] [--rounds 50] [--quick] [--json FILE]

Students are cut to a fraction of the MACs and not trained: time does not depend on the values of
weights. Networks take turns, pass by pass, so each speed-up is a median of quotients of one round.
Rows that the file has already, of the same device, are not measured again. ``--quick`` is a dry
run on small images.
"""

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.records import markdown_table, new_record, read_record, write_record
from coa_compress.allocation.allocate import make_allocation
from coa_compress.artifacts import Budget
from coa_compress.errors import SettingError, is_out_of_memory
from coa_compress.profiling.counting import count_macs, count_params
from coa_compress.profiling.execution import Dtype, Execution, forget_compiled, prepared
from coa_compress.profiling.memory import peak_memory_mb
from coa_compress.profiling.profile import OUT_OF_MEMORY, free_memory
from coa_compress.profiling.timing import quotients, summarized, times_in_turns_ms
from coa_compress.provenance import best_device, commit, device_title, usable_device
from coa_compress.scoring.catalog import SCORERS
from coa_compress.sources import open_source, parse_size
from coa_compress.stages.score import squared_error
from coa_compress.structure.analysis import analyze

_JSON = Path(__file__).resolve().parent / "results" / "latency.json"
_SIZES = ("256x256", "1080x1920", "2160x3840")
MODES = {
    "eager": Execution(),
    "compiled": Execution(compiled=True),
    "graph": Execution(cuda_graph=True),
}
"""Ways to run a network, by name."""
_KEY = ("device_name", "threads", "size", "dtype", "mode", "network")


@dataclass(frozen=True, slots=True)
class Case:
    """One input size and one way to run all networks.

    Args:
        size: Height and width, as text.
        dtype: Number format.
        mode: A name of ``MODES``.
    """

    size: str
    dtype: Dtype
    mode: str

    @property
    def execution(self) -> Execution:
        """Return how networks are run; on a GPU half precision wants the channels last."""
        way = MODES[self.mode]
        return Execution(
            dtype=self.dtype,
            channels_last=self.dtype in ("fp16", "bf16"),
            compiled=way.compiled,
            cuda_graph=way.cuda_graph,
        )


def networks(keeps: Sequence[float]) -> dict[str, nn.Module]:
    """Return the built-in teacher and a student for each fraction of its MACs, on the CPU.

    Args:
        keeps: Fractions in (0, 1).
    """
    source = open_source("builtin:teacher", size=(256, 256))
    structure = analyze(source.model, source.example)
    scores = SCORERS.get("magnitude")(source.model, structure.groups, [], squared_error)
    found = {"teacher": source.model}
    for keep in keeps:
        budget = Budget(keep_macs=keep, round_to=8, min_channels=8)
        allocation = make_allocation(structure.groups, scores, structure.costs, budget)
        found[f"student, {keep:.1%} of the MACs"] = structure.cut(allocation.kept).student.eval()
    return found


def measured(
    models: Mapping[str, nn.Module], case: Case, device: torch.device, *, rounds: int
) -> list[dict[str, Any]]:
    """Return a row for each network; where they do not fit into memory, with a note alone.

    Args:
        models: Networks by name, the teacher first.
        case: At what size, and how to run them.
        device: Where.
        rounds: Timed rounds.
    """
    try:
        return _rows(models, case, device, rounds)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    free_memory(device)
    return [{**_about(case, name, device), "note": OUT_OF_MEMORY} for name in models]


def _rows(
    models: Mapping[str, nn.Module], case: Case, device: torch.device, rounds: int
) -> list[dict[str, Any]]:
    height, width = parse_size(case.size)
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0)).to(device)
    memory, timed = {}, {}
    if case.execution.compiled:
        forget_compiled()
    with ExitStack() as stack:
        given = image
        for name, model in models.items():
            ready = stack.enter_context(prepared(model.to(device), image, case.execution))
            followed = ready.compiled if device.type == "cuda" else ready.plain
            memory[name] = peak_memory_mb(followed, ready.example)
            timed[name], given = ready.timed, ready.example
        times = times_in_turns_ms(timed, given, rounds=rounds, max_seconds=60)
    teacher = times[next(iter(models))]
    return [
        {**_about(case, name, device), **_figures(teacher, times[name], device, memory[name])}
        for name in models
    ]


def _about(case: Case, name: str, device: torch.device) -> dict[str, Any]:
    return {
        "network": name,
        "size": case.size,
        "dtype": case.dtype,
        "mode": case.mode,
        "channels_last": case.execution.channels_last,
        "device_name": device_title(str(device)),
        "threads": torch.get_num_threads(),
        "commit": commit(),
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _figures(
    teacher: Sequence[float], times: Sequence[float], device: torch.device, memory_mb: float
) -> dict[str, Any]:
    latency = summarized(times, device)
    p10, median, p90 = quotients(teacher, times)
    return {
        "median_ms": latency.median_ms,
        "p10_ms": latency.p10_ms,
        "p90_ms": latency.p90_ms,
        "rounds": latency.rounds,
        "speedup": median,
        "speedup_p10": p10,
        "speedup_p90": p90,
        "peak_memory_mb": memory_mb,
    }


def main(given: Sequence[str] | None = None) -> None:
    """Measure what is missing and write the record.

    Args:
        given: What follows the name of the module; None for the arguments of this process.

    Raises:
        SettingError: If the device cannot run a network as asked for.
    """
    arguments = _parsed(given)
    device = torch.device(usable_device(arguments.device))
    cases = [Case(*one) for one in product(arguments.size, arguments.dtype, arguments.mode)]
    for case in cases:
        case.execution.check(device)
    record = read_record(arguments.json) if arguments.json.exists() else {"rows": []}
    rows = list(record["rows"])
    models = networks(arguments.keep)
    costs = _costs(models)
    for case in cases:
        missing = _missing(rows, case, models, device)
        if missing:
            # the teacher is timed again with them: a speed-up is of one and the same series
            chosen = {name: models[name] for name in dict.fromkeys([next(iter(models)), *missing])}
            began = time.perf_counter()
            found = measured(chosen, case, device, rounds=arguments.rounds)
            rows += [{**row, **costs[row["network"]]} for row in found if row["network"] in missing]
            write_record(arguments.json, {**new_record("latency", given), "seed": 0, "rows": rows})
            print(f"{case.size} {case.dtype} {case.mode}: {time.perf_counter() - began:.1f} s")
    print(render(read_record(arguments.json)))


def render(record: Mapping[str, Any]) -> str:
    """Return the rows of a record as a Markdown table for each device.

    Args:
        record: What ``main`` wrote.
    """
    head = ["network", "input", "format", "run", "ms (p10-p90)", "speed-up (p10-p90)", "peak MB"]
    tables = []
    for device in dict.fromkeys(row["device_name"] for row in record["rows"]):
        rows = [row for row in record["rows"] if row["device_name"] == device]
        threads = ", ".join(sorted({str(row["threads"]) for row in rows}))
        rounds = sorted({row["rounds"] for row in rows if "rounds" in row})
        passes = f"{' to '.join(map(str, rounds[:1] + rounds[1:][-1:]))} rounds"
        tables.append(
            f"{markdown_table(head, list(_lines(rows)))}\n\nOn {device}, {threads} CPU threads; "
            f"{passes}, networks in turns. Speed-up: the teacher's time by that of the network, "
            "the median of quotients of one round. Half precision has the channels last. "
            f"Made by `{record['command']}`."
        )
    return "\n\n".join(tables)


def _lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    for row in rows:
        about = [row["network"], row["size"], row["dtype"], row["mode"]]
        if "note" in row:
            yield [*about, row["note"], "", ""]
            continue
        yield [
            *about,
            f"{row['median_ms']:.2f} ({row['p10_ms']:.2f}-{row['p90_ms']:.2f})",
            f"{row['speedup']:.2f} ({row['speedup_p10']:.2f}-{row['speedup_p90']:.2f})",
            f"{row['peak_memory_mb']:.0f}",
        ]


def _costs(models: Mapping[str, nn.Module]) -> dict[str, dict[str, int]]:
    image: Tensor = torch.zeros(1, 3, 256, 256)
    return {
        name: {"params": count_params(model), "macs_at_256x256": count_macs(model, image)}
        for name, model in models.items()
    }


def _missing(
    rows: Sequence[Mapping[str, Any]],
    case: Case,
    models: Mapping[str, nn.Module],
    device: torch.device,
) -> list[str]:
    known = {tuple(row[field] for field in _KEY) for row in rows}
    about = {name: _about(case, name, device) for name in models}
    return [name for name in models if tuple(about[name][field] for field in _KEY) not in known]


def _parsed(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.latency", description=__doc__)
    parser.add_argument("--device", default=best_device())
    parser.add_argument("--keep", type=float, nargs="+", default=[0.5, 0.25, 0.125])
    parser.add_argument("--size", nargs="+", default=list(_SIZES), help="height x width")
    formats = ["fp32", "tf32", "fp16", "bf16"]
    parser.add_argument("--dtype", nargs="+", choices=formats, default=["fp32", "fp16"])
    parser.add_argument("--mode", nargs="+", choices=list(MODES), help="else eager and compiled")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--json", type=Path, default=_JSON)
    parser.add_argument("--quick", action="store_true", help="a dry run: small images, few rounds")
    arguments = parser.parse_args(given)
    if arguments.quick:
        arguments.size, arguments.rounds, arguments.keep = ["64x64", "96x128"], 3, [0.25]
        arguments.dtype = ["fp32", "bf16"]
        arguments.mode = arguments.mode or ["eager"]
        if arguments.json == _JSON:
            arguments.json = _JSON.with_name("latency-quick.json")
    arguments.mode = arguments.mode or ["eager", "compiled"]
    if not all(0.0 < keep < 1.0 for keep in arguments.keep):
        message = f"--keep must be fractions in (0, 1), got {arguments.keep}"
        raise SettingError(message)
    return arguments


if __name__ == "__main__":
    main()

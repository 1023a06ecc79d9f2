"""How long the engine takes, what the training loop costs, and whether data keep up with it.

    python -m benchmarks.speed [--quick] [--parts engine loop data] [--repeats 3] [--threads 2]
        [--steps 40] [--keep 0.25] [--device cpu] [--json FILE]

Engine: seconds of analysis, scoring, allocation, cut and refit of the built-in teacher. Loop: time
of one step of ``fit`` by that of a bare PyTorch loop that does the same maths, step by step in
turns; both must end with the same weights. Data: crops a second by those that a step uses up.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from benchmarks.bare_loop import LOOP_BAR, WARMUP, loop_row
from benchmarks.data_rate import images_per_s, needed_per_s
from benchmarks.records import markdown_table, new_record, write_record
from coa_compress.copying import copied
from coa_compress.protocols import SilentObserver
from coa_compress.provenance import best_device, machine, usable_device
from coa_compress.sources import Source, open_source
from coa_compress.stages.allocate import Allocate, AllocateSettings
from coa_compress.stages.prune import Prune, PruneSettings
from coa_compress.stages.refit import Refit, RefitSettings
from coa_compress.stages.score import Score, ScoreSettings
from coa_compress.stages.state import Context, State
from coa_compress.structure.analysis import analyze
from coa_compress.structure.exported import ExportedStructure
from coa_compress.tasks.dehazing.settings import DehazingSettings
from coa_compress.tasks.dehazing.task import DehazingTask
from coa_compress.training.settings import TrainingSettings

T = TypeVar("T")

_JSON = Path(__file__).resolve().parent / "results" / "speed.json"
_PARTS = ("engine", "loop", "data")
_SEED = 0
ENGINE_BAR_S = 60.0
"""Analysis to refit of the built-in teacher should take no longer, on two cores."""


def engine_seconds(source: Source, *, keep: float, device: str) -> tuple[dict[str, float], State]:
    """Return the seconds of each stage, in order, and the state after the last one.

    Args:
        source: The teacher and its task; calibration crops are drawn where a stage asks for them.
        keep: Fraction of the MACs that the student keeps.
        device: Where to score and refit.
    """
    seconds: dict[str, float] = {}
    apart = copied(source.model)  # stages move the teacher to their device
    structure = _timed(seconds, "analyze", lambda: analyze(apart, source.example))

    def known(_model: nn.Module) -> ExportedStructure:
        return structure

    context = Context(
        task=source.task,
        seed=_SEED,
        device=device,
        observer=SilentObserver(),
        structure=known,
        example=source.example,
    )
    state = State(teacher=source.model)
    stages = (
        Score(ScoreSettings()),
        Allocate(AllocateSettings(keep_macs=keep)),
        Prune(PruneSettings()),
        Refit(RefitSettings()),
    )
    for stage in stages:
        state = _timed(seconds, stage.name, partial(stage.run, state, context))
    return seconds, state


def _timed(seconds: dict[str, float], name: str, work: Callable[[], T]) -> T:
    began = time.perf_counter()
    result = work()
    seconds[name] = time.perf_counter() - began
    return result


def engine_rows(runs: Sequence[Mapping[str, float]]) -> list[dict[str, Any]]:
    """Return median, least and most seconds of each stage, and of all of them together.

    >>> engine_rows([{"analyze": 1.0, "score": 2.0}, {"analyze": 3.0, "score": 2.0}])[-1]
    {'stage': 'together', 'seconds': 4.0, 'least': 3.0, 'most': 5.0}
    """
    totals = [{**run, "together": sum(run.values())} for run in runs]
    return [
        {
            "stage": name,
            "seconds": statistics.median(run[name] for run in totals),
            "least": min(run[name] for run in totals),
            "most": max(run[name] for run in totals),
        }
        for name in totals[0]
    ]


def data_rows(
    *, crop: int, batch: int, batches: int, workers: Sequence[int]
) -> list[dict[str, Any]]:
    """Return the crops a second that procedural scenes give, and those that a step uses up.

    Args:
        crop: Side of the crops in pixels.
        batch: Crops in one batch.
        batches: How many are timed.
        workers: Numbers of processes that draw ahead.
    """
    task = DehazingTask(DehazingSettings(train="builtin", crop=crop))
    need = needed_per_s(task, batch_size=batch, steps=batches)
    return [
        {
            "workers": count,
            "crop": crop,
            "batch": batch,
            "images_per_s": images_per_s(task, workers=count, batch_size=batch, batches=batches),
            "needed_per_s": need,
        }
        for count in workers
    ]


def main(given: Sequence[str] | None = None) -> None:
    """Measure and write the record.

    Args:
        given: What follows the name of the module; None for the arguments of this process.
    """
    arguments = _parsed(given)
    before = torch.get_num_threads()
    torch.set_num_threads(arguments.threads)
    try:
        record = {
            **new_record("speed", given),
            **machine(arguments.device),
            "seeds": [_SEED],
            "keep": arguments.keep,
            **_measured(arguments),
        }
    finally:
        torch.set_num_threads(before)
    write_record(arguments.json, record)
    print(render(record))


def _measured(arguments: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {}
    size = (arguments.size, arguments.size)
    source = open_source("builtin:teacher", size=size)
    student = None
    if "engine" in arguments.parts:
        runs = []
        for _ in range(arguments.repeats):
            source = open_source("builtin:teacher", size=size)  # a new one has drawn no images
            seconds, state = engine_seconds(source, keep=arguments.keep, device=arguments.device)
            runs.append(seconds)
            student = state.student
            print({name: round(value, 2) for name, value in seconds.items()}, flush=True)
        found["engine"] = {"runs": runs, "rows": engine_rows(runs)}
    if "loop" in arguments.parts:
        networks = {"teacher": source.model}
        if student is not None:
            networks[f"student, {arguments.keep:.1%} of the MACs"] = student
        found["loop"] = [_loop(name, model, arguments) for name, model in networks.items()]
    if "data" in arguments.parts:
        found["data"] = data_rows(
            crop=arguments.crop,
            batch=arguments.batch,
            batches=arguments.batches,
            workers=arguments.workers,
        )
    return found


def _loop(name: str, model: nn.Module, arguments: argparse.Namespace) -> dict[str, Any]:
    settings = TrainingSettings(
        steps=arguments.steps + WARMUP + 1,
        batch_size=arguments.batch,
        precision="fp32",
        cpu_threads=arguments.threads,
    )
    row = loop_row(
        name,
        model,
        crop=arguments.crop,
        batch=arguments.batch,
        settings=settings,
        device=arguments.device,
    )
    print(row, flush=True)
    return row


def render(record: Mapping[str, Any]) -> str:
    """Return the parts of a record as Markdown tables.

    Args:
        record: What ``main`` wrote.
    """
    parts = (("engine", _engine_table), ("loop", _loop_table), ("data", _data_table))
    tables = [table(record[name]) for name, table in parts if name in record]
    where = f"{record['device_name']}, {record['cores']} cores, {record['threads']} threads"
    return "\n\n".join([*tables, f"On {where}. Made by `{record['command']}`."])


def _engine_table(part: Mapping[str, Any]) -> str:
    rows = [
        [row["stage"], f"{row['seconds']:.1f}", f"{row['least']:.1f}-{row['most']:.1f}"]
        for row in part["rows"]
    ]
    table = markdown_table(["stage", "seconds", "least-most"], rows)
    return f"{table}\n\nWanted: at most {ENGINE_BAR_S:.0f} s together."


def _loop_table(part: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            row["network"],
            f"{row['batch']} x {row['crop']} x {row['crop']}",
            f"{row['fit_ms']:.1f}",
            f"{row['bare_ms']:.1f}",
            f"{row['quotient']:.3f} ({row['quotient_p10']:.3f}-{row['quotient_p90']:.3f})",
            f"{row['weights_differ_by']:.0e}",
        ]
        for row in part
    ]
    head = ["network", "batch", "ms a step", "bare loop", "quotient (p10-p90)", "weights apart"]
    return f"{markdown_table(head, rows)}\n\nWanted: a quotient of at most {LOOP_BAR:.2f}."


def _data_table(part: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            str(row["workers"]),
            f"{row['images_per_s']:.0f}",
            f"{row['needed_per_s']:.0f}",
            f"{row['images_per_s'] / row['needed_per_s']:.1f}",
        ]
        for row in part
    ]
    return markdown_table(["workers", "crops a second", "a step's need", "over need"], rows)


def _parsed(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.speed", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=_PARTS, default=list(_PARTS))
    parser.add_argument("--repeats", type=int, default=3, help="of the engine")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=40, help="timed steps of each loop")
    parser.add_argument("--keep", type=float, default=0.25)
    parser.add_argument("--size", type=int, default=256, help="at which MACs are counted")
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--batches", type=int, default=12, help="of the data pipeline")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--device", default=best_device())
    parser.add_argument("--json", type=Path, default=_JSON)
    parser.add_argument("--quick", action="store_true", help="a dry run: small and few")
    arguments = parser.parse_args(given)
    usable_device(arguments.device)
    if arguments.quick:
        arguments.repeats, arguments.steps, arguments.batches = 1, 3, 2
        arguments.size, arguments.crop, arguments.batch, arguments.workers = 64, 32, 2, [0]
        if arguments.json == _JSON:
            arguments.json = _JSON.with_name("speed-quick.json")
    return arguments


if __name__ == "__main__":
    main()

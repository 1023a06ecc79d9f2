"""Measure what a student keeps when a part of the teacher's latency, memory or MACs is asked for.

    python -m benchmarks.budgets [--models builtin:teacher package.module:factory ...]
        [--size 256x256] [--threads 1] [--keep 0.5] [--rounds 15] [--round-to 8] [--quick]
        [--json FILE]

Each row is one budget on one network: what was asked, and what the built student was measured to
keep of the latency (median and spread over passes in turns with the teacher, in a series that the
budget did not see), of the peak memory, of MACs and of parameters. Rows that the file has already
are not measured again.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.records import markdown_table, new_record, read_record, write_record
from coa_compress.errors import BudgetError
from coa_compress.profiling.memory import peak_memory_mb
from coa_compress.profiling.timing import compare_latency
from coa_compress.protocols import SilentObserver
from coa_compress.scoring.catalog import SCORERS
from coa_compress.sources import Source, open_source, parse_size
from coa_compress.stages.allocate import Allocate, AllocateSettings
from coa_compress.stages.score import ScoreSettings, squared_error
from coa_compress.stages.state import Context, State
from coa_compress.structure.analysis import analyze

_JSON = Path(__file__).resolve().parent / "results" / "budgets.json"


def main(given: Sequence[str] | None = None) -> None:
    """Measure what is missing and write the record.

    Args:
        given: What follows the name of the module; None for the arguments of this process.
    """
    arguments = _parsed(given)
    torch.set_num_threads(arguments.threads)
    record = read_record(arguments.json) if arguments.json.exists() else None
    rows: list[dict[str, Any]] = [] if record is None else list(record["rows"])
    for name in arguments.models:
        source = open_source(name, size=parse_size(arguments.size))
        missing = [
            kind for kind in ("latency", "memory", "macs") if not _has(rows, name, kind, arguments)
        ]
        if missing:
            run = _Run(source, arguments)
            for kind in missing:
                rows.append(run.row(kind))
                write_record(arguments.json, {**new_record("budgets", given), "rows": rows})
    print(render(read_record(arguments.json)))


def render(record: Mapping[str, Any]) -> str:
    """Return the rows of a record as a Markdown table."""
    head = ["network", "threads", "asked", "latency kept (p10-p90)", "memory", "MACs", "parameters"]
    lines = []
    for row in record["rows"]:
        asked = f"{row['keep']:.0%} of {row['kind']}"
        if "error" in row:
            lines.append([row["model"], str(row["threads"]), asked, row["error"], "", "", ""])
            continue
        spread = f"{row['latency_kept_p10']:.1%}-{row['latency_kept_p90']:.1%}"
        lines.append(
            [
                row["model"],
                str(row["threads"]),
                asked,
                f"{row['latency_kept']:.1%} ({spread})",
                *(f"{row[f'{name}_kept']:.1%}" for name in ("memory", "macs", "params")),
            ]
        )
    machine = f"{record['device_name']}, {record['cores']} cores"
    return (
        f"{markdown_table(head, lines)}\n\nOn {machine}. Kept: of the teacher's; latency is the "
        "median of the quotients of passes in turns, in a series that the budget did not see, with "
        f"their 10th and 90th percentiles. Made by `{record['command']}`."
    )


class _Run:
    """One network, scored once and with one latency table."""

    def __init__(self, source: Source, arguments: argparse.Namespace) -> None:
        self.source, self.arguments = source, arguments
        self.structure = analyze(source.model, source.example)
        batches = list(source.task.calibration_batches())[: 1 if arguments.quick else 4]
        scorer = SCORERS.get(ScoreSettings().scorer)
        self.scores = scorer(source.model, self.structure.groups, batches, squared_error)

    def row(self, kind: str) -> dict[str, Any]:
        """Return what one budget was measured to give."""
        keep, began = self.arguments.keep, time.perf_counter()
        row: dict[str, Any] = {"model": self.source.name, "kind": kind, "keep": keep}
        row |= {"threads": torch.get_num_threads(), "size": self.arguments.size}
        step = self.arguments.round_to
        settings = AllocateSettings(
            latency_rounds=self.arguments.rounds,
            round_to=step,
            min_channels=step,
            **{f"keep_{kind}": keep},
        )
        context = Context(
            task=self.source.task,
            seed=0,
            device="cpu",
            observer=SilentObserver(),
            structure=lambda _: self.structure,
            example=self.source.example,
        )
        try:
            start = State(teacher=self.source.model, scores=self.scores)
            allocation = Allocate(settings).run(start, context).allocation
        except BudgetError as error:
            return {**row, "error": str(error)}
        if allocation is None:
            return row
        student = self.structure.cut(allocation.kept).student
        teacher, example = self.source.model, self.source.example
        fresh = compare_latency(student, teacher, example, rounds=2 * self.arguments.rounds)
        return {
            **row,
            "latency_kept": fresh.kept,
            "latency_kept_p10": fresh.kept_p10,
            "latency_kept_p90": fresh.kept_p90,
            "latency_ms": fresh.first.median_ms,
            "teacher_latency_ms": fresh.second.median_ms,
            "memory_kept": peak_memory_mb(student, example) / peak_memory_mb(teacher, example),
            "macs_kept": allocation.macs / allocation.teacher_macs,
            "params_kept": allocation.params / allocation.teacher_params,
            "gap": allocation.gap,
            "students_built": max((m.rounds for m in allocation.measured.values()), default=0),
            "seconds": time.perf_counter() - began,
        }


def _has(rows: list[dict[str, Any]], model: str, kind: str, arguments: argparse.Namespace) -> bool:
    wanted = (model, kind, arguments.keep, arguments.threads, arguments.size)
    return wanted in [(r["model"], r["kind"], r["keep"], r["threads"], r["size"]) for r in rows]


def _parsed(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.budgets", description=__doc__)
    parser.add_argument("--models", nargs="+", default=["builtin:teacher"])
    parser.add_argument("--size", default="256x256")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--round-to", type=int, default=8, help="widths are multiples of this")
    parser.add_argument("--json", type=Path, default=_JSON)
    parser.add_argument("--quick", action="store_true", help="small inputs, few passes")
    arguments = parser.parse_args(given)
    if arguments.quick:
        arguments.size, arguments.rounds = "64x64", 3
        if arguments.json == _JSON:
            arguments.json = _JSON.with_name("budgets-quick.json")
    return arguments


if __name__ == "__main__":
    main()

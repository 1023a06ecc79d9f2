"""Our pruning against that of other libraries: same teacher, images and budget, in one run.

    python -m benchmarks.prune [--teacher builtin gcanet dehazeformer_t] [--budgets 0.5 0.25]
        [--methods ours tp:taylor:global] [--steps 0 500 2000] [--steps-at 0.25] [--seeds 0 1 2]
        [--data DIR] [--quick] [--json FILE]

A row is a teacher, a budget, a method and a seed. Each row, and each distillation of it, is written
to the file once it is done and is not made again; rows of a teacher whose weights have changed are.
A distillation that was stopped goes on from its checkpoint, in a folder beside the file.
Torch-Pruning and ModelOpt are not installed with this project: a row of what is not there says so.
"""

import argparse
import gc
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.networks.published import default_data
from benchmarks.peers.comparison import Record, distilled, first_row, student_of
from benchmarks.peers.methods import DEFAULT_METHODS, method
from benchmarks.peers.showing import plot, render, summary
from benchmarks.peers.subject import TEACHERS, Choice, Subject, load_subject

__all__ = ["main", "plot", "render", "summary"]

_QUICK_METHODS = ("ours", "uniform", "random", "tp:magnitude:global", "tp:taylor:isomorphic")


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the rows that are missing, and print the table."""
    given = _parsed(arguments)
    choice = Choice(
        data=given.data,
        images=given.images,
        splits=tuple(given.splits),
        crop=given.crop,
        calibration=given.calibration,
    )
    settings = asdict(choice) | {"data": choice.data is not None}
    record = Record.open(given.json, settings, arguments)
    for teacher in given.teacher:
        for seed in given.seeds:
            with ExitStack() as stack:
                subject = load_subject(teacher, choice, stack, seed=seed)
                _make_rows(subject, record, given)
            gc.collect()
    print(render(record.content))


def _make_rows(subject: Subject, record: Record, given: argparse.Namespace) -> None:
    record.note_teacher(subject)
    for keep in given.budgets:
        for name in given.methods:
            row = record.find(subject, keep, name)
            if row is None or name in given.redo:
                print(
                    f"{subject.name}, {keep:g} of the MACs, {name}, seed {subject.seed}", flush=True
                )
                row = first_row(subject, keep, name, limit_s=given.limit)
                record.put(row)
                print(f"  {_shown(row)}", flush=True)
            if given.steps_at is None or keep in given.steps_at:
                _distill(subject, record, row, given.steps)


def _distill(subject: Subject, record: Record, row: dict[str, Any], steps: Sequence[int]) -> None:
    missing = [n for n in steps if n and str(n) not in row["psnr_distilled"]]
    if row["error"] or not missing:
        return
    student = student_of(subject, row)
    name = f"{subject.name}-{row['method'].replace(':', '-')}-{row['keep_macs']:g}-{subject.seed}"
    for count in missing:
        print(f"  distilling {row['method']} at {row['keep_macs']:g}, {count} steps", flush=True)
        folder = record.path.with_suffix("") / f"{name}-{count}"
        row["psnr_distilled"][str(count)] = distilled(subject, student, count, folder=folder)
        record.put(row)
        print(f"  {row['psnr_distilled'][str(count)]}", flush=True)


def _shown(row: dict[str, Any]) -> str:
    if row["error"]:
        return str(row["error"])
    return f"{row['macs_kept']:.3f} of the MACs, {row['psnr_one_shot']} -> {row['psnr_refitted']}"


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--teacher", nargs="+", choices=TEACHERS, default=["builtin"])
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.75, 0.5, 0.25, 0.125])
    parser.add_argument("--methods", nargs="+", default=list(DEFAULT_METHODS))
    parser.add_argument("--steps", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--steps-at", type=float, nargs="+", help="budgets whose students are distilled; all"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--data", type=Path, default=default_data())
    parser.add_argument("--splits", nargs="*", default=["sots_indoor", "sots_outdoor"])
    parser.add_argument("--images", type=int, default=12, help="most test images of each split")
    parser.add_argument("--crop", type=int, help="side of the middle that is judged; whole images")
    parser.add_argument("--calibration", type=int, default=64, help="crops to calibrate on")
    parser.add_argument(
        "--limit", type=float, default=600, help="processor seconds a peer may take"
    )
    parser.add_argument("--redo", nargs="*", default=[], help="methods whose rows are made again")
    parser.add_argument("--quick", action="store_true", help="few methods at 0.5, built-in images")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/prune.json"))
    given = parser.parse_args(arguments)
    if given.quick:
        given.teacher, given.budgets, given.methods = ["builtin"], [0.5], list(_QUICK_METHODS)
        given.steps, given.seeds, given.data = [0], [0], None
        given.images, given.calibration, given.crop = 3, 16, None
        if given.json == parser.get_default("json"):
            given.json = Path("benchmarks/results/prune-quick.json")
    for name in given.methods:
        method(name)
    return given


if __name__ == "__main__":
    main()

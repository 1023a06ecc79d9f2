"""What the closed-form refit gives back, and what more of everything would: the built-in teacher.

    python -m benchmarks.refit [--keep 0.5 0.25 0.125] [--rounds 1 2] [--quick] [--json FILE]

No network is trained. Each row is written as soon as it is measured, and is not measured again
when the record is there already. ``--quick`` takes one budget, few small crops and few images.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.records import markdown_table, new_record, read_record, write_record
from coa_compress.allocation.allocate import make_allocation
from coa_compress.artifacts import Allocation, Batch, Budget, ChannelGroup, Cut, Scores
from coa_compress.refit.closed_form import refit
from coa_compress.rounds import RoundSteps, allocate_in_rounds
from coa_compress.scoring.catalog import SCORERS
from coa_compress.stages.score import squared_error
from coa_compress.structure.analysis import analyze
from coa_compress.structure.exported import ExportedStructure
from coa_compress.tasks.dehazing.judging import Judge
from coa_compress.tasks.dehazing.measures import psnr_db
from coa_compress.tasks.dehazing.settings import DehazingSettings
from coa_compress.tasks.dehazing.task import DehazingTask

_CONSTANTS_ONLY = 1e12
"""A pull so strong that nothing but the constants of a layer moves."""


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """What every row needs.

    Args:
        structure: Of the teacher.
        batches: Calibration crops, more than the plain refit takes.
        n_plain: How many of the batches the plain refit takes.
        judge: Of the teacher.
        images: Hazy test images and their truths.
        restored: What the teacher makes of each.
    """

    structure: ExportedStructure
    batches: Sequence[Batch]
    n_plain: int
    judge: Judge
    images: Sequence[tuple[Tensor, Tensor]]
    restored: Sequence[Tensor]

    @property
    def plain(self) -> Sequence[Batch]:
        """The batches of the plain refit."""
        return self.batches[: self.n_plain]

    def figures(self, student: nn.Module) -> dict[str, float]:
        """Return PSNR against the truth, and against the outputs of the teacher."""
        judge = replace(self.judge, model=student.eval())
        outputs = [judge.restore(hazy) for hazy, _ in self.images]
        truths = [clear for _, clear in self.images]
        return {
            "psnr_db": _mean_psnr(outputs, truths),
            "to_teacher_db": _mean_psnr(outputs, self.restored),
        }


def main() -> None:
    """Run the benchmark and write what it found."""
    arguments = _arguments()
    record = _begun(arguments.json)
    bench = prepared(quick=arguments.quick)
    record["teacher_psnr_db"] = _mean_psnr(bench.restored, [clear for _, clear in bench.images])
    done = {(row["keep_macs"], row["rounds"], row["variant"]) for row in record["rows"]}
    for keep in [0.25] if arguments.quick else arguments.keep:
        for rounds in [1] if arguments.quick else arguments.rounds:
            for row in rows(bench, keep, rounds, done):
                record["rows"].append(row)
                write_record(arguments.json, record)
                print(json.dumps(row), flush=True)
    print(render(record))


def prepared(*, quick: bool) -> Bench:
    """Return the teacher's structure, calibration crops and test images.

    Args:
        quick: Whether few and small ones will do.
    """
    settings = DehazingSettings(calibration_images=12 if quick else 48, crop=64 if quick else 128)
    task = DehazingTask(settings)
    teacher = task.build_teacher()
    judge = Judge(teacher, settings.tile)
    examples = next(iter(task.data.test.values()))[: 2 if quick else None]
    images = [example.load() for example in examples]
    batches = list(task.calibration_batches())
    return Bench(
        structure=analyze(copy.deepcopy(teacher), task.example_input()),
        batches=batches,
        n_plain=-(-len(batches) // 3),
        judge=judge,
        images=images,
        restored=[judge.restore(hazy) for hazy, _ in images],
    )


def rows(
    bench: Bench, keep: float, rounds: int, done: set[tuple[float, int, str]]
) -> Iterator[dict[str, Any]]:
    """Yield a row for each way to refit one cut.

    Args:
        bench: What every row needs.
        keep: Fraction of the MACs.
        rounds: In how many rounds the channels are chosen.
        done: Rows that are there already.
    """
    wanted = VARIANTS if rounds == 1 else VARIANTS[:2]
    if all((keep, rounds, variant) in done for variant in wanted):
        return
    allocation = allocated(bench, keep, rounds)
    cut = bench.structure.cut(allocation.kept)
    for variant in wanted:
        if (keep, rounds, variant) in done:
            continue
        began = time.process_time()
        student = refitted(bench, cut, variant)
        seconds = time.process_time() - began
        yield {
            "keep_macs": keep,
            "rounds": rounds,
            "variant": variant,
            "macs": allocation.macs / allocation.teacher_macs,
            "cpu_seconds": seconds,
            **bench.figures(student),
        }


def allocated(bench: Bench, keep: float, rounds: int) -> Allocation:
    """Return the channels that stay, by Taylor scores and the greedy allocator."""
    structure = bench.structure

    def score(model: nn.Module, groups: Sequence[ChannelGroup]) -> Scores:
        return SCORERS.get("taylor")(model, groups, bench.plain, squared_error)

    def allocate(groups: Sequence[ChannelGroup], scores: Scores, budget: Budget) -> Allocation:
        return make_allocation(groups, scores, structure.costs, budget, "greedy")

    steps = RoundSteps(
        score=score,
        allocate=allocate,
        refit=lambda cut: refit(structure.model, cut, bench.plain).student,
    )
    scores = score(structure.model, structure.groups)
    budget = Budget(keep_macs=keep, round_to=8, min_channels=8)
    return allocate_in_rounds(structure, scores, budget, steps, rounds=rounds)


VARIANTS = (
    "one-shot",
    "refit",
    "constants only",
    "second sweep",
    "4 times the positions",
    "3 times the images",
)
"""Ways to refit, the plain ones first."""


def refitted(bench: Bench, cut: Cut, variant: str) -> nn.Module:
    """Return the student of a cut, refitted in one of the ways of ``VARIANTS``."""
    teacher = bench.structure.model
    match variant:
        case "one-shot":
            return cut.student
        case "constants only":
            return refit(teacher, cut, bench.plain, ridge=_CONSTANTS_ONLY).student
        case "4 times the positions":
            return refit(teacher, cut, bench.plain, positions=4 * 4096).student
        case "3 times the images":
            return refit(teacher, cut, bench.batches).student
    student = refit(teacher, cut, bench.plain).student
    if variant == "second sweep":
        return refit(teacher, replace(cut, student=student), bench.plain).student
    return student


def render(record: Mapping[str, Any]) -> str:
    """Return the rows as a Markdown table."""
    head = ["MACs kept", "rounds", "refit", "PSNR dB", "against the teacher's output, dB", "CPU s"]
    order = sorted(record["rows"], key=lambda row: (-row["keep_macs"], row["rounds"]))
    lines = [
        ["100%", "", "teacher", f"{record['teacher_psnr_db']:.2f}", "", ""],
        *[
            [
                f"{row['macs']:.1%}",
                str(row["rounds"]),
                row["variant"],
                f"{row['psnr_db']:.2f}",
                f"{row['to_teacher_db']:.2f}",
                f"{row['cpu_seconds']:.0f}",
            ]
            for row in order
        ],
    ]
    return f"{markdown_table(head, lines)}\n\nMade by `{record['command']}`; no training."


def _mean_psnr(outputs: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    pairs = zip(outputs, wanted, strict=True)
    return statistics.mean(min(100.0, float(psnr_db(a[None], b[None]))) for a, b in pairs)


def _begun(path: Path) -> dict[str, Any]:
    if path.is_file():
        return read_record(path)
    return {**new_record("refit"), "seeds": [0], "rows": []}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--keep", type=float, nargs="+", default=[0.5, 0.25, 0.125])
    parser.add_argument("--rounds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--quick", action="store_true", help="one budget, few and small images")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/refit.json"))
    return parser.parse_args()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

"""What the closed-form refit gives back, by how many images and positions it is given.

    python -m benchmarks.refit [--keep 0.5 0.25 0.125] [--images 16 64 256]
        [--positions 4096 16384] [--rounds 1] [--quick] [--json FILE]

The built-in teacher, with the scores, the widths and the cut of ``recipes/dehaze.yaml``; no network
is trained. Each row is written as soon as it is measured, and is not measured again when the
record is there already. ``--quick`` takes one budget, and few and small crops.
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
from coa_compress.artifacts import Allocation, Batch, Budget, ChannelGroup, Scores
from coa_compress.recipe.files import load_recipe
from coa_compress.recipe.schema import Recipe
from coa_compress.refit.closed_form import refit
from coa_compress.rounds import RoundSteps, allocate_in_rounds
from coa_compress.scoring.catalog import SCORERS
from coa_compress.stages.score import squared_error
from coa_compress.structure.analysis import analyze
from coa_compress.structure.exported import ExportedStructure
from coa_compress.tasks.dehazing.judging import Judge
from coa_compress.tasks.dehazing.settings import DehazingSettings
from coa_compress.tasks.dehazing.task import DehazingTask
from coa_compress.tasks.measures import capped_psnr_db

_RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "dehaze.yaml"
_QUICK = {"keep": [0.25], "images": [8], "positions": [256], "rounds": [1]}


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """What every row needs.

    Args:
        recipe: Says how channels are scored and widths chosen.
        structure: Of the teacher.
        crop: Side of a calibration crop.
        judge: Of the teacher.
        images: Hazy test images and their truths.
        restored: What the teacher makes of each.
    """

    recipe: Recipe
    structure: ExportedStructure
    crop: int
    judge: Judge
    images: Sequence[tuple[Tensor, Tensor]]
    restored: Sequence[Tensor]

    def batches(self, count: int) -> Sequence[Batch]:
        """Return calibration crops; fewer are the first of more."""
        settings = DehazingSettings(calibration_images=count, crop=self.crop)
        return DehazingTask(settings).calibration_batches()

    def figures(self, student: nn.Module) -> dict[str, float]:
        """Return PSNR against the truth, and against the outputs of the teacher."""
        judge = replace(self.judge, model=student.eval())
        outputs = [judge.restore(hazy) for hazy, _ in self.images]
        truths = [clear for _, clear in self.images]
        return {
            "psnr_db": _mean_psnr(outputs, truths),
            "to_teacher_db": _mean_psnr(outputs, self.restored),
        }


def main(given: Sequence[str] | None = None) -> None:
    """Run the benchmark and write what it found.

    Args:
        given: What follows the name of the module; None for the arguments of this process.
    """
    arguments = _parsed(given)
    record = _begun(arguments.json, given)
    bench = prepared(quick=arguments.quick)
    record["teacher_psnr_db"] = _mean_psnr(bench.restored, [clear for _, clear in bench.images])
    for row in _rows(bench, arguments, record["rows"]):
        record["rows"].append(row)
        write_record(arguments.json, record)
        print(json.dumps(row), flush=True)
    print(render(record))


def prepared(*, quick: bool) -> Bench:
    """Return the teacher's structure and the test images.

    Args:
        quick: Whether small crops and few test images will do.
    """
    task = DehazingTask(DehazingSettings())
    teacher = task.build_teacher()
    judge = Judge(teacher, task.settings.tile)
    examples = next(iter(task.data.test.values()))[: 2 if quick else None]
    tested = [example.load() for example in examples]
    return Bench(
        recipe=load_recipe(_RECIPE),
        structure=analyze(copy.deepcopy(teacher), task.example_input()),
        crop=64 if quick else task.settings.crop,
        judge=judge,
        images=tested,
        restored=[judge.restore(hazy) for hazy, _ in tested],
    )


def allocated(bench: Bench, keep: float, rounds: int, batches: Sequence[Batch]) -> Allocation:
    """Return the channels that stay, chosen as the recipe does.

    Args:
        bench: The teacher.
        keep: Fraction of the MACs.
        rounds: In how many rounds the channels are chosen.
        batches: What they are chosen on.
    """
    structure, scorer = bench.structure, bench.recipe.stages["score"].scorer
    widths = bench.recipe.stages["allocate"]

    def score(model: nn.Module, groups: Sequence[ChannelGroup]) -> Scores:
        return SCORERS.get(scorer)(model, groups, batches, squared_error)

    def allocate(groups: Sequence[ChannelGroup], scores: Scores, budget: Budget) -> Allocation:
        name, evenness = widths.allocator, widths.evenness
        return make_allocation(groups, scores, structure.costs, budget, name, evenness=evenness)

    steps = RoundSteps(
        score=score,
        allocate=allocate,
        refit=lambda cut: refit(structure.model, cut, batches).student,
    )
    scores = score(structure.model, structure.groups)
    budget = Budget(keep_macs=keep, round_to=widths.round_to, min_channels=widths.min_channels)
    return allocate_in_rounds(structure, scores, budget, steps, rounds=rounds)


def render(record: Mapping[str, Any]) -> str:
    """Return the rows as a Markdown table."""
    head = ["MACs kept", "rounds", "images", "positions", "PSNR dB"]
    head += ["against the teacher's output, dB", "CPU s"]
    order = sorted(record["rows"], key=lambda row: (-row["keep_macs"], row["rounds"]))
    lines = [["100%", "", "", "", f"{record['teacher_psnr_db']:.2f}", "", ""]]
    for row in order:
        fitted = (str(row["images"]), str(row["positions"])) if row["images"] else ("no refit", "")
        lines.append(
            [
                f"{row['macs']:.1%}",
                str(row["rounds"]),
                *fitted,
                f"{row['psnr_db']:.2f}",
                f"{row['to_teacher_db']:.2f}",
                f"{row['cpu_seconds']:.0f}",
            ]
        )
    return f"{markdown_table(head, lines)}\n\nMade by `{record['command']}`; no training."


def _rows(
    bench: Bench, arguments: argparse.Namespace, done: Sequence[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yield a row for each way to refit a cut that is not there yet; the cut alone comes first."""
    known = {(row["keep_macs"], row["rounds"], row["images"], row["positions"]) for row in done}
    ways = [(0, 0), *((i, p) for i in arguments.images for p in arguments.positions)]
    for keep in arguments.keep:
        for rounds in arguments.rounds:
            missing = [way for way in ways if (keep, rounds, *way) not in known]
            if not missing:
                continue
            allocation = allocated(bench, keep, rounds, bench.batches(min(arguments.images)))
            cut = bench.structure.cut(allocation.kept)
            for images, positions in missing:
                began, student = time.process_time(), cut.student
                if images:
                    batches = bench.batches(images)
                    teacher = bench.structure.model
                    student = refit(teacher, cut, batches, positions=positions).student
                yield {
                    "keep_macs": keep,
                    "rounds": rounds,
                    "images": images,
                    "positions": positions,
                    "macs": allocation.macs / allocation.teacher_macs,
                    "cpu_seconds": time.process_time() - began,
                    **bench.figures(student),
                }


def _mean_psnr(outputs: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    return statistics.mean(capped_psnr_db(a, b) for a, b in zip(outputs, wanted, strict=True))


def _begun(path: Path, given: Sequence[str] | None) -> dict[str, Any]:
    if path.is_file():
        return read_record(path)
    return {**new_record("refit", given), "seeds": [0], "rows": []}


def _parsed(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.refit", description=__doc__)
    parser.add_argument("--keep", type=float, nargs="+", default=[0.5, 0.25, 0.125])
    parser.add_argument("--images", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--positions", type=int, nargs="+", default=[4096, 16384])
    parser.add_argument("--rounds", type=int, nargs="+", default=[1])
    parser.add_argument("--quick", action="store_true", help="one budget, few and small crops")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/refit.json"))
    arguments = parser.parse_args(given)
    if arguments.quick:
        vars(arguments).update(_QUICK)
    return arguments


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

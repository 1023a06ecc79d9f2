"""Rank correlation between predicted and true loss over random allocations, for each scorer.

    python -m benchmarks.importance [--networks builtin] [--scorers fisher] [--allocations 40] \
[--size 64] [--calibration 8] [--refit fisher] [--quick] [--data DIR] [--json FILE]

Widths are drawn at random, once a network; each scorer chooses the channels and predicts the loss,
which is then measured on the network that is really cut. Each row is written when it is done, and
a run with the same settings goes on where it stopped.
`python -m benchmarks.tables` puts the table into docs/importance.md.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor, nn

from benchmarks.networks.published import PUBLISHED, default_data, load_published
from benchmarks.records import markdown_table, new_record, read_record, write_record
from coa_compress.allocation.losses import expected_losses
from coa_compress.allocation.widths import select_channels
from coa_compress.artifacts import Batch, Curves, ExpectedLosses, Scores
from coa_compress.refit.closed_form import refit
from coa_compress.scoring.catalog import SCORERS
from coa_compress.scoring.curves import CurvePlan, measure_curves
from coa_compress.scoring.readers import Moments, input_moments, reader_paths
from coa_compress.scoring.reconstruction import compensate_
from coa_compress.stages.score import squared_error
from coa_compress.structure.analysis import analyze
from coa_compress.structure.exported import ExportedStructure
from coa_compress.tasks.dehazing.settings import DehazingSettings
from coa_compress.tasks.dehazing.task import DehazingTask

NETWORKS = ("builtin", *PUBLISHED)
_STEP = 8
_TITLES = {
    "one_shot": "as cut",
    "readers": "readers compensated",
    "refit": "refitted",
}


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """A network with everything that its rows share.

    Args:
        model: The teacher.
        structure: Its groups and cuts.
        calibration: What scorers, curves and refits are given.
        test: What the true loss is measured on.
        expected: Output of the teacher on each test batch.
        widths: The random allocations.
        moments: Of the inputs of the readers.
    """

    model: nn.Module
    structure: ExportedStructure
    calibration: Sequence[Batch]
    test: Sequence[Batch]
    expected: Sequence[Tensor]
    widths: Sequence[Mapping[str, int]]
    moments: Mapping[str, Moments]


def main() -> None:
    """Run the benchmark and write what it found."""
    torch.set_num_threads(1)
    arguments = _arguments()
    names = ("size", "allocations", "calibration")
    settings = {**{name: getattr(arguments, name) for name in names}, "seed": 0}
    record = {**new_record("importance"), "settings": settings, "rows": []}
    if arguments.json.is_file():
        before = read_record(arguments.json)
        if before.get("settings") == settings:
            record["rows"] = before["rows"]
    for network in arguments.networks:
        done = {row["scorer"] for row in record["rows"] if row["network"] == network}
        missing = [name for name in arguments.scorers if name not in done]
        if not missing:
            continue
        bench = open_bench(network, arguments)
        for scorer in missing:
            row = _row(bench, scorer, arguments)
            record["rows"].append({"network": network, **row})
            write_record(arguments.json, record)
            print(network, scorer, row["spearman"], flush=True)
    print(render(record))


def open_bench(network: str, arguments: argparse.Namespace) -> Bench:
    """Return a network with its calibration and test crops and the random widths."""
    task = DehazingTask(DehazingSettings(calibration_images=arguments.calibration))
    published = network in PUBLISHED
    model = load_published(network, arguments.data) if published else task.build_teacher()
    calibration = [_cropped(batch, arguments.size) for batch in task.calibration_batches()]
    drawn = [task.training_batch(4, torch.Generator().manual_seed(1))]
    test = [_cropped(batch, arguments.size) for batch in drawn]
    structure = analyze(model, calibration[0].input[:1])
    read = reader_paths(model, structure.groups)
    with torch.no_grad():
        expected = [model(batch.input) for batch in test]
    return Bench(
        model=model,
        structure=structure,
        calibration=calibration,
        test=test,
        expected=expected,
        widths=random_widths(structure, arguments.allocations, seed=0),
        moments=input_moments(model, sorted({p for r in read.values() for p in r}), calibration),
    )


def random_widths(structure: ExportedStructure, count: int, *, seed: int) -> list[dict[str, int]]:
    """Return random widths in multiples of 8 that keep about 30 to 90 % of the MACs.

    Each group keeps a random part; all are raised to the power at which the budget is met.
    """
    generator = np.random.default_rng(seed)
    macs, full = structure.costs.macs, structure.widths
    found = []
    for budget in generator.uniform(0.3, 0.9, count):
        parts = generator.uniform(0.15, 1.0, len(full))
        low, high = 0.0, 20.0
        for _ in range(30):
            middle = (low + high) / 2
            widths = _powered(full, parts, middle)
            low, high = (middle, high) if macs(widths) > budget * macs(full) else (low, middle)
        found.append(_powered(full, parts, high))
    return found


def predictions(losses: ExpectedLosses, drawn: Sequence[Mapping[str, int]]) -> list[float]:
    """Return what allocators minimize: the sum of the expected losses, for each allocation."""
    return [sum(float(losses[name][w]) for name, w in widths.items()) for widths in drawn]


def render(record: Mapping[str, Any]) -> str:
    """Return the rows as Markdown: a table for each network."""
    rows: Sequence[Mapping[str, Any]] = record["rows"]
    parts = []
    for network in dict.fromkeys(row["network"] for row in rows):
        chosen = [row for row in rows if row["network"] == network]
        parts.append(f"**{network}** ({chosen[0]['groups']} groups)\n\n{_table(chosen)}")
    settings = record["settings"]
    note = (
        f"{settings['allocations']} allocations, {settings['calibration']} calibration crops of "
        f"{settings['size']} pixels. The loss is "
        "the mean squared change of the output relative to its variance; the geometric mean over "
        "the allocations tells which scorer chooses the better channels at the same widths. "
        f"Made by `{record['command']}`."
    )
    return "\n\n".join([*parts, note])


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    truths = [name for name in _TITLES if any(name in row["spearman"] for row in rows)]
    head = ["scorer"]
    for name in truths:
        head += [f"loss, {_TITLES[name]}", "score", "curves"]
    lines = []
    for row in rows:
        line = [row["scorer"]]
        for name in truths:
            found = row["spearman"].get(name, {})
            line += [
                f"{row['mean_loss'][name]:.4f}" if name in row["mean_loss"] else "",
                _figure(found.get("score")),
                _figure(found.get("curves" if name == "one_shot" else "curves_refit")),
            ]
        lines.append(line)
    return markdown_table(head, lines)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _row(bench: Bench, scorer: str, arguments: argparse.Namespace) -> dict[str, Any]:
    started = time.monotonic()
    groups = bench.structure.groups
    scores = SCORERS.get(scorer)(bench.model, groups, bench.calibration, squared_error)
    seconds = {"score": round(time.monotonic() - started, 2)}
    predicted = {"score": predictions(expected_losses(groups, scores), bench.widths)}
    if scorer in arguments.curves:
        for name, refitted in (("curves", False), ("curves_refit", True)):
            started = time.monotonic()
            curves = _curves(bench, scores, CurvePlan(refit=refitted))
            seconds[name] = round(time.monotonic() - started, 2)
            predicted[name] = predictions(expected_losses(groups, {}, curves), bench.widths)
    losses = _true_losses(bench, scores, full=scorer in arguments.refit)
    return {
        "scorer": scorer,
        "groups": len(groups),
        "seconds": seconds,
        "spearman": {
            truth: {
                name: round(float(spearmanr(values, measured).statistic), 4)
                for name, values in predicted.items()
            }
            for truth, measured in losses.items()
        },
        "mean_loss": {n: float(np.exp(np.mean(np.log(v)))) for n, v in losses.items()},
        "losses": {name: _rounded(values) for name, values in losses.items()},
        "predictions": {name: _rounded(values) for name, values in predicted.items()},
    }


def _true_losses(bench: Bench, scores: Scores, *, full: bool) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"one_shot": [], "readers": []}
    if full:
        found["refit"] = []
    for widths in bench.widths:
        kept = {name: select_channels(scores[name], width) for name, width in widths.items()}
        cut = bench.structure.cut(kept)
        if full:
            student = refit(bench.model, cut, bench.calibration, positions=1024).student
            found["refit"].append(_true_loss(bench, student))
        found["one_shot"].append(_true_loss(bench, cut.student))
        compensate_(cut, bench.model, bench.moments)
        found["readers"].append(_true_loss(bench, cut.student))
    return found


def _true_loss(bench: Bench, student: nn.Module) -> float:
    changed = whole = 0.0
    with torch.no_grad():
        for batch, expected in zip(bench.test, bench.expected, strict=True):
            changed += float((student(batch.input) - expected).square().sum())
            whole += float((expected - expected.mean()).square().sum())
    return changed / whole


def _curves(bench: Bench, scores: Scores, plan: CurvePlan) -> Curves:
    return measure_curves(bench.model, bench.structure, scores, bench.calibration, plan=plan)


def _powered(full: Mapping[str, int], parts: NDArray[np.float64], power: float) -> dict[str, int]:
    return {
        name: int(min(n, max(min(_STEP, n), round(n * part**power / _STEP) * _STEP)))
        for (name, n), part in zip(full.items(), parts, strict=True)
    }


def _cropped(batch: Batch, size: int) -> Batch:
    target = None if batch.target is None else batch.target[..., :size, :size].contiguous()
    return Batch(batch.input[..., :size, :size].contiguous(), target)


def _rounded(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.4g}") for value in values]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    names = SCORERS.names()
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--scorers", nargs="+", choices=names, default=names)
    parser.add_argument("--curves", nargs="*", choices=names, default=["sensitivity", "surgeon"])
    parser.add_argument("--refit", nargs="*", choices=names, default=["sensitivity"])
    parser.add_argument("--allocations", type=int, default=40)
    parser.add_argument("--size", type=int, default=64, help="side of a crop in pixels")
    parser.add_argument("--calibration", type=int, default=8, help="crops to calibrate on")
    parser.add_argument("--quick", action="store_true", help="8 allocations, no refit")
    parser.add_argument("--data", type=Path, default=default_data(), help="holds weights/")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/importance.json"))
    arguments = parser.parse_args()
    if arguments.data is None and set(arguments.networks) & set(PUBLISHED):
        parser.error("give --data, the folder that holds weights/, or --networks builtin")
    if arguments.quick:
        arguments.allocations, arguments.refit = min(arguments.allocations, 8), []
    return arguments


if __name__ == "__main__":
    main()

"""Parameters against PSNR: the dehazing recipe at several budgets, one row each.

    python -m benchmarks.frontier --keep 0.5 0.25 0.125 [--seeds 0 1] [--data DIR] [--json FILE]

Every run goes through ``recipes/dehaze.yaml``; runs are kept and resumed.
`python -m benchmarks.tables` puts the table into the README, and the networks into
``coa_compress/tasks/dehazing/references.json``, which reports plot beside their own.
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.records import markdown_table, new_record, write_record
from coa_compress.compressor import Compressor
from coa_compress.recipe.files import load_recipe
from coa_compress.tasks.dehazing.task import DehazingTask

_RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "dehaze.yaml"


def main() -> None:
    """Run the benchmark and write what it found."""
    arguments = _arguments()
    rows = []
    for keep in arguments.keep:
        for seed in arguments.seeds:
            print(f"keep {keep} of the MACs, seed {seed}", flush=True)
            out = arguments.out / f"keep-{keep}-seed-{seed}"
            rows.append({"keep_macs": keep, "seed": seed, **_run(keep, seed, arguments.data, out)})
    record = {
        **new_record("frontier"),
        "recipe": _RECIPE.name,
        "seeds": arguments.seeds,
        **_inputs(arguments.data),
        "rows": rows,
    }
    write_record(arguments.json, record)
    print(render(record))


def render(record: Mapping[str, Any]) -> str:
    """Return the rows as a Markdown table, each figure the mean over the seeds."""
    rows: Sequence[Mapping[str, Any]] = record["rows"]
    splits = list(rows[0]["teacher"]["psnr_db"])
    head = ["network", "params", "MACs", "latency", *[f"PSNR dB, {split}" for split in splits]]
    lines = [_line("teacher", "teacher", rows, splits)]
    for keep in dict.fromkeys(row["keep_macs"] for row in rows):
        chosen = [row for row in rows if row["keep_macs"] == keep]
        lines.append(_line(f"student, {keep:.1%} of the MACs asked", "student", chosen, splits))
        accepted = sum(bool(row["accepted"]) for row in chosen)
        title = f"the same, adapted (accepted {accepted} of {len(chosen)})"
        lines.append(_line(title, "adapted", chosen, splits))
    where = f"{record['device_name']}, {record['threads']} threads"
    seeds = ", ".join(map(str, record["seeds"]))
    return (
        f"{markdown_table(head, lines)}\n\nMACs: multiply-accumulates of one 256 x 256 image. "
        f"Latency: on {where}, as a fraction of the teacher's in the same run. Seeds: {seeds}; "
        f"means, and ± the standard deviation where there are several. Made by "
        f"`{record['command']}`."
    )


def references(record: Mapping[str, Any]) -> str:
    """Return the teacher and the students as JSON, each figure the mean over the seeds."""
    rows: Sequence[Mapping[str, Any]] = record["rows"]
    day = record["written"][:10]
    size = record["example_size"]
    networks = [_reference(f"teacher of {day}", [row["teacher"] for row in rows], size)]
    for keep in dict.fromkeys(row["keep_macs"] for row in rows):
        chosen = [row["student"] for row in rows if row["keep_macs"] == keep]
        networks.append(
            _reference(f"student of {day}, {100 * keep:.4g}% of the MACs", chosen, size)
        )
    found = {"splits": record["test_digests"], "networks": networks}
    return json.dumps(found, indent=1) + "\n"


def _reference(
    name: str, networks: Sequence[Mapping[str, Any]], example_size: Sequence[int]
) -> dict[str, Any]:
    costs = {
        cost: round(statistics.mean(net[cost] for net in networks)) for cost in ("params", "macs")
    }
    measures = {
        measure: {
            split: round(statistics.mean(net[measure][split] for net in networks), 4)
            for split in networks[0][measure]
        }
        for measure in ("psnr_db", "ssim")
        if measure in networks[0]
    }
    return {"name": name, **costs, "example_size": list(example_size), "measures": measures}


def _inputs(data: str | None) -> dict[str, Any]:
    task = Compressor(recipe=load_recipe(_RECIPE, _tests(data))).task
    digests = task.data.test_digests() if isinstance(task, DehazingTask) else {}
    return {"example_size": list(task.example_input().shape), "test_digests": digests}


def _tests(data: str | None) -> list[str]:
    return [] if data is None else [f"task.test=builtin,{data}"]


def _run(keep: float, seed: int, data: str | None, out: Path) -> dict[str, Any]:
    overrides = [f"stages.allocate.keep_macs={keep}", f"seed={seed}", f"out={out}"]
    result = Compressor(recipe=load_recipe(_RECIPE, overrides + _tests(data))).run()
    gate = result.report.gate or {}
    return {
        **{role: dict(values) for role, values in result.report.measurements.items()},
        "accepted": bool(gate.get("accepted")),
        "stage_seconds": dict(result.report.stage_seconds),
    }


def _line(
    title: str, role: str, rows: Sequence[Mapping[str, Any]], splits: Sequence[str]
) -> list[str]:
    networks = [row[role] for row in rows]
    latency = statistics.mean(
        row[role]["latency_ms"] / row["teacher"]["latency_ms"] for row in rows
    )
    params, macs = (statistics.mean(net[cost] for net in networks) for cost in ("params", "macs"))
    return [
        title,
        f"{params / 1e6:.3f} M",
        f"{macs / 1e9:.3f} G",
        f"{latency:.2f}",
        *[_spread([net["psnr_db"][split] for net in networks]) for split in splits],
    ]


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.2f}"
    return mean if len(set(values)) == 1 else f"{mean} ± {statistics.stdev(values):.2f}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--keep", type=float, nargs="+", default=[0.5, 0.25, 0.125])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--data", help="a folder of test pairs, measured beside the built-in split")
    parser.add_argument("--out", type=Path, default=Path("runs/frontier"))
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/frontier.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""Parameters against PSNR: a dehazing recipe at several budgets, one row each.

    python -m benchmarks.frontier [--keep 0.5 0.25 0.125 0.0625] [--seeds 0 1 2]
        [--recipe recipes/dehaze_full.yaml] [--set task.train=DIR task.real=DIR task.test=DIR]
        [--published gcanet] [--data DIR] [--quick] [--out DIR] [--json FILE]

Runs are kept in ``--out`` and resumed. ``--set`` is that of ``coa-compress recipe``. Networks of
the literature are measured on the same test images; their weights lie in ``DATA/weights``.
`python -m benchmarks.tables` puts the tables into the README, and the networks into
``coa_compress/tasks/dehazing/references.json``, which reports plot beside their own.
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.networks.published import PUBLISHED, default_data, load_published
from benchmarks.records import markdown_table, new_record, write_record
from coa_compress.compressor import Compressor
from coa_compress.profiling.counting import count_macs, count_params
from coa_compress.profiling.timing import measure_latency_ms
from coa_compress.recipe.files import load_recipe
from coa_compress.tasks.dehazing.task import DehazingTask

_ROOT = Path(__file__).resolve().parent.parent
_RECIPE = Path("recipes") / "dehaze.yaml"
_JSON = Path(__file__).resolve().parent / "results" / "frontier.json"
_QUICK = ("stages.distill.training.steps=300", "stages.adapt.training.steps=50")


def main(given: Sequence[str] | None = None) -> None:
    """Run the benchmark and write what it found.

    Args:
        given: What follows the name of the module; None for the arguments of this process.
    """
    arguments = _parsed(given)
    record: dict[str, Any] = {
        **new_record("frontier", given),
        "recipe": arguments.recipe.name,
        "seeds": arguments.seeds,
        **_inputs(arguments),
        "rows": [],
        "published": [],
    }
    for keep in arguments.keep:
        for seed in arguments.seeds:
            print(f"keep {keep} of the MACs, seed {seed}", flush=True)
            row = _run(keep, seed, arguments)
            record["rows"].append({"keep_macs": keep, "seed": seed, **row})
    for name in arguments.published:
        print(name, flush=True)
        record["published"].append({"name": name, **_published(name, arguments)})
    write_record(arguments.json, record)
    print(render(record))


def render(record: Mapping[str, Any]) -> str:
    """Return the rows as a Markdown table, each figure the mean over the seeds."""
    rows: Sequence[Mapping[str, Any]] = record["rows"]
    splits = list(rows[0]["teacher"]["psnr_db"])
    quality = [f"PSNR dB (SSIM), {split}" for split in splits]
    head = ["network", "params", "MACs", "latency", *quality]
    lines = [_line("teacher", "teacher", rows, splits)]
    for keep in dict.fromkeys(row["keep_macs"] for row in rows):
        chosen = [row for row in rows if row["keep_macs"] == keep]
        lines.append(_line(f"student, {keep:.1%} of the MACs asked", "student", chosen, splits))
        accepted = sum(bool(row["accepted"]) for row in chosen)
        title = f"the same, adapted (accepted {accepted} of {len(chosen)})"
        lines.append(_line(title, "adapted", chosen, splits))
    lines += [_published_line(network, splits) for network in record["published"]]
    where = f"{record['device_name']}, {record['threads']} threads"
    seeds = ", ".join(map(str, record["seeds"]))
    return (
        f"{markdown_table(head, lines)}\n\n`recipes/{record['recipe']}`. MACs: "
        f"multiply-accumulates of one {_size(record)} image. "
        f"Latency: on {where}, as a fraction of the teacher's in the same run. Seeds: {seeds}; "
        f"means, and ± the standard deviation of the PSNR where there are several. Made by "
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


def _inputs(arguments: argparse.Namespace) -> dict[str, Any]:
    task = _compressor(arguments, []).task
    digests = task.data.test_digests() if isinstance(task, DehazingTask) else {}
    return {"example_size": list(task.example_input().shape), "test_digests": digests}


def _compressor(arguments: argparse.Namespace, overrides: Sequence[str]) -> Compressor:
    return Compressor(
        recipe=load_recipe(_ROOT / arguments.recipe, [*arguments.overrides, *overrides])
    )


def _run(keep: float, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    out = arguments.out / f"keep-{keep}-seed-{seed}"
    overrides = [f"stages.allocate.keep_macs={keep}", f"seed={seed}", f"out={out}"]
    result = _compressor(arguments, overrides).run()
    gate = result.report.gate or {}
    return {
        **{role: dict(values) for role, values in result.report.measurements.items()},
        "accepted": bool(gate.get("accepted")),
        "stage_seconds": dict(result.report.stage_seconds),
    }


def _published(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what a network of the literature costs, and what it reaches on the test images."""
    task = _compressor(arguments, []).task
    networks = {"teacher": task.build_teacher(), name: load_published(name, arguments.data)}
    example = task.example_input()
    latency = measure_latency_ms(networks, example, rounds=10, max_seconds=60)
    return {
        "params": count_params(networks[name]),
        "macs": count_macs(networks[name], example),
        "latency": latency[name].median_ms / latency["teacher"].median_ms,
        **task.measure(networks[name]),
    }


def _published_line(network: Mapping[str, Any], splits: Sequence[str]) -> list[str]:
    return [
        f"`{network['name']}`, its published weights",
        *_costs(network["params"], network["macs"], network["latency"]),
        *[_quality([network], split) for split in splits],
    ]


def _costs(params: float, macs: float, latency: float) -> tuple[str, str, str]:
    return f"{params / 1e6:.3f} M", f"{macs / 1e9:.3f} G", f"{latency:.2f}"


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
        *_costs(params, macs, latency),
        *[_quality(networks, split) for split in splits],
    ]


def _quality(networks: Sequence[Mapping[str, Any]], split: str) -> str:
    psnr_db = _spread([net["psnr_db"][split] for net in networks])
    ssim = statistics.mean(net["ssim"][split] for net in networks)
    return f"{psnr_db} ({ssim:.3f})"


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.2f}"
    return mean if len(set(values)) == 1 else f"{mean} ± {statistics.stdev(values):.2f}"


def _size(record: Mapping[str, Any]) -> str:
    height, width = record["example_size"][-2:]
    return f"{height} x {width}"


def _parsed(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.frontier", description=__doc__)
    parser.add_argument("--keep", type=float, nargs="+", default=[0.5, 0.25, 0.125, 0.0625])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--recipe", type=Path, default=_RECIPE)
    parser.add_argument("--set", nargs="+", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--published", nargs="+", choices=PUBLISHED, default=[])
    parser.add_argument("--data", type=Path, default=default_data(), help="holds weights/")
    parser.add_argument("--quick", action="store_true", help="fewer steps; another file")
    parser.add_argument("--out", type=Path, default=Path("runs/frontier"))
    parser.add_argument("--json", type=Path, default=_JSON)
    arguments = parser.parse_args(given)
    if arguments.published and arguments.data is None:
        parser.error("--published: give the folder that holds weights/ by --data")
    if arguments.quick:
        arguments.overrides = [*_QUICK, *arguments.overrides]
        arguments.out = arguments.out / "quick"
        if arguments.json == _JSON:
            arguments.json = _JSON.with_name("frontier-quick.json")
    return arguments


if __name__ == "__main__":
    main()

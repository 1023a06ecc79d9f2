"""Parameters against PSNR: a dehazing recipe at several budgets, one row each.

    python -m benchmarks.frontier [--keep 0.5 0.25 0.125 0.0625] [--seeds 0 1 2]
        [--recipe recipes/dehaze_full.yaml] [--set task.train=DIR task.real=DIR task.test=DIR]
        [--published gcanet] [--data DIR] [--peers tp:hessian:isomorphic] [--quick] [--out DIR]
        [--json FILE]

Runs are kept in ``--out`` and resumed. ``--set`` is that of ``coa-compress recipe``. Networks of
the literature are measured on the same test images; their weights lie in ``DATA/weights``. Peers
are methods of `benchmarks.prune`: their students of the built-in teacher go through the
distillation of the recipe, too.
`python -m benchmarks.tables` puts the tables into the README, and the networks into
``coa_compress/tasks/dehazing/references.json``, which reports plot beside their own.
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.networks.published import PUBLISHED, default_data, load_published
from benchmarks.peers.in_recipe import recipe_row
from benchmarks.peers.methods import method
from benchmarks.plots import Panel, Series, deviation, draw
from benchmarks.records import markdown_table, new_record, write_record
from coa_compress.compressor import Compressor
from coa_compress.errors import SettingError
from coa_compress.profiling.counting import count_macs, count_params
from coa_compress.profiling.timing import measure_latency_ms
from coa_compress.recipe.files import load_recipe, recipe_digest
from coa_compress.tasks.dehazing.task import DehazingTask

_ROOT = Path(__file__).resolve().parent.parent
_RECIPE = Path("recipes") / "dehaze.yaml"
_JSON = Path(__file__).resolve().parent / "results" / "frontier.json"
_COSTS = {
    "macs": ("MACs (G)", 1e9),
    "params": ("parameters (M)", 1e6),
    "latency": ("latency, of the teacher's", 1.0),
}
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
        "peers": [],
        "published": [],
    }
    for keep in arguments.keep:
        for seed in arguments.seeds:
            print(f"keep {keep} of the MACs, seed {seed}", flush=True)
            row = _run(keep, seed, arguments)
            record["rows"].append({"keep_macs": keep, "seed": seed, **row})
    for keep, seed, name in product(arguments.keep, arguments.seeds, arguments.peers):
        print(f"keep {keep} of the MACs, seed {seed}, {name}", flush=True)
        row = _peer(name, keep, seed, arguments)
        record["peers"].append({"name": name, "keep_macs": keep, "seed": seed, **row})
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
    lines = [_line("teacher", _networks(rows, "teacher"), splits)]
    for chosen in _budgets(rows):
        title = f"student, {chosen[0]['keep_macs']:.1%} of the MACs asked"
        lines.append(_line(title, _networks(chosen, "student"), splits))
        accepted = sum(bool(row["accepted"]) for row in chosen)
        title = f"the same, adapted (accepted {accepted} of {len(chosen)})"
        lines.append(_line(title, _networks(chosen, "adapted"), splits))
        lines += [
            _line(_peer_title(name, keep, same), _networks(same, "student"), splits)
            for (name, keep), same in _peers(record).items()
            if keep == chosen[0]["keep_macs"]
        ]
    lines += [
        _line(f"`{network['name']}`, its published weights", [network], splits)
        for network in record["published"]
    ]
    where = f"{record['device_name']}, {record['threads']} threads"
    seeds = ", ".join(map(str, record["seeds"]))
    return (
        f"{markdown_table(head, lines)}\n\n`recipes/{record['recipe']}`. MACs: "
        f"multiply-accumulates of one {_size(record)} image. "
        f"Latency: on {where}, as a fraction of the teacher's in the same run. Seeds: {seeds}; "
        f"means, and ± the standard deviation of the PSNR where there are several."
        f"{_peers_said(record)} Made by `{record['command']}`."
    )


def plot(record: Mapping[str, Any]) -> str:
    """Return plots of cost against PSNR as SVG: every cost for one split, MACs for several."""
    splits = list(record["rows"][0]["teacher"]["psnr_db"])
    costs = list(_COSTS) if len(splits) == 1 else ["macs"]
    return draw([_panel(record, split, cost) for split in splits for cost in costs])


def _panel(record: Mapping[str, Any], split: str, cost: str) -> Panel:
    rows: Sequence[Mapping[str, Any]] = record["rows"]
    budgets, peers = _budgets(rows), _peers(record)
    networks = {
        "teacher": [_networks(rows, "teacher")],
        "students": [_networks(chosen, "student") for chosen in budgets],
        "students, adapted": [
            _networks(chosen, "adapted")
            for chosen in budgets
            if any(row["accepted"] for row in chosen)
        ],
        **{
            name: [_networks(same, "student") for (of, _), same in peers.items() if of == name]
            for name in dict.fromkeys(name for name, _ in peers)
        },
        **{f"{network['name']}, published": [[network]] for network in record["published"]},
    }
    label, unit = _COSTS[cost]
    series = tuple(
        Series.of(
            title,
            [([net[cost] / unit for net in same], _psnr_db(same, split)) for same in groups],
            strong=title == "students",
        )
        for title, groups in networks.items()
        if groups
    )
    return Panel(title=split, x_label=label, y_label="PSNR (dB)", series=series)


def references(record: Mapping[str, Any]) -> str:
    """Return the teacher and the students as JSON, each figure the mean over the seeds."""
    rows: Sequence[Mapping[str, Any]] = record["rows"]
    day = record["written"][:10]
    size = record["example_size"]
    networks = [_reference(f"teacher of {day}", [row["teacher"] for row in rows], size)]
    for chosen in _budgets(rows):
        name = f"student of {day}, {100 * chosen[0]['keep_macs']:.4g}% of the MACs"
        networks.append(_reference(name, [row["student"] for row in chosen], size))
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


def _peer(name: str, keep: float, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    compressor = _compressor(arguments, [f"seed={seed}"])
    known_by = recipe_digest(compressor.recipe, until="distill")[:8]
    file = arguments.out / f"{name.replace(':', '-')}-keep-{keep}-seed-{seed}-{known_by}.json"
    return recipe_row(name, keep, compressor, file)


def _peers(record: Mapping[str, Any]) -> dict[tuple[str, float], list[Mapping[str, Any]]]:
    """Return the rows of each method and budget, one a seed, without those that failed."""
    found: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for row in record.get("peers", []):
        if "error" not in row:
            found.setdefault((row["name"], row["keep_macs"]), []).append(row)
    return found


def _peer_title(name: str, keep: float, same: Sequence[Mapping[str, Any]]) -> str:
    missed = any(row["student"]["macs"] > keep * row["teacher"]["macs"] for row in same)
    return f"`{name}`, {keep:.1%} asked{' and missed' if missed else ''}, distilled alike"


def _peers_said(record: Mapping[str, Any]) -> str:
    """Return what a reader must know of other methods, as sentences."""
    rows = record.get("peers", [])
    said = " Students of other libraries are not refitted, and not adapted." if rows else ""
    for name, note in dict.fromkeys((row["name"], row.get("note")) for row in rows):
        said += f" `{name}` was {note}." if note else ""
    failed = {(row["name"], row["keep_macs"]): row["error"] for row in rows if "error" in row}
    for (name, keep), error in failed.items():
        said += f" `{name}` at {keep:.1%}: {error}."
    return said


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


def _budgets(rows: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Return the rows of each budget, one a seed."""
    keeps = dict.fromkeys(row["keep_macs"] for row in rows)
    return [[row for row in rows if row["keep_macs"] == keep] for keep in keeps]


def _networks(rows: Sequence[Mapping[str, Any]], role: str) -> list[dict[str, Any]]:
    """Return what was measured of a role, with its latency as a part of the teacher's."""
    return [
        {**row[role], "latency": row[role]["latency_ms"] / row["teacher"]["latency_ms"]}
        for row in rows
    ]


def _line(title: str, networks: Sequence[Mapping[str, Any]], splits: Sequence[str]) -> list[str]:
    params, macs, latency = (
        statistics.mean(net[cost] for net in networks) for cost in ("params", "macs", "latency")
    )
    costs = f"{params / 1e6:.3f} M", f"{macs / 1e9:.3f} G", f"{latency:.2f}"
    return [title, *costs, *[_quality(networks, split) for split in splits]]


def _quality(networks: Sequence[Mapping[str, Any]], split: str) -> str:
    values = _psnr_db(networks, split)
    spread = f" ± {deviation(values):.2f}" if deviation(values) else ""
    ssim = statistics.mean(net["ssim"][split] for net in networks)
    return f"{statistics.mean(values):.2f}{spread} ({ssim:.3f})"


def _psnr_db(networks: Sequence[Mapping[str, Any]], split: str) -> list[float]:
    return [net["psnr_db"][split] for net in networks]


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
    parser.add_argument("--peers", nargs="+", default=[], help="methods of benchmarks.prune")
    parser.add_argument("--quick", action="store_true", help="fewer steps; another file")
    parser.add_argument("--out", type=Path, default=Path("runs/frontier"))
    parser.add_argument("--json", type=Path, default=_JSON)
    arguments = parser.parse_args(given)
    for name in arguments.peers:
        try:
            method(name)
        except SettingError as error:
            parser.error(f"--peers: {error}")
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

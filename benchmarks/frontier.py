"""Parameters against PSNR: the dehazing recipe at several budgets, one row each.

    python -m benchmarks.frontier --keep 0.5 0.25 0.125 [--seeds 0 1] [--data DIR] [--readme FILE]

Every run goes through ``recipes/dehaze.yaml``; runs are kept and resumed. The JSON holds commit,
device, versions and seeds; with ``--readme`` the table between the markers is replaced.
"""

import argparse
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coa_compress.atomic import write_atomic
from coa_compress.compressor import Compressor
from coa_compress.provenance import best_device, commit, machine, versions
from coa_compress.recipe.files import load_recipe

_RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "dehaze.yaml"
_MARKERS = re.compile(r"(<!-- table: results -->\n).*?(<!-- end table -->)", re.DOTALL)


def main() -> None:
    """Run the benchmark and write what it found."""
    arguments = _arguments()
    rows = []
    for keep in arguments.keep:
        for seed in arguments.seeds:
            print(f"keep {keep} of the MACs, seed {seed}", flush=True)
            out = arguments.out / f"keep-{keep}-seed-{seed}"
            rows.append({"keep_macs": keep, "seed": seed, **_run(keep, seed, arguments.data, out)})
    content = {
        "schema_version": 1,
        "benchmark": "frontier",
        "recipe": _RECIPE.name,
        "commit": commit(),
        "versions": versions(),
        **machine(best_device()),
        "seeds": arguments.seeds,
        "rows": rows,
    }
    write_atomic(arguments.json, json.dumps(content, indent=1) + "\n")
    table = render(content)
    print(table)
    if arguments.readme is not None:
        text = arguments.readme.read_text(encoding="utf-8")
        write_atomic(arguments.readme, _MARKERS.sub(rf"\g<1>{table}\n\g<2>", text))


def render(content: Mapping[str, Any]) -> str:
    """Return the rows as a Markdown table, each figure the mean over the seeds."""
    rows: Sequence[Mapping[str, Any]] = content["rows"]
    splits = list(rows[0]["teacher"]["psnr_db"])
    head = ["network", "params", "MACs", "latency", *[f"PSNR dB, {split}" for split in splits]]
    lines = [head, ["---"] * len(head)]
    lines.append(_line("teacher", [row["teacher"] for row in rows], rows, splits))
    for keep in dict.fromkeys(row["keep_macs"] for row in rows):
        chosen = [row for row in rows if row["keep_macs"] == keep]
        lines.append(
            _line(f"student, {keep:.1%} of the MACs asked", _of(chosen, "student"), chosen, splits)
        )
        accepted = sum(bool(row["accepted"]) for row in chosen)
        name = f"the same, adapted (accepted {accepted} of {len(chosen)})"
        lines.append(_line(name, _of(chosen, "adapted"), chosen, splits))
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    place = f"{content['device_name']}, {content['threads']} threads"
    return (
        f"{table}\n\nMACs: multiply-accumulates of one 256 x 256 image. Latency: on {place}, as a "
        f"fraction of the teacher's in the same run. Mean over seeds {content['seeds']}. Made by "
        f"`python -m benchmarks.frontier`, commit {str(content['commit'])[:10]}."
    )


def _run(keep: float, seed: int, data: str | None, out: Path) -> dict[str, Any]:
    overrides = [f"stages.allocate.keep_macs={keep}", f"seed={seed}", f"out={out}"]
    overrides += [] if data is None else [f"task.test=builtin,{data}"]
    result = Compressor(recipe=load_recipe(_RECIPE, overrides)).run()
    gate = result.report.gate or {}
    return {
        **{role: dict(values) for role, values in result.report.measurements.items()},
        "accepted": bool(gate.get("accepted")),
        "stage_seconds": dict(result.report.stage_seconds),
    }


def _of(rows: Sequence[Mapping[str, Any]], role: str) -> list[Mapping[str, Any]]:
    return [row[role] for row in rows]


def _line(
    name: str,
    networks: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    splits: Sequence[str],
) -> list[str]:
    teachers = _of(rows, "teacher")
    latency = statistics.mean(
        ours["latency_ms"] / theirs["latency_ms"]
        for ours, theirs in zip(networks, teachers, strict=True)
    )
    figures = [statistics.mean(net["psnr_db"][split] for net in networks) for split in splits]
    params = statistics.mean(net["params"] for net in networks)
    macs = statistics.mean(net["macs"] for net in networks)
    return [
        name,
        f"{params / 1e6:.3f} M",
        f"{macs / 1e9:.3f} G",
        f"{latency:.2f}",
        *[f"{value:.2f}" for value in figures],
    ]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--keep", type=float, nargs="+", default=[0.5, 0.25, 0.125])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--data", help="a folder of test pairs, measured beside the built-in split")
    parser.add_argument("--out", type=Path, default=Path("runs/frontier"))
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/frontier.json"))
    parser.add_argument("--readme", type=Path, help="replace the table in this file")
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""What each part of the main job is worth: the variants of ``recipes/ablation.yaml``, compared.

    python -m benchmarks.ablation [--seeds 3] [--quick | --whole] [--data DIR] [--set KEY=VALUE ...]
        [--only VARIANT ...] [--out DIR] [--json FILE]

The same code as ``coa-compress ablate``. Without ``--whole`` training is shortened to what three
seeds of all variants need about half an hour for on one CPU core. Runs are kept and resumed.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.records import new_record, write_record
from coa_compress.ablation.running import run_ablation
from coa_compress.ablation.tables import tables_of
from coa_compress.ablation.texts import changes_of, markdown_table, summary_of
from coa_compress.recipe.ablation import load_ablation

_ROOT = Path(__file__).resolve().parent.parent
_FILE = _ROOT / "recipes" / "ablation.yaml"
_JSON = Path(__file__).resolve().parent / "results" / "ablation.json"

SHORT = (
    "task.crop=96",
    "stages.distill.training.steps=200",
    "stages.distill.training.batch_size=4",
    "stages.distill.training.validate_every=100",
    "stages.adapt.training.steps=40",
    "stages.adapt.training.batch_size=4",
    "stages.measure.latency_rounds=3",
)
"""Training that is short, and the same for all variants."""
QUICK = (
    "task.crop=32",
    "task.example_size=[32, 32]",
    "task.validation_images=1",
    "task.calibration_images=2",
    "task.max_test_images=1",
    "stages.refit.positions=64",
    "stages.distill.taps=1",
    *(
        f"stages.{stage}.training.{key}=1"
        for stage in ("distill", "adapt")
        for key in ("steps", "batch_size")
    ),
    "stages.measure.latency_rounds=1",
)
"""Enough to see that everything runs; the figures mean nothing."""


def main(given: Sequence[str] | None = None) -> None:
    """Run what is missing and write the record.

    Args:
        given: What follows the name of the module; None for the arguments of this process.
    """
    arguments = _parsed(given)
    settings = {"quick": QUICK, "short": SHORT, "whole": ()}[arguments.length]
    data = [] if arguments.data is None else [f"task.test=builtin,{arguments.data}"]
    ablation = load_ablation(_FILE, [*settings, *data, *arguments.set], only=arguments.only)
    document = run_ablation(
        ablation,
        range(arguments.seeds),
        arguments.out or _ROOT / "runs" / f"ablation-{arguments.length}",
        announce=lambda line: print(line, flush=True),
    )
    record = {**document, **new_record("ablation", given), "recipe": Path(ablation.recipe).name}
    record["settings"] = [*settings, *arguments.set]
    write_record(arguments.json, record)
    print(render(record))


def render(record: Mapping[str, Any]) -> str:
    """Return the tables of a record as Markdown."""
    blocks = [*changes_of(record)]
    for table in tables_of(record):
        blocks += [f"**{table.title}**", *markdown_table(table)]
    seeds = ", ".join(map(str, record["seeds"]))
    where = f"{record['device_name']}, {record['threads']} threads"
    return "\n\n".join(
        [
            *blocks,
            f"Seeds: {seeds}. On {where}: {summary_of(record)} Made by `{record['command']}`.",
        ]
    )


def _parsed(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.ablation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="how often each variant is run")
    length = parser.add_mutually_exclusive_group()
    for name, text in (("quick", "seconds a run, no meaning"), ("whole", "the recipe as it is")):
        length.add_argument(f"--{name}", dest="length", action="store_const", const=name, help=text)
    parser.add_argument("--data", help="a folder of test pairs, measured beside the built-in split")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--only", nargs="+", default=[], metavar="VARIANT")
    parser.add_argument("--out", type=Path, help="folder of the runs")
    parser.add_argument("--json", type=Path, default=_JSON)
    parser.set_defaults(length="short")
    arguments = parser.parse_args(given)
    if arguments.length == "quick" and arguments.json == _JSON:
        arguments.json = _JSON.with_name("ablation-quick.json")
    return arguments


if __name__ == "__main__":
    main()

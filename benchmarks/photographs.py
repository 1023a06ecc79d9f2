"""How many real photographs an adaptation takes: one student, adapted to few of them and to many.

    python -m benchmarks.photographs [--data DIR] [--counts 0 10 50 145] [--seeds 0 1 2]
        [--work runs/photographs] [--images N] [--quick] [--json FILE]

DIR holds ``train/real_hazy``, ``test`` (folders of pairs, and ``real_hazy``) and, where they are to
be used, ``iqa`` with the original parameters of FADE and NIQE, for the table; the gate has those of
this package. The photographs of a count are spaced evenly over all, and the built-in ones are
beside them. ``recipes/dehaze_photos.yaml`` is run for each seed and count, over one cache of
stages. Every row is written when it is done, and is not made again.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.ablation import QUICK
from benchmarks.adapt import with_original_parameters
from benchmarks.records import add_rows, averages, markdown_table, new_record
from coa_compress.compressor import Compressor
from coa_compress.errors import DataError
from coa_compress.recipe.files import load_recipe
from coa_compress.tasks.dehazing.settings import DehazingSettings
from coa_compress.tasks.dehazing.task import DehazingTask
from coa_compress.tasks.folders import spaced
from coa_compress.tasks.images import list_images

_ROOT = Path(__file__).resolve().parent.parent
_RECIPE = _ROOT / "recipes" / "dehaze_photos.yaml"
_JSON = Path(__file__).resolve().parent / "results" / "photographs.json"
_DATA = _ROOT.parent / "shared" / "data"
_SHOWN = {
    "FADE, real photos": ("fade", "real", 3),
    "NIQE, real photos": ("niqe", "real", 3),
    "PSNR dB, real_pairs": ("psnr_db", "real_pairs", 2),
    "SSIM, real_pairs": ("ssim", "real_pairs", 3),
    "PSNR dB, builtin": ("psnr_db", "builtin", 2),
    "PSNR dB, sots_indoor": ("psnr_db", "sots_indoor", 2),
    "PSNR dB, sots_outdoor": ("psnr_db", "sots_outdoor", 2),
}


def main(given: Sequence[str] | None = None) -> None:
    """Make the rows that are missing and write the record.

    Args:
        given: What follows the name of the module; None for the arguments of this process.
    """
    arguments = _parsed(given)
    add_rows(
        arguments.json,
        ("photographs", "seed"),
        [(count, seed) for seed in arguments.seeds for count in (None, *arguments.counts)],
        make=_Bench(arguments).row,
        record=lambda: new_record("photographs", given),
        render=render,
    )


def render(record: Mapping[str, Any]) -> str:
    """Return the rows of a record as a Markdown table, each figure a mean over the seeds."""
    rows: Sequence[Mapping[str, Any]] = record["rows"]
    counts = sorted(
        {row["photographs"] for row in rows}, key=lambda count: -1 if count is None else count
    )
    shown = {
        title: place for title, place in _SHOWN.items() if place[1] in rows[0]["measures"][place[0]]
    }
    lines = []
    for count in counts:
        chosen = [row for row in rows if row["photographs"] == count]
        verdicts = [row["gate"]["accepted"] for row in chosen if row["gate"]]
        cells = ["not adapted" if count is None else str(count or "built-in ones alone")]
        cells.append(f"{sum(verdicts)} of {len(verdicts)}" if verdicts else "")
        lines.append([*cells, *averages(chosen, shown.values())])
    seeds = sorted({row["seed"] for row in rows})
    return (
        f"{markdown_table(['photographs', 'accepted', *shown, 'seconds'], lines)}\n\n"
        f"The student of `recipes/dehaze_photos.yaml`, which the gate returned; the "
        f"built-in photographs are there beside so many others. Seconds: of the adaptation and its "
        f"gate. Seeds: {', '.join(map(str, seeds))}; means, and ± the standard deviation. On "
        f"{record['device_name']}, {record['threads']} threads. Made by `{record['command']}`."
    )


class _Bench:
    """The photographs, and the task that students are measured on."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.found = list_images(arguments.data / "train" / "real_hazy")
        if max(arguments.counts) > len(self.found):
            message = (
                f"--counts {max(arguments.counts)} is more than the {len(self.found)} photographs "
                f"of {arguments.data / 'train' / 'real_hazy'}: ask for fewer"
            )
            raise DataError(message)
        settings = DehazingSettings(
            test=("builtin", str(arguments.data / "test")), max_test_images=arguments.images
        )
        self.task = DehazingTask(with_original_parameters(settings, arguments.data / "iqa"))

    def row(self, count: int | None, seed: int) -> dict[str, Any]:
        """Return the verdict on a student that was adapted to so many photographs, and measures.

        Args:
            count: How many; None for no adaptation.
            seed: Of the whole run.
        """
        what = "not adapted" if count is None else f"{count} photographs"
        print(f"{what}, seed {seed}", flush=True)
        work, settings = self.arguments.work, QUICK if self.arguments.quick else ()
        run = work / f"{'none' if count is None else count}-seed-{seed}"
        real = "stages.adapt=off" if count is None else f"task.real={self._photographs(count)}"
        overrides = [*settings, real, f"seed={seed}", f"out={run}", "stages.measure=off"]
        done = Compressor(recipe=load_recipe(_RECIPE, overrides)).run(cache=work / "cache")
        return {
            "gate": done.report.gate,
            "seconds": done.report.stage_seconds.get("adapt", 0.0),
            "measures": self.task.measure(done.student),
        }

    def _photographs(self, count: int) -> str:
        """Return what is adapted to: the built-in ones, and a folder of so many, which is made."""
        if not count:
            return "builtin"
        folder = self.arguments.work / "photographs" / str(count)
        folder.mkdir(parents=True, exist_ok=True)
        for path in spaced(self.found, count):
            link = folder / path.name
            if not link.exists():
                link.symlink_to(path.resolve())
        return f"builtin,{folder}"


def _parsed(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.photographs", description=__doc__)
    parser.add_argument("--data", type=Path, default=_DATA)
    parser.add_argument("--counts", type=int, nargs="+", default=[0, 10, 50, 145])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("runs/photographs"))
    parser.add_argument("--images", type=int, help="most test images of a split")
    parser.add_argument("--json", type=Path, default=_JSON)
    parser.add_argument("--quick", action="store_true", help="few steps, few images, one seed")
    arguments = parser.parse_args(given)
    if arguments.quick:
        arguments.seeds, arguments.images = arguments.seeds[:1], 2
        arguments.counts = arguments.counts[:2]
        arguments.work = arguments.work.with_name(f"{arguments.work.name}-quick")
        if arguments.json == _JSON:
            arguments.json = _JSON.with_name("photographs-quick.json")
    return arguments


if __name__ == "__main__":
    main()

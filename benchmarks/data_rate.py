"""How many images a second the data path draws, and how many a training step needs.

    python -m benchmarks.data_rate [--quick] [--data DIR] [--workers 0 1 2] [--json FILE]

Batches are drawn as a stage draws them, one after another, without training in between. The need
is that of one distillation step of the built-in network on this machine. Compare within a run: a
busy machine makes all figures lower.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.networks.published import default_data
from benchmarks.records import markdown_table, new_record, write_record
from coa_compress.provenance import best_device
from coa_compress.tasks.dehazing.settings import DehazingSettings
from coa_compress.tasks.dehazing.task import DehazingTask
from coa_compress.training.ahead import BatchSupply
from coa_compress.training.seeds import step_seed
from coa_compress.training.settings import TrainingSettings

_RESULTS = Path(__file__).resolve().parent / "results" / "data_rate.json"
_JOB = "data_rate"


def images_per_s(task: DehazingTask, *, workers: int, batch_size: int, batches: int) -> float:
    """Return how many crops a second come out, once the workers are there and files decoded."""
    supply = BatchSupply(task)
    warm = batches + 2 * workers + 2
    settings = TrainingSettings(steps=warm + batches, batch_size=batch_size, workers=workers)
    with supply.ahead(_JOB, settings, seed=0):
        start = 0.0
        for step in range(settings.steps):
            if step == warm:
                start = time.perf_counter()
            generator = torch.Generator().manual_seed(step_seed(_JOB, 0, step, 0))
            supply.draw("training_batch", batch_size, generator)
        return batches * batch_size / (time.perf_counter() - start)


def needed_per_s(task: DehazingTask, *, batch_size: int, steps: int) -> float:
    """Return how many crops a second forward and backward passes of the teacher use up."""
    device = best_device()
    network = task.build_teacher().to(device).train()
    side = task.settings.crop
    image = torch.rand(batch_size, 3, side, side, device=device)
    for step in range(steps + 1):
        if step == 1:
            _wait(device)
            start = time.perf_counter()
        network(image).mean().backward()
    _wait(device)
    return steps * batch_size / (time.perf_counter() - start)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def main(given: Sequence[str] | None = None) -> None:
    """Run the benchmark and write what it found."""
    arguments = _arguments(given)
    sizes = {"batch_size": arguments.batch, "crop": arguments.crop}
    places = {"procedural scenes": "builtin"}
    if arguments.data is not None and not arguments.builtin_only:
        places["decoded photographs"] = str(arguments.data / "train")
    rows, need = [], 0.0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name, place in places.items():
            task = DehazingTask(DehazingSettings(train=place, crop=arguments.crop))
            need = need or needed_per_s(task, batch_size=arguments.batch, steps=arguments.batches)
            for workers in arguments.workers:
                found = images_per_s(
                    task, workers=workers, batch_size=arguments.batch, batches=arguments.batches
                )
                rows.append({"images": name, "workers": workers, "images_per_s": found})
                print(rows[-1], flush=True)
    finally:
        torch.set_num_threads(threads)
    record = {**new_record("data_rate", given), **sizes, "needed_per_s": need, "rows": rows}
    write_record(arguments.json, record)
    print(render(record))


def render(record: Mapping[str, Any]) -> str:
    """Return a Markdown table: images a second by source and workers, and against the need."""
    lines = [
        [
            row["images"],
            str(row["workers"]),
            f"{row['images_per_s']:.0f}",
            f"{row['images_per_s'] / record['needed_per_s']:.1f}",
        ]
        for row in record["rows"]
    ]
    table = markdown_table(["training images", "workers", "crops a second", "over need"], lines)
    return (
        f"{table}\n\nBatches of {record['batch_size']} crops of {record['crop']} x "
        f"{record['crop']}; a step of the built-in teacher needs {record['needed_per_s']:.0f} a "
        f"second on {record['device_name']}. Made by `{record['command']}`."
    )


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="few batches: does it run")
    parser.add_argument("--data", type=Path, default=default_data())
    parser.add_argument("--builtin-only", action="store_true", help="no photographs")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--crop", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--json", type=Path, default=_RESULTS)
    arguments = parser.parse_args(given)
    if arguments.quick:
        arguments.batches, arguments.crop, arguments.batch = 2, 64, 2
    return arguments


if __name__ == "__main__":
    main()

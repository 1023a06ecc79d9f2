"""What training on procedural scenes is worth: a small network, tested on photographs.

    python -m benchmarks.scenes [--quick] [--data DIR] [--arms NAME ...] [--seeds 0] [--json FILE]

Each arm trains the same network from the same start for as many steps, on other images or under
other haze. What the package does is chosen by the figures on ``train_extra``, which no arm is
trained on; those on ``test`` are only shown. Rows that are in the file are not made again.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.networks.published import default_data
from benchmarks.records import markdown_table, new_record, read_record, spread, write_record
from coa_compress.errors import DataError, SettingError
from coa_compress.tasks.dehazing.data import splits_of
from coa_compress.tasks.dehazing.folders import SceneFile, read_folder
from coa_compress.tasks.dehazing.hazing import HazeSettings
from coa_compress.tasks.dehazing.judging import Judge
from coa_compress.tasks.dehazing.losses import RESTORATION_LOSSES
from coa_compress.tasks.dehazing.networks import HazeUNet
from coa_compress.tasks.dehazing.scenes import Scene, render_clutter, scene_pool
from coa_compress.tasks.dehazing.sources import Example, Mixture, SceneSource, Source
from coa_compress.tasks.dice import Dice
from coa_compress.tasks.folders import spaced
from coa_compress.tasks.image_cache import ImageCache
from coa_compress.training.loop import TrainingJob, fit
from coa_compress.training.settings import TrainingSettings

WIDTHS, DEPTHS = (24, 32, 48), (1, 1, 1)
"""The network that is trained: 92 thousand parameters."""

_CROP = 128
_RESULTS = Path(__file__).resolve().parent / "results" / "scenes.json"
_SPLITS = ("train_extra", "test/sots_indoor", "test/sots_outdoor", "test/real_pairs")
_INPUT = "hazy input"

Arm = Callable[[Path], Source]
"""Makes the training images of an arm, given the folder of the data."""


def by_domain(scenes: Sequence[Scene | SceneFile], **options: Any) -> Source:
    """Return a source that draws from outdoor and indoor scenes alike."""
    cache = ImageCache()
    parts = [[s for s in scenes if s.domain == domain] for domain in ("outdoor", "indoor")]
    return Mixture([(1.0, SceneSource(part, cache, **options)) for part in parts if part])


def photographs(data: Path, **options: Any) -> Source:
    """Return real photographs with depth."""
    found = [scene for part in read_folder(data / "train") for scene in part.scenes]
    return by_domain(found, **options)


def drawn_scenes(_data: Path, *, scenes: int = 0, clutter: int = 0, **options: Any) -> Source:
    """Return streets, fields and rooms, and clutter for either domain."""
    domains = ("outdoor", "indoor")
    made = [render_clutter(domains[i % 2], seed=i) for i in range(clutter)]
    return by_domain([*made, *scene_pool(1, scenes)], **options)


MORE_HAZE = HazeSettings(
    heavy=0.1, drift=0.3, airlight=0.3, depth_noise=0.3, gamma=0.2, noise=0.3, jpeg=0.3
)
"""Every option by day, each in some of the crops."""

ARMS: dict[str, Arm] = {
    "photographs": photographs,
    "streets and rooms": partial(drawn_scenes, scenes=24),
    "clutter": partial(drawn_scenes, clutter=48),
    "clutter, streets and rooms": partial(drawn_scenes, scenes=24, clutter=48),
    "photographs, more kinds of haze": partial(photographs, haze=MORE_HAZE),
}
"""Training images by the name of the arm."""


def trained(source: Source, *, steps: int, batch_size: int, seed: int) -> nn.Module:
    """Return the small network after training on a source, the average of its weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = HazeUNet(WIDTHS, DEPTHS)
    loss = RESTORATION_LOSSES["l1"]

    def step_losses(
        model: nn.Module, _average: nn.Module, generator: torch.Generator
    ) -> Mapping[str, torch.Tensor]:
        dice = Dice(generator)
        crops = [source.crop(_CROP, dice) for _ in range(batch_size)]
        hazy, clear = (torch.stack(images) for images in zip(*crops, strict=True))
        return {"l1": loss(model(hazy), clear)}

    settings = TrainingSettings(
        steps=steps, batch_size=batch_size, learning_rate=2e-3, validate_every=steps
    )
    job = TrainingJob(name="scenes", model=network, step_losses=step_losses, weights={"l1": 1.0})
    return fit(job, settings, seed=seed, device="cpu", folder=None).model


def measured(model: nn.Module, tests: Mapping[str, Sequence[Example]]) -> dict[str, float]:
    """Return the mean PSNR in dB by split."""
    judge = Judge(model.eval(), tile=1024)
    with torch.no_grad():
        return {name: judge.mean_psnr_db(examples) for name, examples in tests.items()}


def tests_of(data: Path, limit: int | None) -> dict[str, Sequence[Example]]:
    """Return the images to measure on by split; scenes are split by domain."""
    cache = ImageCache()
    found: dict[str, Sequence[Example]] = {}
    for folder in _SPLITS:
        for part in read_folder(data / folder):
            title = part.path.relative_to(data).as_posix()
            for domain in ("indoor", "outdoor"):
                chosen = [scene for scene in part.scenes if scene.domain == domain]
                if chosen:
                    found[f"{title}, {domain}"] = _examples(_only(part, chosen), cache, limit)
            if part.pairs:
                found[title] = _examples(_only(part, ()), cache, limit)
    return found


def _examples(part: Any, cache: ImageCache, limit: int | None) -> Sequence[Example]:
    (examples,) = splits_of([part], cache).values()
    return spaced(examples, limit)


def _only(part: Any, scenes: Sequence[SceneFile]) -> Any:
    return type(part)(part.path, () if scenes else part.pairs, tuple(scenes))


def main(given: Sequence[str] | None = None) -> None:
    """Run the benchmark and write what it found, row by row."""
    arguments = _arguments(given)
    data = arguments.data
    if data is None:
        message = "no photographs to test on: give a data folder with --data"
        raise DataError(message)
    record = _started(arguments)
    tests = tests_of(data, arguments.images)
    if not record["input"]:
        record["input"] = measured(nn.Identity(), tests)
    done = {(row["arm"], row["seed"]) for row in record["rows"]}
    for seed in arguments.seeds:
        for arm in arguments.arms:
            if (arm, seed) in done:
                continue
            start = time.perf_counter()
            source = _arm(arm)(data)
            model = trained(source, steps=arguments.steps, batch_size=arguments.batch, seed=seed)
            row = {"arm": arm, "seed": seed, "seconds": time.perf_counter() - start}
            record["rows"].append({**row, "psnr_db": measured(model, tests)})
            write_record(arguments.json, record)
            print(record["rows"][-1], flush=True)
    print(render(record))


def render(record: Mapping[str, Any]) -> str:
    """Return a Markdown table: each arm, its mean PSNR by split and the spread over seeds."""
    splits = list(record["input"])
    lines = [[_INPUT, *[f"{record['input'][split]:.2f}" for split in splits]]]
    for arm in dict.fromkeys(row["arm"] for row in record["rows"]):
        rows = [row["psnr_db"] for row in record["rows"] if row["arm"] == arm]
        lines.append([arm, *[spread([row[split] for row in rows], 2) for split in splits]])
    seeds = sorted({row["seed"] for row in record["rows"]})
    table = markdown_table(["trained on", *[f"{s}, dB" for s in splits]], lines)
    return (
        f"{table}\n\nA `HazeUNet` of widths {list(WIDTHS)}, {record['steps']} steps of "
        f"{record['batch']} crops of {_CROP} x {_CROP}; PSNR on whole images, seeds "
        f"{', '.join(map(str, seeds))}. Made by `{record['command']}`."
    )


def _arm(name: str) -> Arm:
    if name not in ARMS:
        message = f"no arm {name!r}: use {', '.join(ARMS)}"
        raise SettingError(message)
    return ARMS[name]


def _started(arguments: argparse.Namespace) -> dict[str, Any]:
    asked = {key: getattr(arguments, key) for key in ("steps", "batch", "images")}
    record = {**new_record("scenes", arguments.given), **asked, "input": {}, "rows": []}
    if arguments.json.exists():
        before = read_record(arguments.json)
        if any(before[key] != value for key, value in asked.items()):
            message = f"{arguments.json} holds rows of other settings: give another --json"
            raise DataError(message)
        record |= {"input": before["input"], "rows": before["rows"]}
    return record


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a few steps and images: does it run")
    parser.add_argument("--data", type=Path, default=default_data())
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--images", type=int, default=40, help="most images of a split")
    parser.add_argument("--json", type=Path, default=_RESULTS)
    arguments = parser.parse_args(given)
    arguments.given = given
    if arguments.quick:
        arguments.steps, arguments.images = 4, 2
    return arguments


if __name__ == "__main__":
    main()

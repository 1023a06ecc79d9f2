"""Adapt a distilled student to unlabelled real haze in several ways, and measure each.

    python -m benchmarks.adapt [--data DIR] [--keep 0.125] [--variants detail "plain label" ...]
        [--seeds 0 1 2] [--work runs/adapt] [--images N] [--quick] [--json FILE]

DIR holds ``train`` (``clear/``, ``depth/`` and ``index.csv``; ``real_hazy``; ``real_pairs``, of
which only the hazy halves are used), ``test`` (folders of pairs, and ``real_hazy``) and, where they
are to be used, ``iqa`` with the original parameters of FADE and NIQE. The student is made once by
``recipes/dehaze.yaml`` on the scenes alone, and kept in ``--work``. A
variant is the recipe with some overrides. Every row is written when it is done, and is not made
again.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.model_card import Unchanged
from benchmarks.records import add_rows, averages, markdown_table, new_record
from coa_compress.compressor import Compressor
from coa_compress.errors import DataError
from coa_compress.opening import open_student
from coa_compress.protocols import SilentObserver
from coa_compress.recipe.files import load_recipe
from coa_compress.recipe.schema import Recipe
from coa_compress.stages.adapt import Adapt
from coa_compress.stages.state import Context
from coa_compress.structure.analysis import analyze
from coa_compress.tasks.dehazing.settings import DehazingSettings
from coa_compress.tasks.dehazing.task import DehazingTask

_ROOT = Path(__file__).resolve().parent.parent
_RECIPE = _ROOT / "recipes" / "dehaze.yaml"
_JSON = Path(__file__).resolve().parent / "results" / "adapt.json"
_DATA = _ROOT.parent / "shared" / "data"
_STUDENT, _TEACHER, _INPUT = "not adapted", "(teacher)", "(hazy input)"
_REFERENCES = (_INPUT, _TEACHER, _STUDENT)
_SHOWN = {"fade": "FADE", "dark_channel_density": "dark channel", "niqe": "NIQE"}

_START = (
    "mode=ema",
    "label=detail",
    "label_strength=1.0",
    # nearly still: a label that is sharper than its maker must not chase itself
    "mean_teacher.decay=0.999",
    "consistency=1.0",
    "cycle=0.0",
    "prior={}",
    "replay={l1: 1.0}",
    "retain={}",
    "update=all",
    "training={steps: 150, batch_size: 4, learning_rate: 2.0e-4, warmup_steps: 10}",
    "training.ema_decay=0.95",
)
_LARGE_CROPS = (
    "labeler=teacher",
    "training.steps=1000",
    "training.learning_rate=5.0e-4",
    "training.ema_decay=0.99",
    "replay={psnr: 0.1}",
    "task.crop=256",
    "task.as_shot=0.75",
)
_RETAINING = (*_LARGE_CROPS, "retain={psnr: 0.1}")
VARIANTS: dict[str, tuple[str, ...]] = {
    "detail": (),
    "plain label": ("label=plain",),
    "plain label, dark channel": ("label=plain", "prior={dark_channel: 0.1}"),
    "label: twice": ("label=twice",),
    "label: dark channel": ("label=dark_channel",),
    "detail, cycle": ("cycle=0.5",),
    "detail, sky": ("prior={sky: 0.5}",),
    "detail, no replay": ("replay={}",),
    "detail, bilevel": ("mode=bilevel",),
    "detail, bilevel, first order": ("mode=bilevel", "bilevel=first_order"),
    "detail, norm only": ("update=norm", "training.learning_rate=2.0e-3"),
    "detail, low rank": ("update=low_rank", "training.learning_rate=1.0e-3"),
    "teacher": ("labeler=teacher", "label=plain"),
    "teacher, detail": ("labeler=teacher",),
    "teacher, detail, more replay": ("labeler=teacher", "replay={l1: 3.0}"),
    "teacher, long": (
        "labeler=teacher",
        "label=plain",
        "training.steps=500",
        "training.learning_rate=5.0e-4",
    ),
    "teacher, detail, long": (
        "labeler=teacher",
        "training.steps=500",
        "training.learning_rate=5.0e-4",
    ),
    "teacher, detail, long, dark channel prior": (
        "labeler=teacher",
        "training.steps=500",
        "training.learning_rate=5.0e-4",
        "prior={dark_channel: 0.1}",
    ),
    "teacher, detail, large crops": _LARGE_CROPS,
    "teacher, detail, large crops, retain": _RETAINING,
    "teacher, detail, large crops, retain, twice the weight": (
        *_RETAINING,
        "consistency=2.0",
    ),
    "teacher, detail, large crops, retain, weight 2.5": (
        *_RETAINING,
        "consistency=2.5",
    ),
    "teacher, gentle detail, large crops, retain": (
        *_RETAINING,
        "consistency=2.0",
        "label_strength=0.4",
    ),
    "teacher, dark channel": ("labeler=teacher", "label=dark_channel"),
    "teacher, bilevel, first order": (
        "labeler=teacher",
        "label=plain",
        "mode=bilevel",
        "bilevel=first_order",
    ),
}
"""Overrides of ``stages.adapt`` or of ``task`` by name, on top of the first variant."""


def main(given: Sequence[str] | None = None) -> None:
    """Make the rows that are missing and write the record.

    Args:
        given: What follows the name of the module; None for the arguments of this process.
    """
    arguments = _parsed(given)
    wanted = [(name, 0) for name in _REFERENCES]
    wanted += [(v, s) for v in arguments.variants for s in arguments.seeds]
    add_rows(
        arguments.json,
        ("variant", "seed"),
        wanted,
        make=_Bench(arguments).row,
        record=lambda: {**new_record("adapt", given), "keep_macs": arguments.keep},
        render=render,
    )


def render(record: Mapping[str, Any]) -> str:
    """Return the rows of a record as a Markdown table, each figure a mean over the seeds."""
    rows: Sequence[Mapping[str, Any]] = record["rows"]
    measures = rows[0]["measures"]
    unlabelled = [name for name in _SHOWN if name in measures]
    pairs = [split for split in measures["psnr_db"] if split != "real"]
    head = ["adaptation", *(f"PSNR dB, {split}" for split in pairs), "SSIM, real_pairs"]
    head += [f"{_SHOWN[name]}, real photos" for name in unlabelled] + ["seconds"]
    columns = [("psnr_db", split, 2) for split in pairs]
    columns += [("ssim", "real_pairs", 3), *((name, "real", 3) for name in unlabelled)]
    lines = [
        [variant, *averages([row for row in rows if row["variant"] == variant], columns)]
        for variant in dict.fromkeys(row["variant"] for row in rows)
    ]
    seeds = sorted({row["seed"] for row in rows if row["variant"] not in _REFERENCES})
    return (
        f"{markdown_table(head, lines)}\n\nA student of {record['keep_macs']:.1%} of the MACs of "
        f"the built-in teacher. Seeds of the adaptation: {', '.join(map(str, seeds)) or 'none'}; "
        f"means, and ± the standard deviation where there are several. On {record['device_name']}. "
        f"Made by `{record['command']}`."
    )


class _Bench:
    """The student, and the task that it is adapted to and measured on."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        train = arguments.data / "train"
        scenes = _scenes_alone(train, arguments.work / "scenes")
        real = (train / "real_hazy", train / "real_pairs" / "hazy")
        for folder in (*real, arguments.data / "test"):
            if not folder.is_dir():
                message = f"no folder {folder}: give --data a folder as the documentation says"
                raise DataError(message)
        settings = DehazingSettings(
            train=str(scenes),
            real=tuple(map(str, real)),
            test=str(arguments.data / "test"),
            max_test_images=arguments.images,
        )
        settings = with_original_parameters(settings, arguments.data / "iqa")
        self.task = DehazingTask(settings)
        self.teacher = self.task.build_teacher()
        self.student = self._made(scenes)

    def row(self, variant: str, seed: int) -> dict[str, Any]:
        """Return the measures of the student, adapted as a variant says."""
        print(f"{variant}, seed {seed}", flush=True)
        references = {_INPUT: Unchanged(), _TEACHER: self.teacher, _STUDENT: self.student}
        began = time.perf_counter()
        model = references.get(variant)
        if model is None:
            recipe = _recipe(VARIANTS[variant], self.arguments)
            context = self._context(seed, recipe.task.settings)
            stage = Adapt(recipe.stages["adapt"])
            model, _ = stage.adapt(self.student, context, teacher=self.teacher)
        seconds = time.perf_counter() - began
        return {"measures": self.task.measure(model), "seconds": seconds}

    def _made(self, scenes: Path) -> nn.Module:
        out = self.arguments.work / f"student-{self.arguments.keep:g}"
        if not (out / "student").is_dir():
            overrides = [f"task.train={scenes}", "stages.adapt=off", f"out={out}"]
            overrides.append(f"stages.allocate.keep_macs={self.arguments.keep}")
            if self.arguments.quick:
                overrides.append("stages.distill.training={steps: 20, batch_size: 2}")
            Compressor(recipe=load_recipe(_RECIPE, overrides)).run()
        return open_student(str(out))[0]

    def _context(self, seed: int, settings: DehazingSettings) -> Context:
        example = self.task.example_input()
        own = self.task.settings
        return Context(
            task=DehazingTask(replace(own, crop=settings.crop, as_shot=settings.as_shot)),
            seed=seed,
            device=next(self.student.parameters()).device.type,
            observer=SilentObserver(),
            structure=lambda model: analyze(model, example),
            example=example,
        )


def _recipe(overrides: Sequence[str], arguments: argparse.Namespace) -> Recipe:
    changed = [*_START, *overrides]
    if arguments.quick:
        changed += ["training.steps=4", "training.batch_size=1", "training.warmup_steps=1"]
    return load_recipe(
        _RECIPE, [item if item.startswith("task.") else f"stages.adapt.{item}" for item in changed]
    )


def with_original_parameters(settings: DehazingSettings, folder: Path) -> DehazingSettings:
    """Return settings with the original parameters of FADE and NIQE, if a folder holds them."""
    niqe = folder / "niqe_pris_params.npz"
    if not niqe.exists():
        return settings
    return replace(settings, fade_parameters=str(folder), niqe_parameters=str(niqe))


def _scenes_alone(train: Path, folder: Path) -> Path:
    """Return a folder of links to the scenes of a folder that holds other things beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("clear", "depth", "index.csv"):
        link = folder / name
        if not link.exists():
            link.symlink_to((train / name).resolve())
    return folder


def _parsed(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.adapt", description=__doc__)
    parser.add_argument("--data", type=Path, default=_DATA)
    parser.add_argument("--keep", type=float, default=0.125, help="of the MACs of the teacher")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("runs/adapt"))
    parser.add_argument("--images", type=int, help="most test images of a split")
    parser.add_argument("--json", type=Path, default=_JSON)
    parser.add_argument("--quick", action="store_true", help="few steps, few images, one seed")
    arguments = parser.parse_args(given)
    if arguments.quick:
        arguments.seeds, arguments.images = arguments.seeds[:1], 2
        arguments.work = arguments.work.with_name(f"{arguments.work.name}-quick")
        if arguments.json == _JSON:
            arguments.json = _JSON.with_name("adapt-quick.json")
    return arguments


if __name__ == "__main__":
    main()

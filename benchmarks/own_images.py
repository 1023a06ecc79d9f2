"""What images of one's own are worth: students compressed on built-in images, own ones, own pairs.

    python -m benchmarks.own_images [--data DIR] [--problems denoising super_resolution]
        [--seeds 0 1 2] [--keep 0.25] [--work runs/own_images] [--quick] [--json FILE]

DIR holds clear photographs in ``train/clear`` and ``clean``; pairs of noisy and clean, and of small
and large images are made of them. A network is trained for each problem, compressed by
``recipes/any_network.yaml`` on each kind of images, and measured on photographs that no one was
trained on. Every row is written when it is done, and is not made again.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.networks.residual import denoiser, upscaler
from benchmarks.records import add_rows, markdown_table, new_record, spread
from coa_compress.compressor import Compressor
from coa_compress.profiling.counting import count_macs
from coa_compress.recipe.files import load_recipe
from coa_compress.result import Result
from coa_compress.tasks.folders import spaced
from coa_compress.tasks.images import list_images, read_image, write_image
from coa_compress.tasks.restoration.settings import Colors, RestorationSettings
from coa_compress.tasks.restoration.task import RestorationTask

_ROOT = Path(__file__).resolve().parent.parent
_RECIPE = _ROOT / "recipes" / "any_network.yaml"
_JSON = Path(__file__).resolve().parent / "results" / "own_images.json"
_DATA = _ROOT.parent / "shared" / "data"
_SIGMA = 25 / 255
_SIDE = 400
_CROP = 64
_TEACHER = "teacher"
_KINDS = ("built-in images", "own images", "own pairs")
_COMMON = (f"task.crop={_CROP}", "task.example_size=[128, 128]", "device=cpu")


@dataclass(frozen=True, slots=True)
class Problem:
    """What a network is trained for.

    Args:
        factory: Makes it.
        degraded: Makes an input of a clean image, shape ``(3, height, width)``.
        colors: What PSNR and SSIM compare, and
        border: the pixels that they leave out, as in published tables.
    """

    factory: Callable[[], nn.Module]
    degraded: Callable[[Tensor, torch.Generator], Tensor]
    colors: Colors = "rgb"
    border: int = 0


def noisy(clean: Tensor, generator: torch.Generator) -> Tensor:
    """Return an image with Gaussian noise of a standard deviation of 25 levels."""
    return clean + _SIGMA * torch.randn(clean.shape, generator=generator)


def halved(clean: Tensor, _generator: torch.Generator) -> Tensor:
    """Return an image of half the size."""
    return functional.interpolate(clean[None], scale_factor=0.5, mode="bicubic", antialias=True)[0]


PROBLEMS = {
    "denoising": Problem(denoiser, noisy),
    "super_resolution": Problem(upscaler, halved, colors="y", border=2),
}
"""What may be asked for, by name."""


def main(given: Sequence[str] | None = None) -> None:
    """Make the rows that are missing and write the record.

    Args:
        given: What follows the name of the module; None for the arguments of this process.
    """
    arguments = _parsed(given)
    wanted = [
        (problem, kind, seed)
        for problem in arguments.problems
        for seed in arguments.seeds
        for kind in (_TEACHER, *_KINDS)
        if kind != _TEACHER or seed == arguments.seeds[0]
    ]
    add_rows(
        arguments.json,
        ("problem", "images", "seed"),
        wanted,
        make=_Bench(arguments).row,
        record=lambda: new_record("own_images", given),
        render=render,
    )


def render(record: Mapping[str, Any]) -> str:
    """Return the rows of a record as a Markdown table, each figure a mean over the seeds."""
    rows: Sequence[Mapping[str, Any]] = record["rows"]
    lines = []
    for problem in dict.fromkeys(row["problem"] for row in rows):
        for kind in (_TEACHER, *_KINDS):
            chosen = [row for row in rows if (row["problem"], row["images"]) == (problem, kind)]
            if chosen:
                shown = kind if kind == _TEACHER else f"student, {kind}"
                lines.append(
                    [
                        problem.replace("_", "-"),
                        shown,
                        f"{100 * chosen[0]['macs_kept']:.1f} %",
                        spread([row["psnr_db"] for row in chosen], 2),
                        spread([row["ssim"] for row in chosen], 4),
                    ]
                )
    seeds = sorted({row["seed"] for row in rows})
    head = ["problem", "compressed on", "MACs", "PSNR dB", "SSIM"]
    return (
        f"{markdown_table(head, lines)}\n\n"
        f"Photographs that nobody was trained on, whole. Denoising: Gaussian noise of 25 levels, "
        f"all channels. Super-resolution: twice, bicubic, luma without two pixels at the border. "
        f"Seeds: {', '.join(map(str, seeds))}; means, and ± the standard deviation. "
        f"Made by `{record['command']}`."
    )


class _Bench:
    """The pairs and the teachers, made when they are first asked for."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.teachers: dict[str, nn.Module] = {}

    def row(self, problem: str, kind: str, seed: int) -> dict[str, Any]:
        """Return what a teacher, or a student of it, reaches on the test pairs.

        Args:
            problem: A name of ``PROBLEMS``.
            kind: ``teacher``, or what the student is compressed on.
            seed: Of the whole run.
        """
        print(f"{problem}, {kind}, seed {seed}", flush=True)
        teacher, example = self._teacher(problem), torch.zeros(1, 3, 128, 128)
        network = teacher if kind == _TEACHER else self._student(problem, kind, seed)
        measured = self._task(problem).measure(network)
        return {
            "macs_kept": count_macs(network, example) / count_macs(teacher, example),
            **{name: measured[name]["test"] for name in ("psnr_db", "ssim")},
        }

    def _student(self, problem: str, kind: str, seed: int) -> nn.Module:
        data, arguments = self._pairs(problem), self.arguments
        train = {"built-in images": "builtin", "own images": str(data / "train" / "input")}
        return self._run(
            problem,
            self._teacher(problem),
            f"task.train={train.get(kind, str(data / 'train'))}",
            f"stages.allocate.keep_macs={arguments.keep}",
            f"stages.distill.training.steps={arguments.steps}",
            "stages.measure=off",
            f"seed={seed}",
            out=f"{kind.replace(' ', '-')}-{seed}",
        ).student

    def _run(self, problem: str, network: nn.Module, *overrides: str, out: str) -> Result:
        place = f"out={self.arguments.work / problem / out}"
        recipe = load_recipe(_RECIPE, [*_COMMON, *overrides, place])
        return Compressor(network, recipe=recipe).run()

    def _task(self, problem: str) -> RestorationTask:
        settings = RestorationSettings(
            test=str(self._pairs(problem) / "test"),
            colors=PROBLEMS[problem].colors,
            border=PROBLEMS[problem].border,
        )
        return RestorationTask(settings)

    def _teacher(self, problem: str) -> nn.Module:
        if problem not in self.teachers:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                network = PROBLEMS[problem].factory()
            training = f"training: {{steps: {self.arguments.teacher_steps}, learning_rate: 1.0e-3}}"
            done = self._run(
                problem,
                network,
                f"task.train={self._pairs(problem) / 'train'}",
                f"stages={{train: {{{training}}}}}",
                out="teacher-training",
            )
            self.teachers[problem] = done.teacher
        return self.teachers[problem]

    def _pairs(self, problem: str) -> Path:
        """Return a folder with ``train`` and ``test``, each with ``input`` and ``target``."""
        data: Path = self.arguments.data
        folder: Path = self.arguments.work / problem / "data"
        images = self.arguments.images
        for split, source in (("train", data / "train" / "clear"), ("test", data / "clean")):
            for number, path in enumerate(spaced(list_images(source), images)):
                target = folder / split / "target" / f"{path.stem}.png"
                if target.exists():
                    continue
                clean = read_image(path)
                height, width = (min(side, _SIDE) // 2 * 2 for side in clean.shape[1:])
                clean = clean[:, :height, :width]
                generator = torch.Generator().manual_seed(number)
                degraded = PROBLEMS[problem].degraded(clean, generator)
                write_image(degraded, folder / split / "input" / target.name)
                write_image(clean, target)
        return folder


def _parsed(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.own_images", description=__doc__)
    parser.add_argument("--data", type=Path, default=_DATA)
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--keep", type=float, default=0.25)
    parser.add_argument("--images", type=int, default=150, help="most images of each split")
    parser.add_argument("--teacher-steps", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=400, help="of the distillation")
    parser.add_argument("--work", type=Path, default=Path("runs/own_images"))
    parser.add_argument("--json", type=Path, default=_JSON)
    parser.add_argument("--quick", action="store_true", help="few steps, few images, one seed")
    arguments = parser.parse_args(given)
    if arguments.quick:
        arguments.seeds, arguments.images = arguments.seeds[:1], 4
        arguments.teacher_steps, arguments.steps = 2, 2
        arguments.work = arguments.work.with_name(f"{arguments.work.name}-quick")
        if arguments.json == _JSON:
            arguments.json = _JSON.with_name("own_images-quick.json")
    return arguments


if __name__ == "__main__":
    main()

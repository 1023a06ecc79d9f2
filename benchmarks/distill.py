"""What each part of the distillation returns of the gap between a student and its teacher.

    python -m benchmarks.distill [--variants truth output l2] [--seeds 0 1 2] [--keep 0.125]
        [--steps 400] [--crop 64] [--images 12] [--data DIR] [--train data] [--quick] [--json FILE]

For each seed the built-in teacher is cut to the budget and refitted once; every variant trains that
student for the same steps on the same batches. Those in rounds cut in between: their steps are the
same in all, and so is the budget. A row is a variant and a seed. Rows that the file has already
are not made again.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.networks.published import default_data
from benchmarks.records import markdown_table, new_record, read_record, write_record
from coa_compress.artifacts import Batch
from coa_compress.errors import DataError
from coa_compress.profiling.counting import count_macs
from coa_compress.protocols import SilentObserver
from coa_compress.stages.allocate import Allocate, AllocateSettings
from coa_compress.stages.distill import Distill, DistillSettings
from coa_compress.stages.order import in_rounds
from coa_compress.stages.prune import Prune, PruneSettings
from coa_compress.stages.refit import Refit, RefitSettings
from coa_compress.stages.score import Score, ScoreSettings
from coa_compress.stages.state import Context, Stage, State, needed
from coa_compress.structure.analysis import analyze
from coa_compress.tasks.dehazing.judging import Judge
from coa_compress.tasks.dehazing.settings import DehazingSettings
from coa_compress.tasks.dehazing.task import DehazingTask
from coa_compress.tasks.folders import spaced
from coa_compress.tasks.measures import capped_psnr_db
from coa_compress.training.settings import TrainingSettings

_JSON = Path(__file__).resolve().parent / "results" / "distill.json"
_SPLITS = ("sots_indoor", "sots_outdoor")
_BATCH = 8
_BASE: Mapping[str, Any] = {"truth": {"l1": 0.2}, "teacher": {"l1": 1.0}, "feature": {}}
_L2: Mapping[str, Any] = {**_BASE, "feature": {"l2": 0.05}}

_RANDOM_START = "random_truth"
_TRUTH: Mapping[str, Any] = {"truth": {"l1": 1.0}, "teacher": {}, "feature": {}}

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "truth": _TRUTH,
    "truth_output": {**_TRUTH, "teacher": {"l1": 1.0}},
    "truth_l2": {**_TRUTH, "feature": {"l2": 0.05}},
    "truth_l2_strong": {**_TRUTH, "feature": {"l2": 0.2}},
    "truth_attention": {**_TRUTH, "feature": {"attention": 0.2}},
    "truth_affinity": {**_TRUTH, "feature": {"affinity": 0.2}},
    "output": _BASE,
    "l2": _L2,
    "statistics": {**_BASE, "feature": {"statistics": 0.05}},
    "attention": {**_BASE, "feature": {"attention": 0.2}},
    "affinity": {**_BASE, "feature": {"affinity": 0.2}},
    "coa": {**_BASE, "feature": {"coa": 1e-4}},
    "contrastive": {**_BASE, "contrastive": 0.05},
    "l2_strong": {**_BASE, "feature": {"l2": 0.2}},
    "l2_by_loss": {**_L2, "tap_choice": "expected_loss"},
    "l2_adapters": {**_L2, "adapters": True},
    "l2_balanced": {**_L2, "balance": "geometric"},
    "l2_branches": {**_L2, "branches": True},
    "progressive": {**_BASE, "rounds": 2},
    "assistant": {**_BASE, "rounds": 2, "assistant": True},
    _RANDOM_START: _TRUTH,
    "default": {},
}
"""Settings of the distill stage by name; what is not named is the default. ``random_truth`` starts
from random weights, all others from those that were cut and refitted."""

_LEARNED_FROM = {"data": " of its teacher's own data", "builtin": " of the built-in images"}


def main(given: Sequence[str] | None = None) -> None:
    """Make the rows that are missing and print the table.

    Args:
        given: What follows the name of the module; None for the arguments of this process.
    """
    arguments = _parsed(given)
    torch.set_num_threads(1)
    record = _opened(arguments, given)
    for seed in arguments.seeds:
        done = {row["variant"] for row in record["rows"] if row["seed"] == seed}
        missing = [name for name in arguments.variants if name not in done]
        if missing:
            subject = _Subject.made(seed, arguments)
            record["teacher"] = subject.psnr_db(subject.state.teacher)
            record["kept"] = subject.kept()
            record["start"][str(seed)] = subject.psnr_db(subject.state.student)
            for name in missing:
                row = {"variant": name, "seed": seed, **subject.distilled(name, arguments)}
                record["rows"].append(row)
                write_record(arguments.json, record)
                print(name, seed, row["psnr_db"], flush=True)
    print(render(record))


def distill_settings(variant: str, steps: int) -> DistillSettings:
    """Return the settings of a variant; the steps of its rounds are ``steps`` in all."""
    settings = DistillSettings(**VARIANTS[variant])
    each = max(1, steps // settings.rounds)
    last = max(1, steps - (settings.rounds - 1) * each)
    training = TrainingSettings(steps=last, batch_size=_BATCH, validate_every=last)
    earlier = each if settings.rounds > 1 else None
    return replace(settings, training=training, round_steps=earlier)


def returned(record: Mapping[str, Any], variant: str) -> list[float]:
    """Return, for each seed, which part of the gap a variant returns.

    The gap is that between the PSNR against the truth of the student that was trained without a
    teacher, from the same cut and refitted weights, and that of the teacher, averaged over the
    splits.
    """
    teacher = _mean_truth(record["teacher"])
    of = {(row["variant"], row["seed"]): _mean_truth(row["psnr_db"]) for row in record["rows"]}
    found = []
    for (name, seed), value in of.items():
        alone = of.get(("truth", seed))
        if name == variant and alone is not None:
            found.append((value - alone) / (teacher - alone))
    return found


def render(record: Mapping[str, Any]) -> str:
    """Return the rows of a record as a Markdown table."""
    splits = list(record["teacher"])
    head = ["trained on", "seeds"]
    head += [f"{split}: truth" for split in splits] + [f"{split}: teacher" for split in splits]
    head += ["validation", "gap returned"]
    lines = [_line("(refitted, not trained)", list(record["start"].values()), head)]
    for name in dict.fromkeys(row["variant"] for row in record["rows"]):
        rows = [row for row in record["rows"] if row["variant"] == name]
        line = _line(f"`{name}`", [row["psnr_db"] for row in rows], head)
        line[-2] = _shown([row["validation_db"] for row in rows])
        line[-1] = _shown(returned(record, name), percent=True)
        lines.append(line)
    truth = [f"{values['truth']:.2f}" for values in record["teacher"].values()]
    lines.append(["(teacher)", "", *truth, *["" for _ in splits], "", "100%"])
    settings = record["settings"]
    return (
        f"{markdown_table(head, lines)}\n\nPSNR in dB, mean ± standard deviation over seeds, on "
        f"whole images against the truth and against the teacher's output. The student has "
        f"{record['kept']:.1%} of the MACs, {settings['steps']} steps of {_BATCH} crops of "
        f"{settings['crop']} pixels{_LEARNED_FROM[settings['train']]}. "
        f"Made by `{record['command']}`."
    )


@dataclass(slots=True, eq=False)
class _Remembered:
    """A task that makes each training batch once: all variants see the same."""

    task: DehazingTask
    batches: dict[int, Batch] = field(default_factory=dict)

    def training_batch(self, batch_size: int, generator: torch.Generator) -> Batch:
        number = generator.initial_seed()
        if number not in self.batches:
            self.batches[number] = self.task.training_batch(batch_size, generator)
        return self.batches[number]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)


@dataclass(frozen=True, slots=True, eq=False)
class _Subject:
    """A student that was cut and refitted, and the images that it is judged on."""

    state: State
    context: Context
    tests: Mapping[str, Sequence[tuple[Tensor, Tensor, Tensor]]]
    tile: int

    @classmethod
    def made(cls, seed: int, arguments: argparse.Namespace) -> "_Subject":
        task = DehazingTask(_settings(arguments), seed=seed)
        example = task.example_input()
        teacher = task.build_teacher()
        structure = analyze(teacher, example)
        context = Context(
            task=_Remembered(task),
            seed=seed,
            device="cpu",
            observer=SilentObserver(),
            structure=lambda _: structure,
            example=example,
        )
        state = _after(_cutting(arguments.keep), State(teacher=teacher), context)
        judge = Judge(teacher, task.settings.tile)
        tests = {
            name: [
                (hazy, clear, judge.restore(hazy))
                for hazy, clear in (example.load() for example in spaced(found, arguments.images))
            ]
            for name, found in task.data.test.items()
        }
        return cls(state, context, tests, task.settings.tile)

    def kept(self) -> float:
        """Return the part of the teacher's MACs that the student has."""
        networks = (self.state.student, self.state.teacher)
        student, teacher = (count_macs(net, self.context.example) for net in networks if net)
        return student / teacher

    def distilled(self, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
        """Return what a variant reaches."""
        settings = distill_settings(name, arguments.steps)
        if settings.rounds == 1:
            before = self._from_random() if name == _RANDOM_START else self.state
            after = Distill(settings).run(before, self.context)
        else:
            stages = in_rounds([*_cutting(arguments.keep), Distill(settings)])
            after = _after(stages, State(teacher=self.state.teacher), self.context)
        history = list(after.histories.values())[-1]
        return {
            "psnr_db": self.psnr_db(after.student),
            "validation_db": history.validation[-1][1],
            "losses": {n: [values[0], values[-1]] for n, values in history.losses.items()},
        }

    def _from_random(self) -> State:
        """Return the state with a student of the same widths that knows nothing of the teacher."""
        untrained = DehazingTask(
            DehazingSettings(teacher="random"), seed=self.context.seed
        ).build_teacher()
        kept = needed(self.state.allocation, "an allocation", "distill", "allocate").kept
        cut = analyze(untrained, self.context.example).cut(kept)
        return replace(self.state, student=cut.student)

    def psnr_db(self, model: nn.Module | None) -> dict[str, dict[str, float]]:
        """Return mean PSNR by split: against the truth and against the teacher's output."""
        if model is None:
            return {}
        judge = Judge(model, self.tile)
        found = {}
        for name, examples in self.tests.items():
            outputs = [judge.restore(hazy) for hazy, _, _ in examples]
            pairs = list(zip(outputs, examples, strict=True))
            found[name] = {
                "truth": fmean(capped_psnr_db(mine, clear) for mine, (_, clear, _) in pairs),
                "teacher": fmean(capped_psnr_db(mine, wanted) for mine, (_, _, wanted) in pairs),
            }
        return found


def _cutting(keep: float) -> list[Stage]:
    return [
        Score(ScoreSettings()),
        Allocate(AllocateSettings(keep_macs=keep)),
        Prune(PruneSettings()),
        Refit(RefitSettings()),
    ]


def _after(stages: Sequence[Stage], state: State, context: Context) -> State:
    for stage in stages:
        state = stage.run(state, context)
    return state


def _settings(arguments: argparse.Namespace) -> DehazingSettings:
    data = arguments.data
    if data is None:
        return DehazingSettings(crop=arguments.crop, max_test_images=arguments.images)
    return DehazingSettings(
        train=str(data / "train") if arguments.train == "data" else "builtin",
        test=tuple(str(data / "test" / split) for split in _SPLITS),
        crop=arguments.crop,
        max_test_images=arguments.images,
    )


def _opened(arguments: argparse.Namespace, given: Sequence[str] | None) -> dict[str, Any]:
    settings = {name: getattr(arguments, name) for name in ("keep", "steps", "crop", "images")}
    settings["data"], settings["train"] = arguments.data is not None, arguments.train
    fresh: dict[str, Any] = {
        **new_record("distill", given),
        "settings": settings,
        "start": {},
        "rows": [],
    }
    if not arguments.json.is_file():
        return fresh
    before = read_record(arguments.json)
    if before["settings"] != settings:
        message = f"{arguments.json} holds rows of {before['settings']}, not of {settings}: "
        message += "give another --json"
        raise DataError(message)
    for name in ("start", "rows", "teacher", "kept"):
        if name in before:
            fresh[name] = before[name]
    return fresh


def _line(name: str, found: Sequence[Mapping[str, Any]], head: Sequence[str]) -> list[str]:
    figures = [
        _shown([values[split][against] for values in found])
        for against in ("truth", "teacher")
        for split in found[0]
    ]
    return [name, str(len(found)), *figures, *["" for _ in head[2 + len(figures) :]]]


def _shown(values: Sequence[float], *, percent: bool = False) -> str:
    if not values:
        return ""
    scale, digits = (100, 0) if percent else (1, 2)
    text = f"{scale * fmean(values):.{digits}f}"
    if len(values) > 1:
        text += f" ± {scale * stdev(values):.{digits}f}"
    return f"{text}%" if percent else text


def _mean_truth(psnr: Mapping[str, Mapping[str, float]]) -> float:
    return fmean(values["truth"] for values in psnr.values())


def _parsed(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.distill", description=__doc__)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--keep", type=float, default=0.125, help="part of the MACs that is kept")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--crop", type=int, default=64, help="side of the training crops")
    parser.add_argument("--images", type=int, default=12, help="most test images of each split")
    parser.add_argument("--data", type=Path, default=default_data(), help="folder with train, test")
    parser.add_argument(
        "--train",
        choices=("data", "builtin"),
        default="data",
        help="what students learn from: the teacher's own data, or the built-in images",
    )
    parser.add_argument("--builtin", action="store_true", help="built-in images, whatever --data")
    parser.add_argument("--json", type=Path, default=_JSON)
    parser.add_argument("--quick", action="store_true", help="two variants, few steps, one seed")
    arguments = parser.parse_args(given)
    if arguments.quick:
        arguments.variants, arguments.seeds = ["truth", "l2"], [0]
        arguments.steps, arguments.crop, arguments.images = 2, 32, 1
        if arguments.json == _JSON:
            arguments.json = _JSON.with_name("distill-quick.json")
    if arguments.builtin or arguments.quick:
        arguments.data = None
    return arguments


if __name__ == "__main__":
    main()

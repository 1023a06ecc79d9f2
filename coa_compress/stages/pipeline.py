"""Run stages in order, each behind the last one that is done."""

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from coa_compress.copying import copied, placed
from coa_compress.errors import (
    FOREIGN_ERRORS,
    ModelError,
    RecipeError,
    RunError,
    first_line,
    is_out_of_memory,
    memory_errors,
    warnings_passed,
)
from coa_compress.protocols import Task
from coa_compress.runs import RunFolder, digest_of
from coa_compress.stages.cache import StageCache
from coa_compress.stages.state import Context, Stage, State
from coa_compress.training.processes import ALONE


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """The end of a pipeline.

    Args:
        state: What the run knows.
        seconds: Wall-clock time of each stage, also of those done in an earlier run.
        warnings: What the stages warned of, also those done in an earlier run.
    """

    state: State
    seconds: Mapping[str, float]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Identity:
    """What the stages depend on beside their settings and the stages before.

    Args:
        shared: Digest of what all stages depend on, such as the teacher.
        own: Digest of what only some stages read, by the name of the stage.
    """

    shared: str = ""
    own: Mapping[str, str] = field(default_factory=dict)


NOTHING = Identity()
"""Of stages that are not to be told apart from those of other runs."""


_SMALLER = "give smaller inputs, fewer calibration images, or another device"
_SMALLER_BATCHES = (
    "lower stages.{0}.training.batch_size and raise stages.{0}.training.accumulate as much, or "
    "give smaller crops or another device; the stages before are kept"
)


def check_stages(
    stages: Sequence[tuple[Stage, object]],
    state: State,
    context: Context,
    run: RunFolder | None,
    *,
    identity: Identity = NOTHING,
    cache: StageCache | None = None,
) -> None:
    """Check the stages that are going to run, before any of them does; nothing is written.

    Args:
        stages: Each stage with its settings as JSON values.
        state: Where to start.
        context: What stages are given.
        run: Tells which stages are done; None for none of them.
        identity: What ``run_stages`` is given; not read where there is neither a run nor a cache.
        cache: Stages that need not be done again, or None.

    Raises:
        RecipeError: If a stage needs another one that is not in the recipe.
        CoaError: Whatever a stage finds wrong with its settings, the task or the teacher.
    """
    names = [stage.name for stage, _ in stages]
    for stage, _ in stages:
        for earlier in stage.needs:
            if earlier not in names:
                message = f"stage {stage.name!r} needs stage {earlier!r}: add it to the recipe"
                raise RecipeError(message)
    pending = [
        stage
        for index, (stage, digest) in enumerate(_with_digests(stages, identity))
        if not _is_done(run, index, stage.name, digest)
        and not (cache is not None and cache.has(stage.name, digest))
    ]
    with memory_errors(f"the network on {context.device}", remedy=_SMALLER):
        if pending:
            _check_output(state, context)
            _check_batches(state.teacher, context.task, trains=any(map(_trains, pending)))
            _check_device(state.teacher, context)
        for stage in pending:
            stage.check(state, context)


def run_stages(
    stages: Sequence[tuple[Stage, object]],
    state: State,
    context: Context,
    run: RunFolder,
    *,
    identity: Identity,
    cache: StageCache | None = None,
) -> Outcome:
    """Return the state after all stages; those that are done are read from the run folder.

    Each stage is keyed by a digest of everything before it, so that a changed setting runs that
    stage and all later ones anew, and nothing else. By the same digest a stage is found that
    another run has done. Where several processes run the stages, the first one writes, and the
    others wait and read what it wrote.

    Args:
        stages: Each stage with its settings as JSON values.
        state: Where to start.
        context: What stages are given.
        run: Keeps the results.
        identity: The teacher, the task and whatever else stages depend on.
        cache: Stages of other runs; what this run does is added. None for no such thing.
    """
    seconds: dict[str, float] = {}
    warned: list[str] = []
    said: list[str] = []
    with warnings_passed(said.append, shown=True):
        for index, (stage, digest) in enumerate(_with_digests(stages, identity)):
            folder = run.stage_folder(index, stage.name)
            came = _already(run, stage.name, digest, folder=folder, context=context, cache=cache)
            context.observer.on_stage_start(stage.name, "done before" if came else "")
            if not came:
                ready = _Place(run, folder, digest, cache)
                remedy = _SMALLER_BATCHES.format(stage.name) if _trains(stage) else _SMALLER
                with memory_errors(f"stage {stage.name!r} on {context.device}", remedy=remedy):
                    _run(stage, state, context, ready, said)
            # what is handed on is what was written, so that a resumed run is the same run
            state = _loaded(stage, state, folder, context)
            seconds[stage.name] = run.seconds(folder)
            warned += run.warnings(folder)
            taken = 0.0 if came else seconds[stage.name]
            context.observer.on_stage_end(stage.name, taken, f"read from {came}" if came else "")
    if not stages:
        message = f"{run.path} has no stage to run: name at least one in the recipe"
        raise RunError(message)
    return Outcome(state=state, seconds=seconds, warnings=tuple(warned))


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a stage keeps what it makes, and for what."""

    run: RunFolder
    folder: Path
    digest: str
    cache: StageCache | None


def _run(stage: Stage, state: State, context: Context, place: _Place, said: list[str]) -> None:
    """Run a stage and write what it made, and what was said while it ran."""
    folder, digest = place.folder, place.digest
    with context.processes.leading() as leads:
        if leads:
            place.run.begin(folder, digest)
    said.clear()
    began = time.monotonic()
    training = folder / "training"
    working = replace(context, folder=training)
    together = context.processes.count > 1 and _trains(stage)
    ended = stage.run(state, working) if together else None
    with context.processes.leading() as leads:
        if leads:
            alone = replace(working, processes=ALONE)
            stage.save(stage.run(state, alone) if ended is None else ended, folder)
            place.run.mark_done(folder, digest, time.monotonic() - began, warnings=said)
            shutil.rmtree(training, ignore_errors=True)  # checkpoints serve no one any more
            if place.cache is not None:
                place.cache.keep(stage.name, digest, folder)


def _is_done(run: RunFolder | None, index: int, name: str, digest: str) -> bool:
    return run is not None and run.is_done(run.stage_folder(index, name), digest)


def _already(
    run: RunFolder,
    name: str,
    digest: str,
    *,
    folder: Path,
    context: Context,
    cache: StageCache | None,
) -> str:
    """Return where a stage came from that is done by now; empty if it must be run."""
    came = ""
    with context.processes.leading() as leads:
        if leads and run.is_done(folder, digest):
            if cache is not None:
                cache.keep(name, digest, folder)
            came = "the run folder"
        elif leads and cache is not None and cache.has(name, digest):
            cache.give(name, digest, run, folder)
            came = "the cache"
    return context.processes.broadcast(came)


def _loaded(stage: Stage, state: State, folder: Path, context: Context) -> State:
    if not context.processes.leads and not folder.is_dir():
        message = (
            f"process {context.processes.rank} does not see {folder}, which process 0 wrote: "
            f"give a run folder that all machines share"
        )
        raise RunError(message)
    return stage.load(state, folder)


def _with_digests(
    stages: Sequence[tuple[Stage, object]], identity: Identity
) -> Iterator[tuple[Stage, str]]:
    digest = identity.shared
    for stage, settings in stages:
        digest = digest_of(digest, stage.name, settings, identity.own.get(stage.name, ""))
        yield stage, digest


@torch.no_grad()
def _check_output(state: State, context: Context) -> None:
    teacher, example = state.teacher, context.example
    name, shape = type(teacher).__name__, tuple(example.shape)
    try:
        output = teacher(example)
    except FOREIGN_ERRORS as error:
        message = f"{name} does not run on an input of shape {shape}: {first_line(error)}: "
        message += "give example=..., or a network that takes one tensor"
        raise ModelError(message) from None
    if not isinstance(output, Tensor):
        message = f"{name} returns a {type(output).__name__}: it must return one tensor"
        raise ModelError(message)


@torch.no_grad()
def _check_batches(teacher: nn.Module, task: Task, *, trains: bool) -> None:
    """Raise if the network cannot take what its task gives, or returns something else from it."""
    name, given = type(teacher).__name__, task.calibration_batches()[0].input
    for count in (1, 2):
        batch = given[:count]
        try:
            teacher(batch)
        except FOREIGN_ERRORS as error:
            if is_out_of_memory(error):
                raise
            message = f"{name} does not run on what its task gives, a batch of shape "
            message += f"{tuple(batch.shape)}: {first_line(error)}: "
            message += "give a task that makes its inputs" if count == 1 else "let it take any size"
            raise ModelError(message) from None
    output: object = given
    if trains:
        # what else fails in training mode, the training says
        with torch.random.fork_rng(devices=[]), suppress(*FOREIGN_ERRORS):
            output = copied(teacher).train()(given[:2])
    if not isinstance(output, Tensor):
        message = f"{name} returns a {type(output).__name__} in training mode: it must return one "
        message += "tensor, as in evaluation: wrap it"
        raise ModelError(message)


@torch.no_grad()
def _check_device(teacher: nn.Module, context: Context) -> None:
    """Raise if the network runs on the CPU alone, and stages are to run elsewhere."""
    if torch.device(context.device).type == "cpu":
        return
    given = context.task.calibration_batches()[0].input[:1].to(context.device)
    try:
        placed(copied(teacher), context.device)(given)
    except FOREIGN_ERRORS as error:
        if is_out_of_memory(error):
            raise
        message = f"{type(teacher).__name__} does not run on {context.device}: "
        message += f"{first_line(error)}: let it make tensors on the device of its input, or "
        message += "give device: cpu"
        raise ModelError(message) from None


def _trains(stage: Stage) -> bool:
    return bool(getattr(stage, "trains", False))

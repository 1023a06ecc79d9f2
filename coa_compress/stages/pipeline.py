"""Run stages in order, each behind the last one that is done."""

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from coa_compress.errors import ModelError, RecipeError, RunError
from coa_compress.runs import RunFolder, digest_of
from coa_compress.stages.cache import StageCache
from coa_compress.stages.state import Context, Stage, State


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """The end of a pipeline.

    Args:
        state: What the run knows.
        seconds: Wall-clock time of each stage, also of those done in an earlier run.
    """

    state: State
    seconds: Mapping[str, float]


def check_stages(
    stages: Sequence[tuple[Stage, object]],
    state: State,
    context: Context,
    run: RunFolder | None,
    *,
    identity: str,
    cache: StageCache | None = None,
) -> None:
    """Check the stages that are going to run, before any of them does; nothing is written.

    Args:
        stages: Each stage with its settings as JSON values.
        state: Where to start.
        context: What stages are given.
        run: Tells which stages are done; None for none of them.
        identity: What ``run_stages`` is given.
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
    if pending:
        _check_output(state, context)
    for stage in pending:
        stage.check(state, context)


def run_stages(
    stages: Sequence[tuple[Stage, object]],
    state: State,
    context: Context,
    run: RunFolder,
    *,
    identity: str,
    cache: StageCache | None = None,
) -> Outcome:
    """Return the state after all stages; those that are done are read from the run folder.

    Each stage is keyed by a digest of everything before it, so that a changed setting runs that
    stage and all later ones anew, and nothing else. By the same digest a stage is found that
    another run has done.

    Args:
        stages: Each stage with its settings as JSON values.
        state: Where to start.
        context: What stages are given.
        run: Keeps the results.
        identity: Digest of the teacher, the task and whatever else all stages depend on.
        cache: Stages of other runs; what this run does is added. None for no such thing.
    """
    seconds: dict[str, float] = {}
    for index, (stage, digest) in enumerate(_with_digests(stages, identity)):
        folder = run.stage_folder(index, stage.name)
        came = _already(run, folder, stage.name, digest, cache)
        if came:
            state = stage.load(state, folder)
            seconds[stage.name] = run.seconds(folder)
            context.observer.on_stage_start(stage.name, "done before")
            context.observer.on_stage_end(stage.name, 0.0, f"read from {came}")
            continue
        run.begin(folder, digest)
        context.observer.on_stage_start(stage.name, "")
        began = time.monotonic()
        training = folder / "training"
        state = stage.run(state, replace(context, folder=training))
        stage.save(state, folder)
        seconds[stage.name] = time.monotonic() - began
        run.mark_done(folder, digest, seconds[stage.name])
        shutil.rmtree(training, ignore_errors=True)  # checkpoints serve no one any more
        if cache is not None:
            cache.keep(stage.name, digest, folder)
        context.observer.on_stage_end(stage.name, seconds[stage.name], "")
        # what is handed on is what was written, so that a resumed run is the same run
        state = stage.load(state, folder)
    if not stages:
        message = f"{run.path} has no stage to run: name at least one in the recipe"
        raise RunError(message)
    return Outcome(state=state, seconds=seconds)


def _is_done(run: RunFolder | None, index: int, name: str, digest: str) -> bool:
    return run is not None and run.is_done(run.stage_folder(index, name), digest)


def _already(run: RunFolder, folder: Path, name: str, digest: str, cache: StageCache | None) -> str:
    """Return where a stage came from that is done by now; empty if it must be run."""
    if run.is_done(folder, digest):
        if cache is not None:
            cache.keep(name, digest, folder)
        return "the run folder"
    if cache is not None and cache.has(name, digest):
        cache.give(name, digest, run, folder)
        return "the cache"
    return ""


def _with_digests(
    stages: Sequence[tuple[Stage, object]], identity: str
) -> Iterator[tuple[Stage, str]]:
    digest = identity
    for stage, settings in stages:
        digest = digest_of(digest, stage.name, settings)
        yield stage, digest


@torch.no_grad()
def _check_output(state: State, context: Context) -> None:
    teacher, example = state.teacher, context.example
    name, shape = type(teacher).__name__, tuple(example.shape)
    try:
        output = teacher(example)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        message = f"{name} does not run on an input of shape {shape}: {reason}: give example=..."
        raise ModelError(message) from None
    if not isinstance(output, Tensor):
        message = f"{name} returns a {type(output).__name__}: it must return one tensor"
        raise ModelError(message)

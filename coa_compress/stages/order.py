"""The stages in the order of the data, those of the compression once for each round."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from coa_compress.errors import RecipeError
from coa_compress.stages.adapt import Adapt
from coa_compress.stages.allocate import Allocate, AllocateSettings
from coa_compress.stages.distill import Distill, DistillSettings
from coa_compress.stages.measure import Measure
from coa_compress.stages.prune import Prune
from coa_compress.stages.refit import Refit
from coa_compress.stages.score import Score
from coa_compress.stages.state import Stage
from coa_compress.stages.train import Train

STAGES: tuple[type[Stage], ...] = (
    Train,
    Score,
    Allocate,
    Prune,
    Refit,
    Distill,
    Adapt,
    Measure,
)
"""Every stage; a recipe runs those it names, in this order."""

_OF_A_ROUND = (Score, Allocate, Prune, Refit, Distill)


def in_rounds(stages: Sequence[Stage]) -> list[Stage]:
    """Return the stages with those from score to distill as often as there are rounds.

    Budgets go down to that of the recipe in equal proportions: with ``keep`` asked for in ``n``
    rounds, round ``i`` keeps ``keep ** (i / n)`` of the teacher. Each round cuts the distilled
    student of the round before. Its stages are named ``score-2``, ``allocate-2`` and so on; those
    of the first round have the names, and do the work, that they have in any other run.

    Args:
        stages: In order, each at most once; ``distill`` says how many rounds.

    Raises:
        RecipeError: If there are several rounds and one of them cannot be planned.

    >>> from coa_compress.stages.prune import PruneSettings
    >>> pair = [Prune(PruneSettings()), Distill(DistillSettings(rounds=2))]
    >>> [stage.name for stage in in_rounds(pair)]
    ['prune', 'distill', 'prune-2', 'distill-2']
    """
    distill = next((stage for stage in stages if isinstance(stage, Distill)), None)
    rounds = 1 if distill is None else distill.settings.rounds
    if rounds == 1:
        return list(stages)
    own = [stage for stage in stages if isinstance(stage, _OF_A_ROUND)]
    for stage in own:
        _check_repeatable(stage, rounds)
    first = stages.index(own[0])
    repeated = [_of_round(stage, n, rounds) for n in range(1, rounds + 1) for stage in own]
    return [*stages[:first], *repeated, *stages[first + len(own) :]]


def decisive_settings(stage: Stage, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return those settings of a stage that its result depends on, beside the stages before it.

    How many rounds there are shows in the other stages and in the steps; who teaches matters from
    the second round on.

    Args:
        stage: One of those that run.
        settings: Its settings as JSON values.
    """
    if not isinstance(stage, Distill):
        return dict(settings)
    idle = {"rounds", "round_steps"} | ({"assistant"} if not settings["assistant"] else set())
    return {name: value for name, value in settings.items() if name not in idle}


def _check_repeatable(stage: Stage, rounds: int) -> None:
    if not isinstance(stage, Allocate):
        return
    budget, what = stage.settings.budget(), f"stages.distill.rounds is {rounds}, but"
    if budget.limits_latency or budget.limits_memory:
        message = f"{what} latency and memory are limited in one round: use keep_macs or "
        message += "keep_params, or rounds: 1"
        raise RecipeError(message)
    if stage.settings.rounds > 1:
        message = f"{what} stages.allocate.rounds is {stage.settings.rounds}: set one of them to 1"
        raise RecipeError(message)


def _of_round(stage: Stage, number: int, rounds: int) -> Stage:
    settings = _settings_of_round(stage, number, rounds)
    repeated: Stage = type(stage)(settings)
    if number > 1:
        repeated.name = f"{stage.name}-{number}"
    return repeated


def _settings_of_round(stage: Any, number: int, rounds: int) -> Any:
    settings = stage.settings
    if isinstance(stage, Score) and number > 1:
        return replace(settings, curves=0)  # they are of the whole teacher
    if isinstance(stage, Allocate):
        return _nearer_budget(settings, number / rounds)
    if isinstance(stage, Distill):
        return _training_of_round(settings, number)
    return settings


def _nearer_budget(settings: AllocateSettings, part: float) -> AllocateSettings:
    macs, params = (
        None if keep is None else keep**part for keep in (settings.keep_macs, settings.keep_params)
    )
    return replace(settings, keep_macs=macs, keep_params=params)


def _training_of_round(settings: DistillSettings, number: int) -> DistillSettings:
    training = settings.training
    if number < settings.rounds and settings.round_steps is not None:
        training = replace(training, steps=settings.round_steps)
    assistant = settings.assistant and number > 1
    return replace(settings, training=training, assistant=assistant)

"""Our own pruning, as the recipe's stages do it."""

from functools import partial

from benchmarks.peers.subject import Pruned, Subject, loss
from coa_compress.allocation.allocate import DEFAULT_ALLOCATOR
from coa_compress.protocols import Scorer, SilentObserver
from coa_compress.scoring.catalog import SCORERS
from coa_compress.scoring.random import score_random
from coa_compress.stages.allocate import Allocate, AllocateSettings
from coa_compress.stages.score import ScoreSettings
from coa_compress.stages.state import Context, State, needed


def prune_ours(
    subject: Subject,
    keep: float,
    *,
    scorer: str = "",
    allocator: str = "",
    evenness: float = 0.0,
    refitted: bool = True,
) -> Pruned:
    """Return a student whose channels we chose and cut.

    Args:
        subject: What is pruned.
        keep: Fraction of the MACs that may be kept.
        scorer: Name in ``SCORERS``; empty for the default of the recipe.
        allocator: Name in ``ALLOCATORS``; empty for the default of the recipe.
        evenness: Of the allocation; 0 is the default of the stage.
        refitted: Whether the refit belongs to the method.
    """
    scores = _scorer(scorer, subject.seed)(
        subject.teacher, subject.structure.groups, subject.batches, loss
    )
    settings = AllocateSettings(
        allocator=allocator or DEFAULT_ALLOCATOR, keep_macs=keep, evenness=evenness
    )
    context = Context(
        task=subject.task,
        seed=subject.seed,
        device="cpu",
        observer=SilentObserver(),
        structure=lambda _: subject.structure,
        example=subject.example,
    )
    state = Allocate(settings).run(State(teacher=subject.teacher, scores=scores), context)
    cut = subject.structure.cut(needed(state.allocation, "an allocation", "prune", "allocate").kept)
    return Pruned(cut.student, cut, refitted=refitted)


def _scorer(name: str, seed: int) -> Scorer:
    if name == "random":
        return partial(score_random, seed=seed)
    return SCORERS.get(name or ScoreSettings().scorer)

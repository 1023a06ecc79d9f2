"""Our own pruning, as the recipe's stages do it."""

from functools import partial

from benchmarks.peers.subject import Pruned, Subject, loss
from coa_compress.allocation.allocate import DEFAULT_ALLOCATOR, make_allocation
from coa_compress.artifacts import Budget
from coa_compress.protocols import Scorer
from coa_compress.scoring.catalog import SCORERS
from coa_compress.scoring.random import score_random
from coa_compress.stages.score import ScoreSettings

ROUND_TO = 8


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
        scorer: Name in ``SCORERS``; empty for the default.
        allocator: Name in ``ALLOCATORS``; empty for the default.
        evenness: Of what groups are expected to lose, see ``make_allocation``.
        refitted: Whether the refit belongs to the method.
    """
    structure = subject.structure
    scores = _scorer(scorer, subject.seed)(subject.teacher, structure.groups, subject.batches, loss)
    budget = Budget(keep_macs=keep, round_to=ROUND_TO, min_channels=ROUND_TO)
    name = allocator or DEFAULT_ALLOCATOR
    allocation = make_allocation(
        structure.groups, scores, structure.costs, budget, name, evenness=evenness
    )
    cut = structure.cut(allocation.kept)
    return Pruned(cut.student, cut, refitted=refitted)


def _scorer(name: str, seed: int) -> Scorer:
    if name == "random":
        return partial(score_random, seed=seed)
    return SCORERS.get(name or ScoreSettings().scorer)

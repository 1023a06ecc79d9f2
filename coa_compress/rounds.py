"""Rounds to a small budget: what an earlier cut has left, and how a later one follows from it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from coa_compress.artifacts import Allocation, Budget, ChannelGroup, Cut, Member, Scores
from coa_compress.copying import copied
from coa_compress.costs import CostFunction
from coa_compress.errors import SettingError
from coa_compress.protocols import Structure
from coa_compress.structure.graph import canonical_names
from coa_compress.structure.rebuild import named_tensors


class _Score(Protocol):
    def __call__(self, model: nn.Module, groups: Sequence[ChannelGroup]) -> Scores:
        """Return a score for each channel of each group of a network."""


class _Allocate(Protocol):
    def __call__(
        self, groups: Sequence[ChannelGroup], scores: Scores, budget: Budget
    ) -> Allocation:
        """Return the channels that stay."""


@dataclass(frozen=True, slots=True, eq=False)
class RoundSteps:
    """What is done in each round.

    Args:
        score: Scores the channels of a network, given its groups.
        allocate: Chooses channels within a budget, relative to the widths of the groups given.
        refit: Returns the student of a cut with its layers refitted to the teacher.
    """

    score: _Score
    allocate: _Allocate
    refit: Callable[[Cut], nn.Module]


def allocate_in_rounds(
    structure: Structure, scores: Scores, budget: Budget, steps: RoundSteps, *, rounds: int
) -> Allocation:
    """Return the channels that stay after several rounds of cut, refit and new scores.

    What a channel is worth depends on what is left beside it. Each round keeps the same fraction
    of the round before, cuts the teacher at what all rounds chose together, refits that student,
    and scores its channels for the next round (iterative pruning, Molchanov et al. 2017,
    arXiv:1611.06440, with the closed-form refit in the place of training). Cuts are always of the
    teacher, so that the last allocation says it all.

    Args:
        structure: Of the teacher.
        scores: Of the teacher's channels.
        budget: What the last round meets.
        steps: What is done in each round.
        rounds: From 1, which is the allocation alone.

    Raises:
        SettingError: If there is no round.
        BudgetError: If the budget cannot be met.

    >>> allocate_in_rounds(None, {}, Budget(keep_macs=0.5), None, rounds=0)
    Traceback (most recent call last):
    coa_compress.errors.SettingError: rounds must be at least 1, got 0
    """
    if rounds < 1:
        message = f"rounds must be at least 1, got {rounds}"
        raise SettingError(message)
    groups = tuple(structure.groups)
    full = {group.name: torch.arange(group.n_channels) for group in groups}
    kept, left, found = full, groups, None
    for number in range(1, rounds + 1):
        if found is not None:
            cut = structure.cut(kept)
            left = groups_after(groups, kept, cut)
            scores = steps.score(steps.refit(cut), left)
        now = _within(budget, structure, kept, part=number / rounds)
        if now is None:
            continue
        found = steps.allocate(left, scores, now)
        kept = {name: kept[name][channels] for name, channels in found.kept.items()}
    if found is None:
        return steps.allocate(groups, scores, budget)
    return _of_teacher(found, kept, structure)


def allocate_further(
    structure: Structure,
    before: Allocation,
    budget: Budget,
    allocate: Callable[[Budget], Allocation],
) -> Allocation:
    """Return the channels that stay of those that an earlier round has left.

    Args:
        structure: Of the teacher.
        before: What the earlier round left; returned as it is where it meets the budget already.
        budget: What is to be met, relative to the teacher.
        allocate: Chooses among the channels left, within a budget relative to their widths.

    Raises:
        BudgetError: If the budget cannot be met.
    """
    now = _within(budget, structure, before.kept, part=1.0)
    if now is None:
        return before
    found = allocate(now)
    kept = {name: before.kept[name][channels] for name, channels in found.kept.items()}
    return _of_teacher(found, kept, structure)


def _within(
    budget: Budget, structure: Structure, kept: Mapping[str, Tensor], *, part: float
) -> Budget | None:
    """Return the budget of a round relative to the widths before it; None if it asks nothing."""
    present = {name: len(channels) for name, channels in kept.items()}
    full = {group.name: group.n_channels for group in structure.groups}
    costs = structure.costs

    def relative(keep: float | None, cost: CostFunction) -> float | None:
        return None if keep is None else min(1.0, keep**part * cost(full) / max(cost(present), 1))

    macs = relative(budget.keep_macs, costs.macs)
    params = relative(budget.keep_params, costs.params)
    if all(keep is None or keep == 1 for keep in (macs, params)):
        return None
    return replace(budget, keep_macs=macs, keep_params=params)


def groups_after(
    groups: Sequence[ChannelGroup], kept: Mapping[str, Tensor], cut: Cut
) -> tuple[ChannelGroup, ...]:
    """Return the channel groups as they are in the student.

    Args:
        groups: Of the teacher.
        kept: Channels that stay, by group name; groups not named stay whole.
        cut: The cut at these channels.

    >>> member = Member("a.weight", 0, "output", torch.arange(4)[:, None])
    >>> cut = Cut(nn.Identity(), {"a.weight": {0: torch.tensor([1, 3])}}, ())
    >>> (group,) = groups_after([ChannelGroup("a", 4, (member,))], {"a": torch.tensor([1, 3])}, cut)
    >>> group.n_channels, group.members[0].positions.flatten().tolist()
    (2, [0, 1])
    """
    return tuple(
        replace(
            group,
            n_channels=len(kept.get(group.name, torch.arange(group.n_channels))),
            members=tuple(_after(member, kept.get(group.name), cut) for member in group.members),
        )
        for group in groups
    )


def _after(member: Member, channels: Tensor | None, cut: Cut) -> Member:
    positions = member.positions if channels is None else member.positions[channels]
    left = cut.slices.get(member.tensor, {}).get(member.dim)
    if left is None:
        return replace(member, positions=positions)
    return replace(member, positions=torch.searchsorted(left.to(positions), positions))


@torch.no_grad()
def widened(teacher: nn.Module, cut: Cut) -> nn.Module:
    """Return a student at its teacher's widths; what was cut off is as in the teacher.

    Cutting it where the student was cut gives the student, whatever it has learned since.

    Args:
        teacher: The network that was cut; unchanged.
        cut: The student, with its present weights, and how it follows from the teacher.

    >>> student = nn.Linear(1, 2, bias=False)
    >>> _ = nn.init.constant_(student.weight, 5.0)
    >>> teacher = nn.Linear(2, 2, bias=False)
    >>> _ = nn.init.zeros_(teacher.weight)
    >>> widened(teacher, Cut(student, {"weight": {1: torch.tensor([1])}}, ())).weight.tolist()
    [[0.0, 5.0], [0.0, 5.0]]
    """
    wide = copied(teacher)
    tensors, learned = named_tensors(wide), named_tensors(cut.student)
    for name in dict.fromkeys(canonical_names(wide).values()):
        tensor, slices = tensors[name], cut.slices.get(name, {})
        places = [slices.get(dim, torch.arange(size)) for dim, size in enumerate(tensor.shape)]
        spread = torch.meshgrid(*places, indexing="ij") if places else ()
        tensor[tuple(place.to(tensor.device) for place in spread)] = learned[name].to(tensor)
    return wide


def cut_after(earlier: Cut, later: Cut) -> Cut:
    """Return the later of two cuts of one teacher as a cut of the earlier one's student.

    Args:
        earlier: Keeps everything that the later one keeps.
        later: The student of it is the student of what is returned.

    >>> earlier = Cut(nn.Identity(), {"weight": {0: torch.tensor([1, 3, 4])}}, ())
    >>> later = Cut(nn.Identity(), {"weight": {0: torch.tensor([1, 4])}}, ())
    >>> cut_after(earlier, later).slices
    {'weight': {0: tensor([0, 2])}}
    """
    slices: dict[str, dict[int, Tensor]] = {}
    for name, dims in later.slices.items():
        for dim, kept in dims.items():
            left = earlier.slices.get(name, {}).get(dim)
            if left is None or len(left) != len(kept):
                own = kept if left is None else torch.searchsorted(left.to(kept), kept)
                slices.setdefault(name, {})[dim] = own
    return replace(later, slices=slices)


def _of_teacher(last: Allocation, kept: Mapping[str, Tensor], structure: Structure) -> Allocation:
    full = {group.name: group.n_channels for group in structure.groups}
    return replace(
        last,
        kept=kept,
        teacher_widths=full,
        teacher_macs=structure.costs.macs(full),
        teacher_params=structure.costs.params(full),
    )

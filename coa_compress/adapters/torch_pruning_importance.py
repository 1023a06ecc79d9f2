"""Our scores in the place of an importance of Torch-Pruning."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from coa_compress.artifacts import ChannelGroup, Scores
from coa_compress.errors import StructureError


class ScoreImportance:
    """Importance for the pruners of Torch-Pruning, from scores that were made beforehand.

    A pruner asks for it group by group; channels whose score is not known are never removed.
    Scores belong to the channels of the uncut network, so the pruner must take one step.

    Args:
        model: The network that was scored.
        groups: Its channel groups, from ``coa_compress.structure.analysis.analyze``.
        scores: Score of each channel, by group name.

    >>> import torch
    >>> from coa_compress.structure.analysis import analyze
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1))
    >>> structure = analyze(net, torch.zeros(1, 3, 8, 8))
    >>> importance = ScoreImportance(net, structure.groups, {"0": torch.arange(4.0)})
    >>> importance.of_module("0", [1, 3]).tolist()
    [1.0, 3.0]
    """

    def __init__(self, model: nn.Module, groups: Sequence[ChannelGroup], scores: Scores) -> None:
        self._paths = {id(module): path for path, module in model.named_modules()}
        sizes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        self._scores: dict[str, Tensor] = {}
        for group in groups:
            for member in group.members:
                path, _, last = member.tensor.rpartition(".")
                if last == "weight" and member.role == "output":
                    unknown = torch.full((sizes[member.tensor][member.dim],), torch.inf)
                    known = self._scores.setdefault(path, unknown)
                    values = scores[group.name].to(known)[:, None].expand(member.positions.shape)
                    known[member.positions.flatten()] = values.flatten()

    def of_module(self, path: str, channels: Sequence[int]) -> Tensor | None:
        """Return the scores of some output channels of a module, or None if it has none.

        Raises:
            StructureError: If the module was cut since it was scored.
        """
        known = self._scores.get(path)
        if known is None:
            return None
        if len(channels) and max(channels) >= len(known):
            message = f"{path!r} has no channel {max(channels)}: score the network that is pruned"
            raise StructureError(message)
        return known[list(channels)]

    def __call__(self, group: Any) -> Tensor | None:
        """Return the score of each channel of a group, or None, which leaves it whole."""
        dependency, channels = group[0]
        path = self._paths.get(id(dependency.target.module))
        return None if path is None else self.of_module(path, channels)

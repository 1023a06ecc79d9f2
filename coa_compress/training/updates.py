"""Which part of a network a training changes: all of it, its norm layers, or low-rank deltas."""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from coa_compress.copying import copied
from coa_compress.errors import ModelError
from coa_compress.training.seeds import generator_of

Update = Literal["all", "norm", "low_rank"]
"""What is trained: every weight, the weights of norm layers, or a low-rank delta of each weight."""

_NORMS = (
    nn.modules.batchnorm._NormBase,  # the only base that BatchNorm and InstanceNorm share
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)


class LowRank(nn.Module):
    """A weight plus ``B A``, seen as a matrix of outputs by all else (Hu et al. 2021, LoRA).

    The delta starts at 0. As in the paper (arXiv:2106.09685) A is random and B is 0.

    Args:
        weight: The weight that it is added to, two dimensions or more.
        rank: Rank of the delta; limited to the rank that the weight can have.
        generator: Where A comes from.
    """

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.shape[0], weight[0].numel()
        rank = min(rank, rows, columns)
        start = torch.randn(rank, columns, generator=generator) / columns**0.5
        self.a = nn.Parameter(start.to(weight))
        self.b = nn.Parameter(torch.zeros(rows, rank, device=weight.device, dtype=weight.dtype))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight with the delta, same shape."""
        return weight + (self.b @ self.a).view_as(weight)


def limited(model: nn.Module, update: Update, *, rank: int = 4) -> nn.Module:
    """Return a copy of which only a part needs a gradient; its outputs are those of the model.

    Args:
        model: Any network; unchanged.
        update: ``norm`` frees the weights of norm layers, as in TENT (Wang et al. 2021,
            arXiv:2006.10726); ``low_rank`` freezes every weight and adds a trained ``LowRank`` to
            those of two dimensions or more; ``all`` changes nothing.
        rank: Rank of the deltas.

    Raises:
        ModelError: If there is nothing to train that way.

    >>> net = limited(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), "norm")
    >>> [name for name, p in net.named_parameters() if p.requires_grad]
    ['1.weight', '1.bias']
    """
    limited_copy = copied(model)
    if update == "all":
        return limited_copy
    trained = {id(p) for p in limited_copy.parameters() if p.requires_grad}
    limited_copy.requires_grad_(requires_grad=False)
    if update == "norm":
        _free_norms_(limited_copy, trained)
    else:
        _add_deltas_(limited_copy, trained, rank)
    return limited_copy


@torch.no_grad()
def merged(trained: nn.Module, like: nn.Module) -> nn.Module:
    """Return a plain network with what was learned: classes and names of another one.

    The merged weights are the very numbers that the low-rank network computed with, so outputs
    are equal bit for bit.

    Args:
        trained: Made by ``limited``; unchanged.
        like: The network that it was made of.

    >>> net = nn.Conv2d(3, 8, 3)
    >>> type(merged(limited(net, "low_rank"), net))
    <class 'torch.nn.modules.conv.Conv2d'>
    """
    learned = {**dict(trained.named_parameters()), **dict(trained.named_buffers())}
    for path, module in trained.named_modules():
        # read, not removed: copies of a parametrized module share its class
        for name in getattr(module, "parametrizations", {}):
            learned[f"{path}.{name}" if path else name] = getattr(module, name)
    result = copied(like)
    for name, tensor in [*result.named_parameters(), *result.named_buffers()]:
        tensor.copy_(learned[name])
    return result.train(trained.training)


def fix_statistics_(model: nn.Module) -> None:
    """Let every norm layer keep its running statistics and use them, also in training mode.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).train()
    >>> fix_statistics_(net)
    >>> [module.training for module in net]
    [True, False]
    """
    for module in model.modules():
        if isinstance(module, _NORMS):
            module.eval()


def _free_norms_(model: nn.Module, trained: set[int]) -> None:
    found = [
        parameter
        for module in model.modules()
        if isinstance(module, _NORMS)
        for parameter in module.parameters(recurse=False)
        if id(parameter) in trained
    ]
    if not found:
        message = (
            f"update: norm has nothing to train: {type(model).__name__} has no norm layer with "
            f"weights of its own: use low_rank or all"
        )
        raise ModelError(message)
    for parameter in found:
        parameter.requires_grad_()


def _add_deltas_(model: nn.Module, trained: set[int], rank: int) -> None:
    places = list(_weights_of(model, trained))
    if not places:
        message = (
            f"update: low_rank has nothing to train: {type(model).__name__} has no trainable "
            f"weight of two dimensions or more: use all"
        )
        raise ModelError(message)
    for path, module, name in places:
        delta = LowRank(getattr(module, name), rank, generator_of("low_rank", path, name))
        parametrize.register_parametrization(module, name, delta)


def _weights_of(model: nn.Module, trained: set[int]) -> Iterator[tuple[str, nn.Module, str]]:
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            # a delta of a weight that two layers share would part them
            if id(parameter) in trained and parameter.ndim > 1 and owners[id(parameter)] == 1:
                yield path, module, name

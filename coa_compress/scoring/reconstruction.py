"""Removed channels told by those that stay: the closed-form compensation of a cut.

What a reader computes from a removed channel is moved into the weights of the channels that stay
(He et al. 2017, arXiv:1707.06168), with a regression that is solved from second moments gathered
once. It is the refit of the readers without looking at a single position again.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from coa_compress.artifacts import Cut
from coa_compress.scoring.readers import Moments, adds_constant, is_reader, reading_dim

RIDGE = 1e-4
"""Penalty, relative to the mean square of a feature."""


@torch.no_grad()
def compensate_(
    cut: Cut, model: nn.Module, moments: Mapping[str, Moments], *, ridge: float = RIDGE
) -> None:
    """Move what removed channels told the readers into the weights of those that stay.

    Args:
        cut: Its student is changed in place.
        model: The teacher.
        moments: Of the inputs of the readers in the teacher, by path.
        ridge: Penalty, relative to the mean square of a feature.

    >>> from coa_compress.artifacts import Batch
    >>> from coa_compress.scoring.readers import input_moments
    >>> net, small = nn.Sequential(nn.Linear(2, 1)), nn.Sequential(nn.Linear(1, 1))
    >>> x = torch.arange(4.0)[:, None]
    >>> moments = input_moments(net, ["0"], [Batch(torch.cat([x, 2 * x + 1], dim=1))])
    >>> compensate_(Cut(small, {"0.weight": {1: torch.tensor([0])}}, ()), net, moments, ridge=0.0)
    >>> torch.allclose(small(x), net(torch.cat([x, 2 * x + 1], dim=1)), atol=1e-4)
    True
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    for path, found in moments.items():
        module, slices = modules[path], cut.slices.get(f"{path}.weight", {})
        student = cut.student.get_submodule(path)
        if not (is_reader(module) and is_reader(student)) or reading_dim(module) not in slices:
            continue
        kept = slices[reading_dim(module)].cpu()
        removed = _others(kept, found.n_channels)
        outputs = slices.get(1 - reading_dim(module))
        weight = module.weight.detach().double().cpu().movedim(reading_dim(module), -1)
        if outputs is not None:
            weight = weight[outputs.cpu()]
        told = reconstruction(found, kept, ridge=ridge)
        moved = weight[..., kept] + weight[..., removed] @ told[:, : len(kept)]
        student.weight.copy_(moved.movedim(-1, reading_dim(module)).to(student.weight))
        if adds_constant(module) and module.bias is not None and student.bias is not None:
            constant = (weight[..., removed] @ told[:, -1]).reshape(len(weight), -1).sum(1)
            bias = module.bias.detach().double().cpu()
            bias = bias if outputs is None else bias[outputs.cpu()]
            # not added to: a bias that two layers share would be changed twice
            student.bias.copy_((bias + constant).to(student.bias))


def reconstruction(moments: Moments, kept: Tensor, *, ridge: float = RIDGE) -> Tensor:
    """Return how the removed input channels follow from those kept, by ridge regression.

    Args:
        moments: Of the input.
        kept: Sorted numbers of the input channels that stay.
        ridge: Penalty, relative to the mean square of a feature.

    Returns:
        Shape ``(n_removed, n_kept)``, and one column more for the constant where there is one.

    >>> both = Moments(9, torch.tensor([[1.0, 2.0], [2.0, 4.0]]).double(), 2)
    >>> reconstruction(both, torch.tensor([0]), ridge=0.0).round(decimals=6).tolist()
    [[2.0]]
    """
    removed = _others(kept, moments.n_channels)
    constant = torch.arange(moments.n_channels, len(moments.products))
    features = torch.cat([kept, constant])
    gram = ridged(moments, ridge=ridge)
    factor, failed = torch.linalg.cholesky_ex(gram[features][:, features])
    if bool(failed.any()):
        return gram.new_zeros(len(removed), len(features))
    return torch.cholesky_solve(moments.products[features][:, removed], factor).t()


def ridged(moments: Moments, *, ridge: float = RIDGE) -> Tensor:
    """Return the second moments with the penalty on their diagonal; the constant has none."""
    n_channels = moments.n_channels
    scale = float(moments.products.diagonal()[:n_channels].mean()) if n_channels else 0.0
    penalty = torch.zeros(len(moments.products), dtype=moments.products.dtype)
    penalty[:n_channels] = max(ridge * scale, 1e-12 * scale, torch.finfo(torch.float64).tiny)
    return moments.products + penalty.diag()


def _others(kept: Tensor, n_channels: int) -> Tensor:
    there = torch.ones(n_channels, dtype=torch.bool)
    there[kept] = False
    return there.nonzero().flatten()

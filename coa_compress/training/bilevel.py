"""The gradient of an upper loss through one step of training on a lower loss."""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

Order = Literal["unrolled", "first_order"]
"""Whether the curvature of the lower loss counts, or is left out."""

Loss = Callable[[nn.Module], Tensor]
"""A scalar loss of a network, which it calls as a function; the same number every time."""

_RADIUS = 0.01


def hypergradient(
    model: nn.Module, upper: Loss, lower: Loss, *, rate: float, order: Order = "unrolled"
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the upper loss after one virtual step on the lower loss, and its gradient.

    With the lower solution ``w' = w - rate * grad f(w)`` of the lower loss f, the upper loss is
    ``F(w')`` and its gradient ``(I - rate * H) grad F(w')``, H the Hessian of f at w. As in DARTS
    (Liu et al. 2019, arXiv:1806.09055, eq. 7) ``H v`` is ``(grad f(w + e v) - grad f(w - e v)) /
    2 e`` with ``e = 0.01 / |v|``: two gradients, no second derivative. A forward pass in bfloat16
    would drown the difference.

    Args:
        model: Its parameters that need a gradient are w. Its weights, statistics and gradients
            stay as they are.
        upper: F.
        lower: f.
        rate: Step size of the virtual step.
        order: ``first_order`` takes ``grad F(w')`` alone.

    Returns:
        ``F(w')`` without gradient, and one tensor for each parameter of w, by name.

    >>> net, one = nn.Linear(1, 1, bias=False).double(), torch.ones(1, 1).double()
    >>> _ = nn.init.constant_(net.weight, 2.0)
    >>> upper, lower = (lambda m: m(one).sum()), (lambda m: m(one).square().sum())
    >>> value, gradient = hypergradient(net, upper, lower, rate=0.25)
    >>> value.item(), round(gradient["weight"].item(), 6)  # w' = w - 0.25 * 2 w = w / 2
    (1.0, 0.5)
    """
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    _, descent = _gradient(model, lower, weights)
    moved = {name: w - rate * descent[name] for name, w in _plain(weights).items()}
    value, slope = _gradient(model, upper, moved)
    if order == "first_order":
        return value, slope
    curved = _curvature(model, lower, weights, slope)
    return value, {name: slope[name] - rate * curved[name] for name in slope}


def carrying(value: Tensor, model: nn.Module, gradient: Mapping[str, Tensor]) -> Tensor:
    """Return a scalar of a given value whose gradient is a given one.

    Args:
        value: The scalar.
        model: Whose parameters get the gradient.
        gradient: One tensor for each parameter that gets one, by name.

    >>> net = nn.Linear(1, 1, bias=False)
    >>> carrying(torch.tensor(3.0), net, {"weight": torch.tensor([[0.5]])}).backward()
    >>> net.weight.grad
    tensor([[0.5000]])
    """
    weights = dict(model.named_parameters())
    linear = torch.stack([(weights[name] * slope).sum() for name, slope in gradient.items()]).sum()
    return value.detach() + (linear - linear.detach())


def _curvature(
    model: nn.Module, lower: Loss, weights: Mapping[str, Tensor], along: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the Hessian of the lower loss times a vector, by central differences."""
    length = torch.stack([part.square().sum() for part in along.values()]).sum().sqrt()
    if not length > 0:
        return {name: torch.zeros_like(part) for name, part in along.items()}
    radius = _RADIUS / length
    ends = []
    for sign in (1, -1):
        shifted = {name: w + sign * radius * along[name] for name, w in _plain(weights).items()}
        ends.append(_gradient(model, lower, shifted)[1])
    ahead, behind = ends
    return {name: (ahead[name] - behind[name]) / (2 * radius) for name in along}


def _gradient(
    model: nn.Module, loss: Loss, weights: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return a loss and its gradient at some weights, on statistics that are thrown away."""
    leaves = {name: w.detach().requires_grad_() for name, w in weights.items()}
    devices = {w.device for w in weights.values() if w.device.type == "cuda"}
    # dropout must drop the same units in every pass, or differences mean nothing
    with torch.enable_grad(), torch.random.fork_rng(devices=devices):
        value = loss(_At(model, leaves))
        slopes = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    return value.detach(), {
        name: torch.zeros_like(leaf) if slope is None else slope
        for (name, leaf), slope in zip(leaves.items(), slopes, strict=True)
    }


class _At(nn.Module):
    """A network at other weights, called as a function; it keeps its own buffers."""

    def __init__(self, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        # a tuple hides the network from named_parameters, state_dict, train and to
        self._held = (model,)
        self._weights = dict(weights)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the output of the network at these weights."""
        model = self._held[0]
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        output: Tensor = functional_call(model, {**self._weights, **buffers}, inputs)
        return output


def _plain(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight.detach() for name, weight in weights.items()}

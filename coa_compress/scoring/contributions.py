"""How much a scalar of the output changes, to first order, when a channel is removed."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from coa_compress.artifacts import Batch, ChannelGroup, Member, Scores
from coa_compress.copying import copied
from coa_compress.errors import ModelError, SettingError
from coa_compress.scoring.slices import channel_rows, check_members
from coa_compress.structure.rebuild import named_tensors

Scalars = Callable[[Any, Batch], Iterable[Tensor]]
"""Scalars of the output on a batch of one, each to be differentiated."""

_WRITTEN_OVER = "modified by an inplace operation"


def reading_members(group: ChannelGroup) -> tuple[Member, ...]:
    """Return the members whose weights times gradients add up to the effect of a channel.

    These are the weights that read it. Where there are none, as before a parameter-free output,
    they are the filters that write it and their biases.

    >>> written = Member("a.weight", 0, "output", torch.arange(2)[:, None])
    >>> bias = Member("a.bias", 0, "other", torch.arange(2)[:, None])
    >>> [m.tensor for m in reading_members(ChannelGroup("a", 2, (written, bias)))]
    ['a.weight', 'a.bias']
    """
    reading = tuple(member for member in group.members if member.role == "input")
    if reading:
        return reading
    writing = tuple(member for member in group.members if member.role == "output")
    biases = {f"{member.tensor.removesuffix('weight')}bias" for member in writing}
    return (*writing, *(member for member in group.members if member.tensor in biases))


@dataclass(frozen=True, slots=True, eq=False)
class Contributions:
    """First-order effects of removing each channel, over examples and scalars.

    Args:
        means: Mean contribution, of either sign; shape ``(n_channels,)`` by group name, float64.
        mean_squares: Mean of the squared contribution of single examples, same shape.
    """

    means: Scores
    mean_squares: Scores


def contributions(
    model: nn.Module, groups: Sequence[ChannelGroup], batches: Sequence[Batch], scalars: Scalars
) -> Contributions:
    """Return mean and mean square of the contribution of each channel to a scalar of the output.

    The model itself is not touched: the work is done on a copy in evaluation mode, in which every
    tensor asks for a gradient. Each example is run on its own, so that contributions of different
    sign can be told apart.

    Args:
        model: The teacher.
        groups: Its channel groups.
        batches: Examples; at least one.
        scalars: What is differentiated.

    Raises:
        SettingError: If there is no example.
        ModelError: If a gradient is not finite.
        StructureError: If a group names a tensor that is not in the model.
    """
    check_members(model, groups)
    sums = {group.name: torch.zeros(group.n_channels, dtype=torch.float64) for group in groups}
    squares = {name: torch.zeros_like(total) for name, total in sums.items()}
    n_scalars = 0
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.enable_grad())
        probe = copied(model).eval()
        weights = _differentiable(probe, groups)
        examples = list(_single_examples(batches))
        if examples and _writes_over(probe, weights, examples[0].input):
            stack.enter_context(torch.autograd.graph.allow_mutation_on_saved_tensors())
        for example in examples:
            for scalar in scalars(probe(example.input), example):
                products = _weight_times_gradient(scalar, weights)
                for group in groups:
                    found = _contribution(group, products)
                    sums[group.name] += found
                    squares[group.name] += found.square()
                n_scalars += 1
    if n_scalars == 0:
        message = "no example to score channels with: give at least one calibration batch"
        raise SettingError(message)
    return Contributions(
        {name: _checked(total / n_scalars, name) for name, total in sums.items()},
        {name: _checked(total / n_scalars, name) for name, total in squares.items()},
    )


def _writes_over(probe: nn.Module, weights: Mapping[str, Tensor], x: Tensor) -> bool:
    """Tell whether code that is meant for evaluation alone loses what a gradient needs."""
    outputs = [t for t in pytree.tree_leaves(probe(x)) if isinstance(t, Tensor) and t.requires_grad]
    if not outputs:
        return False
    ones = [torch.ones_like(output) for output in outputs]
    try:
        torch.autograd.grad(outputs, list(weights.values()), ones, allow_unused=True)
    except RuntimeError as error:
        return _WRITTEN_OVER in str(error)
    return False


def _differentiable(probe: nn.Module, groups: Sequence[ChannelGroup]) -> dict[str, Tensor]:
    names = {member.tensor for group in groups for member in reading_members(group)}
    tensors = named_tensors(probe)
    for tensor in tensors.values():
        tensor.requires_grad = False
    found = {name: tensors[name] for name in sorted(names)}
    return {name: t.requires_grad_() for name, t in found.items() if t.is_floating_point()}


def _single_examples(batches: Sequence[Batch]) -> Iterator[Batch]:
    for batch in batches:
        for i in range(len(batch.input)):
            target = None if batch.target is None else batch.target[i : i + 1]
            yield Batch(batch.input[i : i + 1], target)


def _weight_times_gradient(scalar: Tensor, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not scalar.requires_grad:
        return {}
    gradients = torch.autograd.grad(
        scalar, list(weights.values()), retain_graph=True, allow_unused=True
    )
    return {
        name: weight.detach().double() * gradient.double()
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
        if gradient is not None
    }


def _contribution(group: ChannelGroup, products: Mapping[str, Tensor]) -> Tensor:
    total = torch.zeros(group.n_channels, dtype=torch.float64)
    for member in reading_members(group):
        if member.tensor in products:
            total += channel_rows(products[member.tensor], member).sum(1).cpu()
    return total


def _checked(scores: Tensor, name: str) -> Tensor:
    if not bool(torch.isfinite(scores).all()):
        message = (
            f"scores of group {name!r} are not finite: the output or the loss of the network "
            "is not finite on the calibration batches"
        )
        raise ModelError(message)
    return scores

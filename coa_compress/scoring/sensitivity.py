"""Scores from the change of the output alone; no ground truth is needed."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from coa_compress.artifacts import Batch, ChannelGroup, Scores
from coa_compress.protocols import Loss
from coa_compress.scoring.contributions import contributions


def score_output_sensitivity(
    model: nn.Module, groups: Sequence[ChannelGroup], batches: Sequence[Batch], loss: Loss
) -> Scores:
    """Score each channel by the mean squared change of the output when it is removed.

    To first order, removing a channel changes the output ``y`` by a vector ``d``. For a random
    vector ``r`` of signs the expectation of ``<d, r>**2`` is ``|d|**2``, and ``<d, r>`` is the
    Taylor contribution of the channel to ``<y, r>``: one backward pass gives it for all channels.
    Two such probes an example are averaged, and divided by the number of output values.

    Args:
        model: The teacher.
        groups: Its channel groups.
        batches: Examples; targets are not used.
        loss: Not used.

    Returns:
        Shape ``(n_channels,)`` by group name, float64, on the CPU; the unit is that of the squared
        output, so that scores of different groups can be compared.

    Raises:
        SettingError: If there is no example.
        ModelError: If a gradient is not finite.
        StructureError: If a group names a tensor that is not in the model.

    >>> from coa_compress.artifacts import Member
    >>> net = nn.Conv2d(2, 1, 1, bias=False)
    >>> with torch.no_grad(): _ = net.weight.copy_(torch.tensor([1.0, 3.0]).view(1, 2, 1, 1))
    >>> member = Member("weight", 1, "input", torch.arange(2)[:, None])
    >>> batch = Batch(torch.ones(1, 2, 1, 1))
    >>> score_output_sensitivity(
    ...     net, [ChannelGroup("in", 2, (member,))], [batch], lambda output, batch: output.mean()
    ... )["in"].tolist()
    [1.0, 9.0]
    """
    del loss
    probes = partial(_sign_probes, generator=torch.Generator().manual_seed(0), n_probes=2)
    return contributions(model, groups, batches, probes).mean_squares


def _sign_probes(
    output: Any, batch: Batch, *, generator: torch.Generator, n_probes: int
) -> Iterator[Tensor]:
    del batch
    tensors = [tensor for tensor in output_tensors(output) if tensor.is_floating_point()]
    scale = max(sum(tensor.numel() for tensor in tensors), 1) ** -0.5
    for _ in range(n_probes):
        total = torch.zeros(())
        for tensor in tensors:
            signs = torch.randint(0, 2, tensor.shape, generator=generator) * 2 - 1
            total = total.to(tensor.device) + (tensor * signs.to(tensor)).sum()
        yield total * scale


def output_tensors(output: Any) -> Iterator[Tensor]:
    """Yield every tensor of an output: a tensor, or lists, tuples and mappings of them.

    >>> [tensor.item() for tensor in output_tensors({"a": torch.tensor(1), "b": [torch.tensor(2)]})]
    [1, 2]
    """
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from output_tensors(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from output_tensors(value)

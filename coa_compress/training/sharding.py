"""Split networks among processes: fully sharded data parallelism (FSDP2 of torch)."""

import torch
from torch import Tensor, nn

from coa_compress.training.processes import Processes, is_split, own_part

_BLOCK_NUMBERS = 1_000_000


def split_(module: nn.Module, processes: Processes) -> None:
    """Split the parameters of a network among processes (Zhao et al. 2023, arXiv:2304.11277).

    A forward pass gathers them where they are needed: blocks, the members of a ``ModuleList`` or
    ``Sequential`` with a million parameters or more, one at a time; the rest together.

    Args:
        module: Changed in place; called as a function from here on.
        processes: Nothing happens unless their strategy is ``fsdp``.
    """
    if not processes.sharded:
        return
    from torch.distributed.fsdp import fully_shard

    for parent in list(module.modules())[::-1]:
        if isinstance(parent, (nn.ModuleList, nn.Sequential)):
            for block in parent:
                if sum(p.numel() for p in block.parameters()) >= _BLOCK_NUMBERS:
                    fully_shard(block, reshard_after_forward=True)
    # also the outermost: what is averaged must be split again after a forward pass
    fully_shard(module, reshard_after_forward=True)


@torch.no_grad()
def copy_into_(place: Tensor, source: Tensor) -> None:
    """Copy a whole tensor into one that may be split among processes.

    Args:
        place: Changed in place.
        source: Of the same shape; whole, or split in the same way.
    """
    if is_split(place) and not is_split(source):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(place, DTensor)  # noqa: S101 - for the type checker
        source = distribute_tensor(source.to(place.device), place.device_mesh, place.placements)
    place.copy_(source)


@torch.no_grad()
def clip_gradients_(module: nn.Module, max_norm: float, processes: Processes) -> float:
    """Scale gradients down to a 2-norm over whole parameters; return the norm they had.

    Args:
        module: Its parameters may be split among the processes.
        max_norm: Largest norm.
        processes: Those that hold the parts.
    """
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    local = [own_part(gradient) for gradient in gradients]
    device = local[0].device
    # index 0: whole gradients, the same everywhere; index 1: parts, to be added up
    squares = torch.zeros(2, device=device, dtype=torch.float64)
    for gradient, part in zip(gradients, local, strict=True):
        squares[int(is_split(gradient))] += part.double().square().sum()
    norm = float((squares[0] + processes.mean(squares[1]) * processes.count).sqrt())
    scale = max_norm / (norm + 1e-6)
    if scale < 1.0:
        for part in local:
            part.mul_(scale)
    return norm

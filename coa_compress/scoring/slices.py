"""The parts of a parameter that belong to each channel of a group."""

from collections.abc import Sequence

from torch import Tensor, nn

from coa_compress.artifacts import ChannelGroup, Member
from coa_compress.errors import StructureError
from coa_compress.structure.rebuild import named_tensors


def channel_rows(tensor: Tensor, member: Member) -> Tensor:
    """Return what each channel owns of a tensor, one row a channel.

    Args:
        tensor: The parameter or buffer that the member names, or a tensor of its shape.
        member: Where the channels lie in it.

    Returns:
        Shape ``(n_channels, elements)``.

    >>> import torch
    >>> member = Member("weight", 1, "input", torch.tensor([[0], [2]]))
    >>> channel_rows(torch.tensor([[1, 2, 3], [4, 5, 6]]), member)
    tensor([[1, 4],
            [3, 6]])
    """
    positions = member.positions.to(tensor.device)
    picked = tensor.index_select(member.dim, positions.flatten()).movedim(member.dim, 0)
    return picked.reshape(positions.shape[0], -1)


def check_members(model: nn.Module, groups: Sequence[ChannelGroup]) -> None:
    """Check that every tensor that the groups name is in the model.

    Raises:
        StructureError: If one is not, naming it and the group.
    """
    known = named_tensors(model)
    for group in groups:
        for member in group.members:
            if member.tensor not in known:
                message = (
                    f"group {group.name!r} names {member.tensor!r}, which is no parameter or "
                    f"buffer of {type(model).__name__}: analyze this model again"
                )
                raise StructureError(message)

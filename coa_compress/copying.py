"""Copies of networks, also of those that hold results of a pass."""

import copy
import pickle
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils import _pytree as pytree

from coa_compress.errors import FOREIGN_ERRORS, ModelError, first_line

Network = TypeVar("Network", bound=nn.Module)

_OF_TORCH = frozenset(vars(nn.Module()))
"""What every module keeps; parameters and buffers are among it."""


def copied(model: Network) -> Network:
    """Return a deep copy of a network, which is unchanged.

    Tensors that a pass with gradients has left in attributes, which ``copy.deepcopy`` refuses, are
    copied by value: features that are kept, and the weight that ``torch.nn.utils.weight_norm`` and
    ``spectral_norm`` compute.

    Args:
        model: Any network.

    Raises:
        ModelError: If it holds something else that cannot be copied.

    >>> normed = nn.utils.spectral_norm(nn.Linear(2, 2))
    >>> _ = normed(Tensor([[1.0, 1.0]]))
    >>> copied(normed).weight.grad_fn is None
    True
    """
    computed = {
        id(tensor): tensor.detach().clone()
        for module in model.modules()
        for tensor in _tensors(list(vars(module).values()))
        if tensor.grad_fn is not None
    }
    try:
        return copy.deepcopy(model, computed)
    except (*FOREIGN_ERRORS, pickle.PicklingError) as error:
        message = f"cannot copy {type(model).__name__}: {first_line(error)}: "
        message += "remove what is no parameter"
        raise ModelError(message) from None


def placed(model: Network, device: torch.device | str) -> Network:
    """Move a network, and the tensors that its modules keep in attributes; return it.

    ``nn.Module.to`` leaves behind what ``forward`` has kept for an input size, such as a mask.

    Args:
        model: Any network; moved in place.
        device: Where to.

    >>> net = nn.ReLU()
    >>> net.mask = torch.ones(2)
    >>> placed(net, "meta").mask.device
    device(type='meta')
    """
    model.to(device)
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if name in _OF_TORCH or all(kept.to(device) is kept for kept in _tensors(value)):
                continue
            moved = pytree.tree_map_only(Tensor, lambda kept: kept.to(device), value)
            object.__setattr__(module, name, moved)
    return model


def attribute_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that modules keep in attributes, such as ``body.0.means['red']``, by name.

    Parameters, buffers, and weights that a weight norm or a spectral norm computes by a hook are
    left out.

    Args:
        model: Any network.

    >>> net = nn.Sequential(nn.Conv2d(3, 3, 1))
    >>> net[0].means = {"red": torch.ones(1)}
    >>> attribute_tensors(net)
    {"0.means['red']": tensor([1.])}
    """
    return {
        f"{place}{pytree.keystr(keys)}": leaf
        for place, value, own in _attributes(model)
        for keys, leaf in pytree.tree_flatten_with_path(value)[0]
        if _is_kept(leaf, own)
    }


def take_attributes_(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors in the place of those that modules keep in attributes; others are left out.

    Args:
        model: Changed in place.
        tensors: By the names of ``attribute_tensors``.
    """
    for place, value, own in list(_attributes(model)):

        def taken(keys: Any, leaf: Any, place: str = place, own: Collection[int] = own) -> Any:
            name = f"{place}{pytree.keystr(keys)}"
            return tensors[name] if name in tensors and _is_kept(leaf, own) else leaf

        if any(name.startswith(place) for name in tensors):
            path, _, attribute = place.rpartition(".")
            changed = pytree.tree_map_with_path(taken, value)
            object.__setattr__(model.get_submodule(path), attribute, changed)


def _attributes(model: nn.Module) -> Iterator[tuple[str, object, Collection[int]]]:
    """Yield name and value of every attribute, and what parameters and buffers are."""
    own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            computed = any(f"{name}_{part}" in module._parameters for part in ("g", "v", "orig"))
            if name not in _OF_TORCH and not computed:
                yield f"{path}.{name}".removeprefix("."), value, own


def _is_kept(leaf: object, own: Collection[int]) -> bool:
    if not isinstance(leaf, Tensor) or id(leaf) in own:
        return False
    return leaf.layout == torch.strided and not (leaf.is_complex() or leaf.is_quantized)


def check_shaped(model: nn.Module) -> None:
    """Raise if a lazy module of a network has not seen an input yet.

    Raises:
        ModelError: If a parameter has no shape.

    >>> check_shaped(nn.Sequential(nn.Linear(2, 2)))
    """
    for name, parameter in model.named_parameters():
        if nn.parameter.is_lazy(parameter):
            message = f"parameter {name!r} has no shape yet: run the model on one input first"
            raise ModelError(message)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network inside wrappers for speed or for several devices; any other as it is.

    Args:
        model: Any network, perhaps in ``torch.compile``, ``nn.DataParallel``,
            ``DistributedDataParallel`` or ``AveragedModel``, one in another.

    >>> type(unwrapped(AveragedModel(nn.DataParallel(nn.ReLU()))))
    <class 'torch.nn.modules.activation.ReLU'>
    """
    while (name := _held_as(model)) is not None:
        model = model.get_submodule(name)
    return model


def _held_as(model: nn.Module) -> str | None:
    if isinstance(model, nn.DataParallel | DistributedDataParallel | AveragedModel):
        return "module"
    # what torch.compile returns; to import its class takes seconds
    return "_orig_mod" if "_orig_mod" in dict(model.named_children()) else None


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from _tensors(item)

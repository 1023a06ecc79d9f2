"""Copies of networks, also of those that hold results of a pass."""

import copy
import pickle
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

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
    _change_attributes_(model, lambda _, tensor: tensor.to(device))
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
    found: dict[str, Tensor] = {}

    def note(name: str, tensor: Tensor) -> Tensor:
        # what else there is safetensors cannot hold
        if tensor.layout == torch.strided and not (tensor.is_complex() or tensor.is_quantized):
            found[name] = tensor
        return tensor

    _change_attributes_(model, note)
    normed = [name.rpartition("_") for name, _ in model.named_parameters()]
    computed = {name for name, _, part in normed if part in ("g", "v", "orig")}
    return {name: tensor for name, tensor in found.items() if name not in computed}


def take_attributes_(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors in the place of those that modules keep in attributes; others are left out.

    Args:
        model: Changed in place.
        tensors: By the names of ``attribute_tensors``.
    """
    _change_attributes_(model, lambda name, tensor: tensors.get(name, tensor))


def _change_attributes_(model: nn.Module, change: Callable[[str, Tensor], Tensor]) -> None:
    """Put what becomes of each tensor in an attribute in its place; parameters are none."""
    own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    for path, module in model.named_modules():
        for name, value in list(vars(module).items()):
            if name in _OF_TORCH or all(id(tensor) in own for tensor in _tensors(value)):
                continue
            place = f"{path}.{name}".removeprefix(".")
            leaves, spec = pytree.tree_flatten_with_path(value)
            changed = [
                change(f"{place}{pytree.keystr(keys)}", leaf)
                if isinstance(leaf, Tensor) and id(leaf) not in own
                else leaf
                for keys, leaf in leaves
            ]
            if any(new is not old for new, (_, old) in zip(changed, leaves, strict=True)):
                object.__setattr__(module, name, pytree.tree_unflatten(changed, spec))


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

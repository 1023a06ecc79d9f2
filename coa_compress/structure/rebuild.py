"""Rebuilding the shape of a student in a fresh teacher, so that saved weights can be loaded."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from coa_compress.artifacts import AttributePatch
from coa_compress.errors import StructureError
from coa_compress.registry import did_you_mean


def apply_shapes_(
    model: nn.Module,
    patches: Sequence[AttributePatch],
    shapes: Mapping[str, Sequence[int]],
) -> None:
    """Give a network the attributes and the tensor shapes of a student.

    Args:
        model: A network of the teacher's class; its resized tensors become zeros.
        patches: Attributes to set.
        shapes: New shape of each parameter and buffer that differs, by name; a tensor with
            several names keeps them all.

    Raises:
        StructureError: If the network has no such module, parameter or buffer.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 1))
    >>> patch = AttributePatch("0", "out_channels", 6)
    >>> apply_shapes_(net, [patch], {"0.weight": (6, 3, 1, 1), "0.bias": (6,)})
    >>> net[0](torch.zeros(1, 3, 2, 2)).shape
    torch.Size([1, 6, 2, 2])
    """
    tensors = named_tensors(model)
    for name in shapes:
        if name not in tensors:
            close = did_you_mean(name, tensors)
            message = f"no parameter or buffer {name!r} in {type(model).__name__}: {close}"
            raise StructureError(message)
    set_attributes_(model, patches)
    replacements = {
        name: torch.zeros(tuple(shape), dtype=tensors[name].dtype, device=tensors[name].device)
        for name, shape in shapes.items()
        if tuple(shape) != tuple(tensors[name].shape)
    }
    replace_tensors_(model, replacements)


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer by each of its names."""
    named: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    named.update(model.named_buffers(remove_duplicate=False))
    return named


def replace_tensors_(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Put new tensors in the place of parameters and buffers, under all their names.

    Args:
        model: The network that is changed.
        values: New tensors by name; parameters stay parameters and keep ``requires_grad``.
    """
    tensors = named_tensors(model)
    fresh: dict[int, Tensor] = {}
    for name, value in values.items():
        old = tensors[name]
        is_parameter = isinstance(old, nn.Parameter)
        fresh[id(old)] = nn.Parameter(value, old.requires_grad) if is_parameter else value
    for module in model.modules():
        for store in (module._parameters, module._buffers):
            for key, tensor in store.items():
                if tensor is not None and id(tensor) in fresh:
                    store[key] = fresh[id(tensor)]  # type: ignore[assignment]


def set_attributes_(model: nn.Module, patches: Sequence[AttributePatch]) -> None:
    """Set attributes of modules; a list stays a list.

    Raises:
        StructureError: If there is no such module or attribute.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    for patch in patches:
        module = modules.get(patch.module)
        if module is None or not hasattr(module, patch.attribute):
            owner = f"module {patch.module!r} of {type(model).__name__}"
            message = f"no attribute {patch.attribute!r} in {owner}: it is of another class"
            raise StructureError(message)
        is_list = isinstance(getattr(module, patch.attribute), list)
        value = list(patch.value) if is_list and isinstance(patch.value, tuple) else patch.value
        setattr(module, patch.attribute, value)

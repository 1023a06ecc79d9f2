"""How large a network is and how much it computes, counted exactly."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from coa_compress.copying import check_shaped
from coa_compress.hooks import watched_calls
from coa_compress.profiling.modes import evaluating

_logger = logging.getLogger(__name__)
_aten = torch.ops.aten

# recurrent kernels multiply matrices inside one operation that no formula describes
_UNCOUNTED = frozenset({"aten::mkldnn_rnn_layer", "aten::_cudnn_rnn", "aten::miopen_rnn"})


def count_params(model: nn.Module) -> int:
    """Return the elements of all parameters; a parameter used in two places counts once.

    Raises:
        ModelError: If a lazy module has not seen an input yet.

    >>> count_params(nn.Conv2d(3, 8, 3))
    224
    """
    check_shaped(model)
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, example: Tensor) -> int:
    """Return the multiply-accumulates of one forward pass.

    Counted are convolutions, transposed convolutions, matrix products and attention, where they
    run: at the dispatcher, so functional calls, raw parameters and computed weights count too.
    Elementwise operations, norms, pooling and interpolation count nothing.

    Args:
        model: Any network; unchanged.
        example: The input, on the device of the model.

    Returns:
        MACs for the whole batch of the example; one MAC is one multiplication and one addition.

    >>> count_macs(nn.Conv2d(8, 8, 3, padding=1), torch.zeros(1, 8, 16, 16))
    147456
    """
    return sum(work.macs for work in _counted(model, example).values())


def count_activations(model: nn.Module, example: Tensor) -> int:
    """Return the elements that convolutions, matrix products and attention write in one pass.

    These are the activations of the field (Radosavovic et al. 2020, arXiv:2003.13678), as fvcore
    counts them. Attention, which fvcore misses, counts its output where torch runs it as one
    kernel, and both of its products where torch runs them apart.

    Args:
        model: Any network; unchanged.
        example: The input, on the device of the model.

    Returns:
        Elements for the whole batch of the example.

    >>> count_activations(nn.Conv2d(8, 4, 3, padding=1), torch.zeros(1, 8, 16, 16))
    1024
    """
    return sum(work.activations for work in _counted(model, example).values())


@dataclass(frozen=True, slots=True)
class Work:
    """What operations that multiply do in one forward pass.

    Args:
        macs: Multiply-accumulates.
        activations: Elements that they write.
    """

    macs: int = 0
    activations: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.macs + other.macs, self.activations + other.activations)


def work_by_module(model: nn.Module, example: Tensor) -> dict[str, Work]:
    """Return the work of each module that computes something itself.

    Args:
        model: Any network; unchanged, and no hook is left in it.
        example: The input, on the device of the model.

    Returns:
        By the path of the innermost module that asked for it, in order of first use; the empty
        path is the network itself. The sums are those of ``count_macs`` and ``count_activations``.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 1, 1))
    >>> {path: work.macs for path, work in work_by_module(net, torch.zeros(1, 1, 4, 4)).items()}
    {'0': 32, '2': 32}
    """
    counted = _counted(model, example, by_module=True)
    return _summed((owner, work) for (owner, _), work in counted.items())


def macs_by_module(model: nn.Module, example: Tensor) -> dict[str, int]:
    """Return the multiply-accumulates of ``work_by_module`` alone.

    >>> macs_by_module(nn.Conv2d(1, 2, 1), torch.zeros(1, 1, 4, 4))
    {'': 32}
    """
    return {path: work.macs for path, work in work_by_module(model, example).items()}


def work_by_operator(model: nn.Module, example: Tensor) -> dict[str, Work]:
    """Return the work of each operator of the dispatcher, such as ``convolution`` or ``addmm``.

    Args:
        model: Any network; unchanged.
        example: The input, on the device of the model.

    >>> work_by_operator(nn.Linear(3, 2), torch.zeros(5, 3))
    {'addmm': Work(macs=30, activations=10)}
    """
    return _summed((operator, work) for (_, operator), work in _counted(model, example).items())


def file_bytes(model: nn.Module) -> int:
    """Return the size of the network's parameters and buffers as one safetensors file.

    >>> file_bytes(nn.Linear(2, 1)) > 3 * 4
    True
    """
    tensors: dict[str, Tensor] = {}
    seen: set[tuple[int, int, torch.Size]] = set()
    for name, tensor in model.state_dict().items():
        place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape)
        if place in seen and tensor.numel():
            continue
        seen.add(place)
        tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return len(save(tensors))


def _counted(
    model: nn.Module, example: Tensor, *, by_module: bool = False
) -> dict[tuple[str, str], Work]:
    """Return the work by the path of its module, if asked for, and the name of its operator."""
    active: list[str] = []
    counter = _WorkCounter(active)
    tracked = _tracked(model, active) if by_module else nullcontext()
    with evaluating(model), _visible_attention(), tracked, counter:
        model(example)
    counter.warn_uncounted()
    return counter.work


def _summed(parts: Iterable[tuple[str, Work]]) -> dict[str, Work]:
    sums: dict[str, Work] = {}
    for name, work in parts:
        sums[name] = sums.get(name, Work()) + work
    return sums


class _WorkCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Add up the work of every operation that reaches the dispatcher.

    Args:
        active: Paths of the modules that are running, innermost last; read, not changed.
    """

    def __init__(self, active: Sequence[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.active = active
        self.work: dict[tuple[str, str], Work] = {}
        self.uncounted: set[str] = set()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        kwargs = dict(kwargs or {})
        packet = func._overloadpacket
        if packet not in flop_registry and packet not in _FORMULAS:
            # under inference mode composite operations arrive whole
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        output = func(*args, **kwargs)
        macs = self._macs(packet, args, kwargs, output)
        if macs:
            owner = self.active[-1] if self.active else ""
            key = (owner, packet._qualified_op_name.split("::")[-1])
            self.work[key] = self.work.get(key, Work()) + Work(macs, _written(output))
        return output

    def _macs(self, packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> int:
        if packet in _FORMULAS:
            return _FORMULAS[packet](args)
        if packet in flop_registry:
            # the registry counts a multiplication and an addition as two
            return int(flop_registry[packet](*args, **kwargs, out_val=output)) // 2
        name = packet._qualified_op_name
        if name in _UNCOUNTED:
            self.uncounted.add(name)
        return 0

    def warn_uncounted(self) -> None:
        """Log the operations whose MACs are missing from the count."""
        if self.uncounted:
            _logger.warning("no MAC formula for %s: not counted", ", ".join(sorted(self.uncounted)))


def _written(output: Any) -> int:
    """Return the elements of what an operation returns; of fused attention, of its first part."""
    first = output[0] if isinstance(output, tuple | list) else output
    return int(first.numel())


def _attention(args: tuple[Any, ...]) -> int:
    query, key, value = args[:3]
    return int(prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1]))


_FORMULAS: dict[Any, Callable[[tuple[Any, ...]], int]] = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten.mv: lambda args: args[0].numel(),
    _aten.dot: lambda args: args[0].numel(),
    _aten.vdot: lambda args: args[0].numel(),
    _aten.addmv: lambda args: args[1].numel(),
    _aten.addbmm: lambda args: args[1].numel() * args[2].shape[-1],
}


@contextmanager
def _visible_attention() -> Iterator[None]:
    """Switch off the fused inference path of ``nn.MultiheadAttention``: it hides its products."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@contextmanager
def _tracked(model: nn.Module, active: list[str]) -> Iterator[None]:
    """Keep the paths of the running modules in a list, by hooks that are gone on exit."""
    paths = [path for path, _ in model.named_modules()]
    with watched_calls(model, paths, enter=active.append, leave=lambda _path: _pop_(active)):
        yield


def _pop_(active: list[str]) -> None:
    active.pop()

"""The most memory that a network holds during one forward pass."""

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from coa_compress.profiling.modes import evaluating


def peak_memory_mb(model: nn.Module, example: Tensor) -> float:
    """Return the peak memory of one forward pass, in megabytes of 10**6 bytes.

    Counted are the parameters, the buffers, the input, and the activations that are alive at the
    same time. On CUDA the activations come from the allocator's own peak, which is reset, after
    one pass to warm up; work space of the kernels is in it. Elsewhere every tensor that an
    operation returns is followed from birth to death: the figure depends on the network and the
    input alone, not on the machine, and leaves out work space inside an operation.

    Args:
        model: Any network; unchanged.
        example: The input, on the device of the model.

    >>> peak_memory_mb(nn.ReLU(), torch.zeros(1000, 1000))
    8.0
    """
    with evaluating(model):
        if example.device.type == "cuda":
            n_bytes = _cuda_peak(model, example)
        else:
            n_bytes = _followed_peak(model, example)
    return n_bytes / 1e6


def _resident(model: nn.Module, example: Tensor) -> list[Tensor]:
    return [*model.parameters(), *model.buffers(), example]


def _storages(tensors: Iterable[Tensor]) -> dict[int, torch.UntypedStorage]:
    storages = (tensor.untyped_storage() for tensor in tensors)
    return {storage._cdata: storage for storage in storages}


def _cuda_peak(model: nn.Module, example: Tensor) -> int:
    device = example.device
    model(example)
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    model(example)
    torch.cuda.synchronize(device)
    during = torch.cuda.max_memory_allocated(device) - before
    return during + sum(s.nbytes() for s in _storages(_resident(model, example)).values())


def _followed_peak(model: nn.Module, example: Tensor) -> int:
    counter = _LiveBytes(_resident(model, example))
    with counter:
        model(example)
    return counter.peak


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follow the storage of every tensor that an operation returns until it is freed.

    Args:
        resident: Tensors that are there before and after.
    """

    def __init__(self, resident: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held = _storages(resident)
        self.sizes: dict[int, int] = {key: s.nbytes() for key, s in self.held.items()}
        self.live = sum(self.sizes.values())
        self.peak = self.live

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor):
                self._follow(leaf.untyped_storage())
        self.peak = max(self.peak, self.live)
        return output

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.sizes:
            weakref.finalize(storage, self._forget, key).atexit = False
        self.live += size - self.sizes.get(key, 0)
        self.sizes[key] = size

    def _forget(self, key: int) -> None:
        self.live -= self.sizes.pop(key, 0)

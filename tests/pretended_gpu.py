"""A GPU that is not there: its tensors lie on the CPU, say ``cuda:0``, and mix with no others.

What torch does on such a tensor is done by the CPU on what it holds. Whatever a real GPU refuses
is refused: tensors of two devices in one call (but for scalars and indices), numbers drawn by a
generator of the CPU, and NumPy. So code that forgets to move a tensor fails here as it would there.
"""

import contextlib
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

GPU = torch.device("cuda", 0)
NAME = "pretended GPU"
_ATEN = torch.ops.aten
_MIXING = {_ATEN.index, _ATEN.index_put, _ATEN.index_put_, _ATEN._index_put_impl_, _ATEN.copy_}
"""What takes indices or values from another device."""
_MAKING = (
    "tensor as_tensor zeros ones empty full arange linspace logspace eye rand randn randint "
    "randperm zeros_like ones_like empty_like full_like rand_like randn_like empty_strided"
)


class OnGpu(Tensor):
    """A tensor of the pretended GPU.

    Args:
        held: The tensor of the CPU with its numbers.
    """

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnGpu":
        made = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device="cpu",
        )
        made.held = held
        return made

    @property
    def device(self) -> torch.device:
        return GPU

    @property
    def is_cuda(self) -> bool:
        return True

    @property
    def is_cpu(self) -> bool:
        return False

    def get_device(self) -> int:
        return 0

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def tolist(self) -> Any:
        return self.held.tolist()

    def numpy(self, **_: Any) -> Any:
        message = "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first"
        raise TypeError(message)

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def __repr__(self, **_: Any) -> str:
        return f"OnGpu({self.held})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            copy = OnGpu(self.held.detach().clone())
            parameter = isinstance(self, nn.Parameter)
            memo[id(self)] = (
                nn.Parameter(copy, self.requires_grad)
                if parameter
                else copy.requires_grad_(self.requires_grad)
            )
        return memo[id(self)]

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [value for value in pytree.tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        packet = func._overloadpacket
        if packet not in _MIXING and any(not isinstance(t, OnGpu) and t.dim() for t in given):
            message = f"Expected all tensors to be on the same device, {func} got cuda:0 and cpu"
            raise RuntimeError(message)
        held_args, held_kwargs = pytree.tree_map_only(OnGpu, lambda t: t.held, (args, kwargs))
        result = func(*held_args, **held_kwargs)
        if packet is _ATEN.copy_ and not isinstance(args[0], OnGpu):
            return args[0]
        # what is written in place is the very tensor that was given
        written = {id(t.held): t for t in given if isinstance(t, OnGpu)}

        def there(tensor: Tensor) -> Tensor:
            return written[id(tensor)] if id(tensor) in written else OnGpu(tensor)

        return pytree.tree_map_only(Tensor, there, result)


class _Upload(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return OnGpu(tensor.detach().clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].held


class _Download(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: OnGpu) -> Tensor:
        return tensor.held.detach().clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return OnGpu(gradients[0])


def _placed(tensor: Tensor, device: torch.device | str) -> Tensor:
    if torch.device(device).type == "cuda":
        return tensor if isinstance(tensor, OnGpu) else _Upload.apply(tensor)
    return _Download.apply(tensor) if isinstance(tensor, OnGpu) else tensor


def _maker(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def made(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        if device is None or torch.device(device).type != "cuda":
            return make(*args, **kwargs, **({} if device is None else {"device": device}))
        if kwargs.get("generator") is not None:
            message = "Expected a 'cuda' device type for generator but found 'cpu'"
            raise RuntimeError(message)
        args = tuple(_placed(v, "cpu") if isinstance(v, Tensor) else v for v in args)
        return _placed(make(*args, device="cpu", **kwargs), GPU)

    return made


def _mover(to: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def moved(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        values = [*args, *kwargs.values()]
        like = next((v for v in values if isinstance(v, Tensor)), None)
        if like is not None:
            values = [like.device, like.dtype]
        places = [v for v in values if isinstance(v, torch.device | str)]
        types = [v for v in values if isinstance(v, torch.dtype)]
        placed = _placed(tensor, places[0]) if places else tensor
        options = {name: v for name, v in kwargs.items() if name in ("memory_format", "copy") and v}
        return to(placed, types[0] if types else placed.dtype, **options)

    return moved


class _Event:
    def __init__(self, **_: Any) -> None:
        self.seconds = 0.0

    def record(self, *_: Any) -> None:
        self.seconds = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: "_Event") -> float:
        return 1000 * (other.seconds - self.seconds)


@pytest.fixture
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Let torch see one GPU."""
    state = torch.zeros(16, dtype=torch.uint8)
    answers: dict[str, Any] = {
        **{
            "is_current_stream_capturing": False,
            "is_available": True,
            "is_initialized": True,
            "is_bf16_supported": True,
        },
        **{"device_count": 1, "current_device": 0, "get_device_capability": (9, 0)},
        **{"get_device_name": NAME, "memory_allocated": 0, "max_memory_allocated": 10**6},
        **{"get_rng_state": state, "get_rng_state_all": [state], "current_stream": None},
        **dict.fromkeys(["set_rng_state", "set_rng_state_all", "manual_seed", "manual_seed_all"]),
        **dict.fromkeys(["init", "_lazy_init", "set_device", "synchronize", "empty_cache"]),
        **dict.fromkeys(["reset_peak_memory_stats"]),
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    monkeypatch.setattr(torch.cuda, "device", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "Event", _Event)
    for name in _MAKING.split():
        monkeypatch.setattr(torch, name, _maker(getattr(torch, name)))
    monkeypatch.setattr(Tensor, "to", _mover(Tensor.to))
    monkeypatch.setattr(Tensor, "type_as", lambda tensor, other: tensor.to(other))
    monkeypatch.setattr(Tensor, "cpu", lambda tensor: _placed(tensor, "cpu"))
    monkeypatch.setattr(Tensor, "cuda", lambda tensor, *_: _placed(tensor, GPU))
    # a parameter stays the same object when its module is moved, as on a real one
    monkeypatch.setattr(torch.__future__, "_swap_module_params_on_conversion", True)
    return GPU

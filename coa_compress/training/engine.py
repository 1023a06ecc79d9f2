"""One device and one number format: the part of training that Lightning Fabric does."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from coa_compress.errors import TrainingError
from coa_compress.training.processes import ALONE, Processes
from coa_compress.training.settings import Precision
from coa_compress.training.sharding import clip_gradients_

FabricPrecision = Literal["32-true", "bf16-mixed"]
"""Number formats in the words of Lightning Fabric."""

_DILATION_PLACE: Mapping[Any, int] = {
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), 5),
    **dict.fromkeys((torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d), 7),
}
_REDUCED = (torch.bfloat16, torch.float16)


def parse_device(device: str) -> torch.device:
    """Return a device from its name.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:1`` ...

    Raises:
        TrainingError: If there is no such device here.

    >>> parse_device("cpu")
    device(type='cpu')
    """
    try:
        parsed = torch.device(device)
    except RuntimeError:
        message = f"cannot train on device {device!r}: it must be cpu, cuda or cuda:N"
        raise TrainingError(message) from None
    if parsed.type == "cuda" and (parsed.index or 0) >= torch.cuda.device_count():
        seen = torch.cuda.device_count()
        message = f"cannot train on device {device!r}: torch sees {seen} GPUs here, use cpu"
        raise TrainingError(message)
    return parsed


def resolve_precision(precision: Precision, device: torch.device) -> FabricPrecision:
    """Return the number format to use on a device, in the words of Lightning Fabric.

    Args:
        precision: What was asked for; ``auto`` is bf16 on a GPU that supports it and on a CPU
            with AMX tiles or AVX512-BF16, and fp32 elsewhere.
        device: Where to train.

    >>> resolve_precision("fp32", torch.device("cpu"))
    '32-true'
    """
    if precision == "auto":
        precision = "bf16" if _multiplies_bf16_fast(device) else "fp32"
    return "bf16-mixed" if precision == "bf16" else "32-true"


def _multiplies_bf16_fast(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # private names of torch that may move: without them, fp32 is always right
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, name, bool)() for name in names)


class Engine:
    """A Fabric for one device, made when it is needed: importing Fabric takes seconds.

    Args:
        precision: Number format of the forward pass.
        device: Where to train.
        processes: Those that train together, each with an engine.
    """

    def __init__(
        self, precision: Precision, device: torch.device, processes: Processes = ALONE
    ) -> None:
        from lightning_fabric import Fabric

        self.precision = resolve_precision(precision, device)
        self.processes = processes
        with quiet("lightning_fabric"):
            self._fabric = Fabric(
                accelerator=device.type,
                devices=1 if device.index is None or device.type == "cpu" else [device.index],
                precision=self.precision,
            )

    @property
    def reduced(self) -> bool:
        """Whether forward passes run in fewer digits than float32."""
        return self.precision != "32-true"

    def setup_(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Take charge of a module and the optimizer of its parameters."""
        self._whole, self._plain_optimizer = module, optimizer
        if not self.processes.sharded:
            with quiet("lightning_fabric"):
                self._module, self._optimizer = self._fabric.setup(module, optimizer)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a scalar loss to the parameters."""
        self._fabric.backward(loss)

    def average_(self) -> None:
        """Replace the gradients of this process by the mean over all of them, once a step."""
        self.processes.average_gradients_(self._whole)

    def clip_(self, max_norm: float) -> float:
        """Scale the gradients down to a 2-norm; return the norm they had, perhaps not finite."""
        if self.processes.sharded:
            return clip_gradients_(self._whole, max_norm, self.processes)
        norm = self._fabric.clip_gradients(
            self._module, self._optimizer, max_norm=max_norm, error_if_nonfinite=False
        )
        return float("nan") if norm is None else float(norm)

    def step_(self) -> None:
        """Change the parameters by their gradients."""
        (self._plain_optimizer if self.processes.sharded else self._optimizer).step()

    @contextmanager
    def mixed(self, *modules: nn.Module) -> Iterator[None]:
        """Run the forward passes of some modules in the engine's precision, within a block.

        What the modules return is float32, so losses are computed in float32; what is captured
        inside them may be bfloat16. The hooks are gone on exit, whatever happens.

        Args:
            modules: Whole networks, called as functions.

        Yields:
            Nothing.
        """
        with ExitStack() as stack:
            if self.reduced:
                for module in modules:
                    self._hook(stack, module)
            yield

    @contextmanager
    def _autocast(self) -> Iterator[None]:
        on_cpu = self._fabric.device.type == "cpu"
        with self._fabric.autocast(), _PlainDilated() if on_cpu else nullcontext():
            yield

    def _hook(self, stack: ExitStack, module: nn.Module) -> None:
        entered: list[AbstractContextManager[Any]] = []

        def enter(_module: nn.Module, _args: object) -> None:
            entered.append(self._autocast())
            entered[-1].__enter__()

        def leave(_module: nn.Module, _args: object, output: Any) -> Any:
            if entered:
                entered.pop().__exit__(None, None, None)
            return _to_float32(output)

        stack.callback(module.register_forward_pre_hook(enter).remove)
        # always_call: a forward pass that raises must not leave autocast on
        stack.callback(module.register_forward_hook(leave, always_call=True).remove)


class _PlainDilated(TorchFunctionMode):
    """Gives dilated convolutions what they read with the channels second.

    With the channels last, oneDNN 3.12 (torch 2.13) leaves parts of the bfloat16 gradient of a
    dilated kernel undefined, or crashes, where 16 does not divide the channels it reads.
    """

    def __torch_function__(
        self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _DILATION_PLACE:
            dilation = kwargs.get("dilation", (*args[_DILATION_PLACE[func] :], 1)[0])
            if dilation not in (1, (1,), (1, 1), (1, 1, 1)):
                args = tuple(map(_plain, args))
                kwargs = {name: _plain(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


def _plain(value: Any) -> Any:
    return value.contiguous() if isinstance(value, Tensor) else value


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Let a logger say nothing but warnings within a block."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _to_float32(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.float() if output.dtype in _REDUCED else output
    if isinstance(output, dict):
        return {name: _to_float32(part) for name, part in output.items()}
    if type(output) in (list, tuple):
        return type(output)(_to_float32(part) for part in output)
    return output

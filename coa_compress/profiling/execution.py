"""How a network is run when it is timed: number format, layout, compiler, CUDA graph."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from coa_compress.copying import copied
from coa_compress.errors import SettingError
from coa_compress.profiling.modes import evaluating

Dtype = Literal["fp32", "tf32", "fp16", "bf16"]
"""Number format; ``tf32`` keeps float32 tensors and lets a GPU multiply them in TF32."""

_DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
_WARMUP = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """How a network is run.

    Args:
        dtype: Number format of weights, inputs and products.
        channels_last: Lay images and kernels out with the channels last.
        compiled: Run what ``torch.compile`` makes of the network.
        cuda_graph: Record one pass as a CUDA graph, and replay it.
    """

    dtype: Dtype = "fp32"
    channels_last: bool = False
    compiled: bool = False
    cuda_graph: bool = False

    def check(self, device: torch.device) -> None:
        """Raise unless a device can run a network like this.

        Raises:
            SettingError: Naming what the device lacks.

        >>> Execution(cuda_graph=True).check(torch.device("cpu"))
        Traceback (most recent call last):
        coa_compress.errors.SettingError: a CUDA graph needs a GPU, the device is cpu: leave it out
        """
        if self.cuda_graph and device.type != "cuda":
            message = f"a CUDA graph needs a GPU, the device is {device}: leave it out"
            raise SettingError(message)
        if self.dtype == "tf32" and not _multiplies_tf32(device):
            message = f"tf32 needs a GPU from Ampere on, the device is {device}: use fp32"
            raise SettingError(message)
        if self.dtype in ("fp16", "bf16") and not _convolves(_DTYPES[self.dtype], device):
            message = f"torch has no {self.dtype} convolution on {device}: use fp32"
            raise SettingError(message)


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A network made ready to run in some way.

    Args:
        plain: A copy in the number format and the layout, not compiled.
        compiled: What to measure the memory of: compiled if asked for, not a graph.
        timed: What to time.
        example: The input, in the same format and layout.
    """

    plain: nn.Module
    compiled: nn.Module
    timed: nn.Module
    example: Tensor


def forget_compiled() -> None:
    """Drop what ``torch.compile`` made: after a few sizes of one network it compiles no more.

    Networks that were prepared before are compiled again at their next pass.
    """
    torch.compiler.reset()


@contextmanager
def prepared(model: nn.Module, example: Tensor, execution: Execution) -> Iterator[Prepared]:
    """Make a copy of a network ready to run; settings of torch are put back on exit.

    In fp32 no product is computed in TF32 within the block, which torch does for convolutions
    otherwise.

    Args:
        model: Any network; unchanged.
        example: The input, on the device of the model.
        execution: How to run it.

    Yields:
        The copy in each form.

    Raises:
        SettingError: If the device cannot do that.

    >>> with prepared(nn.Conv2d(3, 8, 1), torch.zeros(1, 3, 4, 4), Execution(dtype="bf16")) as net:
    ...     net.timed(net.example).dtype
    torch.bfloat16
    """
    execution.check(example.device)
    dtype = _DTYPES[execution.dtype]
    plain = copied(model).to(dtype)
    given = example.to(dtype) if example.is_floating_point() else example
    if execution.channels_last:
        plain = plain.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        given = given.contiguous(memory_format=torch.channels_last) if given.dim() == 4 else given
    with _products_in(execution.dtype):
        compiled = plain
        if execution.compiled:
            compiled = _compiled(plain)
            with evaluating(plain):
                compiled(given)  # whoever times it does not wait for the compiler
        timed = _Replayed(compiled, given) if execution.cuda_graph else compiled
        yield Prepared(plain, compiled, timed, given)


class _Replayed(nn.Module):
    """One pass of a network as a CUDA graph; the input is that of the recording."""

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        super().__init__()
        self._example = example.clone()
        with evaluating(model), torch.cuda.device(example.device):
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_WARMUP):
                    model(self._example)
            torch.cuda.current_stream().wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._output = model(self._example)

    def forward(self, given: Tensor) -> Any:
        """Return the output for the input of the recording."""
        del given
        self._graph.replay()
        return self._output


def _compiled(model: nn.Module) -> nn.Module:
    compiled = torch.compile(model, dynamic=False)
    if not isinstance(compiled, nn.Module):
        message = f"torch.compile returned a {type(compiled).__name__}, which cannot be timed"
        raise SettingError(message)
    return compiled


@contextmanager
def _products_in(dtype: Dtype) -> Iterator[None]:
    places: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer releases of torch have other names for these
        before = [place.allow_tf32 for place in places]
        for place in places:
            place.allow_tf32 = dtype == "tf32"
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for place, allowed in zip(places, before, strict=True):
                place.allow_tf32 = allowed


def _multiplies_tf32(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def _convolves(dtype: torch.dtype, device: torch.device) -> bool:
    image = torch.zeros(1, 1, 3, 3, dtype=dtype, device=device)
    try:
        nn.functional.conv2d(image, image)
    except RuntimeError:
        return False
    return True

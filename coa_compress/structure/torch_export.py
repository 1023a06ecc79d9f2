"""Export of somebody's ``forward`` by torch; where it cannot be exported, why, in one line."""

import io
import logging
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from coa_compress.errors import StructureError

FAILURES = (
    RuntimeError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
)
"""What running or exporting somebody's forward may raise."""

_TORCH_FOLDER = str(Path(torch.__file__).parent)
_OWN_FOLDER = str(Path(__file__).parent)
_LOGGER = "torch.fx.experimental.symbolic_shapes"
_SET_DATA = torch.Tensor.data


def exported_program(
    model: nn.Module, example: Tensor, *, in_the_way: Callable[[fx.Node], bool]
) -> torch.export.ExportedProgram:
    """Return what ``torch.export`` makes of a network.

    Args:
        model: In evaluation mode; ``forward`` may change it.
        example: An input that it accepts.
        in_the_way: Tells of a call whether it must be replaced by functional ones.

    Raises:
        StructureError: If it cannot be run or exported, with the cause and the line of its code.
    """
    try:
        with _quiet(), _one_precision(), torch.no_grad():
            program = torch.export.export(model, (example,), strict=False)
            if any(in_the_way(node) for node in program.graph.nodes):
                program = program.run_decompositions({})
            return program
    except FAILURES as error:
        shape = tuple(example.shape)
        message = f"cannot export {type(model).__name__} at input {shape}: "
        raise StructureError(message + _reason(model, example, error)) from None


def _reason(model: nn.Module, example: Tensor, error: Exception) -> str:
    written = _written_parameters(model, example)
    if written:
        listed = ", ".join(written[:3]) + (", ..." if written[3:] else "")
        return (
            f"its forward writes new values into {listed}: merge its branches before, and give "
            f"the merged network"
        )
    line = _line_of(error)
    if type(error).__name__ == "GuardOnDataDependentSymNode":
        return (
            f"its code decides by the values of a tensor{line}: make it run the same "
            f"calls for every input"
        )
    return first_line(error) + line


def _line_of(error: BaseException) -> str:
    """Return the innermost line of the network's code, in words, or nothing."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not in_torch(f.filename) and not _is_ours(f.filename)]
    if not own:
        return ""
    return f" ({own[-1].filename}:{own[-1].lineno}: {own[-1].line})"


def _is_ours(file: str) -> bool:
    return file.startswith((_OWN_FOLDER, "<"))


def in_torch(file: str) -> bool:
    """Tell whether a source file belongs to torch itself."""
    return file.startswith(_TORCH_FOLDER)


def first_line(error: BaseException) -> str:
    """Return the type and the first line of an error, for a one-line message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


class _Writes(TorchFunctionMode):
    """Notes which tensors have ``tensor.data = ...`` done to them."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[int] = []

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        del types
        if getattr(func, "__self__", None) is _SET_DATA and func.__name__ == "__set__":
            self.written.append(id(args[0]))
        return func(*args, **(kwargs or {}))


def _written_parameters(model: nn.Module, example: Tensor) -> list[str]:
    """Return the parameters that ``forward`` itself gives new values."""
    mode = _Writes()
    try:
        with torch.no_grad(), mode:
            model(example)
    except FAILURES:
        return []
    return [name for name, tensor in model.named_parameters() if id(tensor) in mode.written]


@contextmanager
def _one_precision() -> Iterator[None]:
    """Leave out what ``forward`` says of autocast: it changes no shape, but hides the calls."""
    before = (torch.autocast.__enter__, torch.autocast.__exit__)
    torch.autocast.__enter__ = lambda self: self  # type: ignore[method-assign]
    torch.autocast.__exit__ = lambda *_: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.autocast.__enter__, torch.autocast.__exit__ = before  # type: ignore[method-assign]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what torch prints: half a graph on the standard error, when it fails."""
    logger = logging.getLogger(_LOGGER)
    before = logger.disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before

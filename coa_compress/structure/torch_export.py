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
_LOGGERS = ("torch.fx.experimental.symbolic_shapes", "torch._subclasses.fake_tensor")
_SET_DATA = torch.Tensor.data
_ASKED_BY_SET_DATA = torch.ops.aten._has_compatible_shallow_copy_type.default


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
    except FAILURES as error:
        raise _not_exported(model, example, _reason(model, example, error)) from None
    if any(node.target is _ASKED_BY_SET_DATA for node in program.graph.nodes):
        # weights that forward makes itself are no parameters in such a graph
        written = _written_parameters(model, example)
        if written:
            raise _not_exported(model, example, _merged_first(written))
    return _free_of_layout(program)


def _not_exported(model: nn.Module, example: Tensor, reason: str) -> StructureError:
    shape = tuple(example.shape)
    return StructureError(f"cannot export {type(model).__name__} at input {shape}: {reason}")


def _free_of_layout(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Let no call ask how a tensor lies in memory, which differs by number format and kernel.

    An export leaves ``contiguous`` out where the kernels that it saw made it needless, and keeps
    the ``view`` after it, which others then refuse.
    """
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.view.default:
            node.target = torch.ops.aten.reshape.default
    return program


def _reason(model: nn.Module, example: Tensor, error: Exception) -> str:
    written = _written_parameters(model, example)
    if written:
        return _merged_first(written)
    line = _line_of(error)
    if type(error).__name__ == "GuardOnDataDependentSymNode":
        return (
            f"its code decides by the values of a tensor{line}: make it run the same "
            f"calls for every input"
        )
    return first_line(error) + line


def _merged_first(written: Sequence[str]) -> str:
    listed = ", ".join(written[:3]) + (", ..." if written[3:] else "")
    return (
        f"its forward writes new values into {listed}: merge its branches before, "
        f"and give the merged network"
    )


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
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled

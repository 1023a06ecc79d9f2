"""Networks as files for other runtimes: ONNX, checked against torch."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from coa_compress.checkpoint import write_file
from coa_compress.errors import FOREIGN_ERRORS, CoaWarning, ModelError, first_line
from coa_compress.structure.graph_student import GraphStudent

_NEEDED = ("onnx", "onnxscript")
_INSTALL = "pip install 'coa-compress[onnx]'"
_TOLERANCE = 1e-3
_AXES = {0: "batch", 2: "height", 3: "width"}
_STEP = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A network that was written.

    Args:
        path: The file.
        file_bytes: Its size.
        opset: Version of the ONNX operators.
        sizes: Shapes of the inputs at which it was compared with torch.
        difference: Largest difference from torch's output, as a fraction of the largest output;
            None where onnxruntime is not installed, and nothing was compared.
    """

    path: Path
    file_bytes: int
    opset: int
    sizes: tuple[tuple[int, ...], ...] = ()
    difference: float | None = None


def export_onnx(
    model: nn.Module, example: Tensor, path: Path, *, dynamic: bool = False
) -> Exported:
    """Write a network as one ONNX file, compared with torch before it is written.

    The input is called ``input``, the output ``output``; weights are inside the file.

    Args:
        model: In evaluation mode, on the CPU; unchanged.
        example: One input, shape ``(batch, channels, height, width)``.
        path: The file; its folder is made when absent, and what was there is replaced.
        dynamic: Let batch, height and width be any, not only those of the example.

    Raises:
        ModelError: If a library is missing, the network cannot be exported, its code fixes a size
            that is to be any, or onnxruntime does not return what torch does.
        WeightsError: If the file cannot be written.

    Warns:
        CoaWarning: If onnxruntime is not installed, so that nothing could be compared.
    """
    _check_libraries()
    if dynamic and isinstance(model, GraphStudent):
        message = (
            "a student in graph mode holds one graph for each size: leave --dynamic out and "
            "give --size"
        )
        raise ModelError(message)
    inputs = [example, *([_other(example)] if dynamic else [])]
    for given in inputs:
        _check_runs(model, given)  # and what is made at the first pass is there now
    proto = _exported(model, example, dynamic=dynamic)
    if dynamic:
        check_axes(proto, type(model).__name__)
    data: bytes = proto.SerializeToString()
    difference = _difference(model, data, inputs)
    write_file(path, data)
    return Exported(
        path=path,
        file_bytes=len(data),
        opset=max(entry.version for entry in proto.opset_import if not entry.domain),
        sizes=() if difference is None else tuple(tuple(one.shape) for one in inputs),
        difference=difference,
    )


@torch.no_grad()
def _check_runs(model: nn.Module, given: Tensor) -> None:
    try:
        model(given)
    except FOREIGN_ERRORS as error:
        message = (
            f"{type(model).__name__} does not run on an input of shape {tuple(given.shape)}: "
            f"{_reason(error)}: give --size, and leave --dynamic out"
        )
        raise ModelError(message) from None


def _check_libraries() -> None:
    absent = [name for name in _NEEDED if find_spec(name) is None]
    if absent:
        message = f"{' and '.join(absent)} not installed, which an ONNX export needs: {_INSTALL}"
        raise ModelError(message)


def _exported(model: nn.Module, example: Tensor, *, dynamic: bool) -> Any:
    anything = torch.export.Dim.AUTO
    shapes = ({axis: anything for axis in _AXES if axis < example.dim()},) if dynamic else None
    # a size of 1 would be taken for one that is always 1
    given = torch.cat([example, example]) if dynamic and len(example) == 1 else example
    try:
        with _silence():
            program = torch.onnx.export(
                model,
                (given,),
                dynamo=True,
                input_names=["input"],
                output_names=["output"],
                dynamic_shapes=shapes,
                verbose=False,
            )
    except (RuntimeError, TypeError, ValueError, torch.onnx.OnnxExporterError) as error:
        reason = _reason(error)
        message = f"cannot export {type(model).__name__} to ONNX: {reason}"
        raise ModelError(message) from None
    if program is None:
        message = f"cannot export {type(model).__name__} to ONNX: the exporter returned nothing"
        raise ModelError(message)
    return program.model_proto


def _reason(error: BaseException) -> str:
    """Return the first line of what went wrong at first."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def check_axes(proto: Any, name: str) -> None:
    """Check that no size of an ONNX input became fixed.

    Args:
        proto: The ONNX model.
        name: Of the network, for the message.

    Raises:
        ModelError: If batch, height or width is fixed.
    """
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    fixed = [
        f"{_AXES[i]} to {d.dim_value}" for i, d in enumerate(dims) if i in _AXES and d.dim_value
    ]
    if fixed:
        message = f"the code of {name} fixes {', '.join(fixed)}: leave --dynamic out"
        raise ModelError(message)


def _other(example: Tensor) -> Tensor:
    """Return an input of another batch and another size."""
    shape = [extent + (_STEP if axis > 1 else 0) for axis, extent in enumerate(example.shape)]
    shape[0] = 3
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=example.dtype)


def _difference(model: nn.Module, data: bytes, inputs: Sequence[Tensor]) -> float | None:
    if find_spec("onnxruntime") is None:
        message = f"onnxruntime is not installed, so the file was not compared: {_INSTALL}"
        warnings.warn(message, CoaWarning, stacklevel=3)
        return None
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    worst = 0.0
    for given in inputs:
        (returned,) = session.run(None, {"input": given.numpy()})
        with torch.no_grad():
            wanted = model(given)
        found = torch.from_numpy(returned)
        scale = float(wanted.abs().max()) or 1.0
        worst = max(worst, float((found - wanted).abs().max()) / scale)
        if not worst <= _TOLERANCE:
            message = (
                f"onnxruntime returns something else than torch for {type(model).__name__} at "
                f"{tuple(given.shape)}: it differs by {worst:.1e} of the largest output, more "
                f"than {_TOLERANCE:g}; nothing was written"
            )
            raise ModelError(message)
    return worst


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the exporter from talking about itself: loggers, warnings, standard output."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

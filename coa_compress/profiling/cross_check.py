"""The MAC counts of fvcore and thop beside our own, and why they differ."""

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn

from coa_compress.copying import copied
from coa_compress.errors import ModelError, SettingError
from coa_compress.profiling.counting import macs_by_module, work_by_operator
from coa_compress.profiling.modes import evaluating

_logger = logging.getLogger(__name__)

_TOOLS = ("fvcore", "thop")


def cross_check_macs(model: nn.Module, example: Tensor) -> dict[str, int | None]:
    """Return what fvcore and thop count for one forward pass.

    Both are a cross-check, never the source: fvcore adds norms and interpolation and misses fused
    attention; thop misses functional calls and counts transposed convolutions at the size of
    their output. Each runs on a copy, with its output and warnings silenced.

    Args:
        model: Any network; unchanged.
        example: The input, on the device of the model.

    Returns:
        ``macs_fvcore`` and ``macs_thop``; None where the tool failed on this network.

    >>> import torch
    >>> cross_check_macs(nn.Conv2d(8, 8, 3, padding=1), torch.zeros(1, 8, 16, 16))
    {'macs_fvcore': 147456, 'macs_thop': 147456}
    """
    return {
        f"macs_{tool}": None if found is None else int(sum(found.values()))
        for tool, found in _by_operator(model, example).items()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """An operator that another tool counts differently.

    Args:
        tool: ``fvcore`` or ``thop``.
        operator: An operator of fvcore, or a class of modules for thop, which only sees modules.
        ours: Our multiply-accumulates.
        theirs: Those of the tool.
        cause: Why they differ.
    """

    tool: str
    operator: str
    ours: int
    theirs: int
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossCheck:
    """What other tools count, and where they differ.

    Args:
        macs: Our total.
        macs_fvcore: Total of fvcore; None where it fails on this network.
        macs_thop: Total of thop; likewise.
        differences: Tool by tool, largest first; they add up to the difference of the totals.
    """

    macs: int
    macs_fvcore: int | None
    macs_thop: int | None
    differences: tuple[Difference, ...]


def cross_check(model: nn.Module, example: Tensor) -> CrossCheck:
    """Return what fvcore and thop count, each difference from our count explained by operator.

    Args:
        model: Any network; unchanged.
        example: The input, on the device of the model.

    Raises:
        ModelError: If fvcore or thop is not installed.

    >>> import torch
    >>> checked = cross_check(nn.ConvTranspose2d(8, 4, 2, stride=2), torch.zeros(1, 8, 16, 16))
    >>> [(d.tool, d.operator, d.ours, d.theirs) for d in checked.differences]
    [('thop', 'ConvTranspose2d', 32768, 131072)]
    """
    absent = [tool for tool in _TOOLS if find_spec(tool) is None]
    if absent:
        message = f"{' and '.join(absent)} not installed, which a cross-check of MACs needs: "
        message += f"pip install {' '.join(absent)}"
        raise ModelError(message)
    found = _by_operator(model, example)
    ours = {"fvcore": _our_operators(model, example), "thop": _our_classes(model, example)}
    return CrossCheck(
        macs=sum(ours["fvcore"].values()),
        **{
            f"macs_{tool}": None if theirs is None else int(sum(theirs.values()))
            for tool, theirs in found.items()
        },
        differences=tuple(
            difference
            for tool, theirs in found.items()
            if theirs is not None
            for difference in _differences(tool, ours[tool], theirs)
        ),
    )


def explain_difference(macs: int, checks: Mapping[str, int | None]) -> str:
    """Return one sentence on how far the other counters are from ours, and the usual cause.

    Args:
        macs: Our count, above 0.
        checks: What ``cross_check_macs`` returned.

    Raises:
        SettingError: If our count is not above 0.

    >>> explain_difference(1000, {"macs_fvcore": 1000, "macs_thop": 1410})
    'fvcore agrees; thop counts 41.0 % more: it adds norms and activations, and counts \
transposed convolutions at the size of their output'
    """
    if macs <= 0:
        message = f"there is nothing to compare with {macs} macs: count a network that multiplies"
        raise SettingError(message)
    parts = [_compare(name.removeprefix("macs_"), macs, count) for name, count in checks.items()]
    return "; ".join(parts)


_CAUSES = {
    ("fvcore", True): "it adds norms, pooling and interpolation",
    ("fvcore", False): "it misses fused attention",
    ("thop", True): "it adds norms and activations, and counts transposed convolutions "
    "at the size of their output",
    ("thop", False): "it misses functional convolutions and matrix products",
}


def _compare(tool: str, macs: int, count: int | None) -> str:
    if count is None:
        return f"{tool} cannot count this network"
    change = 100.0 * (count - macs) / macs
    if abs(change) < 0.05:
        return f"{tool} agrees"
    direction = "more" if change > 0 else "less"
    cause = _CAUSES.get((tool, change > 0))
    because = f": {cause}" if cause else ""
    return f"{tool} counts {abs(change):.1f} % {direction}{because}"


def _differences(
    tool: str, ours: Mapping[str, int], theirs: Mapping[str, float]
) -> list[Difference]:
    found = [
        Difference(
            tool=tool,
            operator=operator,
            ours=ours.get(operator, 0),
            theirs=int(theirs.get(operator, 0)),
            cause=_cause(tool, operator, ours.get(operator, 0), int(theirs.get(operator, 0))),
        )
        for operator in dict.fromkeys([*ours, *theirs])
        if ours.get(operator, 0) != int(theirs.get(operator, 0))
    ]
    return sorted(found, key=lambda one: -abs(one.theirs - one.ours))


def _cause(tool: str, operator: str, ours: int, theirs: int) -> str:
    if operator in (_ATTENTION, _PRODUCT) and theirs < ours:
        return "it has no rule for scaled_dot_product_attention, baddbmm, mv, dot and the like"
    if not ours:
        return "it counts what multiplies no weights or matrices: norms, activations, resampling"
    if operator.startswith("ConvTranspose") and theirs:
        return "it counts a transposed convolution at the size of its output, not of its input"
    if tool == "thop" and theirs < ours:
        return "it sees modules of the classes it knows, not what is called as a function"
    return "it counts this operator by another rule"


_ATTENTION, _PRODUCT, _CONVOLUTION = "fused attention", "matrix product", "convolution"
_PRODUCTS = frozenset(
    {"linear", "matmul", "einsum", "mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv"}
    | {"dot", "vdot"}
)


def _family(operator: str) -> str:
    """Return one name for what the dispatcher and fvcore's trace call differently.

    >>> _family("addmm"), _family("conv"), _family("layer_norm")
    ('matrix product', 'convolution', 'layer_norm')
    """
    if "scaled_dot_product" in operator:
        return _ATTENTION
    if operator in _PRODUCTS:
        return _PRODUCT
    return _CONVOLUTION if operator in ("conv", "convolution") else operator


def _our_operators(model: nn.Module, example: Tensor) -> dict[str, int]:
    sums: dict[str, int] = {}
    for operator, work in work_by_operator(model, example).items():
        family = _family(operator)
        sums[family] = sums.get(family, 0) + work.macs
    return sums


def _our_classes(model: nn.Module, example: Tensor) -> dict[str, int]:
    sums: dict[str, int] = {}
    for path, macs in macs_by_module(model, example).items():
        name = type(model.get_submodule(path)).__name__
        sums[name] = sums.get(name, 0) + macs
    return sums


def _by_operator(model: nn.Module, example: Tensor) -> dict[str, dict[str, float] | None]:
    counters = {"fvcore": _fvcore_macs, "thop": _thop_macs}
    return {tool: _attempt(tool, count, model, example) for tool, count in counters.items()}


def _fvcore_macs(model: nn.Module, example: Tensor) -> dict[str, float]:
    from fvcore.nn import FlopCountAnalysis

    analysis = FlopCountAnalysis(model, (example,))
    analysis.unsupported_ops_warnings(enabled=False).uncalled_modules_warnings(enabled=False)
    sums: dict[str, float] = {}
    for operator, macs in analysis.tracer_warnings("none").by_operator().items():
        family = _family(operator)
        sums[family] = sums.get(family, 0.0) + macs
    return sums


def _thop_macs(model: nn.Module, example: Tensor) -> dict[str, float]:
    from thop import profile

    total, _params, layers = profile(model, inputs=(example,), verbose=False, ret_layer_info=True)
    sums: dict[str, float] = {}
    _add_classes_(sums, model, total, layers)
    return sums


def _add_classes_(
    sums: dict[str, float], module: nn.Module, macs: float, layers: Mapping[str, Any]
) -> None:
    """Add what thop says of a module and its parts to the sums of their classes."""
    for name, (part, _params, inner) in layers.items():
        _add_classes_(sums, module.get_submodule(name), part, inner)
        macs -= part
    if macs:
        kind = type(module).__name__
        sums[kind] = sums.get(kind, 0.0) + macs


def _attempt(
    tool: str,
    count: Callable[[nn.Module, Tensor], dict[str, float]],
    model: nn.Module,
    example: Tensor,
) -> dict[str, float] | None:
    try:
        with _silence():
            twin = copied(model)
            with evaluating(twin):
                return count(twin, example)
    except Exception:
        # whatever a tool of somebody else dies of on somebody else's network
        _logger.debug("%s failed", tool, exc_info=True)
        return None


@contextmanager
def _silence() -> Iterator[None]:
    loggers = [logging.getLogger("fvcore"), logging.getLogger("fvcore.nn.jit_analysis")]
    before = [logger.disabled for logger in loggers]
    try:
        for logger in loggers:
            logger.disabled = True
        with (
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled

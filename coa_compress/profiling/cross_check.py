"""The MAC counts of fvcore and thop beside our own, and why they differ."""

import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from torch import Tensor, nn

from coa_compress.errors import SettingError
from coa_compress.profiling.modes import evaluating

_logger = logging.getLogger(__name__)


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
    counters = {"macs_fvcore": _fvcore_macs, "macs_thop": _thop_macs}
    return {name: _attempt(name, count, model, example) for name, count in counters.items()}


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


def _fvcore_macs(model: nn.Module, example: Tensor) -> int:
    from fvcore.nn import FlopCountAnalysis

    analysis = FlopCountAnalysis(model, (example,))
    analysis.unsupported_ops_warnings(enabled=False).uncalled_modules_warnings(enabled=False)
    return int(analysis.tracer_warnings("none").total())


def _thop_macs(model: nn.Module, example: Tensor) -> int:
    from thop import profile

    macs, _params = profile(model, inputs=(example,), verbose=False)
    return int(macs)


def _attempt(
    name: str, count: Callable[[nn.Module, Tensor], int], model: nn.Module, example: Tensor
) -> int | None:
    try:
        with _silence():
            twin = copy.deepcopy(model)
            with evaluating(twin):
                return count(twin, example)
    except Exception:
        # whatever a tool of somebody else dies of on somebody else's network
        _logger.debug("%s failed", name, exc_info=True)
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

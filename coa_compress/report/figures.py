"""Numbers as people read them, and the words for what they measure."""

import math
from typing import Any, TypeGuard

MINUS = "\N{MINUS SIGN}"
NARROW_SPACE = "\N{NO-BREAK SPACE}"
UNKNOWN = "\N{EN DASH}"

_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_UNITS = {"_db": "dB", "_ms": "ms", "_mb": "MB"}
_LABELS = {
    "params": "Parameters",
    "macs": "MACs",
    "macs_fvcore": "MACs by fvcore",
    "macs_thop": "MACs by thop",
    "latency_ms": "Latency",
    "peak_memory_mb": "Peak memory",
    "file_bytes": "File size",
}
_WORDS = {
    "psnr": "PSNR",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "niqe": "NIQE",
    "fade": "FADE",
    "mae": "MAE",
}

COST_EXPLANATIONS = {
    "params": "Numbers the network has learned; shared ones count once.",
    "macs": "Multiply-accumulates of one pass over the example input: convolutions, matrix "
    "products and attention, counted where they run. Decimal: 1 G is 10⁹.",
    "macs_fvcore": "Cross-check. fvcore adds norms and interpolation and misses fused attention.",
    "macs_thop": "Cross-check. thop misses functional calls and overcounts transposed "
    "convolutions.",
    "latency_ms": "Median time of one pass. The networks take turns, so that a busy moment of the "
    "machine slows all alike; the range is from the 10th to the 90th percentile.",
    "peak_memory_mb": "Parameters, input and activations alive at once, at most, in one pass.",
    "file_bytes": "Size of the weights on disk, as safetensors.",
}
MEASURE_EXPLANATIONS = {
    "psnr_db": "Peak signal-to-noise ratio against the ground truth; higher is better.",
    "ssim": "Structural similarity to the ground truth, at most 1; higher is better.",
}


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether a value is a finite number.

    >>> is_number(1.5), is_number(None), is_number(math.nan), is_number(True)
    (True, False, False, False)
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def significant(value: float, digits: int = 3) -> str:
    """Return a number with that many significant digits, never in powers of ten.

    >>> significant(27.1349), significant(0.00412), significant(1385.5)
    ('27.1', '0.00412', '1386')
    """
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits}g}")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{value:.{decimals}f}".replace("-", MINUS)


def scaled(value: float, unit: str = "") -> str:
    """Return a count with a decimal prefix.

    >>> scaled(154_100_000).split(), scaled(999), scaled(2_500_000, "B").split()
    (['154', 'M'], '999', ['2.50', 'MB'])
    """
    for size, prefix in _PREFIXES:
        if abs(value) >= size * 0.9995:
            return f"{significant(value / size)}{NARROW_SPACE}{prefix}{unit}"
    return f"{value:.0f}{NARROW_SPACE}{unit}" if unit else f"{value:.0f}"


def percent(fraction: float) -> str:
    """Return a fraction as per cent.

    >>> percent(0.246).split(), percent(0.02).split()
    (['24.6', '%'], ['2.0', '%'])
    """
    return f"{100 * fraction:.1f}".replace("-", MINUS) + f"{NARROW_SPACE}%"


def signed(value: float, digits: int = 2) -> str:
    """Return a difference with its sign; what rounds to nothing has none.

    >>> signed(0.3), signed(-0.0004), signed(-0.412) == MINUS + "0.41"
    ('+0.30', '±0.00', True)
    """
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return f"±{text}"
    return ("+" if value > 0 else MINUS) + text


def duration(seconds: float) -> str:
    """Return a time span.

    >>> duration(0.4), duration(75), duration(3725)
    ('0.4 s', '1 min 15 s', '1 h 02 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def label(measure: str) -> str:
    """Return the name of a measure for people.

    >>> label("psnr_db"), label("macs"), label("dark_channel_density")
    ('PSNR', 'MACs', 'Dark channel density')
    """
    if measure in _LABELS:
        return _LABELS[measure]
    words = measure.removesuffix(_suffix(measure)).split("_")
    text = " ".join(_WORDS.get(word, word) for word in words)
    return text[:1].upper() + text[1:]


def unit(measure: str) -> str:
    """Return the unit in the name of a measure, or nothing.

    >>> unit("psnr_db"), unit("ssim")
    ('dB', '')
    """
    return _UNITS.get(_suffix(measure), "")


def cost(measure: str, value: Any) -> str:
    """Return the value of a cost with its unit, or a dash when it is unknown.

    >>> cost("macs", 1_385_500_000).split(), cost("latency_ms", 12.34).split()
    (['1.39', 'G'], ['12.3', 'ms'])
    """
    if not is_number(value):
        return UNKNOWN
    if measure == "file_bytes":
        return scaled(value, "B")
    if unit(measure):
        return f"{significant(value)}{NARROW_SPACE}{unit(measure)}"
    return scaled(value) if isinstance(value, int) or abs(value) >= 1000 else significant(value)


def score(measure: str, value: Any) -> str:
    """Return the value of a task's measure, without its unit.

    >>> score("psnr_db", 27.128), score("ssim", 0.93417)
    ('27.13', '0.934')
    """
    if not is_number(value):
        return UNKNOWN
    digits = 2 if unit(measure) == "dB" or abs(value) >= 10 else 3
    return f"{value:.{digits}f}".replace("-", MINUS)


def score_change(measure: str, value: Any, reference: Any) -> str:
    """Return the difference of a task's measure from the teacher's, or nothing if unknown.

    >>> score_change("psnr_db", 27.5, 27.1), score_change("ssim", None, 0.9)
    ('+0.40', '')
    """
    if not (is_number(value) and is_number(reference)):
        return ""
    digits = 2 if unit(measure) == "dB" or abs(reference) >= 10 else 3
    return signed(value - reference, digits)


def _suffix(measure: str) -> str:
    return next((suffix for suffix in _UNITS if measure.endswith(suffix)), "")

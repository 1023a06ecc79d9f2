"""Geometry of the loss curves: what to draw where, in the coordinates of the picture."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from coa_compress.artifacts import History
from coa_compress.report.figures import is_number, significant

WIDTH, HEIGHT = 460, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 14, 10, 28
_MOST_POINTS = 300
_LOG_FROM = 8.0
# values beyond this have diverged, and differences below it are rounding
_HUGE, _TINY = 1e30, 1e-30

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Tick:
    """A labeled position on an axis.

    Args:
        at: Coordinate in the picture.
        text: What is written there.
    """

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Line:
    """One curve.

    Args:
        label: What it shows.
        last: Its last value.
        points: ``x,y x,y ...`` in the coordinates of the picture.
        end: The last point.
    """

    label: str
    last: str
    points: str
    end: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Chart:
    """Curves over the training steps.

    Args:
        title: What is on the vertical axis.
        lines: The curves.
        x_ticks: Steps.
        y_ticks: Values.
        logarithmic: Whether the vertical axis is.
    """

    title: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    logarithmic: bool


@dataclass(frozen=True, slots=True)
class Axis:
    """From values to coordinates.

    Args:
        low: Least value.
        high: Largest value, above the least.
        begin: Coordinate of the least.
        end: Coordinate of the largest.
        logarithmic: Whether equal quotients have equal distances; both limits are above 0 then.
    """

    low: float
    high: float
    begin: float
    end: float
    logarithmic: bool

    def at(self, value: float) -> float:
        """Return the coordinate of a value."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return round(self.begin + (self.end - self.begin) * (value - low) / (high - low), 1)


def charts(history: History) -> list[Chart]:
    """Return the charts of one training stage: losses, and validation when there was any.

    >>> found = charts(History(steps=(1, 2), losses={"l1": (0.2, 0.1)}))
    >>> [(chart.title, chart.lines[0].last) for chart in found]
    [('losses', '0.100')]
    """
    losses: dict[str, Points] = {
        name: _finite(zip(history.steps, values, strict=False))
        for name, values in history.losses.items()
    }
    validation: dict[str, Points] = {"validation": _finite(history.validation)}
    x_axis = _step_axis([*losses.values(), *validation.values()])
    found = []
    for title, curves in (("losses", losses), ("validation", validation)):
        drawable = {name: points for name, points in curves.items() if points}
        if drawable:
            found.append(_chart(title, drawable, x_axis, logarithmic=title == "losses"))
    return found


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return round numbers between two limits, at equal distances.

    >>> ticks(0.0, 1000.0)
    [0.0, 200.0, 400.0, 600.0, 800.0, 1000.0]
    """
    distance = (high - low) / most
    power = 10.0 ** math.floor(math.log10(distance))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= distance * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [step * i for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return round numbers between two limits, for a logarithmic axis.

    >>> log_ticks(0.01, 1.0)
    [0.01, 0.1, 1.0]
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if math.log10(high / low) < 2 else (1,)
    every = max(1, (last - first) // 6)
    values = [f * 10.0**power for power in range(first, last + 1, every) for f in factors]
    return [value for value in values if low * 0.999 <= value <= high * 1.001]


def widened(low: float, high: float, *, margin: float) -> tuple[float, float]:
    """Return limits with room around them, also where both are the same.

    >>> widened(0.0, 10.0, margin=0.1), widened(20.0, 20.0, margin=0.1)
    ((-1.0, 11.0), (19.0, 21.0))
    """
    if high - low <= max(_TINY, 1e-6 * max(abs(low), abs(high))):
        around = max(0.5, 0.05 * abs(low))
        return low - around, high + around
    return low - margin * (high - low), high + margin * (high - low)


def _finite(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    pairs = [(float(x), float(y)) for x, y in points if is_number(y) and abs(y) < _HUGE]
    every = max(1, math.ceil(len(pairs) / _MOST_POINTS))
    return pairs[::-every][::-1]


def _step_axis(curves: Iterable[Points]) -> Axis:
    last = max((x for points in curves for x, _ in points), default=0.0)
    return Axis(0.0, max(1.0, last), _LEFT, WIDTH - _RIGHT, logarithmic=False)


def _chart(title: str, curves: dict[str, Points], x_axis: Axis, *, logarithmic: bool) -> Chart:
    ys = [y for points in curves.values() for _, y in points]
    logarithmic = logarithmic and min(ys) > _TINY and max(ys) / min(ys) > _LOG_FROM
    y_low, y_high = _log_limits(ys) if logarithmic else widened(min(ys), max(ys), margin=0.06)
    y_axis = Axis(y_low, y_high, HEIGHT - _BOTTOM, _TOP, logarithmic=logarithmic)
    y_values = log_ticks(y_low, y_high) if logarithmic else ticks(y_low, y_high)
    return Chart(
        title=title,
        lines=tuple(_line(name, points, x_axis, y_axis) for name, points in curves.items()),
        x_ticks=tuple(Tick(x_axis.at(x), f"{x:g}") for x in ticks(x_axis.low, x_axis.high, most=4)),
        y_ticks=tuple(Tick(y_axis.at(y), f"{y:.6g}") for y in y_values),
        logarithmic=logarithmic,
    )


def _line(name: str, points: Points, x_axis: Axis, y_axis: Axis) -> Line:
    places = list(_places(points, x_axis, y_axis))
    text = " ".join(f"{x:g},{y:g}" for x, y in places)
    return Line(name, significant(points[-1][1]), text, places[-1])


def _places(points: Points, x_axis: Axis, y_axis: Axis) -> Iterator[tuple[float, float]]:
    for x, y in points:
        yield x_axis.at(x), y_axis.at(y)


def _log_limits(values: Sequence[float]) -> tuple[float, float]:
    return min(values) / 1.15, max(values) * 1.15

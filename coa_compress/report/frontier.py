"""Cost against quality: the networks of a run, and others on the same test split, in one plot."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from coa_compress.report import figures
from coa_compress.report.content import Report
from coa_compress.report.curves import Axis, Tick, log_ticks, ticks, widened
from coa_compress.report.summary import AGAINST_TEACHER, column_titles, roles

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 46, 16, 26, 44
_COSTS = ("macs", "params")
_MOST_PLOTS = 4
_ROOM = 1.3
# networks that differ by less are the same one, measured again
_SAME = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One network in the plot.

    Args:
        label: What it is.
        value: Its quality, as text.
        cost: Its cost, as text.
        at: Coordinates.
        number: Of a network that is not of this run, from 1; 0 for one of the run.
    """

    label: str
    value: str
    cost: str
    at: tuple[float, float]
    number: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """Cost, to a logarithmic scale, against a measure of the task in dB.

    Args:
        title: The measure, its unit and the split.
        x_title: The cost.
        own: The networks of the run.
        others: Networks that were measured before, numbered.
        x_ticks: Costs.
        y_ticks: Values of the measure.
    """

    title: str
    x_title: str
    own: tuple[Point, ...]
    others: tuple[Point, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


@dataclass(frozen=True, slots=True)
class _Network:
    label: str
    cost: float
    quality: float
    own: bool


def plots(report: Report) -> list[Plot]:
    """Return plots of MACs and parameters against the first measure in dB, at most four.

    Networks of other runs are in a plot only where the task knows them for its split, and those
    counted for an input of another size only against parameters. A plot needs two networks of the
    run.

    >>> report = Report(name="x", title="x", measurements={
    ...     "teacher": {"macs": 2_000_000, "psnr_db": {"test": 30.0}},
    ...     "student": {"macs": 500_000, "psnr_db": {"test": 29.5}}})
    >>> [(plot.title, plot.x_title, len(plot.own)) for plot in plots(report)]
    [('PSNR (dB), test', 'MACs', 2)]
    """
    name, splits = measure(report)
    found = []
    for split, cost in product(splits, _COSTS):
        networks = list(_networks(report, name, split, cost))
        if sum(network.own for network in networks) > 1:
            title = f"{figures.label(name)} ({figures.unit(name)}), {split}"
            found.append(_plot(title, cost, networks))
    return found[:_MOST_PLOTS]


def measure(report: Report) -> tuple[str, Sequence[str]]:
    """Return the first measure in dB that is held against a truth and its splits, or nothing."""
    for name, value in report.measurements.get("teacher", {}).items():
        in_db = isinstance(value, Mapping) and figures.unit(name) == "dB"
        if in_db and not name.endswith(AGAINST_TEACHER):
            return name, list(value)
    return "", []


def _networks(report: Report, name: str, split: str, cost: str) -> Iterator[_Network]:
    own = []
    for role, title in zip(roles(report), column_titles(report), strict=True):
        measured = report.measurements[role]
        qualities = measured.get(name)
        quality = qualities.get(split) if isinstance(qualities, Mapping) else None
        if figures.is_number(quality) and figures.is_number(measured.get(cost)):
            own.append(_Network(title, measured[cost], quality, own=True))
    yield from (network for network in own if network.cost > 0)
    for reference in report.references:
        quality = reference.measures.get(name, {}).get(split)
        comparable = cost != "macs" or _same_size(report, reference.example_size)
        if figures.is_number(quality) and comparable:
            other = _Network(reference.name, getattr(reference, cost), quality, own=False)
            if other.cost > 0 and not any(_same(other, network) for network in own):
                yield other


def _same_size(report: Report, example_size: Sequence[int]) -> bool:
    return list(report.provenance.get("example_size") or ()) == list(example_size)


def _same(first: _Network, second: _Network) -> bool:
    return first.cost == second.cost and abs(first.quality - second.quality) < _SAME


def _plot(title: str, cost: str, networks: Sequence[_Network]) -> Plot:
    costs = [network.cost for network in networks]
    low, high = min(costs) / _ROOM, max(costs) * _ROOM
    x_axis = Axis(low, high, LEFT, WIDTH - RIGHT, logarithmic=True)
    qualities = [network.quality for network in networks]
    bottom, top = widened(min(qualities), max(qualities), margin=0.12)
    y_axis = Axis(bottom, top, HEIGHT - BOTTOM, TOP, logarithmic=False)
    points = [
        Point(
            label=network.label,
            value=f"{network.quality:.2f}{figures.NARROW_SPACE}dB",
            cost=figures.scaled(network.cost),
            at=(x_axis.at(network.cost), y_axis.at(network.quality)),
        )
        for network in networks
    ]
    own = [point for point, network in zip(points, networks, strict=True) if network.own]
    return Plot(
        title=title,
        x_title=figures.label(cost),
        own=tuple(own),
        others=tuple(_numbered(points[len(own) :])),
        x_ticks=tuple(Tick(x_axis.at(x), _short(x)) for x in log_ticks(low, high)),
        y_ticks=tuple(Tick(y_axis.at(y), f"{y:.6g}") for y in ticks(bottom, top)),
    )


def _numbered(points: Sequence[Point]) -> Iterator[Point]:
    for number, point in enumerate(points, start=1):
        yield replace(point, number=number)


def _short(cost: float) -> str:
    """Return a round cost with its prefix.

    >>> _short(2e8).split(), _short(1e9).split()
    (['200', 'M'], ['1', 'G'])
    """
    prefixes = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
    size, prefix = next(((s, p) for s, p in prefixes if cost >= 0.999 * s), (1.0, ""))
    return f"{cost / size:.3g}{figures.NARROW_SPACE}{prefix}".rstrip()

"""Plots of benchmark records: cost against quality, as SVG.

The text of a plot holds a digest of what is drawn. Two plots are the same when their digests are,
whatever version of matplotlib drew them.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

from coa_compress.report.curves import log_ticks

_DIGEST = re.compile("drawn: ([0-9a-f]{64})")
_INCHES = 3.4
_STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "coa-compress", "font.size": 8}
# chance alone moves a student by a few tenths: a plot must not look like more
_LEAST_SPAN_DB = 3.0
_STRONG = "#0f766e"


Group = tuple[Sequence[float], Sequence[float]]
"""Costs and qualities of one network, one a seed."""


def deviation(values: Sequence[float]) -> float:
    """Return the standard deviation, 0 where all are the same.

    >>> deviation([3.0]), deviation([1.0, 3.0])
    (0.0, 1.4142135623730951)
    """
    return stdev(values) if len(set(values)) > 1 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Networks that belong together.

    Args:
        label: What they are, in the legend.
        x: Their costs, above 0.
        y: Their qualities, one a cost.
        spread: Standard deviations of the qualities; 0 where there is one seed.
        strong: Whether they are ours.
    """

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    spread: tuple[float, ...] = ()
    strong: bool = False

    @classmethod
    def of(cls, label: str, groups: Iterable[Group], *, strong: bool = False) -> "Series":
        """Return the means of groups of networks, each one network over its seeds.

        Args:
            label: What they are.
            groups: Costs and qualities of each.
            strong: Whether they are ours.
        """
        found = list(groups)
        return cls(
            label=label,
            x=tuple(fmean(costs) for costs, _ in found),
            y=tuple(fmean(qualities) for _, qualities in found),
            spread=tuple(deviation(qualities) for _, qualities in found),
            strong=strong,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Axes with the cost to a logarithmic scale.

    Args:
        title: What stands above them.
        x_label: The cost and its unit.
        y_label: The quality and its unit.
        series: What is drawn.
        level: Quality of the teacher, drawn as a dashed line.
        ticks: Costs that are labeled; round ones if there are none.
    """

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    level: float | None = None
    ticks: tuple[float, ...] = ()


def draw(panels: Sequence[Panel]) -> str:
    """Return the panels side by side as the text of an SVG file, with one legend for all."""
    # late: matplotlib takes long to import; and without its windows, which need a screen
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    labels = dict.fromkeys(one.label for panel in panels for one in panel.series)
    colors = {label: f"C{number % 10}" for number, label in enumerate(labels)}
    text = io.StringIO()
    with rc_context(_STYLE):
        figure = Figure(figsize=(_INCHES * len(panels), _INCHES), layout="constrained")
        FigureCanvasSVG(figure)
        every_axes = figure.subplots(1, len(panels), squeeze=False)[0]
        handles: dict[str, Any] = {}
        for axes, panel in zip(every_axes, panels, strict=True):
            handles |= _draw_panel(axes, panel, colors)
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=4, frameon=False)
        metadata = {"Date": None, "Description": f"drawn: {_digest(panels)}"}
        figure.savefig(text, format="svg", metadata=metadata)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def _draw_panel(axes: Any, panel: Panel, colors: Mapping[str, str]) -> dict[str, Any]:
    """Draw a panel, and return what its legend shows."""
    handles = {}
    for one in panel.series:
        handles[one.label] = axes.errorbar(
            one.x,
            one.y,
            yerr=one.spread if any(one.spread) else None,
            marker="o",
            markersize=5 if one.strong else 4,
            linewidth=2 if one.strong else 1,
            capsize=2,
            color=_STRONG if one.strong else colors[one.label],
            zorder=3 if one.strong else 2,
        )
    if panel.level is not None:
        handles["teacher"] = axes.axhline(panel.level, linestyle="--", color="0.5")
    axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label, xscale="log")
    low, high = axes.get_ylim()
    room = max(0.0, _LEAST_SPAN_DB - (high - low)) / 2
    axes.set_ylim(low - room, high + room)
    axes.set_xticks([], minor=True)
    places = panel.ticks or log_ticks(*axes.get_xlim())
    axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.grid(alpha=0.3)
    return handles


def drawn(text: str) -> str | None:
    """Return the digest of what a plot shows, or None if the text is no plot."""
    found = _DIGEST.search(text)
    return found[1] if found else None


def _digest(panels: Sequence[Panel]) -> str:
    values = json.dumps([asdict(panel) for panel in panels])
    return hashlib.sha256(values.encode()).hexdigest()

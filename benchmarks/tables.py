"""Put what the committed benchmark records say into the pages and files that show it.

    python -m benchmarks.tables [--check]

With ``--check`` nothing is written; the exit code is 1 if a page or a file is not up to date.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import (
    ablation,
    adapt,
    budgets,
    coverage,
    distill,
    frontier,
    importance,
    latency,
    measures,
    model_card,
    own_images,
    photographs,
    prune,
    refit,
    scenes,
    speed,
)
from benchmarks.plots import drawn
from benchmarks.records import read_record, with_table
from coa_compress.atomic import write_atomic

_ROOT = Path(__file__).resolve().parent.parent
_RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True, slots=True)
class Table:
    """A table on a page.

    Args:
        name: What its markers are called.
        page: Where it stands, from the root of the repository.
        record: Name of the file in ``benchmarks/results``.
        render: Makes Markdown of the record.
    """

    name: str
    page: str
    record: str
    render: Callable[[Mapping[str, Any]], str]


TABLES = (
    Table("results", "README.md", "frontier.json", frontier.render),
    Table("long", "README.md", "frontier_full.json", frontier.render),
    Table(
        "figures",
        "coa_compress/tasks/dehazing/weights/README.md",
        "teacher.json",
        model_card.render,
    ),
    Table("importance", "docs/importance.md", "importance.json", importance.render),
    Table("scorers", "docs/importance.md", "scorers.json", prune.render),
    Table("budgets", "docs/budgets.md", "budgets.json", budgets.render),
    Table("values", "docs/gate.md", "measures.json", measures.values_table),
    Table("ranking", "docs/gate.md", "measures.json", measures.render),
    Table("coverage", "docs/coverage.md", "coverage.json", coverage.render),
    Table("distill", "docs/distill.md", "distill.json", distill.render),
    Table("distill_builtin", "docs/distill.md", "distill_builtin.json", distill.render),
    Table("ablation", "docs/ablation.md", "ablation.json", ablation.render),
    Table("adapt", "docs/adapt.md", "adapt.json", adapt.render),
    Table("own_images", "docs/own_network.md", "own_images.json", own_images.render),
    Table("photographs", "docs/adapt.md", "photographs.json", photographs.render),
    Table("scenes", "docs/data.md", "scenes.json", scenes.render),
    Table("prune", "README.md", "prune.json", prune.summary),
    Table("prune", "docs/prune.md", "prune.json", prune.render),
    Table("refit", "docs/refit.md", "refit.json", refit.render),
    Table("speed", "docs/speed.md", "speed.json", speed.render),
    Table("latency", "docs/speed.md", "latency.json", latency.render),
)
"""Every table that is made from a record."""


@dataclass(frozen=True, slots=True)
class Derived:
    """A file that is made of a record as a whole.

    Args:
        page: Where it is, from the root of the repository.
        record: Name of the record in ``benchmarks/results``.
        render: Makes its text of the record.
    """

    page: str
    record: str
    render: Callable[[Mapping[str, Any]], str]


DERIVED = (
    Derived("coa_compress/tasks/dehazing/references.json", "frontier.json", frontier.references),
    Derived("docs/figures/frontier.svg", "frontier.json", frontier.plot),
    Derived("docs/figures/frontier_full.svg", "frontier_full.json", frontier.plot),
    Derived("docs/figures/prune.svg", "prune.json", prune.plot),
)
"""Every file that is made from a record."""


def rendered(page: str) -> str:
    """Return the text of a file made anew, or of a page with all its tables made anew."""
    for derived in DERIVED:
        if derived.page == page:
            return derived.render(read_record(_RESULTS / derived.record))
    text = _text(page)
    for table in TABLES:
        if table.page == page:
            record = read_record(_RESULTS / table.record)
            text = with_table(text, table.name, table.render(record))
    return text


def stale_pages() -> list[str]:
    """Return the pages and files that do not show the records."""
    pages = dict.fromkeys(made.page for made in (*TABLES, *DERIVED))
    return [page for page in pages if not _same(_text(page), rendered(page))]


def _same(text: str, other: str) -> bool:
    # a plot by another version of matplotlib is another text
    return text == other or (drawn(text) is not None and drawn(text) == drawn(other))


def _text(page: str) -> str:
    path = _ROOT / page
    return path.read_text(encoding="utf-8") if path.exists() else ""


def main() -> int:
    """Write the tables, or check them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if a page is old")
    check = parser.parse_args().check
    stale = stale_pages()
    for page in stale:
        print(f"{page}: {'not up to date: run python -m benchmarks.tables' if check else 'made'}")
        if not check:
            write_atomic(_ROOT / page, rendered(page))
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())

"""What every benchmark writes, and the tables that pages show of it.

A record is a JSON object: ``schema_version``, ``benchmark``, ``command``, ``written``, ``commit``,
``versions``, the machine, and what the benchmark adds. A page holds a table between
``<!-- table: NAME -->`` and ``<!-- end table -->``.
"""

import json
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from coa_compress.atomic import write_atomic
from coa_compress.errors import DataError
from coa_compress.provenance import best_device, commit, machine, versions

SCHEMA_VERSION = 1
_NEEDED = ("schema_version", "benchmark", "command", "written", "commit", "versions", "device")


def new_record(benchmark: str, arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the part of a record that says what was run, when, where and on which versions.

    Args:
        benchmark: Name of the module.
        arguments: What followed the name of the module; None for those of this process.
    """
    given = sys.argv[1:] if arguments is None else arguments
    return {
        "schema_version": SCHEMA_VERSION,
        "benchmark": benchmark,
        "command": shlex.join(["python", "-m", f"benchmarks.{benchmark}", *map(_shown, given)]),
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit(),
        "versions": versions(),
        **machine(best_device()),
    }


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record, whole or not at all."""
    write_atomic(path, json.dumps(record, indent=1) + "\n")


def read_record(path: Path) -> dict[str, Any]:
    """Return a record.

    Raises:
        DataError: If the file is no record of this version.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = f"cannot read {path}: {error}: run the benchmark again"
        raise DataError(message) from None
    missing = [name for name in _NEEDED if name not in record]
    if missing or record["schema_version"] != SCHEMA_VERSION:
        what = f"it lacks {', '.join(missing)}" if missing else "it is of another version"
        message = f"{path} is no benchmark record: {what}: run the benchmark again"
        raise DataError(message)
    return dict(record)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table.

    >>> print(markdown_table(["network", "MACs"], [["teacher", "2 G"]]))
    | network | MACs |
    | --- | --- |
    | teacher | 2 G |
    """
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def add_rows(
    path: Path,
    keys: Sequence[str],
    wanted: Iterable[tuple[Any, ...]],
    *,
    make: Callable[..., Mapping[str, Any]],
    record: Callable[[], Mapping[str, Any]],
    render: Callable[[Mapping[str, Any]], str],
) -> None:
    """Make the rows that a record lacks; it is written, and its table printed, after each.

    Args:
        path: The file of the record; what is there stays.
        keys: Names of the values that tell rows apart.
        wanted: Those values of each row, in order.
        make: Returns the rest of a row, given those values.
        record: Returns the record without its rows.
        render: Returns the table of a record.
    """
    rows = list(read_record(path)["rows"]) if path.exists() else []
    for values in wanted:
        place = dict(zip(keys, values, strict=True))
        if any(all(row[key] == value for key, value in place.items()) for row in rows):
            continue
        rows.append({**place, **make(*values)})
        document = {**record(), "rows": rows}
        write_record(path, document)
        print(render(document), flush=True)


def averages(
    rows: Sequence[Mapping[str, Any]], columns: Iterable[tuple[str, str, int]]
) -> list[str]:
    """Return the means of some measures of rows as texts, and of their seconds.

    Args:
        rows: With ``measures`` and ``seconds``, alike but for their seeds.
        columns: Name, split and decimal places of each measure.
    """
    cells = [
        spread([row["measures"][name][split] for row in rows], digits)
        for name, split, digits in columns
    ]
    return [*cells, f"{statistics.mean(row['seconds'] for row in rows):.0f}"]


def spread(values: Sequence[float], digits: int) -> str:
    """Return a mean as text, and the standard deviation where there are several values.

    >>> spread([1.0], 1), spread([1.0, 3.0], 1)
    ('1.0', '2.0 ± 1.4')
    """
    mean = f"{statistics.mean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values):.{digits}f}"


def with_table(page: str, name: str, table: str) -> str:
    r"""Return the text of a page with another table between its markers.

    Raises:
        DataError: If the page has no such markers.

    >>> with_table("<!-- table: a -->\nold\n<!-- end table -->", "a", "new")
    '<!-- table: a -->\nnew\n<!-- end table -->'
    >>> with_table("<!-- table: a -->\n<!-- end table -->", "a", "new")
    '<!-- table: a -->\nnew\n<!-- end table -->'
    """
    start, end = f"<!-- table: {name} -->\n", "<!-- end table -->"
    pattern = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(page):
        message = f"no place for the table {name!r}: add {start.strip()} and {end}"
        raise DataError(message)
    return pattern.sub(lambda _: f"{start}{table}\n{end}", page)


def _shown(argument: str) -> str:
    """Return an argument as it may stand in a file: of paths outside, only their ends."""
    key, equals, values = argument.rpartition("=")
    return key + equals + ",".join(map(_inside, values.split(",")))


def _inside(value: str) -> str:
    path = Path(value)
    return f"DATA/{path.name}" if path.is_absolute() or value.startswith("..") else value

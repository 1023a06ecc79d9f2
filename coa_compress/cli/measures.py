"""Measurements as text for a person or for a program."""

import json
import math
from collections.abc import Mapping

Measures = Mapping[str, Mapping[str, float]]
"""Measure name, then split name, then value."""


def measures_json(measures: Measures, **context: str) -> str:
    """Return measurements as JSON; what is not finite is null.

    Args:
        measures: What was measured.
        **context: What was measured where.

    >>> measures_json({"psnr_db": {"test": 27.5}}, model="student")
    '{"model": "student", "measures": {"psnr_db": {"test": 27.5}}}'
    """
    clean = {
        name: {split: float(v) if math.isfinite(v) else None for split, v in splits.items()}
        for name, splits in measures.items()
    }
    return json.dumps({**context, "measures": clean}, allow_nan=False)


def measures_table(measures: Measures) -> str:
    """Return measurements as a table, a row for each measure.

    >>> print(measures_table({"psnr_db": {"test": 27.5}, "ssim": {"test": 0.912345}}))
    measure    test
    psnr_db    27.5
    ssim     0.9123
    """
    splits = list(dict.fromkeys(split for row in measures.values() for split in row))
    rows = [["measure", *splits]]
    for name, row in measures.items():
        rows.append([name, *(f"{row[s]:.4g}" if s in row else "-" for s in splits)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(splits) + 1)]
    lines = (
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)

"""A report on disk: JSON for programs, Markdown for diffs, HTML for people."""

import json
from pathlib import Path
from typing import Any

from coa_compress.atomic import write_atomic
from coa_compress.errors import DataError
from coa_compress.report.content import Report
from coa_compress.report.document import SCHEMA_VERSION, to_json
from coa_compress.report.html import to_html
from coa_compress.report.markdown import to_markdown

REPORT_PAGE = "report.html"
"""Name of the web page in a run folder."""


def write_report(report: Report, folder: Path) -> Path:
    """Write ``report.json``, ``report.md`` and ``report.html``, each whole or not at all.

    Args:
        report: What to write; all three are made before the first is written.
        folder: Where to; made when missing.

    Returns:
        The path of the web page.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     page = write_report(Report(name="x", title="X", measurements={}), Path(folder))
    ...     sorted(path.name for path in page.parent.iterdir())
    ['report.html', 'report.json', 'report.md']
    """
    texts = {
        "report.json": to_json(report),
        "report.md": to_markdown(report),
        REPORT_PAGE: to_html(report),
    }
    for name, text in texts.items():
        write_atomic(folder / name, text)
    return folder / REPORT_PAGE


def read_report(folder: Path) -> dict[str, Any]:
    """Return the values of ``report.json`` in a folder.

    Raises:
        DataError: If there is none, it is no JSON, or of another version of the format.
    """
    path = folder / "report.json"
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        message = f"cannot read {path}: {error.strerror or error}; is this a finished run?"
        raise DataError(message) from None
    except ValueError as error:
        message = f"{path} is not JSON: {error}; run the recipe again to write a new one"
        raise DataError(message) from None
    version = values.get("schema_version") if isinstance(values, dict) else None
    if version != SCHEMA_VERSION:
        message = f"{path} has schema_version {version!r}, and this version reads {SCHEMA_VERSION}"
        raise DataError(message)
    found: dict[str, Any] = values
    return found

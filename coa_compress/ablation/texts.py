"""An ablation as Markdown for a page, and as plain text for a terminal."""

from collections.abc import Sequence

from coa_compress.ablation.rows import seconds_in_all, seconds_of
from coa_compress.ablation.tables import Document, Table, tables_of
from coa_compress.report import figures


def markdown_of(document: Document) -> str:
    """Return the whole of ``ablation.md``.

    Args:
        document: What ``ablation.json`` holds.
    """
    blocks = [f"# {document['name']}", summary_of(document), *changes_of(document)]
    for table in tables_of(document):
        blocks += [f"## {table.title}", *markdown_table(table)]
    return "\n\n".join(blocks) + "\n"


def markdown_table(table: Table) -> list[str]:
    """Return a table and its note as blocks of Markdown.

    >>> print(*markdown_table(Table("T", ("variant", "MACs"), (("full", "2 G"),))))
    | variant | MACs |
    | --- | --- |
    | full | 2 G |
    """
    lines = [table.head, ("---",) * len(table.head), *table.rows]
    text = "\n".join(
        "| " + " | ".join(cell.replace("|", r"\|") for cell in x) + " |" for x in lines
    )
    return [text, table.note] if table.note else [text]


def changes_of(document: Document) -> list[str]:
    """Return a block of Markdown that says what each variant changes."""
    lines = []
    for variant, overrides in document["variants"].items():
        change = ", ".join(f"`{item}`" for item in overrides) or f"`{document['recipe']}` as it is"
        lines.append(f"- {variant}: {change}")
    settings = ", ".join(f"`{item}`" for item in document["settings"])
    return ["\n".join(lines), *([f"For all variants: {settings}."] if settings else [])]


def plain_text(document: Document) -> str:
    """Return the tables for a terminal.

    Args:
        document: What ``ablation.json`` holds.
    """
    blocks = [_aligned(table) for table in tables_of(document)]
    return "\n\n".join([*blocks, summary_of(document)])


def summary_of(document: Document) -> str:
    """Return how much was run, in one sentence."""
    rows = document["rows"]
    asked = len(document["seeds"]) * len(document["variants"])
    done = f"{len(rows)} runs" if len(rows) == asked else f"{len(rows)} of {asked} runs"
    shared, alone = seconds_in_all(rows), sum(map(seconds_of, rows))
    return (
        f"{done} of {len(document['variants'])} variants; their stages took "
        f"{figures.duration(shared)}, and {figures.duration(alone)} if none had been shared."
    )


def _aligned(table: Table) -> str:
    lines: Sequence[Sequence[str]] = [table.head, *table.rows]
    wide = [max(len(line[i]) for line in lines) for i in range(len(table.head))]
    texts = (
        "  ".join([line[0].ljust(wide[0]), *map(str.rjust, line[1:], wide[1:])]) for line in lines
    )
    return "\n".join([f"{table.title}:", *(text.rstrip() for text in texts)])

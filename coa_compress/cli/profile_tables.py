"""What ``coa-compress profile`` prints for people."""

from collections.abc import Sequence
from typing import Any


def profile_text(profile: Any, checked: Any = None) -> str:
    """Return a profile as text: the network, a row for each input size, each layer's share.

    Args:
        profile: What ``profile_network`` returned.
        checked: What ``cross_check`` returned, or None.
    """
    parts = [_facts(profile), _rows_table(profile.rows)]
    if checked is not None:
        parts.append(_check_text(checked))
    parts.append(_layers_table(profile))
    return "\n\n".join(parts)


def _facts(profile: Any) -> str:
    execution = profile.execution
    ways = {
        "channels last": execution.channels_last,
        "compiled": execution.compiled,
        "CUDA graph": execution.cuda_graph,
    }
    run = ", ".join([execution.dtype, *(name for name, used in ways.items() if used)])
    facts = [
        ("parameters", f"{profile.params:,}"),
        ("file size", f"{profile.file_bytes / 1e6:.2f} MB"),
        ("device", f"{profile.device}, {profile.threads} CPU threads"),
        ("run as", run),
    ]
    return "\n".join(f"{name:<12} {text}" for name, text in facts)


def _rows_table(rows: Sequence[Any]) -> str:
    head = ["input", "MACs", "activations", "peak memory", "latency", "p10-p90", "passes"]
    others = [row.other for row in rows if row.other is not None]
    if others:
        head += [others[0].name, "by torch", "p10-p90"]
    lines = [head]
    for row in rows:
        size = "x".join(map(str, row.example_size))
        if row.latency is None:
            lines.append([size, row.note, *[""] * (len(head) - 2)])
            continue
        lines.append([size, *_figures(row)])
    return aligned(lines, n_left=1)


def _figures(row: Any) -> list[str]:
    time = row.latency
    figures = [
        f"{row.macs:,}",
        f"{row.activations:,}",
        f"{row.peak_memory_mb:.2f} MB",
        f"{time.median_ms:.2f} ms",
        f"{time.p10_ms:.2f}-{time.p90_ms:.2f}",
        str(time.rounds),
    ]
    if row.other is not None:
        figures += [
            f"{row.other.latency.median_ms:.2f} ms",
            f"{row.other.by_torch:.2f}",
            f"{row.other.by_torch_p10:.2f}-{row.other.by_torch_p90:.2f}",
        ]
    return figures


def _layers_table(profile: Any) -> str:
    layers = profile.layers
    total = max(1, sum(layer.macs for layer in layers))
    lines = [["layer", "kind", "parameters", "MACs", "share", "activations"]]
    lines += [
        [
            layer.path or "(the network)",
            layer.kind,
            f"{layer.params:,}",
            f"{layer.macs:,}",
            f"{layer.macs / total:.1%}",
            f"{layer.activations:,}",
        ]
        for layer in layers
    ]
    measured = [row.example_size for row in profile.rows if row.macs is not None]
    at = f"layers at {'x'.join(map(str, measured[0]))}\n" if measured else ""
    return at + aligned(lines, n_left=2)


def _check_text(checked: Any) -> str:
    macs = checked.macs
    totals = [["MACs", "count", "difference"], ["coa-compress", f"{macs:,}", ""]]
    for tool in ("fvcore", "thop"):
        found = getattr(checked, f"macs_{tool}")
        apart = "" if found is None else f"{found - macs:+,}"
        totals.append([tool, "cannot count this" if found is None else f"{found:,}", apart])
    lines = [
        f"{one.tool} counts {one.theirs:,} for {one.operator}, we {one.ours:,}: {one.cause}"
        for one in checked.differences
    ]
    return "\n".join([aligned(totals, n_left=1), *lines])


def aligned(lines: Sequence[Sequence[str]], *, n_left: int) -> str:
    """Return cells in columns.

    Args:
        lines: All of one length.
        n_left: So many columns at the left are flush left, the others flush right.

    >>> print(aligned([["layer", "MACs"], ["stem", "1,024"]], n_left=1))
    layer   MACs
    stem   1,024
    """
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    texts = []
    for line in lines:
        left = [cell.ljust(width) for cell, width in zip(line[:n_left], widths, strict=False)]
        right = [
            cell.rjust(width) for cell, width in zip(line[n_left:], widths[n_left:], strict=True)
        ]
        texts.append("  ".join([*left, *right]).rstrip())
    return "\n".join(texts)

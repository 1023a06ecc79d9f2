"""The table of a comparison."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.peers.methods import is_ours
from benchmarks.plots import Panel, Series, draw
from benchmarks.records import markdown_table, spread

Row = Mapping[str, Any]
_BEFORE = ("one_shot", "refitted")


def render(record: Mapping[str, Any]) -> str:
    """Return one Markdown table a teacher and split; each figure is the mean over the seeds."""
    parts = []
    for teacher, known in record["teachers"].items():
        rows = [row for row in record["rows"] if row["teacher"] == teacher]
        if rows:
            parts.append(_teacher_tables(teacher, known, rows))
    return "\n\n".join([*parts, _caption(record)])


def summary(record: Mapping[str, Any]) -> str:
    """Return a short Markdown table: our default against the best that another library returned.

    A budget at which ours alone was run, such as what another library ended at, is left out where
    others were run at other budgets. The best is the one closest to the teacher's output on the
    first split, whatever it is called; after distillation the one closest to the truth, of the
    steps that most of our seeds had.
    """
    head = ["teacher", "MACs asked", "ours", "best other library", "the same, with our refit"]
    head += ["ours, distilled", "best other, distilled"]
    lines = []
    for teacher, known in record["teachers"].items():
        split = next(iter(known["psnr"]))
        rows = [row for row in record["rows"] if row["teacher"] == teacher]
        tried = {row["keep_macs"] for row in rows if not is_ours(row["method"])}
        for keep in sorted(tried or {row["keep_macs"] for row in rows}, reverse=True):
            asked = [row for row in rows if row["keep_macs"] == keep]
            ours = [row for row in asked if row["method"] == "ours" and not row["error"]]
            if ours:
                peers = [row for row in asked if not is_ours(row["method"])]
                best = _best_of(peers, split)
                figures = ["none takes it" if peers else "not run", "-"]
                if best:
                    figures = [_figure([row[f"psnr_{n}"] for row in best], split) for n in _BEFORE]
                    figures[0] += f" `{best[0]['method']}`{_missed(best)}"
                figures += _distilled(ours, peers, split)
                truth = known["psnr"][split]["truth"]
                title = f"`{teacher}` ({truth:.2f} dB, `{split}`)"
                own = _figure([row["psnr_refitted"] for row in ours], split)
                lines.append([title, f"{keep:.1%}", own, *figures])
    return (
        f"{markdown_table(head, lines)}\n\nPSNR in dB, against the truth, and in brackets against "
        "the teacher's output; before any training, and after as many steps of distillation as "
        "stand there, equal for both. Every method and its errors: [docs/prune.md](docs/prune.md)."
    )


def plot(record: Mapping[str, Any]) -> str:
    """Return plots of the MACs reached against PSNR before any training as SVG, one a teacher.

    Ours is the default after its refit; other libraries and the control are as they cut.
    """
    rows = [row for row in record["rows"] if not row["error"] and _is_plotted(row["method"])]
    panels = []
    for teacher, known in record["teachers"].items():
        groups: dict[str, list[list[Row]]] = {}
        for same in _grouped([row for row in rows if row["teacher"] == teacher]):
            groups.setdefault(same[0]["method"], []).append(same)
        split = next(iter(known["psnr"]))
        panel = Panel(
            title=f"{teacher}, {split}",
            x_label="MACs reached (%)",
            y_label="PSNR (dB), no training",
            series=tuple(_series(name, found, split) for name, found in groups.items()),
            level=known["psnr"][split]["truth"],
            ticks=tuple(sorted({100 * row["keep_macs"] for row in rows})),
        )
        panels.append(panel)
    return draw(panels)


def _is_plotted(name: str) -> bool:
    return name in ("ours", "random") or not is_ours(name)


def _series(name: str, groups: Sequence[Sequence[Row]], split: str) -> Series:
    stage = "refitted" if name == "ours" else "one_shot"
    found = [
        (
            [100 * row["macs_kept"] for row in same],
            [row[f"psnr_{stage}"][split]["truth"] for row in same],
        )
        for same in groups
    ]
    return Series.of(name, found, strong=name == "ours")


def _by_method(rows: Sequence[Row]) -> list[list[Row]]:
    methods: dict[str, list[Row]] = {}
    for row in rows:
        methods.setdefault(row["method"], []).append(row)
    return list(methods.values())


def _best_of(peers: Sequence[Row], split: str) -> list[Row]:
    """Return the rows of the method that is closest to the teacher, on average over its seeds."""

    def closeness(rows: Sequence[Row]) -> float:
        return float(statistics.mean(row["psnr_one_shot"][split]["teacher"] for row in rows))

    return max(_by_method([row for row in peers if not row["error"]]), key=closeness, default=[])


def _distilled(ours: Sequence[Row], peers: Sequence[Row], split: str) -> list[str]:
    both = {n for row in ours for n in row["psnr_distilled"]}
    both &= {n for row in peers for n in row["psnr_distilled"]}
    if not both:
        return ["-", "-"]
    # a figure of several seeds says more than one of more steps
    seeds = Counter(n for row in ours for n in row["psnr_distilled"] if n in both)
    steps = max(both, key=lambda n: (seeds[n], int(n)))

    def psnr(rows: Sequence[Row]) -> float:
        return float(statistics.mean(r["psnr_distilled"][steps][split]["truth"] for r in rows))

    best = max(_by_method([row for row in peers if steps in row["psnr_distilled"]]), key=psnr)
    own, other = (
        _figure([row["psnr_distilled"].get(steps) for row in rows], split) for rows in (ours, best)
    )
    return [f"{own}, {steps} steps", f"{other} `{best[0]['method']}`{_missed(best)}"]


def _missed(rows: Sequence[Row]) -> str:
    kept = statistics.mean(row["macs_kept"] for row in rows)
    return f", missed: {kept:.1%}" if kept > rows[0]["keep_macs"] else ""


def _teacher_tables(teacher: str, known: Mapping[str, Any], rows: Sequence[Row]) -> str:
    parts = []
    steps = sorted({int(n) for row in rows for n in row["psnr_distilled"]})
    head = ["MACs asked", "method", "MACs", "params", "latency", "one-shot", "refitted"]
    head += [f"{n} steps" for n in steps]
    for split, psnr in known["psnr"].items():
        lines = [_line(chosen, split, steps) for chosen in _grouped(rows)]
        title = f"Teacher `{teacher}`, {known['params'] / 1e6:.3f} M parameters: "
        title += f"{psnr['truth']:.2f} dB on {known['images'][split]} images of `{split}`"
        parts.append(f"{title}\n\n{markdown_table(head, lines)}")
    failed = [f"`{r['method']}`: {r['error']}" for r in _first_of_each(rows) if r["error"]]
    if failed:
        parts.append("No result: " + "; ".join(failed) + ".")
    return "\n\n".join(parts)


def _line(rows: Sequence[Row], split: str, steps: Sequence[int]) -> list[str]:
    first = rows[0]
    asked, name = f"{first['keep_macs']:.1%}", f"`{first['method']}`"
    good = [row for row in rows if not row["error"]]
    if not good:
        return [asked, name, *["-"] * (5 + len(steps))]
    macs = statistics.mean(row["macs_kept"] for row in good)
    return [
        asked,
        name + (" (by hand)" if first["note"] else ""),
        f"{macs:.1%}{' (missed)' if macs > first['keep_macs'] else ''}",
        f"{statistics.mean(row['params_kept'] for row in good):.1%}",
        f"{statistics.mean(row['latency'] for row in good):.2f}",
        *[_figure([_stage(row, stage) for row in good], split) for stage in _stages(steps)],
    ]


def _stages(steps: Sequence[int]) -> list[str]:
    return [*_BEFORE, *map(str, steps)]


def _stage(row: Row, stage: str) -> Mapping[str, Mapping[str, float]] | None:
    found: Mapping[str, Mapping[str, float]] | None
    found = row["psnr_distilled"].get(stage) if stage.isdigit() else row[f"psnr_{stage}"]
    return found


def _figure(values: Sequence[Mapping[str, Mapping[str, float]] | None], split: str) -> str:
    there = [value[split] for value in values if value]
    if not there:
        return "-"
    truth, teacher = (spread([value[name] for value in there], 2) for name in ("truth", "teacher"))
    return f"{truth} ({teacher})"


def _grouped(rows: Sequence[Row]) -> list[list[Row]]:
    groups: dict[tuple[float, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((-row["keep_macs"], row["method"]), []).append(row)
    return [groups[key] for key in sorted(groups, key=lambda key: key[0])]


def _first_of_each(rows: Sequence[Row]) -> list[Row]:
    return list({(row["method"], row["error"]): row for row in rows}.values())


def _caption(record: Mapping[str, Any]) -> str:
    settings = record["settings"]
    cut = (
        f", the middle {settings['crop']} x {settings['crop']} of each" if settings["crop"] else ""
    )
    return (
        f"PSNR in dB on held-out pairs{cut}: against the truth, and in brackets against the "
        "teacher's output. One-shot: as the method returns it, untrained. "
        "Refitted: after our closed-form refit, for other libraries too where what they kept can "
        "be told from the weights. Steps: after that many equal steps of distillation, ours from "
        "the refitted student, the others from the one-shot one. Latency: of the teacher's in the "
        f"same run on {record['device_name']}, {record['threads']} threads. All methods calibrate "
        f"on the same {settings['calibration']} crops. Where a library misses the budget, the row "
        "says so. By hand: told to leave modules whole, because it failed without. "
        f"Made by `{record['command']}`."
    )

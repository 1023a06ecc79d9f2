"""How a run goes on, shown to a person: a bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self, TextIO

import rich.progress
from rich.console import Console
from rich.markup import escape

_EVERY_SECONDS = 15.0
_EVERY_PART = 0.1
_MOST_VALUES = 3


class Screen(Protocol):
    """An observer that prints, and that leaves the terminal as it was."""

    def on_stage_start(self, stage: str, note: str) -> None:
        """Show that a stage begins."""

    def on_progress(self, done: int, total: int, values: Mapping[str, float]) -> None:
        """Show that some steps are done."""

    def on_stage_end(self, stage: str, seconds: float, note: str) -> None:
        """Show that a stage has ended."""

    def say(self, line: str) -> None:
        """Print one line without disturbing what is on the screen."""

    def __enter__(self) -> Self:
        """Begin to show."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Clear what moves on the screen."""


def screen_for(stream: TextIO) -> Screen:
    """Return a bar for a terminal and plain lines for anything else."""
    return BarScreen(stream) if stream.isatty() else LineScreen(stream)


def duration_text(seconds: float) -> str:
    """Return a length of time as a person says it.

    >>> duration_text(3.25), duration_text(83), duration_text(400), duration_text(7300)
    ('3.2 s', '83 s', '6 min 40 s', '2 h 1 min')
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def values_text(values: Mapping[str, float]) -> str:
    """Return the first few values in short.

    >>> values_text({"loss": 0.012345, "psnr_db": 27.13})
    'loss 0.01235, psnr_db 27.13'
    """
    shown = list(values.items())[:_MOST_VALUES]
    return ", ".join(f"{name} {value:.4g}" for name, value in shown)


def end_line(stage: str, seconds: float, note: str, *, encoding: str | None) -> str:
    """Return the line that a finished stage leaves behind.

    >>> end_line("score", 1.5, "8 groups", encoding="utf-8")
    '✓ score 1.5 s  8 groups'
    >>> end_line("score", 1.5, "", encoding="ascii")
    'ok score 1.5 s'
    """
    mark = "✓" if (encoding or "").lower().replace("-", "").startswith("utf") else "ok"
    return f"{mark} {stage} {duration_text(seconds)}  {note}".rstrip()


@dataclass
class Pace:
    """Seconds since a stage began and seconds that are left.

    A resumed stage begins with steps already done; they say nothing about the speed.

    Args:
        clock: Returns seconds.

    >>> pace = Pace(iter([0.0, 10.0, 30.0]).__next__)
    >>> pace.left(100, 200) is None, pace.left(150, 200)
    (True, 20.0)
    """

    clock: Callable[[], float]
    began: float = field(init=False)
    _first: tuple[float, int] | None = field(init=False, default=None)
    _latest: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.began = self.clock()

    def left(self, done: int, total: int) -> float | None:
        """Return the seconds that are left, or None when nothing is known yet."""
        now = self.clock()
        if self._first is None or done < self._latest:
            self._first = (now, done)
        self._latest = done
        start, already = self._first
        return (now - start) / (done - already) * (total - done) if done > already else None


class LineScreen:
    """Plain lines: one at the start and the end of a stage, and about ten in between.

    Args:
        stream: Where lines go; never a control character.
        clock: Returns seconds.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._stage = ""
        self._pace = Pace(clock)
        self._said_at = 0.0
        self._said_part = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        del kind, error, trace

    def say(self, line: str) -> None:
        """Print one line, at once."""
        encoding = self._stream.encoding or "utf-8"
        clean = "".join(c if c.isprintable() else " " for c in line)
        self._stream.write(clean.encode(encoding, "replace").decode(encoding) + "\n")
        self._stream.flush()

    def on_stage_start(self, stage: str, note: str) -> None:
        """Say which stage begins."""
        self._stage = stage
        self._pace = Pace(self._clock)
        self._said_at = self._pace.began
        self._said_part = 0.0
        self.say(f"{stage}: {note}" if note else f"{stage} ...")

    def on_progress(self, done: int, total: int, values: Mapping[str, float]) -> None:
        """Say how far the stage is, every tenth of it or every 15 seconds."""
        left = self._pace.left(done, total)
        part = done / total if total > 0 else 0.0
        self._said_part = min(self._said_part, part)
        now = self._clock()
        due = part >= self._said_part + _EVERY_PART - 1e-9 or now >= self._said_at + _EVERY_SECONDS
        if not due:
            return
        self._said_part, self._said_at = part, now
        pieces = [f"{self._stage} {part:.0%} ({done}/{total})"]
        pieces.append(duration_text(now - self._pace.began))
        if left is not None and done < total:
            pieces.append(f"{duration_text(left)} left")
        pieces += [values_text(values)] if values else []
        self.say("  " + ", ".join(pieces))

    def on_stage_end(self, stage: str, seconds: float, note: str) -> None:
        """Say that the stage has ended, and with what result."""
        self.say(end_line(stage, seconds, note, encoding=self._stream.encoding))


class BarScreen:
    """One bar for the running stage, gone when it ends; a line for each finished stage.

    Args:
        stream: A terminal.
        clock: Returns seconds.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._encoding = stream.encoding
        self._clock = clock
        self._pace = Pace(clock)
        self._console = Console(file=stream, highlight=False)
        self._bars = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}", markup=True),
            rich.progress.BarColumn(),
            rich.progress.TextColumn("{task.fields[steps]}"),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("{task.fields[left]}"),
            rich.progress.TextColumn("{task.fields[values]}", markup=False),
            console=self._console,
            transient=True,
        )
        self._bar: rich.progress.TaskID | None = None

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        del kind, error, trace
        self._bars.stop()

    def say(self, line: str) -> None:
        """Print one line above the bar."""
        encoding = self._encoding or "utf-8"
        clean = line.encode(encoding, "replace").decode(encoding)
        self._console.print(clean, markup=False, soft_wrap=True)

    def on_stage_start(self, stage: str, note: str) -> None:
        """Show an empty bar."""
        self._remove_bar()
        self._pace = Pace(self._clock)
        title = f"{escape(stage)} [dim]{escape(note)}[/dim]" if note else escape(stage)
        self._bar = self._bars.add_task(title, total=None, steps="", left="", values="")

    def on_progress(self, done: int, total: int, values: Mapping[str, float]) -> None:
        """Move the bar."""
        if self._bar is None:
            return
        left = self._pace.left(done, total)
        self._bars.update(
            self._bar,
            completed=done,
            total=total,
            steps=f"{done}/{total}",
            left="" if left is None else f"{duration_text(left)} left",
            values=values_text(values),
        )

    def on_stage_end(self, stage: str, seconds: float, note: str) -> None:
        """Replace the bar by a line."""
        self._remove_bar()
        self.say(end_line(stage, seconds, note, encoding=self._encoding))

    def _remove_bar(self) -> None:
        if self._bar is not None:
            self._bars.remove_task(self._bar)
            self._bar = None

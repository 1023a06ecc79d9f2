"""What surrounds every command: the screen, warnings in one line, a kind word on Ctrl-C."""

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO, TypeVar

import typer

from coa_compress.cli.progress import Screen, screen_for
from coa_compress.errors import CoaWarning

T = TypeVar("T")

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


@contextmanager
def session(*, interrupted: str, quiet: bool = False) -> Iterator[Screen]:
    """Show progress and warnings while a command works.

    Args:
        interrupted: What a person who presses Ctrl-C should know.
        quiet: Show nothing: another process does.

    Raises:
        typer.Exit: After Ctrl-C, with code 130.
    """
    with ExitStack() as stack:
        nowhere = Path(os.devnull)
        stream = stack.enter_context(nowhere.open("w", encoding="utf-8")) if quiet else sys.stderr
        screen = screen_for(stream)
        try:
            with screen, warnings_said(screen.say):
                yield screen
        except KeyboardInterrupt:
            typer.echo(f"interrupted: {interrupted}", file=stream)
            raise typer.Exit(INTERRUPTED) from None


@contextmanager
def warnings_said(say: Callable[[str], None]) -> Iterator[None]:
    """Pass each ``CoaWarning`` on as one line; other warnings look as they always do.

    >>> with warnings_said(print):
    ...     warnings.simplefilter("always")
    ...     warnings.warn("nothing to cut", CoaWarning, stacklevel=1)
    warning: nothing to cut
    """
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if issubclass(category, CoaWarning):
                say(f"warning: {' '.join(str(message).split())}")
            else:
                usual(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield


def staged(screen: Screen, name: str, work: Callable[[], T]) -> T:
    """Return the result of some work, shown as one stage."""
    began = time.monotonic()
    screen.on_stage_start(name, "")
    result = work()
    screen.on_stage_end(name, time.monotonic() - began, "")
    return result

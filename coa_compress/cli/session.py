"""What surrounds every command: the screen, warnings in one line, a kind word on Ctrl-C."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import typer

from coa_compress.cli.progress import Screen, screen_for
from coa_compress.errors import memory_errors, warnings_passed

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
            with screen, warnings_passed(lambda text: screen.say(f"warning: {text}"), shown=False):
                yield screen
        except KeyboardInterrupt:
            typer.echo(f"interrupted: {interrupted}", file=stream)
            raise typer.Exit(INTERRUPTED) from None


def staged(screen: Screen, name: str, work: Callable[[], T]) -> T:
    """Return the result of some work, shown as one stage.

    Raises:
        OutOfMemoryError: If it does not fit into memory.
    """
    began = time.monotonic()
    screen.on_stage_start(name, "")
    with memory_errors(name, remedy="give smaller inputs, or another --device"):
        result = work()
    screen.on_stage_end(name, time.monotonic() - began, "")
    return result

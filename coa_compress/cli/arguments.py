"""Arguments that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A run, a student, builtin:teacher, or package.module:factory."
    ),
]
"""A network, by what the command line calls it."""

Weights = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Weights of a factory: .safetensors, or plain .pth."),
]
"""Weights of a network that a factory makes."""

TaskName = Annotated[
    str,
    typer.Option("--task", metavar="NAME", help="Another task than the student's: see list tasks."),
]
"""The task that uses or judges a student."""

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
"""Where a network runs; ``auto`` is a GPU where there is one."""

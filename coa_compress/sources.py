"""Networks that a command line can name: the built-in one, a student, a run, any factory."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from coa_compress.errors import ModelError
from coa_compress.factories import is_factory
from coa_compress.opening import open_network, open_student
from coa_compress.protocols import Task
from coa_compress.recipe.files import GENERIC_TASK, TASKS

_SIZE = re.compile(r"(\d{1,5})[xX](\d{1,5})", re.ASCII)


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A network, and what is needed to use it.

    Args:
        name: What it was opened by.
        model: In evaluation mode, on the CPU.
        task: The problem; for a factory the generic one, whose target is the network's own output.
        example: One input, batch 1: the size at which everything is counted.
    """

    name: str
    model: nn.Module
    task: Task
    example: Tensor


def open_source(
    source: str, *, size: tuple[int, int] | None = None, weights: Path | None = None
) -> Source:
    """Return the network that some text names.

    Args:
        source: A run folder, a student folder, ``builtin:teacher``, or ``package.module:factory``:
            a class or a function that returns a network when called without arguments. A module
            may lie in the working directory.
        size: Height and width of the example in pixels; None takes that of the task.
        weights: A safetensors file, or a plain state dict of ``torch.save``, for the network of a
            factory; every name and shape must fit.

    Raises:
        ModelError: If a factory cannot be imported or called, or returns no network.
        WeightsError: If there is no student, or the weights cannot be read, do not fit, or are
            given for a network that has its own.

    >>> open_source("nowhere")
    Traceback (most recent call last):
    coa_compress.errors.WeightsError: no student in nowhere: give a run folder, or builtin:teacher
    >>> open_source("torch.nn:Swoosh")
    Traceback (most recent call last):
    coa_compress.errors.ModelError: 'torch.nn:Swoosh' is not there: module torch.nn has no Swoosh
    """
    if size is not None and min(size) < 1:
        message = f"size must be a height and a width of at least 1, got {size[0]}x{size[1]}"
        raise ModelError(message)
    if is_factory(source):
        return _open_factory(source, size, weights)
    model, task = open_student(source, weights)
    example = task.example_input()
    if size is not None:
        example = torch.rand(*example.shape[:-2], *size, generator=torch.Generator().manual_seed(0))
    return Source(source, model.cpu().eval(), task, example)


def parse_size(text: str) -> tuple[int, int]:
    """Return the height and the width of a text such as ``256x384``.

    Raises:
        ModelError: If it is none.

    >>> parse_size("256x384")
    (256, 384)
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        message = f"{text!r} is no size: give height x width, such as 256x384"
        raise ModelError(message)
    return int(found[1]), int(found[2])


def _open_factory(factory: str, size: tuple[int, int] | None, weights: Path | None) -> Source:
    network = open_network(factory, weights)
    task_class = TASKS.get(GENERIC_TASK)
    settings = task_class.Settings() if size is None else task_class.Settings(example_size=size)
    task = task_class(settings, model=network)
    return Source(factory, network, task, task.example_input())

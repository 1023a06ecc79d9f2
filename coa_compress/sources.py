"""Networks that a command line can name: the built-in one, a student, a run, any factory."""

import importlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from coa_compress.checkpoint import load_weights_
from coa_compress.compressor import open_student
from coa_compress.errors import CoaError, ModelError, WeightsError
from coa_compress.protocols import Task
from coa_compress.recipe.files import TASKS

_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_SIZE = re.compile(r"(\d{1,5})[xX](\d{1,5})", re.ASCII)
_GENERIC_TASK = "self_distillation"
_BROKEN_CODE = (
    *(ImportError, SyntaxError, OSError, AttributeError, LookupError),
    *(TypeError, ValueError, RuntimeError, ArithmeticError, AssertionError),
)
"""What foreign code raises when it cannot be imported or called."""


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
    if _FACTORY.fullmatch(source) and not source.startswith("builtin:"):
        return _open_factory(source, size, weights)
    if weights is not None:
        message = f"{source} has weights of its own: give {weights} to package.module:factory only"
        raise WeightsError(message)
    model, task = open_student(source)
    example = task.example_input()
    if size is not None:
        example = torch.rand(*example.shape[:-2], *size, generator=torch.Generator().manual_seed(0))
    return Source(source, model.cpu().eval(), task, example)


def build_network(factory: str) -> nn.Module:
    """Return the network of a factory, in evaluation mode, on the CPU.

    Args:
        factory: ``package.module:factory``.

    Raises:
        ModelError: If it cannot be imported or called, or returns no network.

    >>> build_network("torch.nn:ReLU")
    ReLU()
    """
    with _working_directory_importable():
        found = _imported(factory)
        if not callable(found):
            message = f"{factory!r} is a {type(found).__name__}: give a class or a function"
            raise ModelError(message)
        try:
            network = found()
        except CoaError:
            raise
        except _BROKEN_CODE as error:
            message = f"{factory!r} cannot be called without arguments: {_first_line(error)}"
            raise ModelError(message) from None
    if not isinstance(network, nn.Module):
        message = f"{factory!r} returns a {type(network).__name__}: give one that returns a network"
        raise ModelError(message)
    return network.cpu().eval()


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
    network = build_network(factory)
    if weights is not None:
        load_weights_(network, weights)
    task_class = TASKS.get(_GENERIC_TASK)
    settings = task_class.Settings() if size is None else task_class.Settings(example_size=size)
    task = task_class(settings, model=network)
    return Source(factory, network, task, task.example_input())


def _imported(factory: str) -> Any:
    path, _, names = factory.partition(":")
    try:
        found: Any = importlib.import_module(path)
    except _BROKEN_CODE as error:
        message = f"cannot import {path!r} of {factory!r}: {_first_line(error)}"
        raise ModelError(message) from None
    for name in names.split("."):
        if not hasattr(found, name):
            message = f"{factory!r} is not there: module {path} has no {names}"
            raise ModelError(message)
        found = getattr(found, name)
    return found


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.append(here)
    try:
        yield
    finally:
        if added and here in sys.path:
            sys.path.remove(here)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__

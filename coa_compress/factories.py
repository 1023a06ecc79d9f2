"""Networks by name: ``package.module:factory``."""

import importlib
import inspect
import re
import sys
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from coa_compress.errors import FOREIGN_ERRORS, CoaError, ModelError, first_line

_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)


def is_factory(text: str) -> bool:
    """Return whether a text has the form of a factory, which need not exist.

    >>> is_factory("my_nets:Dehazer"), is_factory("builtin"), is_factory("net.pth")
    (True, False, False)
    """
    return _FACTORY.fullmatch(text) is not None and not text.startswith("builtin:")


def build_network(factory: str) -> nn.Module:
    """Return the network of a factory, in evaluation mode, on the CPU.

    Args:
        factory: ``package.module:factory``: a class or a function that returns a network when
            called without arguments. A module may lie in the working directory. Random weights
            are always the same.

    Raises:
        ModelError: If it cannot be imported or called, or returns no network.

    >>> build_network("torch.nn:ReLU")
    ReLU()
    >>> build_network("torch.nn:Swoosh")
    Traceback (most recent call last):
    coa_compress.errors.ModelError: 'torch.nn:Swoosh' is not there: module torch.nn has no Swoosh
    """
    with working_directory_importable():
        found = imported(factory)
        if not callable(found):
            message = f"{factory!r} is a {type(found).__name__}: give a class or a function"
            raise ModelError(message)
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                network = found()
        except CoaError:
            raise
        except FOREIGN_ERRORS as error:
            message = f"{factory!r} cannot be called without arguments: {first_line(error)}"
            raise ModelError(message) from None
    if not isinstance(network, nn.Module):
        message = f"{factory!r} returns a {type(network).__name__}: give one that returns a network"
        raise ModelError(message)
    return network.cpu().eval()


def imported(factory: str) -> Any:
    """Return what a factory names; its module is imported.

    Raises:
        ModelError: If it is of another form, cannot be imported, or is not there.
    """
    if not is_factory(factory):
        message = f"{factory!r} is no factory: give package.module:factory"
        raise ModelError(message)
    path, _, names = factory.partition(":")
    try:
        found: Any = importlib.import_module(path)
    except FOREIGN_ERRORS as error:
        message = f"cannot import {path!r} of {factory!r}: {first_line(error)}"
        raise ModelError(message) from None
    for name in names.split("."):
        if not hasattr(found, name):
            message = f"{factory!r} is not there: module {path} has no {names}"
            raise ModelError(message)
        found = getattr(found, name)
    return found


def declares_network(found: object) -> bool:
    """Return whether something is a network class, or a function that is annotated to return one.

    >>> def plain(): return nn.ReLU()
    >>> def annotated() -> nn.Module: return nn.ReLU()
    >>> declares_network(nn.ReLU), declares_network(plain), declares_network(annotated)
    (True, False, True)
    """
    if inspect.isfunction(found):
        try:
            found = typing.get_type_hints(found).get("return")
        except (NameError, TypeError, AttributeError):
            return False
    return inspect.isclass(found) and issubclass(found, nn.Module)


@contextmanager
def working_directory_importable() -> Iterator[None]:
    """Let modules of the working directory be imported, after all others, as long as it lasts."""
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.append(here)
    try:
        yield
    finally:
        if added and here in sys.path:
            sys.path.remove(here)

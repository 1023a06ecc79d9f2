"""Compress a trained network to a budget, distill it, adapt it to the real world.

    from coa_compress import Compressor
    result = Compressor(model).run()

Names are loaded when they are first used: importing the package loads neither torch nor any
task, and has no effect.
"""

from importlib import import_module
from typing import Any

from coa_compress._version import __version__

_HOMES = {
    "Compressor": "coa_compress.compressor:Compressor",
    "Result": "coa_compress.result:Result",
    "fold": "coa_compress.structure.folding:fold",
    "load": "coa_compress.students:load_student",
}

__all__ = ["Compressor", "Result", "__version__", "fold", "load"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)

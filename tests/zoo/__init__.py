"""Small networks with one structural trait each; every file has ``build()`` and ``example()``."""

import pkgutil
from collections.abc import Iterator


def names() -> Iterator[str]:
    """Yield the name of every network."""
    for module in pkgutil.iter_modules(__path__):
        yield module.name

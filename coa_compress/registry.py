"""Names to objects, with close matches and entry points."""

import difflib
from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from coa_compress.errors import RegistryError

T = TypeVar("T")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint to append to an error message.

    >>> did_you_mean("taylr", ["taylor", "magnitude"])
    'did you mean taylor? known: magnitude, taylor'
    >>> did_you_mean("x", ["taylor"])
    'known: taylor'
    >>> did_you_mean("x", [])
    'known: none'
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    listed = f"known: {', '.join(names) or 'none'}"
    return f"did you mean {close[0]}? {listed}" if close else listed


class Registry(Generic[T]):
    """Objects of one kind by name; plug-ins are found through an entry-point group.

    Args:
        kind: What is registered, in the singular, for messages.
        group: Entry-point group that is searched when a name is not registered here.
    """

    def __init__(self, kind: str, *, group: str) -> None:
        self.kind = kind
        self.group = group
        self._objects: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers an object under a name.

        Raises:
            RegistryError: If the name is taken.
        """

        def add(thing: T) -> T:
            if name in self._objects:
                message = f"{self.kind} {name!r} is registered twice: choose another name"
                raise RegistryError(message)
            self._objects[name] = thing
            return thing

        return add

    def names(self) -> list[str]:
        """Return every known name, sorted, without loading plug-ins."""
        plugged = {point.name for point in entry_points(group=self.group)}
        return sorted(plugged | set(self._objects))

    def get(self, name: str) -> T:
        """Return the object of that name, loading its plug-in when needed.

        Raises:
            RegistryError: If there is none, with close matches.
        """
        if name in self._objects:
            return self._objects[name]
        for point in entry_points(group=self.group, name=name):
            loaded: T = point.load()
            return loaded
        message = f"no {self.kind} named {name!r}: {did_you_mean(name, self.names())}"
        raise RegistryError(message)

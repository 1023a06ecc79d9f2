"""Every method of the comparison, by name."""

import math
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType

from benchmarks.peers.ours import prune_ours
from benchmarks.peers.pruned_by_fastnas import prune_by_fastnas
from benchmarks.peers.pruned_by_torch_pruning import prune_by_torch_pruning
from benchmarks.peers.subject import Pruned, Subject
from coa_compress.errors import SettingError
from coa_compress.registry import did_you_mean

Method = Callable[[Subject, float], Pruned]
"""A student of a subject within a fraction of its MACs."""

_IMPORTANCES = ("magnitude", "taylor", "hessian")
_SCOPES = ("global", "isomorphic", "local")

METHODS: dict[str, Method] = {
    "ours": prune_ours,
    "ours:even": partial(prune_ours, evenness=0.5),
    "ours:uniform": partial(prune_ours, allocator="uniform"),
    "magnitude": partial(prune_ours, scorer="magnitude", refitted=False),
    "uniform": partial(prune_ours, scorer="magnitude", allocator="uniform", refitted=False),
    "random": partial(prune_ours, scorer="random", allocator="uniform", refitted=False),
    **{
        f"tp:{importance}:{scope}": partial(
            prune_by_torch_pruning, importance=importance, scope=scope
        )
        for scope in _SCOPES
        for importance in _IMPORTANCES
    },
    "modelopt:fastnas": prune_by_fastnas,
}
"""Those of this project first; ``ours:SCORER+ALLOCATOR`` is understood too."""

DEFAULT_METHODS = tuple(name for name in METHODS if not name.endswith(":local"))
"""What is run when nothing is asked for."""


def method(name: str) -> Method:
    """Return a method by name.

    Raises:
        SettingError: If there is none.

    >>> method("ours:taylr")
    Traceback (most recent call last):
    coa_compress.errors.SettingError: no method 'ours:taylr': known: ...
    """
    if name in METHODS:
        return METHODS[name]
    owner, _, rest = name.partition(":")
    if owner == "ours" and "+" in rest:
        scorer, _, allocator = rest.partition("+")
        return partial(prune_ours, scorer=scorer, allocator=allocator)
    message = f"no method {name!r}: {did_you_mean(name, METHODS)}"
    raise SettingError(message)


def is_ours(name: str) -> bool:
    """Return whether a method is of this project, or a control that it runs itself."""
    return not name.startswith(("tp:", "modelopt:"))


def attempt(name: str, subject: Subject, keep: float, *, limit_s: float) -> Pruned | str:
    """Return what a method makes of a subject, or why it makes nothing, in one line.

    Args:
        name: The method.
        subject: What is pruned.
        keep: Fraction of the MACs that may be kept.
        limit_s: Seconds of processor time, of all threads, after which a peer is stopped.
    """
    prune = method(name)
    if is_ours(name):
        return prune(subject, keep)
    try:
        with warnings.catch_warnings(), _limited(limit_s):
            warnings.simplefilter("ignore")
            return prune(subject, keep)
    except Exception as error:  # noqa: BLE001  a peer may raise anything; the row says what
        text = " ".join(str(error).split())
        return f"{type(error).__name__}: {text}"[:160]


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def stop(_signal: int, _frame: FrameType | None) -> None:
        message = f"no result in {seconds:g} s of processor time"
        raise TimeoutError(message)

    before = signal.signal(signal.SIGPROF, stop)
    # a timer of 0 never rings
    signal.setitimer(signal.ITIMER_PROF, 0 if math.isinf(seconds) else seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)

"""Every error and warning of coa-compress.

Exception
└── CoaError
    ├── RecipeError       (ValueError)     a recipe cannot be read or is wrong
    ├── SettingError      (ValueError)     a value given in Python is out of range
    ├── BudgetError       (ValueError)     a budget cannot be met
    ├── DataError         (ValueError)     a folder, an image or a pair of images is unusable
    ├── WeightsError      (ValueError)     a weight file or a saved student is unusable
    ├── ModelError        (TypeError)      a model is not one that can be worked on
    ├── StructureError    (RuntimeError)   channels cannot be found or a cut is not exact
    ├── TrainingError     (RuntimeError)   training diverged or a loss has no effect
    ├── OutOfMemoryError  (RuntimeError)   something does not fit into the memory of a device
    ├── RunError          (RuntimeError)   a run folder is in use or belongs to something else
    └── RegistryError     (LookupError)    no scorer, allocator, task ... of that name

UserWarning
└── CoaWarning
    └── NoEffectWarning                    something that was asked for changed nothing
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

FOREIGN_ERRORS = (
    *(ImportError, SyntaxError, OSError, AttributeError, LookupError),
    *(TypeError, ValueError, RuntimeError, ArithmeticError, AssertionError),
)
"""What code that nobody here wrote raises when it cannot be imported, called or run."""


_NO_MEMORY = (
    *("out of memory", "can't allocate memory", "not enough memory"),
    "failed to allocate memory",  # ONNX Runtime
)


def first_line(error: BaseException) -> str:
    r"""Return the first line of what an error says, or its name where it says nothing.

    >>> first_line(ValueError("no such width\nat line 3")), first_line(KeyError())
    ('no such width', 'KeyError')
    """
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on a GPU or on the CPU.

    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    True
    """
    if isinstance(error, RuntimeError):  # that of torch for a GPU is one, too
        return any(words in str(error).lower() for words in _NO_MEMORY)
    return isinstance(error, MemoryError)


class CoaError(Exception):
    """Base of every deliberate error; its message says what, where, the value and the remedy."""


class RecipeError(CoaError, ValueError):
    """A recipe cannot be read, or some of its keys or values are wrong."""


class SettingError(CoaError, ValueError):
    """A setting given in Python is out of its range."""


class BudgetError(CoaError, ValueError):
    """A budget cannot be met by any allowed choice of widths."""


class DataError(CoaError, ValueError):
    """A folder, an image, or a pair of images cannot be used."""


class WeightsError(CoaError, ValueError):
    """A weight file or a saved student cannot be used."""


class ModelError(CoaError, TypeError):
    """A model is not one that can be compressed."""


class StructureError(CoaError, RuntimeError):
    """Channel groups cannot be found, or a cut network does not equal its reference."""


class TrainingError(CoaError, RuntimeError):
    """Training diverged, or was asked to do something that has no effect."""


class OutOfMemoryError(CoaError, RuntimeError):
    """Something does not fit into the memory of the machine or of a GPU."""


class RunError(CoaError, RuntimeError):
    """A run folder is in use, or holds something that must not be overwritten."""


class RegistryError(CoaError, LookupError):
    """A name is unknown, or registered twice."""


class CoaWarning(UserWarning):
    """Base of every warning of coa-compress."""


class NoEffectWarning(CoaWarning):
    """Something that was asked for changed nothing."""


@contextmanager
def memory_errors(what: str, *, remedy: str) -> Iterator[None]:
    """Say in a line that something does not fit into memory.

    Args:
        what: What does not fit.
        remedy: What to do about it.

    Raises:
        OutOfMemoryError: When memory runs out within the block.

    >>> with memory_errors("a batch of 8", remedy="make it smaller"):
    ...     raise MemoryError
    Traceback (most recent call last):
    coa_compress.errors.OutOfMemoryError: a batch of 8 does not fit into memory (MemoryError): \
make it smaller
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, CoaError) or not is_out_of_memory(error):
            raise
        message = f"{what} does not fit into memory ({first_line(error)}): {remedy}"
        raise OutOfMemoryError(message) from error


@contextmanager
def warnings_passed(hear: Callable[[str], object], *, shown: bool) -> Iterator[None]:
    """Pass the text of each ``CoaWarning`` on as one line; other warnings look as they always do.

    Args:
        hear: Called with the text.
        shown: Whether the warning is also shown as it would be without this.

    >>> with warnings_passed(print, shown=False):
    ...     warnings.simplefilter("always")
    ...     warnings.warn("nothing to cut", CoaWarning, stacklevel=1)
    nothing to cut
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
            ours = issubclass(category, CoaWarning)
            if ours:
                hear(" ".join(str(message).split()))
            if shown or not ours:
                usual(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield

"""Ranges of settings, stated once in the type annotation and checked wherever a value is made."""

import operator
from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from annotated_types import BaseMetadata, Ge, GroupedMetadata, Gt, Interval, Le, Lt

from coa_compress.errors import SettingError

Fraction = Annotated[float, Interval(gt=0.0, le=1.0)]
"""A part that is kept, in (0, 1]."""
UnitInterval = Annotated[float, Interval(ge=0.0, le=1.0)]
"""A number in [0, 1]."""
PositiveInt = Annotated[int, Ge(1)]
"""A whole number from 1."""
NonNegativeInt = Annotated[int, Ge(0)]
"""A whole number from 0."""
PositiveFloat = Annotated[float, Gt(0.0)]
"""A number above 0."""
NonNegativeFloat = Annotated[float, Ge(0.0)]
"""A number from 0."""

_RULES: dict[type[BaseMetadata], tuple[str, Callable[[Any, Any], bool]]] = {
    Gt: ("above", operator.gt),
    Ge: ("at least", operator.ge),
    Lt: ("below", operator.lt),
    Le: ("at most", operator.le),
}


def check_ranges(settings: Any) -> None:
    """Check every annotated field of a dataclass; meant to be called from ``__post_init__``.

    Args:
        settings: A dataclass instance whose fields may be annotated with ``annotated_types``.

    Raises:
        SettingError: If a value is out of its range, naming the field, the value and the range.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Part:
    ...     keep: Fraction = 0.5
    ...     def __post_init__(self) -> None:
    ...         check_ranges(self)
    >>> Part(keep=2.0)
    Traceback (most recent call last):
    coa_compress.errors.SettingError: Part.keep must be at most 1.0, got 2.0
    """
    hints = get_type_hints(type(settings), include_extras=True)
    for field in fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        for bound in _bounds(hints[field.name]):
            if not _holds(value, bound):
                word, limit = _word(bound)
                message = (
                    f"{type(settings).__name__}.{field.name} must be {word} {limit}, got {value}"
                )
                raise SettingError(message)


def _bounds(hint: Any) -> list[BaseMetadata]:
    if get_origin(hint) is Annotated:
        found: list[BaseMetadata] = []
        for item in get_args(hint)[1:]:
            found.extend(_flat(item))
        return found
    return [bound for part in get_args(hint) for bound in _bounds(part)]


def _flat(item: Any) -> list[BaseMetadata]:
    parts = item if isinstance(item, GroupedMetadata) else (item,)
    return [part for part in parts if isinstance(part, BaseMetadata)]


def _holds(value: float, bound: BaseMetadata) -> bool:
    _, compare = _RULES[type(bound)]
    return bool(compare(value, _limit(bound)))


def _word(bound: BaseMetadata) -> tuple[str, Any]:
    return _RULES[type(bound)][0], _limit(bound)


def _limit(bound: BaseMetadata) -> Any:
    return getattr(bound, type(bound).__name__.lower())

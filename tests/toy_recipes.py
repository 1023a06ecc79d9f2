"""Stages and tasks that exist only for the tests of recipes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Len

from coa_compress.errors import BudgetError, RecipeError
from coa_compress.recipe.files import parse_recipe
from coa_compress.recipe.schema import Schema
from coa_compress.registry import Registry
from coa_compress.settings import Fraction, NonNegativeFloat, PositiveInt, check_ranges


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    steps: PositiveInt = 100
    lr: NonNegativeFloat = 1e-3
    schedule: Literal["cosine", "constant"] = "cosine"

    def __post_init__(self):
        check_ranges(self)


class Score:
    """Score channels."""

    name = "score"

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Settings:
        scorer: str = "taylor"
        normalize: bool = True


class Allocate:
    """Choose widths."""

    name = "allocate"

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Settings:
        keep_macs: Fraction | None = None
        keep_params: Fraction | None = None
        round_to: PositiveInt = 8

        def __post_init__(self):
            check_ranges(self)
            if self.keep_macs is None and self.keep_params is None:
                message = "no budget given: set keep_macs or keep_params"
                raise BudgetError(message)


class Distill:
    """Train the student."""

    name = "distill"

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Settings:
        training: Training = field(default_factory=Training)
        warm: Training | None = None
        final: Training | None = field(default_factory=lambda: Training(steps=5, lr=0.5))
        weights: Mapping[str, float] = field(default_factory=lambda: {"l1": 1.0})
        phases: tuple[Training, ...] = ()
        by_name: Mapping[str, Training] = field(default_factory=dict)
        taps: tuple[str, ...] = ()
        size: tuple[int, int] = (64, 64)
        mix: float | Literal["auto"] = "auto"
        odd: Annotated[tuple[int, ...], Len(0, 2)] = ()


class Toy:
    """A task for tests."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Settings:
        train: str | tuple[str, ...] = "builtin"
        crop: PositiveInt = 32


class Needy:
    """A task with a setting that has no default."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Settings:
        folder: str


TASKS: Registry[Any] = Registry("task", group="coa_compress.no_such_group")
TASKS.register("toy")(Toy)
TASKS.register("needy")(Needy)
TOYS = Schema(stages=(Score, Allocate, Distill), tasks=TASKS)

GOOD = """\
name: small
task: {name: toy}
stages:
  allocate:
    keep_macs: 0.25
"""


def parse(text, *overrides):
    return parse_recipe(text, source="r.yaml", overrides=overrides, schema=TOYS)


def errors(text, *overrides):
    with pytest.raises(RecipeError, match=":") as caught:
        parse(text, *overrides)
    return str(caught.value).splitlines()

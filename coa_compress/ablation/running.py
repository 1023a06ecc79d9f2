"""Run every variant of an ablation with every seed, over one cache of finished stages."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from coa_compress.ablation.rows import row_of
from coa_compress.ablation.tables import differences_of
from coa_compress.ablation.texts import markdown_of
from coa_compress.atomic import write_atomic
from coa_compress.compressor import Compressor
from coa_compress.errors import CoaError
from coa_compress.protocols import Observer, SilentObserver
from coa_compress.provenance import commit, machine, usable_device, versions
from coa_compress.recipe.ablation import Ablation, Variant
from coa_compress.recipe.schema import Recipe
from coa_compress.runs import MARK, own_folder

KIND = "ablation"
"""What the folder is; its record is ``ablation.json``."""
_CACHE = "cache"

Announce = Callable[[str], None]
"""Told in one line which run begins."""


def run_ablation(
    ablation: Ablation,
    seeds: Sequence[int],
    out: Path,
    *,
    observer: Observer | None = None,
    announce: Announce | None = None,
) -> dict[str, Any]:
    """Run what is missing, and return the whole as ``ablation.json`` has it.

    A stage that several variants share is computed once. ``ablation.json`` and ``ablation.md``
    are written anew after each run, so that an ablation that was killed goes on where it stopped,
    and ends with the same figures.

    Args:
        ablation: What to run.
        seeds: Each variant is run with each of them.
        out: The folder: ``VARIANT/seed-N`` for each run, and ``cache``.
        observer: Hears how the stages go; None for nobody.
        announce: Told which run begins; None for nobody.

    Raises:
        RunError: If another process has the folder open, or it holds something else.
        CoaError: Whatever is wrong with a variant; all are checked before the first one runs.
    """
    _check(ablation)
    rows: list[dict[str, Any]] = []
    with own_folder(out, KIND) as folder:
        _write(folder, document_of(ablation, seeds, rows))
        todo = [(seed, variant) for seed in seeds for variant in ablation.variants]
        for number, (seed, variant) in enumerate(todo, start=1):
            if announce is not None:
                announce(f"{variant.name}, seed {seed} (run {number} of {len(todo)})")
            place = folder / variant.name / f"seed-{seed}"
            recipe = _recipe(ablation, variant, seed=seed, out=place)
            with _named(variant.name):
                job = Compressor(recipe=recipe, observer=observer or SilentObserver())
                report = job.run(cache=folder / _CACHE).report
            rows.append(row_of(variant.name, report, place))
            _write(folder, document_of(ablation, seeds, rows))
    return document_of(ablation, seeds, rows)


def document_of(
    ablation: Ablation, seeds: Sequence[int], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return what ``ablation.json`` holds.

    Args:
        ablation: What was run.
        seeds: With which seeds.
        rows: What each run gave, see ``row_of``.
    """
    device = usable_device(ablation.variants[0].recipe.device)
    document: dict[str, Any] = {
        **MARK,
        "name": ablation.name,
        "recipe": ablation.recipe,
        "reference": ablation.reference,
        "seeds": list(seeds),
        "settings": list(ablation.settings),
        "measures": dict(ablation.measures),
        "variants": {variant.name: list(variant.overrides) for variant in ablation.variants},
        "versions": versions(),
        "commit": commit(),
        **machine(device),
        "rows": list(rows),
    }
    return {**document, "differences": differences_of(document)}


def _check(ablation: Ablation) -> None:
    for variant in ablation.variants:
        with _named(variant.name):
            Compressor(recipe=variant.recipe).check()


def _recipe(ablation: Ablation, variant: Variant, *, seed: int, out: Path) -> Recipe:
    name = f"{ablation.name}-{variant.name}-seed-{seed}"
    return replace(variant.recipe, name=name, seed=seed, out=str(out))


@contextmanager
def _named(variant: str) -> Iterator[None]:
    """Say of every mistake which variant has it."""
    try:
        yield
    except CoaError as error:
        message = f"variant {variant!r}: {error}"
        raise type(error)(message) from None


def _write(folder: Path, document: Mapping[str, Any]) -> None:
    text = json.dumps(document, indent=1, allow_nan=False)
    write_atomic(folder / f"{KIND}.json", text + "\n")
    write_atomic(folder / f"{KIND}.md", markdown_of(document))

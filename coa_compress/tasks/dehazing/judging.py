"""Measurements of a network on whole images, as published tables make them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from coa_compress.artifacts import DomainMeasures
from coa_compress.protocols import Progress
from coa_compress.tasks.dehazing.haze_density import haze_density
from coa_compress.tasks.dehazing.measures import in_8_bits, psnr_db, ssim
from coa_compress.tasks.dehazing.naturalness import naturalness
from coa_compress.tasks.dehazing.sources import Example, PhotographSource
from coa_compress.tasks.images import to_float
from coa_compress.tasks.tiling import restore_image

REAL = "real"
"""Name of the split of real images, which have no truth."""

_MOST_PSNR_DB = 100.0


@dataclass(frozen=True, slots=True, eq=False)
class Judge:
    """Runs a network on whole images and measures what comes out, rounded to 8 bits.

    Args:
        model: The network.
        tile: Images of more than ``tile * tile`` pixels are restored in tiles.
    """

    model: nn.Module
    tile: int

    def restore(self, hazy: Tensor) -> Tensor:
        """Return the output with 8 bits, float32 in ``[0, 1]``, same shape as the input."""
        return in_8_bits(restore_image(self.model, hazy, tile=self.tile))

    def mean_psnr_db(self, examples: Sequence[Example]) -> float:
        """Return the mean PSNR in dB; an identical image counts 100 dB."""
        values = []
        for example in examples:
            hazy, clear = example.load()
            values.append(capped_psnr_db(self.restore(hazy), clear))
        return _mean(values)

    def with_truth(self, example: Example) -> dict[str, float]:
        """Return every measure of one example."""
        hazy, clear = example.load()
        restored = self.restore(hazy)
        return {
            "psnr_db": capped_psnr_db(restored, clear),
            "ssim": float(ssim(restored[None], clear[None])),
            **self._without_truth(restored),
        }

    def on_real(self, hazy: Tensor) -> dict[str, float]:
        """Return the no-reference measures of one image."""
        return self._without_truth(self.restore(to_float(hazy)))

    def _without_truth(self, restored: Tensor) -> dict[str, float]:
        return {"haze_density": haze_density(restored), "naturalness": naturalness(restored)}


def measure_splits(
    judge: Judge,
    splits: Mapping[str, Sequence[Example]],
    real: PhotographSource | None,
    progress: Progress,
) -> dict[str, dict[str, float]]:
    """Return mean measurements: measure name, then split name, then value.

    Args:
        judge: The network.
        splits: Examples with truth by split name.
        real: Images without truth, reported as the split ``real``, or None.
        progress: Told after each image.
    """
    total = sum(map(len, splits.values())) + (len(real.images) if real else 0)
    done = 0
    table: dict[str, dict[str, float]] = {}
    for name, examples in splits.items():
        values = []
        for example in examples:
            values.append(judge.with_truth(example))
            done += 1
            progress(done, total, {"psnr_db": values[-1]["psnr_db"]})
        _enter(table, name, values)
    values = []
    for number in range(len(real.images) if real else 0):
        values.append(judge.on_real(real.load(number)))  # type: ignore[union-attr]
        done += 1
        progress(done, total, {"haze_density": values[-1]["haze_density"]})
    _enter(table, REAL, values)
    return table


def measure_real(judge: Judge, real: PhotographSource) -> dict[str, float]:
    """Return the mean of each no-reference measure, by name."""
    values = [judge.on_real(real.load(number)) for number in range(len(real.images))]
    return {name: _mean([value[name] for value in values]) for name in values[0]}


def judge_domain(judge: Judge, real: PhotographSource, skill: float) -> DomainMeasures:
    """Return what the adaptation gate compares: mean haze, mean naturalness, and the skill."""
    values = [judge.on_real(real.load(number)) for number in range(len(real.images))]
    return DomainMeasures(
        defect=_mean([value["haze_density"] for value in values]),
        quality=_mean([value["naturalness"] for value in values]),
        skill=skill,
    )


def capped_psnr_db(restored: Tensor, clear: Tensor) -> float:
    """Return the PSNR of one image, at most 100 dB so that means stay finite."""
    return min(_MOST_PSNR_DB, float(psnr_db(restored[None], clear[None])))


def _enter(
    table: dict[str, dict[str, float]], split: str, values: Sequence[Mapping[str, float]]
) -> None:
    for name in values[0] if values else ():
        table.setdefault(name, {})[split] = _mean([value[name] for value in values])


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)

"""Measurements of a network on whole images, as published tables make them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from coa_compress.gate import DomainMeasures
from coa_compress.protocols import Progress
from coa_compress.tasks.dehazing.no_reference import HAZE, QUALITY, NoReference
from coa_compress.tasks.dehazing.sources import Example, PhotographSource
from coa_compress.tasks.images import to_float
from coa_compress.tasks.measures import capped_psnr_db, in_8_bits, ssim
from coa_compress.tasks.tiling import restore_image

REAL = "real"
"""Name of the split of real images, which have no truth."""


@dataclass(frozen=True, slots=True, eq=False)
class Judge:
    """Runs a network on whole images and measures what comes out, rounded to 8 bits.

    Args:
        model: The network.
        tile: Images of more than ``tile * tile`` pixels are restored in tiles.
        no_reference: What images are measured with where there is no truth.
    """

    model: nn.Module
    tile: int
    no_reference: NoReference = field(default_factory=NoReference)

    def restore(self, hazy: Tensor) -> Tensor:
        """Return the output with 8 bits, float32 in ``[0, 1]``, same shape as the input."""
        return in_8_bits(restore_image(self.model, hazy, tile=self.tile))

    def psnrs_db(self, examples: Sequence[Example]) -> list[float]:
        """Return the PSNR of each example in dB; an identical image counts 100 dB."""
        values = []
        for example in examples:
            hazy, clear = example.load()
            values.append(capped_psnr_db(self.restore(hazy), clear))
        return values

    def mean_psnr_db(self, examples: Sequence[Example]) -> float:
        """Return the mean PSNR in dB; an identical image counts 100 dB."""
        return _mean(self.psnrs_db(examples))

    def with_truth(self, example: Example) -> dict[str, float]:
        """Return every measure of one example."""
        hazy, clear = example.load()
        restored = self.restore(hazy)
        return {
            "psnr_db": capped_psnr_db(restored, clear),
            "ssim": float(ssim(restored[None], clear[None])),
            **self.no_reference.measure(restored),
        }

    def on_real(self, hazy: Tensor) -> dict[str, float]:
        """Return the no-reference measures of one image."""
        return self.no_reference.measure(self.restore(to_float(hazy)))


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
        progress(done, total, {HAZE[0]: values[-1][HAZE[0]]})
    _enter(table, REAL, values)
    return table


def measure_real(judge: Judge, real: PhotographSource) -> dict[str, float]:
    """Return the mean of each no-reference measure, by name."""
    values = [judge.on_real(real.load(number)) for number in range(len(real.images))]
    return {name: _mean([value[name] for value in values]) for name in values[0]}


def judge_domain(
    judge: Judge, real: PhotographSource, validation: Sequence[Example]
) -> DomainMeasures:
    """Return what the gate compares: haze and NIQE of each real image, PSNR of each pair.

    Args:
        judge: The network.
        real: Real images held out from adaptation.
        validation: Pairs that were not trained on.
    """
    found = [judge.on_real(real.load(number)) for number in range(len(real.images))]
    return DomainMeasures(
        defects={name: [values[name] for values in found] for name in HAZE},
        qualities={name: [values[name] for values in found] for name in QUALITY},
        skill=judge.psnrs_db(validation),
        lower_is_better=QUALITY,
    )


def _enter(
    table: dict[str, dict[str, float]], split: str, values: Sequence[Mapping[str, float]]
) -> None:
    for name in values[0] if values else ():
        table.setdefault(name, {})[split] = _mean([value[name] for value in values])


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)

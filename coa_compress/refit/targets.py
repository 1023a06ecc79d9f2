"""What the teacher computes, observed once, at a bounded number of positions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from coa_compress.refit.plan import Plan
from coa_compress.refit.sampling import Portion, Sample, channels_last, sample_output, visited
from coa_compress.refit.statistics import Moments, has_statistics, moments


@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """What a student is refitted to.

    Args:
        portions: The calibration batches.
        samples: Outputs of each layer, one sample a batch, kept channels only.
        inputs: Moments of the input of each batch normalization, kept channels only.
    """

    portions: Sequence[Portion]
    samples: Mapping[str, list[Sample]] = field(default_factory=dict)
    inputs: Mapping[str, Moments] = field(default_factory=dict)


def observe_teacher(teacher: nn.Module, plan: Plan, portions: Sequence[Portion]) -> Targets:
    """Return the outputs of the teacher at random positions; always the same ones.

    Args:
        teacher: In evaluation mode.
        plan: The layers.
        portions: The calibration batches.
    """
    generator = torch.Generator().manual_seed(0)
    samples: dict[str, list[Sample]] = {path: [] for path in plan.paths}
    inputs: dict[str, Moments] = {}
    for portion in portions:

        def observe(path: str, given: Tensor, output: Tensor, portion: Portion = portion) -> None:
            module, kept = teacher.get_submodule(path), plan.kept[path]
            last = channels_last(module)
            sample = sample_output(output, portion, last=last, generator=generator)
            samples[path].append(sample if kept is None else sample.of_channels(kept))
            if has_statistics(module):
                add_moments_(inputs, path, portion.fitting_part(given), kept)

        with visited(teacher, plan.paths, observe):
            teacher(portion.batch.input)
    return Targets(portions, samples, inputs)


def add_moments_(
    sums: dict[str, Moments], path: str, given: Tensor, kept: Tensor | None = None
) -> None:
    """Add the moments of a tensor to those of a path.

    Args:
        sums: Moments so far, changed in place.
        path: The layer that reads the tensor.
        given: Channels in dimension 1.
        kept: The channels that count, or None for all.
    """
    if len(given) == 0:
        return
    found = moments(given if kept is None else given.index_select(1, kept.to(given.device)))
    sums[path] = sums[path] + found if path in sums else found

"""What the teacher computes, observed once, at a bounded number of positions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from coa_compress.refit.calls import Call, Watch
from coa_compress.refit.operators import Size, Statistics, size_of, values_at
from coa_compress.refit.plan import Layer, Plan
from coa_compress.refit.sampling import Portion, Sample, joined_portion, joined_sample
from coa_compress.refit.statistics import Moments, moments
from coa_compress.refit.tracing import Ledger, RunId


@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """What a student is refitted to.

    Args:
        portions: The calibration batches.
        samples: What each run should return, one sample a batch, kept channels only.
        inputs: Moments of the input of each normalization, kept channels only, by path.
    """

    portions: Sequence[Portion]
    samples: Mapping[RunId, list[Sample]]
    inputs: Mapping[str, Moments]

    def joined(self, sizes: Mapping[RunId, Size]) -> "Targets":
        """Return the targets of one batch that holds all examples.

        Args:
            sizes: Shape of the output, without its channels, of each run on that batch.

        Returns:
            Targets of the runs whose samples can be joined; the others are left out.
        """
        joined = {
            run: joined_sample(parts, sizes[run])
            for run, parts in self.samples.items()
            if run in sizes
        }
        samples = {run: [sample] for run, sample in joined.items() if sample is not None}
        return Targets([joined_portion(self.portions)], samples, self.inputs)


@torch.no_grad()
def observe_teacher(
    teacher: nn.Module, plan: Plan, portions: Sequence[Portion], positions: Mapping[str, int]
) -> Targets:
    """Return the outputs of the teacher at random positions; always the same ones.

    Args:
        teacher: In evaluation mode.
        plan: The layers.
        portions: The calibration batches.
        positions: How many positions of each layer, by path, over all its runs and batches.
    """
    generator = torch.Generator().manual_seed(0)
    by_run = {run: layer for layer in plan.layers for run in layer.runs}
    samples: dict[RunId, list[Sample]] = {run: [] for run in by_run}
    inputs: dict[str, Moments] = {}
    for portion in portions:
        ledger = Ledger(teacher)

        def visit(call: Call, portion: Portion = portion, ledger: Ledger = ledger) -> bool:
            run = ledger.enter(call)
            layer = by_run.get(run)
            if layer is None:
                return False
            count = max(1, positions[layer.path] // len(layer.runs))
            samples[run].append(_sample(call, layer, portion, count, generator))
            if isinstance(layer.operator, Statistics):
                add_moments_(inputs, layer.path, portion.fitting_part(call.given()), layer.kept)
            return False

        with Watch(visit):
            teacher(portion.batch.input)
    return Targets(portions, samples, inputs)


def _sample(
    call: Call, layer: Layer, portion: Portion, count: int, generator: torch.Generator
) -> Sample:
    dim = call.operator.channel_dim
    size = size_of(call.output, dim)
    places = portion.places(size, count, generator)
    values = _kept(values_at(call.output, places, dim), layer.kept)
    return Sample(places, size, portion.held(places, size), values.double())


def _kept(values: Tensor, kept: Tensor | None) -> Tensor:
    return values if kept is None else values[:, kept.to(values.device)]


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

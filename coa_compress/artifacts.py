"""Frozen values that travel between the stages."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coa_compress.costs import CostFunction, Extent, PeakFunction, Widths
from coa_compress.errors import BudgetError
from coa_compress.settings import Fraction, PositiveFloat, PositiveInt, check_ranges

Role = Literal["output", "input", "other"]
"""What a parameter dimension is to a channel: written by it, read from it, or carried along."""

Scores = Mapping[str, Tensor]
"""Importance of each channel, shape ``(n_channels,)``, float64, finite, from 0; by group name."""

ExpectedLosses = Mapping[str, NDArray[np.float64]]
"""By group name, the loss expected when it keeps ``w`` channels, at index ``w``: shape
``(n_channels + 1,)``, from 0, never rising with ``w``, 0 at the full width."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Examples for one step.

    Args:
        input: What the network is given, shape ``(batch, channels, height, width)``.
        target: What it should return, same batch; None where there is no ground truth.
    """

    input: Tensor
    target: Tensor | None = None

    def to(self, device: str | torch.device) -> "Batch":
        """Return the same batch on a device."""
        target = None if self.target is None else self.target.to(device)
        return Batch(self.input.to(device), target)


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """The places of a channel group in one dimension of one parameter or buffer.

    Args:
        tensor: Dotted name of the parameter or buffer.
        dim: The dimension that is cut.
        role: ``output`` for the filters that write the channel, ``input`` for the weights that
            read it, ``other`` for biases, norm statistics, raw parameters.
        positions: Shape ``(n_channels, repeats)``, int64: the positions of each channel.
    """

    tensor: str
    dim: int
    role: Role
    positions: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class ChannelGroup:
    """Channels of one kind that must be cut together everywhere they occur.

    Args:
        name: Path of the first module that writes them; unique in a network.
        n_channels: How many there are.
        members: Every place where they occur.
        restricted: True when a mean, softmax or norm runs over these channels, so that
            zeroing them is not the same as removing them.
    """

    name: str
    n_channels: int
    members: tuple[Member, ...]
    restricted: bool = False


@dataclass(frozen=True, slots=True)
class Operand:
    """A tensor argument of an operation.

    Args:
        shape: Sizes; a string names the axis of the operation that the size follows.
        dtype: Data type of its elements.
    """

    shape: tuple[int | str, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """A convolution or matrix product that can be run alone at any widths.

    Args:
        owner: Path of the module or parameter that it belongs to.
        kind: Name of the operator, such as ``conv2d``.
        target: The operator.
        arguments: By name: an ``Operand``, a tuple of them, or a value.
        axes: The sizes that follow widths, by name.
        grouped: Name of the axis that the argument ``groups`` is proportional to, or None.
    """

    owner: str
    kind: str
    target: Callable[..., object]
    arguments: Mapping[str, object]
    axes: Mapping[str, Extent]
    grouped: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """What one pass of a network does, as far as time and memory depend on it.

    Args:
        operations: Convolutions and matrix products, in order.
        traffic: Elements that all other operations read and write.
        memory: Peak of the bytes that tensors hold, each from its birth to its last use.
    """

    operations: tuple[Operation, ...]
    traffic: CostFunction
    memory: PeakFunction


@dataclass(frozen=True, slots=True)
class SensitivityCurve:
    """The loss that cutting one group alone causes, measured at some widths.

    Args:
        widths: Ascending numbers of channels kept; the last is the full width.
        losses: Rise of the loss at each width, from 0; 0 at the full width.
    """

    widths: tuple[int, ...]
    losses: tuple[float, ...]


Curves = Mapping[str, SensitivityCurve]
"""Measured sensitivity of each group, by group name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Upper limits on the student, and which widths are allowed.

    A ``keep`` is a fraction of what the teacher takes; all limits that are given must hold.

    Args:
        keep_macs: Fraction of the MACs the student may keep, or None for no limit.
        keep_params: Fraction of the parameters the student may keep, or None for no limit.
        keep_latency: Fraction of the time of one pass, or None for no limit.
        max_latency_ms: Most milliseconds of one pass, or None for no limit.
        keep_memory: Fraction of the peak memory of one pass, or None for no limit.
        max_memory_mb: Most megabytes of 10**6 bytes at the peak, or None for no limit.
        round_to: Widths are multiples of this, or the full width.
        min_channels: No group gets fewer channels than this (or than it has).

    Raises:
        BudgetError: If no limit is given.
        SettingError: If a value is out of range.
    """

    keep_macs: Fraction | None = None
    keep_params: Fraction | None = None
    keep_latency: Fraction | None = None
    max_latency_ms: PositiveFloat | None = None
    keep_memory: Fraction | None = None
    max_memory_mb: PositiveFloat | None = None
    round_to: PositiveInt = 8
    min_channels: PositiveInt = 8

    def __post_init__(self) -> None:
        check_ranges(self)
        limits = (self.keep_macs, self.keep_params)
        if all(limit is None for limit in limits) and not self.limits_latency | self.limits_memory:
            message = (
                "no budget given: set keep_macs or keep_params to a fraction in (0, 1], "
                "or limit latency or memory by a keep_ or max_ of theirs"
            )
            raise BudgetError(message)

    @property
    def limits_latency(self) -> bool:
        """Whether the time of one pass is limited."""
        return self.keep_latency is not None or self.max_latency_ms is not None

    @property
    def limits_memory(self) -> bool:
        """Whether the peak memory is limited."""
        return self.keep_memory is not None or self.max_memory_mb is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredLimit:
    """What a student, once built, was measured to take of a limited resource.

    Args:
        kept: Fraction of the teacher: for latency the median over paired passes.
        kept_p10: One paired pass in ten is below this; the same as ``kept`` for memory.
        kept_p90: Nine in ten are below this.
        student: In ms or MB, the median.
        teacher: The same of the teacher.
        predicted: What the model of the resource said before, in ms or MB.
        rounds: How often widths were chosen, built and measured.
        device: Where it was measured.
        threads: CPU threads that PyTorch may use inside an operation.
    """

    kept: float
    kept_p10: float
    kept_p90: float
    student: float
    teacher: float
    predicted: float
    rounds: int
    device: str
    threads: int


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Allocation:
    """The answer to a budget: which channels of which group stay.

    Args:
        kept: Sorted channel numbers that stay, int64, by group name.
        teacher_widths: Channels of each group before the cut.
        macs: MACs of the student for one example input.
        params: Parameters of the student.
        teacher_macs: The same of the teacher.
        teacher_params: The same of the teacher.
        allocator: Name of the allocator that chose the widths; empty when unknown.
        loss: Sum of the losses expected of the groups, or None when unknown.
        least_loss: No allowed widths within the limits of ``bounded_by`` have a smaller loss.
        bounded_by: The resources that ``least_loss`` accounts for; the others it leaves free.
        predicted: Kept fraction of latency and memory by their models, where they are limited.
        measured: What the built student was measured to take, by resource.
        evenness: How far groups were taken to lose alike; see ``allocation.losses.evened``.
    """

    kept: Mapping[str, Tensor]
    teacher_widths: Widths
    macs: int
    params: int
    teacher_macs: int
    teacher_params: int
    allocator: str = ""
    loss: float | None = None
    least_loss: float | None = None
    bounded_by: tuple[str, ...] = ()
    predicted: Mapping[str, float] = field(default_factory=dict)
    measured: Mapping[str, MeasuredLimit] = field(default_factory=dict)
    evenness: float = 0.0

    @property
    def widths(self) -> dict[str, int]:
        """Channels kept in each group."""
        return {name: len(channels) for name, channels in self.kept.items()}

    @property
    def gap(self) -> float | None:
        """Part of the loss that other widths may save at most; None where no bound is known."""
        if self.loss is None or self.least_loss is None or not self.bounded_by:
            return None
        return (self.loss - self.least_loss) / self.loss if self.loss > 0 else 0.0


@dataclass(frozen=True, slots=True)
class AttributePatch:
    """An integer attribute of a module that follows a width.

    Args:
        module: Path of the module, empty for the network itself.
        attribute: Name of the attribute.
        value: What it must be in the student.
    """

    module: str
    attribute: str
    value: int | tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """A student and how it was made from its teacher.

    Args:
        student: A new module; the teacher is untouched.
        slices: For each cut parameter or buffer, the kept positions of each cut dimension.
        patches: Attributes that had to follow.
    """

    student: nn.Module
    slices: Mapping[str, Mapping[int, Tensor]]
    patches: tuple[AttributePatch, ...]


@dataclass(frozen=True, slots=True)
class History:
    """Losses and validation results of one training stage, for the report.

    Args:
        steps: Step number of each entry.
        losses: Mean value of each named, unweighted loss since the entry before.
        validation: Step and value of each validation; higher is better.
    """

    steps: tuple[int, ...] = ()
    losses: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    validation: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A network that was measured before, to hold the networks of a run against.

    Args:
        name: What it is, for people.
        params: Its parameters.
        macs: Its multiply-accumulates for one example input.
        example_size: Shape of that input.
        measures: What it reached on test splits: measure name, then split name, then value.
    """

    name: str
    params: int
    macs: int
    example_size: tuple[int, ...]
    measures: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """One row of images for the report.

    Args:
        title: What is shown, such as the name of the photograph.
        images: Image by column name, in order: uint8, shape ``(height, width, 3)``.
        captions: Short text under some of the columns, such as ``27.1 dB``.
    """

    title: str
    images: Mapping[str, Tensor]
    captions: Mapping[str, str] = field(default_factory=dict)

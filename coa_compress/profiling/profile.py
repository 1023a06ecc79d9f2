"""Everything that a network costs, at one input size or several, on one device."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from coa_compress.errors import (
    FOREIGN_ERRORS,
    CoaError,
    ModelError,
    SettingError,
    first_line,
    is_out_of_memory,
)
from coa_compress.profiling.counting import Work, count_params, file_bytes, work_by_module
from coa_compress.profiling.execution import Execution, Prepared, forget_compiled, prepared
from coa_compress.profiling.memory import peak_memory_mb
from coa_compress.profiling.timing import Latency, compare_latency, measure_latency_ms
from coa_compress.protocols import Progress, no_progress

Shape = tuple[int, ...]

EngineBuilder = Callable[[Tensor], nn.Module]
"""Makes the same network run by another engine, for one input."""

OUT_OF_MEMORY = "out of memory"
"""Note of a row that did not fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """What one module costs by itself, its children not counted.

    Args:
        path: Dotted path; empty for the network itself.
        kind: Name of its class.
        params: Elements of its own parameters.
        macs: Multiply-accumulates that it asks for.
        activations: Elements that its convolutions and matrix products write.
    """

    path: str
    kind: str
    params: int
    macs: int
    activations: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherEngine:
    """Time of another engine, in turns with torch.

    Args:
        name: Of the engine.
        latency: Its time of one pass.
        by_torch: Median over the rounds of its time by that of torch, both of one round.
        by_torch_p10: Quotient that one round in ten stays under.
        by_torch_p90: Quotient that nine rounds in ten stay under.
    """

    name: str
    latency: Latency
    by_torch: float
    by_torch_p10: float
    by_torch_p90: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What a network costs at one input size; a size that did not fit has only a note.

    Args:
        example_size: Shape of the input, the batch first.
        macs: Multiply-accumulates of one pass.
        activations: Elements that convolutions, matrix products and attention write in it.
        peak_memory_mb: Peak of one pass in megabytes of 10**6 bytes.
        latency: Time of one pass.
        other: The same network in another engine, where one was asked for.
        note: Why there are no figures; empty where there are.
    """

    example_size: Shape
    macs: int | None = None
    activations: int | None = None
    peak_memory_mb: float | None = None
    latency: Latency | None = None
    other: OtherEngine | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What a network costs.

    Args:
        device: Name of the device; no time means anything without it.
        threads: CPU threads that PyTorch may use inside an operation.
        execution: How the network was run.
        params: Elements of all parameters, shared ones once.
        file_bytes: Size of its weights as safetensors.
        rows: One for each input size.
        layers: The modules that have parameters or multiply, in order of first use, at the size
            of the first row that has figures.

    Raises:
        SettingError: If the device has no name.
    """

    device: str
    threads: int
    execution: Execution
    params: int
    file_bytes: int
    rows: tuple[Row, ...]
    layers: tuple[LayerCost, ...]

    def __post_init__(self) -> None:
        if not self.device.strip():
            message = "a time needs the name of the device that it was measured on, got none"
            raise SettingError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What to measure, and how.

    Args:
        shapes: Shapes of the input, the batch first.
        device: Name of the device, for people.
        execution: How to run the network.
        rounds: Timed passes of each row, from 1.
    """

    shapes: Sequence[Shape]
    device: str
    execution: Execution
    rounds: int = 20


def profile_network(
    model: nn.Module,
    example: Tensor,
    sweep: Sweep,
    *,
    engine: tuple[str, EngineBuilder] | None = None,
    progress: Progress = no_progress,
) -> Profile:
    """Return what a network costs at each input size; one that does not fit is noted in its row.

    Args:
        model: Any network; unchanged.
        example: An input, on the device of the model: device and number format of all inputs.
        sweep: What to measure, and how.
        engine: Name and builder of another engine, timed in turns with torch; None for none.
        progress: Told after each row.

    Raises:
        ModelError: If the network does not run at one of the sizes.
        SettingError: If the device cannot run a network like that.

    >>> sweep = Sweep(shapes=[(1, 3, 4, 4)], device="this CPU", execution=Execution(), rounds=1)
    >>> profile = profile_network(nn.Conv2d(3, 8, 1), torch.zeros(1, 3, 4, 4), sweep)
    >>> profile.params, profile.rows[0].macs, profile.rows[0].activations
    (32, 384, 128)
    """
    sweep.execution.check(example.device)
    works: dict[str, Work] = {}
    rows = []
    for shape in sweep.shapes:
        row, found = _row_or_note(model, example, shape, sweep, engine)
        works = works or found
        rows.append(row)
        progress(len(rows), len(sweep.shapes), {})
    return Profile(
        device=sweep.device,
        threads=torch.get_num_threads(),
        execution=sweep.execution,
        params=count_params(model),
        file_bytes=file_bytes(model),
        rows=tuple(rows),
        layers=_layers(model, works),
    )


def free_memory(device: torch.device) -> None:
    """Give back what a failed pass has left behind."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _row_or_note(
    model: nn.Module,
    example: Tensor,
    shape: Shape,
    sweep: Sweep,
    engine: tuple[str, EngineBuilder] | None,
) -> tuple[Row, dict[str, Work]]:
    try:
        return _row(model, _random(shape, example), sweep, engine)
    except CoaError:
        raise
    except (*FOREIGN_ERRORS, MemoryError) as error:
        if not is_out_of_memory(error):
            message = (
                f"{type(model).__name__} does not run on an input of shape {shape} in "
                f"{sweep.execution.dtype}: {first_line(error)}"
            )
            raise ModelError(message) from None
    # outside of the handler: until its end the error keeps the tensors of the failed pass alive
    free_memory(example.device)
    return Row(example_size=shape, note=OUT_OF_MEMORY), {}


def _row(
    model: nn.Module, example: Tensor, sweep: Sweep, engine: tuple[str, EngineBuilder] | None
) -> tuple[Row, dict[str, Work]]:
    if sweep.execution.compiled:
        forget_compiled()
    with prepared(model, example, sweep.execution) as network:
        works = work_by_module(network.plain, network.example)
        total = sum(works.values(), Work())
        # tensors are followed one by one on the CPU, which compiled code does not allow
        followed = network.compiled if example.device.type == "cuda" else network.plain
        memory = peak_memory_mb(followed, network.example)
        latency, other = _timed(network, example, sweep.rounds, engine)
    row = Row(
        example_size=tuple(example.shape),
        macs=total.macs,
        activations=total.activations,
        peak_memory_mb=memory,
        latency=latency,
        other=other,
    )
    return row, works


def _timed(
    network: Prepared, example: Tensor, rounds: int, engine: tuple[str, EngineBuilder] | None
) -> tuple[Latency, OtherEngine | None]:
    if engine is None:
        times = measure_latency_ms({"torch": network.timed}, network.example, rounds=rounds)
        return times["torch"], None
    name, build = engine
    both = compare_latency(build(example), network.timed, network.example, rounds=rounds)
    other = OtherEngine(
        name=name,
        latency=both.first,
        by_torch=both.kept,
        by_torch_p10=both.kept_p10,
        by_torch_p90=both.kept_p90,
    )
    return both.second, other


def _random(shape: Shape, like: Tensor) -> Tensor:
    made = torch.rand(*shape, generator=torch.Generator().manual_seed(0))
    return made.to(device=like.device, dtype=like.dtype)


def _layers(model: nn.Module, works: dict[str, Work]) -> tuple[LayerCost, ...]:
    modules = dict(model.named_modules())
    own = {
        path: sum(parameter.numel() for parameter in module.parameters(recurse=False))
        for path, module in modules.items()
    }
    order = dict.fromkeys([*works, *(path for path, params in own.items() if params)])
    return tuple(
        LayerCost(
            path=path,
            kind=type(modules[path]).__name__,
            params=own[path],
            macs=works.get(path, Work()).macs,
            activations=works.get(path, Work()).activations,
        )
        for path in order
    )

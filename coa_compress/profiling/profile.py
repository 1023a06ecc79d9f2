"""Everything that a network costs at one input size on one device."""

from dataclasses import dataclass

from torch import Tensor, nn

from coa_compress.profiling.counting import count_params, file_bytes, macs_by_module
from coa_compress.profiling.memory import peak_memory_mb
from coa_compress.profiling.timing import Latency, measure_latency_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """What one module costs by itself, its children not counted.

    Args:
        path: Dotted path; empty for the network itself.
        kind: Name of its class.
        params: Elements of its own parameters.
        macs: Multiply-accumulates that it asks for.
    """

    path: str
    kind: str
    params: int
    macs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What a network costs.

    Args:
        params: Elements of all parameters, shared ones once.
        macs: Multiply-accumulates of one pass.
        peak_memory_mb: Peak of one pass in megabytes of 10**6 bytes.
        file_bytes: Size of its weights as safetensors.
        latency: Time of one pass, on which device with how many threads.
        example_size: Shape of the input.
        layers: The modules that have parameters or multiply, in order of first use.
    """

    params: int
    macs: int
    peak_memory_mb: float
    file_bytes: int
    latency: Latency
    example_size: tuple[int, ...]
    layers: tuple[LayerCost, ...]


def profile_network(model: nn.Module, example: Tensor, *, rounds: int = 20) -> Profile:
    """Return what a network costs.

    Args:
        model: Any network; unchanged.
        example: The input, on the device of the model.
        rounds: Timed passes, from 1.

    >>> import torch
    >>> profile = profile_network(nn.Conv2d(3, 8, 1), torch.zeros(1, 3, 4, 4), rounds=1)
    >>> profile.params, profile.macs, [layer.kind for layer in profile.layers]
    (32, 384, ['Conv2d'])
    """
    by_module = macs_by_module(model, example)
    return Profile(
        params=count_params(model),
        macs=sum(by_module.values()),
        peak_memory_mb=peak_memory_mb(model, example),
        file_bytes=file_bytes(model),
        latency=measure_latency_ms({"model": model}, example, rounds=rounds)["model"],
        example_size=tuple(example.shape),
        layers=_layers(model, by_module),
    )


def _layers(model: nn.Module, by_module: dict[str, int]) -> tuple[LayerCost, ...]:
    modules = dict(model.named_modules())
    own = {
        path: sum(parameter.numel() for parameter in module.parameters(recurse=False))
        for path, module in modules.items()
    }
    order = dict.fromkeys([*by_module, *(path for path, params in own.items() if params)])
    return tuple(
        LayerCost(
            path=path,
            kind=type(modules[path]).__name__,
            params=own[path],
            macs=by_module.get(path, 0),
        )
        for path in order
    )

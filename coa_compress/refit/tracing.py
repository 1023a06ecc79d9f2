"""One run of a network, written down: which weights were used, how, and in which order."""

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from coa_compress.refit.calls import Call, Watch
from coa_compress.refit.operators import Operator, Size, size_of
from coa_compress.structure.rebuild import named_tensors
from coa_compress.structure.torch_export import FAILURES

COMPUTED = "computed "
"""How the key of a weight starts that is no parameter or buffer of the network."""

RunId = tuple[str, int]
"""The key of a weight, and which of its calls in one forward pass."""


class Ledger:
    """Names calls by the weight they use.

    Args:
        model: The network that runs; a ledger is good for one forward pass.
    """

    def __init__(self, model: nn.Module) -> None:
        self._names: dict[int, str] = {}
        for name, tensor in named_tensors(model).items():
            self._names.setdefault(id(tensor), name)
        self._runs: Counter[str] = Counter()
        self._computed = 0

    def name_of(self, tensor: Tensor | None) -> str | None:
        """Return the first name of a tensor of the network, or None."""
        return None if tensor is None else self._names.get(id(tensor))

    def enter(self, call: Call) -> RunId:
        """Return the name of a call; calls are entered in the order of execution."""
        key = self.name_of(call.weight)
        if key is None:
            key = f"{COMPUTED}{self._computed}"
            self._computed += 1
        self._runs[key] += 1
        return key, self._runs[key] - 1


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """A call as the trace has it.

    Args:
        key: The weight.
        number: Which call of it.
        operator: What it does with the weight.
        shape: Of the weight.
        size: Shape of the output without its channels.
        n_channels: Channels of the output.
        bias: Name of the bias, empty when it is computed, None when there is none.
    """

    key: str
    number: int
    operator: Operator
    shape: torch.Size
    size: Size
    n_channels: int
    bias: str | None


@torch.no_grad()
def trace(model: nn.Module, example: Tensor) -> list[Run]:
    """Return every call of a linear operator in a forward pass, in the order of execution.

    >>> [(run.key, run.size) for run in trace(nn.Conv2d(3, 4, 1), torch.zeros(1, 3, 2, 2))]
    [('weight', (1, 2, 2))]
    """
    ledger, runs = Ledger(model), list[Run]()

    def visit(call: Call) -> bool:
        key, number = ledger.enter(call)
        bias = None if call.bias is None else ledger.name_of(call.bias) or ""
        output, dim = call.output, call.operator.channel_dim
        size, n_channels = size_of(output, dim), output.shape[dim]
        runs.append(Run(key, number, call.operator, call.weight.shape, size, n_channels, bias))
        return False

    with Watch(visit):
        model(example)
    return runs


def trace_computed(
    model: nn.Module, example: Tensor, tell: Callable[[str, Call, Tensor], None]
) -> None:
    """Tell of every computed weight of a forward pass while its gradients can be asked for.

    Args:
        model: Its parameters are leaves that require gradients meanwhile.
        example: Input of the network.
        tell: Called with the key, the call, and the input that may be asked about too.
    """
    frozen = [p for p in model.parameters() if not p.requires_grad and p.is_floating_point()]
    ledger, given = Ledger(model), example.detach().requires_grad_()

    def visit(call: Call) -> bool:
        key, _ = ledger.enter(call)
        if key.startswith(COMPUTED):
            tell(key, call, given)
        return False

    try:
        for parameter in frozen:
            parameter.requires_grad_(True)  # noqa: FBT003
        with torch.enable_grad(), Watch(visit), suppress(*FAILURES):
            model(given.clone())
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)  # noqa: FBT003

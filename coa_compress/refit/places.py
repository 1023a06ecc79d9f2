"""Where the weight of a call is kept, so that a change of it can be written back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from coa_compress.refit.calls import Call
from coa_compress.refit.tracing import trace_computed
from coa_compress.structure.rebuild import named_tensors

_PARAMETRIZED = ".parametrizations."
_BY_INPUT = "its weight is computed from the input of the network"
_FOR_GOOD = "its weight is computed from others in a way that cannot be undone"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a weight or a bias is kept.

    Args:
        name: The parameter or buffer that takes the change.
        owner: Path of the module and the attribute of it through which it is set, for a
            parametrized weight; None to write the tensor itself.
        computed: Whether the operator is given something that is computed from it.
    """

    name: str
    owner: tuple[str, str] | None = None
    computed: bool = False

    @torch.no_grad()
    def add_(self, model: nn.Module, change: Tensor) -> None:
        """Add a change to the weight in a network."""
        if self.owner is None:
            tensor = named_tensors(model)[self.name]
            tensor.add_(change.reshape(tensor.shape).to(tensor))
            return
        module, attribute = model.get_submodule(self.owner[0]), self.owner[1]
        present = getattr(module, attribute)
        setattr(module, attribute, present + change.to(present))

    def stored(self, model: nn.Module) -> dict[str, Tensor]:
        """Return copies of everything that a change may write, by name."""
        names = named_tensors(model)
        if self.owner is None:
            return {self.name: names[self.name].detach().clone()}
        start = _parametrization(*self.owner)
        return {n: t.detach().clone() for n, t in names.items() if n.startswith(start)}


@dataclass(frozen=True, slots=True, eq=False)
class Computed:
    """What a computed weight, and the bias beside it, follow from.

    Args:
        weight: Where a change of the weight goes, or why it goes nowhere.
        bias: The same of the bias; None where there is none, or it cannot be changed.
        sources: Parameters that the weight is computed from.
    """

    weight: Place | str
    bias: Place | None
    sources: tuple[str, ...]


def computed_places(model: nn.Module, example: Tensor) -> dict[str, Computed]:
    """Return where the computed weights of a network are kept, by their keys.

    A parameter that enters a computed weight as a plain summand, such as the ordinary kernel among
    the difference kernels of DEConv (Chen et al. 2023, arXiv:2301.04805), takes a change of that
    weight as it is: the gradient of the weight with respect to it is the identity. A
    parametrization of torch takes it through its ``right_inverse``.

    Args:
        model: The network.
        example: Its input; one example is run with gradients.
    """
    found: dict[str, Computed] = {}
    parameters = dict(model.named_parameters())

    def tell(key: str, call: Call, given: Tensor) -> None:
        weight, sources = _place(call.weight, model, parameters, given)
        bias = None if call.bias is None else _place(call.bias, model, parameters, given)[0]
        found[key] = Computed(weight, bias if isinstance(bias, Place) else None, sources)

    trace_computed(model, example[:1], tell)
    return found


def _place(
    value: Tensor, model: nn.Module, parameters: Mapping[str, Tensor], given: Tensor
) -> tuple[Place | str, tuple[str, ...]]:
    if value.grad_fn is None:
        found = tuple(name for name, tensor in parameters.items() if tensor is value)
        return (Place(found[0]) if found else _FOR_GOOD), found
    probe = torch.randn(value.shape, generator=torch.Generator().manual_seed(0)).to(value)
    asked = [given, *(p for p in parameters.values() if p.requires_grad)]
    names = [name for name, p in parameters.items() if p.requires_grad]
    from_input, *gradients = torch.autograd.grad(
        value, asked, probe, retain_graph=True, allow_unused=True
    )
    sources = {n: g for n, g in zip(names, gradients, strict=True) if g is not None}
    if from_input is not None:
        return _BY_INPUT, tuple(sources)
    owner = _owner(tuple(sources))
    if owner is not None:
        if not _takes_values(model, *owner):
            return _FOR_GOOD, tuple(sources)
        return Place(min(sources), owner, computed=True), tuple(sources)
    for name, gradient in sources.items():
        if gradient.numel() == probe.numel() and torch.equal(gradient.flatten(), probe.flatten()):
            return Place(name, computed=True), tuple(sources)
    return _FOR_GOOD, tuple(sources)


def _owner(sources: Sequence[str]) -> tuple[str, str] | None:
    """Return module and attribute if everything belongs to one parametrized tensor."""
    owners = set()
    for name in sources:
        module, found, rest = f".{name}".partition(_PARAMETRIZED)
        if not found:
            return None
        owners.add((module[1:], rest.partition(".")[0]))
    return owners.pop() if len(owners) == 1 else None


def _takes_values(model: nn.Module, path: str, attribute: str) -> bool:
    """Tell whether every parametrization of a tensor can be set to a value, by an inverse."""
    listed = model.get_submodule(_parametrization(path, attribute)[:-1])
    return all(hasattr(step, "right_inverse") for step in listed.children())


def _parametrization(path: str, attribute: str) -> str:
    return f"{path}{_PARAMETRIZED}{attribute}." if path else f"{_PARAMETRIZED[1:]}{attribute}."

"""Running a network with tagged integers, to learn where the sizes in its code come from."""

import hashlib
import inspect
import linecache
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from coa_compress.copying import copied
from coa_compress.structure.graph import ExportedGraph, Place, operator_name, place_of, words
from coa_compress.structure.sizes import (
    SHAPE,
    Key,
    SizeRead,
    SizeReads,
    TaggedInt,
    sized_by_parameters,
)
from coa_compress.structure.torch_export import FAILURES, in_torch


def read_sizes(model: nn.Module, example: Tensor, graph: ExportedGraph) -> SizeReads:
    """Return which integer arguments of tensor operators come from attributes and from shapes.

    A deep copy is run in evaluation mode with each integer attribute, and each size that code
    reads from a tensor, replaced by one that remembers its origin through ``+ - * // %``. Sizes
    that ``torch.nn`` modules keep of their parameters are left out, as they follow from the
    parameters. Nothing is found in a network whose code does not accept such integers.

    Args:
        model: Any network; it is unchanged.
        example: An input that it accepts; see ``probe_input``.
        graph: Its exported graph.
    """
    for shapes in (True, False):
        network = copied(model).eval()
        values = _tag_attributes(network)
        mode = _Listener(values if shapes else None)
        try:
            with warnings.catch_warnings(), torch.no_grad(), _followed(network, mode), mode:
                warnings.simplefilter("ignore")
                network(example)
        except FAILURES:
            continue
        return SizeReads(_located(graph, mode), values)
    return SizeReads((), {})


def probe_input(example: Tensor) -> Tensor:
    """Return random values in [0, 1) like an example, always the same ones.

    >>> bool(torch.equal(probe_input(torch.zeros(2, 3)), probe_input(torch.ones(2, 3))))
    True
    """
    if not example.is_floating_point():
        return example
    generator = torch.Generator().manual_seed(0)
    return torch.rand(example.shape, generator=generator).to(example)


def fingerprint(tensor: Tensor) -> str:
    """Return a digest of the values of a tensor."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest = hashlib.blake2b(flat.view(torch.uint8).numpy().tobytes(), digest_size=16)
    return f"{digest.hexdigest()} {tuple(tensor.shape)} {tensor.dtype}"


class _Listener(TorchFunctionMode):
    """Collects tagged integers that reach tensor operators."""

    def __init__(self, values: dict[Key, int] | None) -> None:
        super().__init__()
        self.values = values
        self.reads: list[SizeRead] = []
        self.calls: Counter[tuple[Place, str]] = Counter()
        self.running: list[str] = [""]

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        del types
        name = _FUNCTIONS.get(getattr(func, "__name__", ""))
        if name is not None:
            self._note(name, list(_integers([*args, *(kwargs or {}).values()])))
        result = func(*args, **(kwargs or {}))
        if self.values is not None and args and isinstance(args[0], Tensor):
            return self._tagged_shape(func, args[0], args[1:], result)
        return result

    def _note(self, name: str, integers: Sequence[int]) -> None:
        place = Place(self.running[-1], _caller())
        number = self.calls[place, name]
        self.calls[place, name] += 1
        for position, value in enumerate(integers):
            if isinstance(value, TaggedInt):
                call = (place, name, number)
                read = SizeRead(call, position, int(value), value.keys, value.formula)
                self.reads.append(read)

    def _tagged_shape(
        self, func: Callable[..., object], tensor: Tensor, args: Sequence[object], result: object
    ) -> object:
        is_shape = getattr(func, "__self__", None) is _SHAPE_GETTER
        if not is_shape and getattr(func, "__name__", "") != "size":
            return result
        digest = fingerprint(tensor)
        if isinstance(result, torch.Size):
            return torch.Size([self._tag(digest, dim, size) for dim, size in enumerate(result)])
        if isinstance(result, int) and args and isinstance(args[0], int):
            return self._tag(digest, int(args[0]) % tensor.dim(), result)
        return result

    def _tag(self, digest: str, dim: int, size: int) -> TaggedInt:
        key = (SHAPE, digest, dim)
        if self.values is not None:
            self.values[key] = int(size)
        return TaggedInt.of_attribute(int(size), key)


_SHAPE_GETTER: object = torch.Tensor.shape


def _integers(value: object) -> Iterator[int]:
    if isinstance(value, slice):
        value = (value.start, value.stop, value.step)
    if isinstance(value, bool):
        return
    if isinstance(value, int):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _integers(item)


def _caller() -> str:
    frame = inspect.currentframe()
    while frame is not None:
        code = frame.f_code
        if code.co_name == "forward" and not in_torch(code.co_filename):
            known = linecache.getline(code.co_filename, frame.f_lineno)
            return f"{code.co_filename}:{frame.f_lineno}" if known else ""
        frame = frame.f_back
    return ""


def _tag_attributes(network: nn.Module) -> dict[Key, int]:
    values: dict[Key, int] = {}
    for path, module in network.named_modules():
        sized = sized_by_parameters(module)
        if sized and type(module).__module__.startswith("torch.nn"):
            continue
        for name, value in list(vars(module).items()):
            if name in _TORCH_ATTRIBUTES or name in sized:
                continue
            tagged = _tagged(value, (path, name, -1), values)
            if tagged is not None:
                object.__setattr__(module, name, tagged)
    return values


_TORCH_ATTRIBUTES = frozenset(vars(nn.Module()))


def _tagged(value: object, key: Key, values: dict[Key, int]) -> object:
    if type(value) is int:
        values[key] = value
        return TaggedInt.of_attribute(value, key)
    if isinstance(value, list | tuple) and value and all(type(item) is int for item in value):
        items = []
        for index, item in enumerate(value):
            own = (key[0], key[1], index)
            values[own] = item
            items.append(TaggedInt.of_attribute(item, own))
        return items if isinstance(value, list) else tuple(items)
    return None


@contextmanager
def _followed(network: nn.Module, mode: _Listener) -> Iterator[None]:
    """Let a listener know which module runs; the hooks are on a private copy and removed."""
    with ExitStack() as stack:
        for path, module in network.named_modules():

            def enter(_module: nn.Module, _args: object, path: str = path) -> None:
                mode.running.append(path)

            def leave(_module: nn.Module, _args: object, _output: object) -> None:
                mode.running.pop()

            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(leave).remove)
        yield


_FUNCTIONS: Mapping[str, str] = {
    **{
        name: name
        for name in words(
            "reshape expand unflatten zeros ones full empty new_zeros new_ones new_full "
            "new_empty narrow split layer_norm rms_norm conv1d conv2d conv3d conv_transpose1d "
            "conv_transpose2d conv_transpose3d repeat"
        )
    },
    "view": "reshape",  # in an exported graph, too
    "__getitem__": "slice",
    "__setitem__": "slice",
    "slice_scatter": "slice",
    "split_with_sizes": "split",
}
"""The operator that a Python function calls, by the name of the function."""


def _located(graph: ExportedGraph, mode: _Listener) -> tuple[SizeRead, ...]:
    """Return the reads with the nodes of the graph that they belong to.

    Calls of the same function on the same line of the same module run in the same order in the
    graph. Where their numbers differ, as for an index with several slices, all of them may be it.
    """
    nodes: dict[tuple[Place, str], list[fx.Node]] = {}
    places = {read.call[0] for read in mode.reads}
    for node in graph.nodes:
        if node.op == "call_function" and places:
            place = place_of(node)
            name = operator_name(node)
            nodes.setdefault((place, _FUNCTIONS.get(name, name)), []).append(node)
    located: list[SizeRead] = []
    for read in mode.reads:
        place, name, number = read.call
        alike = nodes.get((place, name), [])
        exact = name != "slice" and len(alike) == mode.calls[place, name]
        found = alike[number : number + 1] if exact else alike
        located.append(replace(read, nodes=tuple(found)))
    return tuple(located)

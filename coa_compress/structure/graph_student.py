"""Students in graph mode: networks that run the teacher's exported graph at new widths.

Python code that hard-codes a size (``x[:, :8]``) cannot follow a cut, but the graph of the calls
that it makes can be written anew. A graph holds for one input size, so that it is made once for
each size that the student meets.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from coa_compress.copying import copied, placed
from coa_compress.structure.graph import ExportedGraph, export_graph
from coa_compress.structure.propagation import LabeledGraph, propagate
from coa_compress.structure.rebuild import named_tensors, replace_tensors_
from coa_compress.structure.rewriting import LAYERS, Program, write_program
from coa_compress.structure.selection import selection_of_slices

Slices = Mapping[str, Mapping[int, Tensor]]
"""Kept positions of each cut dimension of each cut parameter and buffer."""

_MOST_GRAPHS = 4
_MOST_PROGRAMS = 32


class GraphsBySize:
    """Exported graphs of one network with labels, made when they are first needed.

    Labels are those of a graph that can be rewritten: the code of the network does not matter.

    Args:
        model: The network; of its parameters only the shapes are kept.
        outputs: Numbers of the outputs whose channels stay; empty for all.
    """

    def __init__(self, model: nn.Module, outputs: Collection[int] = ()) -> None:
        self.name = type(model).__name__
        self.outputs = tuple(outputs)
        self.network = _without_values(model)
        floating = (p.dtype for p in self.network.parameters() if p.is_floating_point())
        self._dtype = next(floating, torch.get_default_dtype())
        self._default_dtype = torch.get_default_dtype()
        self._known: dict[tuple[int, ...], LabeledGraph] = {}

    def at(self, example: Tensor) -> LabeledGraph:
        """Return the labeled graph at the size of an input.

        Raises:
            StructureError: If the network cannot be exported at that size.
        """
        size = tuple(example.shape)
        if size not in self._known:
            kind = self._dtype if example.is_floating_point() else example.dtype
            with _plain_torch(self._default_dtype):
                graph = export_graph(self.network, torch.zeros(size, dtype=kind))
            return self.learn_(example, graph)
        return self._known[size]

    def learn_(self, example: Tensor, graph: ExportedGraph) -> LabeledGraph:
        """Return the labels of a graph that was exported at the size of an input; remember them."""
        _forget_oldest(self._known, _MOST_GRAPHS)
        labeled = propagate(graph, outputs=self.outputs)
        self._known[tuple(example.shape)] = labeled
        return labeled

    def __deepcopy__(self, memo: object) -> "GraphsBySize":
        """Return the very same: it does not depend on the values of parameters."""
        del memo
        return self


class _Programs:
    """The functions of a student, by input size, type and device; shared by its copies."""

    def __init__(self, graphs: GraphsBySize, slices: Slices) -> None:
        self.graphs, self.slices = graphs, slices
        self._known: dict[tuple[object, ...], Program] = {}

    def of(self, owner: nn.Module, example: Tensor) -> Program:
        key = (tuple(example.shape), example.dtype, example.device)
        if key not in self._known:
            selection = selection_of_slices(self.graphs.at(example), self.slices)
            _forget_oldest(self._known, _MOST_PROGRAMS)
            with _plain_torch(torch.get_default_dtype()):
                self._known[key] = write_program(selection, owner, example)
        return self._known[key]

    def __deepcopy__(self, memo: object) -> "_Programs":
        del memo
        return self


class GraphStudent(nn.Module):
    """A network with the parameters of another one that runs its graph at new widths.

    Parameters, buffers and the convolutions, linear layers and batch norms of ``torch.nn`` keep
    their names. The first run at a new input size takes as long as an export. What differs
    between training and evaluation is as in evaluation, but for batch norms that are modules.

    Args:
        network: Holds the cut parameters, under the teacher's names; it becomes part of this.
        graphs: The teacher's graphs.
        slices: Kept positions of each cut parameter and buffer of the teacher.
    """

    def __init__(self, network: nn.Module, graphs: GraphsBySize, slices: Slices) -> None:
        super().__init__()
        _take_over_(self, network, {})
        self._programs = _Programs(graphs, slices)

    @property
    def slices(self) -> Slices:
        """Kept positions of each cut parameter and buffer of the teacher."""
        return self._programs.slices

    @property
    def outputs(self) -> tuple[int, ...]:
        """Numbers of the outputs whose channels stay; empty for all."""
        return self._programs.graphs.outputs

    @property
    def source(self) -> nn.Module:
        """The teacher without the values of its parameters, which is exported at each size."""
        return self._programs.graphs.network

    def forward(self, x: Tensor) -> Any:
        """Return what the teacher's kept channels compute."""
        return self._programs.of(self, x)(self, x)

    def extra_repr(self) -> str:
        """Return whose graph it is."""
        return f"graph of {self._programs.graphs.name}"


@contextmanager
def _plain_torch(dtype: torch.dtype) -> Iterator[None]:
    """Let torch work as it does by itself, whatever a caller has switched on."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with ExitStack() as stack:
            for device in ("cpu", "cuda"):
                stack.enter_context(torch.autocast(device, enabled=False))
            stack.enter_context(torch.inference_mode(mode=False))
            stack.enter_context(_disable_current_modes())
            yield
    finally:
        torch.set_default_dtype(before)


def _take_over_(target: nn.Module, source: nn.Module, seen: dict[int, nn.Module]) -> nn.Module:
    """Give a plain module the parameters, buffers and parts of another one."""
    seen[id(source)] = target
    target._parameters.update(source._parameters)
    target._buffers.update(source._buffers)
    target._non_persistent_buffers_set.update(source._non_persistent_buffers_set)
    for name, part in source._modules.items():
        if part is None:
            continue
        if id(part) not in seen:
            if type(part) in LAYERS:
                seen[id(part)] = part
            else:
                _take_over_(nn.Module(), part, seen)
        target._modules[name] = seen[id(part)]
    target.training = source.training
    return target


def _without_values(model: nn.Module) -> nn.Module:
    """Return a copy on the CPU whose parameters are empty: memory that is never touched."""
    network = placed(copied(model), "cpu").eval()
    parameters = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype)
        for name, tensor in named_tensors(network).items()
        if isinstance(tensor, nn.Parameter)
    }
    replace_tensors_(network, parameters)
    return network


def _forget_oldest(known: dict[Any, Any], most: int) -> None:
    while len(known) >= most:
        del known[next(iter(known))]

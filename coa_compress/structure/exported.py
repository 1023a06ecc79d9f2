"""The structure of one network: its groups, its costs and its cuts, from the exported graph."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from coa_compress.artifacts import ChannelGroup, Cut, Workload
from coa_compress.costs import CostModel, full_widths
from coa_compress.structure.cutting import checked_channels, cut_network
from coa_compress.structure.graph_student import GraphsBySize, GraphStudent
from coa_compress.structure.groups import FoundGroup, cost_model
from coa_compress.structure.propagation import LabeledGraph
from coa_compress.structure.selection import Selection, dead_labels
from coa_compress.structure.sizes import SizeReads
from coa_compress.structure.workload import find_workload


@dataclass(frozen=True, slots=True, eq=False)
class ExportedStructure:
    """The channel groups of a network, found in its exported graph.

    Args:
        model: The teacher; cuts are made from its present weights and leave it unchanged.
        labeled: Labels of every tensor of its graph.
        found: The groups that may be cut, with their labels.
        reads: Which integers its code reads from attributes; None in graph mode, in which the
            student runs the graph instead of the code.
        costs: Exact MACs and parameters as functions of the widths.
        graphs: The graphs of the network at any input size.
        frozen: Groups that are not cut because the code of the network fixes their widths.
    """

    model: nn.Module
    labeled: LabeledGraph
    found: tuple[FoundGroup, ...]
    reads: SizeReads | None
    costs: CostModel
    graphs: GraphsBySize
    frozen: tuple[str, ...] = ()

    @property
    def mode(self) -> str:
        """How students run: ``module`` for the teacher's own class, ``graph`` for its graph."""
        return "graph" if self.reads is None else "module"

    @property
    def groups(self) -> tuple[ChannelGroup, ...]:
        """Every group that may be cut, in the order of the network."""
        return tuple(found.group for found in self.found)

    @property
    def widths(self) -> dict[str, int]:
        """Channels of each group before any cut."""
        groups = self.groups
        return full_widths([g.name for g in groups], [g.n_channels for g in groups])

    @property
    def unknown_ops(self) -> tuple[str, ...]:
        """Names of operators without a rule that channels enter, which are frozen there."""
        return tuple(sorted(self.labeled.findings.unknown))

    def workload(self) -> Workload:
        """Return what one pass does, for budgets on latency and memory."""
        return find_workload(self.labeled, self.model, self.found)

    def cut(self, kept: Mapping[str, Tensor]) -> Cut:
        """Return a new network with only the kept channels.

        Args:
            kept: Channel numbers that stay, by group name; groups not named stay whole.

        Raises:
            StructureError: If a group is unknown, or its channels are empty, double or out of
                range.
        """
        cut = cut_network(self.model, self.selection(kept), self.reads)
        if self.reads is not None:
            return cut
        return replace(cut, student=GraphStudent(cut.student, self.graphs, cut.slices))

    def selection(self, kept: Mapping[str, Tensor]) -> Selection:
        """Return a choice of channels as seen from the graph; raises what ``cut`` raises."""
        channels = checked_channels(self.groups, kept)
        labels = {found.group.name: found.labels for found in self.found}
        return Selection(self.labeled, dead_labels(self.labeled, labels, channels))

    def restricted_to(self, names: Collection[str]) -> "ExportedStructure":
        """Return the same structure in which only the named groups may be cut."""
        found = tuple(item for item in self.found if item.group.name in names)
        return replace(self, found=found, costs=cost_model(self.labeled, self.model, found))

    def without(self, names: Collection[str]) -> "ExportedStructure":
        """Return the same structure in which the named groups are frozen."""
        left = [name for name in self.widths if name not in names]
        return replace(self.restricted_to(left), frozen=(*self.frozen, *names))

    def with_model(self, model: nn.Module) -> "ExportedStructure":
        """Return the same structure for a network that differs only in its weights."""
        return replace(self, model=model)

"""Analysis of a network: from a module and an example input to its structure."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from coa_compress.artifacts import ChannelGroup
from coa_compress.errors import StructureError
from coa_compress.registry import did_you_mean
from coa_compress.structure.couplings import couple_sizes
from coa_compress.structure.exported import ExportedStructure
from coa_compress.structure.graph import ExportedGraph, export_graph
from coa_compress.structure.graph_student import GraphsBySize
from coa_compress.structure.groups import cost_model, find_groups, module_paths
from coa_compress.structure.modes import Mode, check_mode, choose_mode, freeze_inexact
from coa_compress.structure.propagation import propagate
from coa_compress.structure.reading import probe_input, read_sizes


def analyze(
    model: nn.Module,
    example: Tensor,
    *,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    mode: Mode = "auto",
    outputs: Sequence[int] = (),
) -> ExportedStructure:
    """Return the channel groups of a network, what they cost, and the means to cut them.

    The network is exported by ``torch.export``. Every tensor dimension gets integer labels;
    operators unite those that must stay together; what reaches the input or an output is frozen.
    A trial cut is compared with the full-size graph in double precision, and groups whose widths
    the network's code fixes are frozen with a warning.

    Args:
        model: Any network that takes one tensor; it is unchanged, bit for bit.
        example: An input; batch, height and width are those that MACs are counted for.
        include: Patterns such as ``encoder.*`` over group names and module paths; only groups
            that match one are cut.
        exclude: Patterns of groups that are not cut.
        mode: ``module`` for students of the network's own class, without the groups whose widths
            its code fixes; ``graph`` for students that run the exported graph, in which every
            size follows; ``auto`` for the first, unless that freezes groups and the second can
            get smaller.
        outputs: Numbers of the outputs whose channels must stay, counted from 0; empty for all.

    Raises:
        StructureError: If the network cannot be exported, a pattern matches nothing, or there is
            no group to cut.

    Warns:
        NoEffectWarning: If groups are frozen because the network's code fixes their widths.

    A student in graph mode has parts of plain ``torch.nn`` modules under the same names; see
    ``coa_compress.structure.graph_student``.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1))
    >>> structure = analyze(net, torch.zeros(1, 3, 8, 8))
    >>> structure.widths
    {'0': 8}
    >>> structure.cut({"0": torch.tensor([0, 2, 5])}).student[0]
    Conv2d(3, 3, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    """
    check_mode(mode)
    graph = export_graph(model, example)
    graphs = GraphsBySize(model, outputs)
    patterns = (include, exclude)
    if mode == "graph":
        structure = _selected(_of_graph(model, example, graph, graphs), patterns)
        return freeze_inexact(structure, example)
    own = _of_code(model, example, graph, graphs)
    if mode == "module":
        return freeze_inexact(_selected(own, patterns), example)

    def rewritten() -> ExportedStructure:
        found = _of_graph(model, example, graph, graphs)
        return _selected(found, patterns) if found.found or not own.found else found

    return choose_mode(_selected(own, patterns) if own.found else own, rewritten, example)


def _of_code(
    model: nn.Module, example: Tensor, graph: ExportedGraph, graphs: GraphsBySize
) -> ExportedStructure:
    """Return what may be cut as far as the code of the network can follow."""
    probe = probe_input(example)
    reads = read_sizes(model, probe, graph)
    labeled = propagate(graph, reads, outputs=graphs.outputs)
    reads = couple_sizes(labeled, reads, model, probe)
    found = find_groups(labeled)
    costs = cost_model(labeled, model, found)
    return ExportedStructure(model, labeled, found, reads, costs, graphs)


def _of_graph(
    model: nn.Module, example: Tensor, graph: ExportedGraph, graphs: GraphsBySize
) -> ExportedStructure:
    """Return what may be cut when the graph is rewritten."""
    labeled = graphs.learn_(example, graph)
    found = find_groups(labeled)
    costs = cost_model(labeled, model, found)
    return ExportedStructure(model, labeled, found, None, costs, graphs)


def _selected(
    structure: ExportedStructure, patterns: tuple[Sequence[str], Sequence[str]]
) -> ExportedStructure:
    """Return the structure with the groups that the patterns include and do not exclude."""
    if not structure.found:
        unknown = ", ".join(structure.unknown_ops)
        cause = f"; operators without a rule: {unknown}" if unknown else ""
        message = f"no channel group to cut in {type(structure.model).__name__}: all channels "
        message += f"reach its input or output, or are fixed{cause}"
        raise StructureError(message)
    return structure.restricted_to(select_groups(structure.groups, *patterns))


def select_groups(
    groups: Sequence[ChannelGroup], include: Sequence[str], exclude: Sequence[str]
) -> list[str]:
    """Return the names of the groups that some patterns select, in order.

    Args:
        groups: All groups.
        include: Patterns over group names and module paths; one must match.
        exclude: Patterns of which none may match.

    Raises:
        StructureError: If a pattern matches nothing, or nothing is left.

    >>> groups = [ChannelGroup(name, 8, ()) for name in ("stem", "body.0", "body.1")]
    >>> select_groups(groups, ["*"], ["body.*"])
    ['stem']
    """
    known = {group.name: {group.name, *module_paths(group)} for group in groups}
    for pattern in (*include, *exclude):
        if not any(_matches(pattern, names) for names in known.values()):
            everything = sorted(set().union(*known.values()))
            message = f"{pattern!r} matches no channel group: {did_you_mean(pattern, everything)}"
            raise StructureError(message)
    left = [
        name
        for name, names in known.items()
        if any(_matches(pattern, names) for pattern in include)
        and not any(_matches(pattern, names) for pattern in exclude)
    ]
    if not left:
        message = f"no channel group is left of {', '.join(known)}: include {list(include)}, "
        message += f"exclude {list(exclude)}"
        raise StructureError(message)
    return left


def _matches(pattern: str, names: set[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)

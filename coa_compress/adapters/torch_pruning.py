"""Torch-Pruning's dependency graph as a structure: its groups and surgery, our costs."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from coa_compress.artifacts import AttributePatch, ChannelGroup, Cut, Member, Role
from coa_compress.copying import copied
from coa_compress.costs import CostFunction, CostModel, CostTerm, Extent
from coa_compress.errors import NoEffectWarning, StructureError
from coa_compress.profiling.counting import macs_by_module
from coa_compress.structure.analysis import select_groups

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
_NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")
_FEWEST = 2
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d)


@dataclass(frozen=True, slots=True, eq=False)
class TorchPruningStructure:
    """The channel groups of a network as Torch-Pruning finds them (Fang et al. 2023).

    Args:
        model: The teacher; cuts leave it unchanged.
        example: The input that MACs are counted for.
        groups: Every group that may be cut; each is named by the first module that writes it.
        costs: MACs and parameters as functions of the widths. Products without a weight, such as
            attention, count as if they kept their size.
    """

    model: nn.Module
    example: Tensor
    groups: tuple[ChannelGroup, ...]
    costs: CostModel

    @property
    def widths(self) -> dict[str, int]:
        """Channels of each group before any cut."""
        return {group.name: group.n_channels for group in self.groups}

    def cut(self, kept: Mapping[str, Tensor]) -> Cut:
        """Return a new network with only the kept channels.

        Args:
            kept: Channel numbers that stay, by group name; groups not named stay whole.

        Raises:
            StructureError: If a group is unknown or would lose all channels, or the library's
                surgery does not fit its own groups.
        """
        known = {group.name: group for group in self.groups}
        removed = {name: _removed(known, name, channels) for name, channels in kept.items()}
        student = _pruned(self.model, self.example, removed)
        slices = _slices([known[name] for name in kept], removed, self.model)
        tensors = student.state_dict(keep_vars=True)
        for name, dims in slices.items():
            for dim, positions in dims.items():
                if tensors[name].shape[dim] != len(positions):
                    message = f"torch-pruning left {tensors[name].shape[dim]} of {name!r}, "
                    message += f"expected {len(positions)}: exclude the groups of that module"
                    raise StructureError(message)
        return Cut(student, slices, tuple(_patches(self.model, student)))


def analyze(
    model: nn.Module,
    example: Tensor,
    *,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
) -> TorchPruningStructure:
    """Return the structure of a network by Torch-Pruning's dependency graph (arXiv:2301.12900).

    Every group is tried: one that changes the shape of the output, or does not run, is left out
    with a warning. Groups through grouped convolutions, layer and group norms are left out too.

    Args:
        model: Any network that takes one tensor; unchanged.
        example: An input; batch, height and width are those that MACs are counted for.
        include: Patterns over group names and module paths; only groups that match one are cut.
        exclude: Patterns of groups that are not cut.

    Raises:
        StructureError: If the library is not installed or fails, or there is no group to cut.

    Warns:
        NoEffectWarning: If groups are left out because their cut does not work.
    """
    place = copied(model).eval()
    graph = _graph(place, example)
    order = [path for path, _ in place.named_modules()]
    found = sorted(_groups(graph, place), key=lambda group: order.index(group.name))
    working = [group for group in found if _works(place, example, group)]
    if len(working) < len(found):
        names = sorted({g.name for g in found} - {g.name for g in working})
        message = f"left whole, as torch-pruning cannot cut them: {', '.join(names)}"
        warnings.warn(message, NoEffectWarning, stacklevel=2)
    if not working:
        message = f"torch-pruning finds no channel group to cut in {type(model).__name__}: "
        message += "take the structure that is the default"
        raise StructureError(message)
    names = select_groups(working, include, exclude)
    groups = tuple(group for group in working if group.name in names)
    return TorchPruningStructure(model, example, groups, _costs(place, example, groups))


def _graph(model: nn.Module, example: Tensor) -> Any:
    try:
        import torch_pruning
    except ImportError:
        message = "torch-pruning is not installed: pip install torch-pruning==1.6.1"
        raise StructureError(message) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch_pruning.DependencyGraph().build_dependency(model, example_inputs=example)
    except Exception as error:  # noqa: BLE001  the library raises anything
        message = f"torch-pruning cannot read {type(model).__name__}: {error}: "
        message += "take the structure that is the default"
        raise StructureError(message) from None


def _groups(graph: Any, model: nn.Module) -> Iterator[ChannelGroup]:
    paths = {module: path for path, module in model.named_modules()}
    tensors = dict(model.state_dict(keep_vars=True))
    for group in graph.get_all_groups():
        found: dict[tuple[str, int], tuple[Role, dict[int, set[int]]]] = {}
        fits = True
        for number in range(len(group)):
            dependency, positions = group[number]
            reads = not graph.is_out_channel_pruning_fn(dependency.handler)
            spots = _spots(dependency.target.module, paths, tensors, graph, reads=reads)
            fits = fits and spots is not None
            for name, dim, role in spots or ():
                rows = found.setdefault((name, dim), (role, {}))[1]
                for position, channel in zip(positions, group[number].root_idxs, strict=True):
                    rows.setdefault(channel, set()).add(position)
        built = _built(list(paths.values()), found) if fits else None
        if built is not None:
            yield built


Spot = tuple[str, int, Role]


def _spots(
    module: Any, paths: Mapping[Any, str], tensors: Mapping[str, Tensor], graph: Any, *, reads: bool
) -> list[Spot] | None:
    """Return the tensor dimensions that a pruning function cuts, or None if that is not known."""
    if isinstance(module, nn.Parameter):
        name = graph._param_to_name[module]
        return [(name, graph.unwrapped_parameters[module] % module.dim(), "other")]
    path = paths.get(module)
    if path is None:
        return []
    if isinstance(module, _CONVS):
        return _conv_spots(path, module, reads=reads)
    if isinstance(module, nn.Linear):
        return [(f"{path}.weight", 1, "input")] if reads else _written(path, 0, module.bias)
    if isinstance(module, (*_NORMS, nn.PReLU)):
        names = [f"{path}.{name}" for name in _NORM_TENSORS]
        return [(name, 0, "other") for name in names if name in tensors]
    return None if any(True for _ in module.parameters(recurse=False)) else []


def _conv_spots(path: str, module: Any, *, reads: bool) -> list[Spot] | None:
    if module.groups > 1:
        depthwise = module.groups == module.in_channels == module.out_channels
        return _written(path, 0, module.bias) if depthwise else None
    first, second = (1, 0) if module.transposed else (0, 1)
    return [(f"{path}.weight", second, "input")] if reads else _written(path, first, module.bias)


def _written(path: str, dim: int, bias: Tensor | None) -> list[Spot]:
    spots: list[Spot] = [(f"{path}.weight", dim, "output")]
    return spots if bias is None else [*spots, (f"{path}.bias", 0, "other")]


def _built(
    paths: Sequence[str], found: Mapping[tuple[str, int], tuple[Role, Mapping[int, set[int]]]]
) -> ChannelGroup | None:
    members = []
    count = max((len(rows) for _, rows in found.values()), default=0)
    for (tensor, dim), (role, rows) in found.items():
        repeats = {len(positions) for positions in rows.values()}
        if sorted(rows) != list(range(count)) or len(repeats) != 1:
            return None
        positions = torch.tensor([sorted(rows[channel]) for channel in range(count)])
        members.append(Member(tensor, dim, role, positions))
    writers = {m.tensor.rpartition(".")[0] for m in members if _is_root(m, count)}
    name = next((path for path in paths if path in writers), None)
    return None if name is None or count < _FEWEST else ChannelGroup(name, count, tuple(members))


def _is_root(member: Member, count: int) -> bool:
    """Return whether the outputs of a module are the channels of its group, one by one."""
    straight = torch.equal(member.positions, torch.arange(count)[:, None])
    return member.role == "output" and straight


def _works(model: nn.Module, example: Tensor, group: ChannelGroup) -> bool:
    try:
        student = _pruned(model, example, {group.name: [group.n_channels - 1]})
        with torch.no_grad():
            return bool(student(example).shape == model(example).shape)
    except (RuntimeError, IndexError, ValueError, TypeError, StructureError):
        return False


def _pruned(model: nn.Module, example: Tensor, removed: Mapping[str, Sequence[int]]) -> nn.Module:
    student = copied(model).eval()
    graph = _graph(student, example)
    for name, channels in removed.items():
        if channels:
            root = student.get_submodule(name)
            cut = graph.get_pruner_of_module(root).prune_out_channels
            graph.get_pruning_group(root, cut, list(channels)).prune()
    return student


def _removed(known: Mapping[str, ChannelGroup], name: str, channels: Tensor) -> list[int]:
    if name not in known:
        message = f"no channel group {name!r}: known: {', '.join(known)}"
        raise StructureError(message)
    stay, count = set(channels.tolist()), known[name].n_channels
    if not stay or len(stay) != len(channels) or not stay <= set(range(count)):
        message = f"group {name!r} must keep some of its channels 0 to {count - 1}, each once"
        raise StructureError(message)
    return [channel for channel in range(count) if channel not in stay]


def _slices(
    groups: Sequence[ChannelGroup], removed: Mapping[str, Sequence[int]], model: nn.Module
) -> dict[str, dict[int, Tensor]]:
    tensors = model.state_dict()
    gone: dict[tuple[str, int], set[int]] = {}
    for group in groups:
        channels = list(removed[group.name])
        for member in group.members if channels else ():
            positions = member.positions[channels].flatten().tolist()
            gone.setdefault((member.tensor, member.dim), set()).update(positions)
    slices: dict[str, dict[int, Tensor]] = {}
    for (name, dim), dead in gone.items():
        left = [i for i in range(tensors[name].shape[dim]) if i not in dead]
        slices.setdefault(name, {})[dim] = torch.tensor(left)
    return slices


def _patches(teacher: nn.Module, student: nn.Module) -> Iterator[AttributePatch]:
    for path, module in student.named_modules():
        before = vars(teacher.get_submodule(path))
        for name, value in vars(module).items():
            if type(value) is int and before.get(name) != value:
                yield AttributePatch(path, name, value)


def _costs(model: nn.Module, example: Tensor, groups: Sequence[ChannelGroup]) -> CostModel:
    names = tuple(group.name for group in groups)
    macs = macs_by_module(model, example)
    in_macs, in_params = [], []
    for name, tensor in model.named_parameters():
        extents = tuple(_extent(name, dim, size, groups) for dim, size in enumerate(tensor.shape))
        in_params.append(CostTerm(name, 1, extents))
        path, _, last = name.rpartition(".")
        if last == "weight" and macs.get(path, 0) and macs[path] % tensor.numel() == 0:
            in_macs.append(CostTerm(path, macs.pop(path) // tensor.numel(), extents))
    in_macs += [CostTerm(path, count, ()) for path, count in macs.items() if count]
    return CostModel(CostFunction(names, tuple(in_macs)), CostFunction(names, tuple(in_params)))


def _extent(name: str, dim: int, size: int, groups: Sequence[ChannelGroup]) -> Extent:
    repeats = {
        group.name: member.positions.shape[1]
        for group in groups
        for member in group.members
        if (member.tensor, member.dim) == (name, dim)
    }
    channels = {group.name: group.n_channels for group in groups}
    fixed = size - sum(count * channels[owner] for owner, count in repeats.items())
    return Extent(fixed, repeats)

"""Networks with fewer layers that compute the same: branches merged, batch norms folded."""

import warnings
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from coa_compress.copying import copied
from coa_compress.errors import NoEffectWarning, StructureError
from coa_compress.hooks import captured_outputs
from coa_compress.structure.merging import merged, pair, slack_of, with_folded_norm

_TOLERANCE = 1e-9


class ParallelConvs(nn.Module):
    """The sum of branches that read the same input; ``fold`` makes one convolution of it.

    Args:
        branches: Convolutions of one stride, batch norms, identities, or sequences of a
            convolution and a batch norm.

    >>> ParallelConvs(nn.Conv2d(2, 2, 3, padding=1), nn.Identity())(torch.zeros(1, 2, 4, 4)).shape
    torch.Size([1, 2, 4, 4])
    """

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of what the branches return."""
        first, *others = [branch(x) for branch in self.branches]
        total: Tensor = first
        for other in others:
            total = total + other
        return total


def with_branches(model: nn.Module, example: Tensor) -> nn.Module:
    """Return a copy in which each larger convolution has a 1 x 1 convolution beside it.

    The new ones are 0, so that the function is the same; they change how fast the middle of a
    kernel is learned (structural re-parameterization as in RepVGG, Ding et al. 2021,
    arXiv:2101.03697, without batch norms). A convolution is left alone that is not called as a
    module, occurs under two names, or has one position, a dilation or a padding that is not half
    of its kernel.

    Args:
        model: Unchanged.
        example: One input, on the device of the model.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 1))
    >>> [type(module).__name__ for module in with_branches(net, torch.zeros(1, 3, 8, 8))]
    ['ParallelConvs', 'Conv2d']
    """
    names = [id(module) for _, module in model.named_modules(remove_duplicate=False)]
    chosen = [
        path
        for path, module in model.named_modules()
        if type(module) is nn.Conv2d and _is_centered(module) and names.count(id(module)) == 1
    ]
    with captured_outputs(model, chosen) as called, torch.no_grad():
        model(example)
    model = copied(model)
    for path in chosen:
        conv = model.get_submodule(path)
        if path in called and isinstance(conv, nn.Conv2d):
            model = _with(model, path, ParallelConvs(conv, _empty_branch(conv)))
    return model


def fold(model: nn.Module, example: Tensor) -> nn.Module:
    """Return an equal network with fewer layers, for deployment.

    Every ``ParallelConvs`` becomes one convolution, and every batch norm whose input is the output
    of a convolution becomes a part of it, wherever the result is equal. Save the network from
    before: a folded one has other layers than the class that it came from, and is folded anew
    after loading.

    Args:
        model: Unchanged; the copy is in evaluation mode.
        example: One input, at which the two are compared in double precision.

    Raises:
        StructureError: If branches cannot be merged, or the outputs differ.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    >>> [type(module).__name__ for module in fold(net, torch.rand(1, 3, 8, 8))]
    ['Conv2d', 'Identity', 'ReLU']
    """
    before, image = copied(model).eval().double(), example.double()
    expected = _outputs(before, image)
    folded, count = _with_merged_branches(before)
    _check_equal(_outputs(folded, image), expected)
    for conv, norm in _normed_convs(folded, image):
        tried = _with_norm_in(folded, conv, norm)
        if _difference(_outputs(tried, image), expected) <= _TOLERANCE:
            folded, count = tried, count + 1
    if not count:
        message = f"fold has no effect: {type(model).__name__} has no parallel convolutions, and "
        message += "no batch norm right after a convolution"
        warnings.warn(message, NoEffectWarning, stacklevel=2)
    return folded.to(_dtype_of(model))


def merge_branches(model: nn.Module, example: Tensor) -> nn.Module:
    """Return an equal network without ``ParallelConvs``, compared in double precision.

    Args:
        model: Unchanged.
        example: One input, on the device of the model.

    Raises:
        StructureError: If branches cannot be merged, or the outputs differ.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))
    >>> merge_branches(with_branches(net, torch.zeros(1, 3, 8, 8)), torch.rand(1, 3, 8, 8))
    Sequential(
      (0): Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    )
    """
    before, image = copied(model).eval().double(), example.double()
    after, _ = _with_merged_branches(before)
    _check_equal(_outputs(after, image), _outputs(before, image))
    return after.to(_dtype_of(model))


def _with_merged_branches(model: nn.Module) -> tuple[nn.Module, int]:
    found = [(path, m) for path, m in model.named_modules() if isinstance(m, ParallelConvs)]
    model = copied(model)
    for path, parallel in found:
        channels = _channels_read(parallel)
        try:
            model = _with(model, path, merged(list(parallel.branches), channels=channels))
        except StructureError as error:
            message = f"cannot merge the branches of {path or type(model).__name__!r}: {error}"
            raise StructureError(message) from None
    return model, len(found)


def _with_norm_in(model: nn.Module, conv_path: str, norm_path: str) -> nn.Module:
    model = copied(model)
    conv, norm = model.get_submodule(conv_path), model.get_submodule(norm_path)
    if not (isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)):
        return model
    model = _with(model, conv_path, with_folded_norm(conv, norm))
    return _with(model, norm_path, nn.Identity())


def _normed_convs(model: nn.Module, example: Tensor) -> list[tuple[str, str]]:
    """Return the paths of convolutions and of the batch norms that read their outputs."""
    written: list[tuple[str, Tensor]] = []
    pairs: list[tuple[str, str]] = []

    def watch(stack: ExitStack, path: str, module: nn.Module) -> None:
        def wrote(_module: nn.Module, _args: object, output: Tensor) -> None:
            written.append((path, output))

        def read(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            pairs.extend((conv, path) for conv, output in written if output is args[0])

        if type(module) is nn.Conv2d:
            stack.callback(module.register_forward_hook(wrote).remove)
        if type(module) is nn.BatchNorm2d and module.running_var is not None:
            stack.callback(module.register_forward_pre_hook(read).remove)

    with ExitStack() as stack, torch.no_grad():
        for path, module in model.named_modules():
            watch(stack, path, module)
        model(example)
    convs, norms = [conv for conv, _ in pairs], [norm for _, norm in pairs]
    return [(c, n) for c, n in pairs if convs.count(c) == norms.count(n) == 1]


def _is_centered(conv: nn.Conv2d) -> bool:
    plain = conv.padding_mode == "zeros" and conv.dilation == (1, 1)
    return plain and conv.kernel_size != (1, 1) and slack_of(conv) == (-1, -1)


def _empty_branch(conv: nn.Conv2d) -> nn.Conv2d:
    branch = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        1,
        stride=pair(conv.stride),
        groups=conv.groups,
        bias=False,
    ).to(conv.weight)
    nn.init.zeros_(branch.weight)
    return branch


def _channels_read(parallel: ParallelConvs) -> int:
    for module in parallel.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
        if isinstance(module, nn.BatchNorm2d):
            return module.num_features
    message = "identities alone are no convolution"
    raise StructureError(message)


def _with(model: nn.Module, path: str, module: nn.Module) -> nn.Module:
    """Put a module in the place of another; the network itself has the empty path."""
    if not path:
        return module
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
    return model


def _dtype_of(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


@torch.no_grad()
def _outputs(model: nn.Module, image: Tensor) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(model(image)) if isinstance(leaf, Tensor)]


def _difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    pairs = zip(found, expected, strict=True)
    return max(_relative(mine, wanted) for mine, wanted in pairs)


def _relative(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def _check_equal(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    difference = _difference(found, expected)
    if not difference <= _TOLERANCE:
        message = (
            f"the merged network differs from the one before by {difference:.1e} in double "
            f"precision, more than {_TOLERANCE:.0e}: leave out what makes branches more than a sum"
        )
        raise StructureError(message)

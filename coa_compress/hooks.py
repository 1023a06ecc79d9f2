"""Watching forward passes, by hooks that are always removed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from coa_compress.errors import ModelError


@contextmanager
def captured_outputs(model: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the latest outputs of some modules; the hooks are gone on exit, whatever happens.

    Args:
        model: Any network.
        paths: Dotted paths of the modules to watch.

    Yields:
        A dictionary that each forward pass fills with output tensors by path.

    Raises:
        ModelError: If there is no module of a path.
    """
    outputs: dict[str, Tensor] = {}
    modules = dict(model.named_modules())
    with ExitStack() as stack:
        for path in paths:
            if path not in modules:
                message = f"no module {path!r} in {type(model).__name__}"
                raise ModelError(message)

            def keep(_module: nn.Module, _args: object, output: Tensor, path: str = path) -> None:
                outputs[path] = output

            stack.callback(modules[path].register_forward_hook(keep).remove)
        yield outputs


@contextmanager
def watched_calls(
    model: nn.Module,
    paths: Sequence[str],
    *,
    enter: Callable[[str], None],
    leave: Callable[[str], None],
) -> Iterator[None]:
    """Be told when some modules start and end; the hooks are gone on exit, whatever happens.

    Args:
        model: Any network.
        paths: Dotted paths of the modules to watch; a module of two paths is watched once for each.
        enter: Called with the path before each forward pass of the module.
        leave: Called with the path after it, also when the pass failed.

    Raises:
        ModelError: If there is no module of a path.

    >>> calls: list[str] = []
    >>> net = nn.Sequential(nn.ReLU())
    >>> with watched_calls(net, ["", "0"], enter=calls.append, leave=calls.append):
    ...     _ = net(Tensor([1.0]))
    >>> calls
    ['', '0', '0', '']
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    with ExitStack() as stack:
        for path in paths:
            if path not in modules:
                message = f"no module {path!r} in {type(model).__name__}"
                raise ModelError(message)

            def before(_module: nn.Module, _args: object, path: str = path) -> None:
                enter(path)

            def after(_module: nn.Module, _args: object, _output: object, path: str = path) -> None:
                leave(path)

            stack.callback(modules[path].register_forward_pre_hook(before).remove)
            stack.callback(modules[path].register_forward_hook(after, always_call=True).remove)
        yield


@contextmanager
def assigned_attributes(model: nn.Module) -> Iterator[set[str]]:
    """Collect the attributes that modules are given, such as ``self.scale = ...`` in ``forward``.

    Args:
        model: Any network.

    Yields:
        A set that fills with names such as ``body.0.scale``, a module of two paths by its first.

    >>> class Counting(nn.Module):
    ...     def forward(self, x: Tensor) -> Tensor:
    ...         self.passes = 1
    ...         return x
    >>> net = nn.Sequential(Counting())
    >>> with assigned_attributes(net) as found:
    ...     _ = net(Tensor([1.0]))
    >>> found
    {'0.passes'}
    """
    paths = {id(module): path for path, module in model.named_modules()}
    found: set[str] = set()
    original = nn.Module.__setattr__

    def note(module: nn.Module, name: str, value: Tensor | nn.Module) -> None:
        if id(module) in paths:
            found.add(f"{paths[id(module)]}.{name}".removeprefix("."))
        original(module, name, value)

    nn.Module.__setattr__ = note  # type: ignore[assignment, method-assign]
    try:
        yield found
    finally:
        nn.Module.__setattr__ = original  # type: ignore[method-assign]

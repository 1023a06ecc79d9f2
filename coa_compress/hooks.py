"""Forward hooks that are always removed."""

from collections.abc import Iterator, Sequence
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

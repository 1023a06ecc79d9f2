"""Files of weights: written whole or not at all, and read without running any code."""

import io
import pickle
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PosixPath, WindowsPath
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from coa_compress.atomic import write_atomic
from coa_compress.errors import WeightsError

_TORCH_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".pk", ".pkl")
_WRAPPERS = ("state_dict", "model_state_dict", "params_ema", "params", "model")
"""Where training code keeps the weights, the best first."""
_DEPTH = 4
"""How deep in a file weights are looked for."""
_OUTER = ("_orig_mod.", "module.")
_SCALAR, _ARRAY = np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]
_HARMLESS: list[Any] = [
    *(Namespace, SimpleNamespace, PosixPath, WindowsPath, np.dtype, np.ndarray),
    *{type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdFD"},
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((_ARRAY, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
]
"""What training code keeps beside the weights: making one of these runs no code of a file."""


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors to a safetensors file, atomically.

    Args:
        path: Where.
        tensors: By name; those that share memory are written each for itself.
        metadata: Text to keep in the header.

    Raises:
        WeightsError: If the file cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_tensors(Path(folder) / "a.safetensors", {"w": torch.ones(2)})
    ...     load_tensors(Path(folder) / "a.safetensors")
    {'w': tensor([1., 1.])}
    """
    write_file(path, to_bytes(tensors, metadata))


def to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return tensors as the content of a safetensors file.

    Args:
        tensors: By name; those that share memory are written each for itself.
        metadata: Text to keep in the header.

    >>> from_bytes(Path("a.safetensors"), to_bytes({"w": torch.ones(2)}))
    {'w': tensor([1., 1.])}
    """
    separate: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        memory = plain.untyped_storage().data_ptr()
        separate[name] = plain.clone() if memory in seen else plain
        seen.add(memory)
    return to_safetensors(separate, None if metadata is None else dict(metadata))


def write_file(path: Path, data: bytes | str) -> None:
    """Write a file atomically.

    Raises:
        WeightsError: If it cannot be written; what was there is unchanged.
    """
    try:
        write_atomic(path, data)
    except OSError as error:
        message = f"cannot write {path}: {error.strerror or error}"
        raise WeightsError(message) from None


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read tensors from a safetensors file or a plain PyTorch file, on the CPU.

    Args:
        path: A ``.safetensors`` file, or one of ``torch.save`` that holds a state dict, perhaps
            under ``state_dict``, ``params``, ``model`` or another name.

    Returns:
        Tensors by name.

    Raises:
        WeightsError: If the file is missing, damaged, of another kind, or needs pickle.
    """
    return _all_tensors(Path(path))[0]


def _all_tensors(path: Path) -> list[dict[str, Tensor]]:
    """Return every set of named tensors in a file, the likeliest weights first; at least one."""
    if path.suffix in _TORCH_SUFFIXES:
        content = _read_torch(path)
        found = list(_state_dicts(content))
        if not found:
            keys = f"keys {list(content)[:3]}" if isinstance(content, Mapping) else ""
            held = keys or type(content).__name__
            message = f"{path} holds no tensors by name but {held}: save model.state_dict() instead"
            raise WeightsError(message)
        return found
    if path.suffix == ".safetensors":
        return [from_bytes(path, read_bytes(path))]
    message = f"{path} is no weight file: it must end in .safetensors, .pth or .pt"
    raise WeightsError(message)


def read_bytes(path: Path) -> bytes:
    """Return the content of a file.

    Raises:
        WeightsError: If it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        message = f"cannot read {path}: {error.strerror or error}: check the path and its rights"
        raise WeightsError(message) from None


def from_bytes(path: Path, data: bytes) -> dict[str, Tensor]:
    """Return the tensors in the content of a safetensors file, by name, on the CPU.

    Args:
        path: Where the content is from, for the message.
        data: The content.

    Raises:
        WeightsError: If it is damaged.
    """
    try:
        return from_safetensors(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        message = f"{path} is damaged or no safetensors file ({error}): get or save it again"
        raise WeightsError(message) from None


def _read_torch(path: Path) -> Any:
    data = io.BytesIO(read_bytes(path))
    message = f"{path} is damaged or no weight file: get or save it again"
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(data, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):
            message = (
                f"{path} needs pickle to load, which can run any code: convert it to safetensors "
                f"or save a plain state_dict"
            )
    except (EOFError, RuntimeError, ValueError, KeyError, AttributeError, IndexError):
        pass  # what a damaged file raises depends on where it is damaged
    raise WeightsError(message)


def _state_dicts(content: Any, *, depth: int = _DEPTH) -> Iterator[dict[str, Tensor]]:
    if not isinstance(content, Mapping) or not depth:
        return
    found = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if found:
        yield found
    for name in (*_WRAPPERS, *(name for name in content if name not in _WRAPPERS)):
        yield from _state_dicts(content.get(name), depth=depth - 1)


def load_weights_(model: nn.Module, path: Path) -> None:
    """Load a weight file into a model; every name and shape must fit, or nothing is changed.

    Names may be those of the model inside ``nn.DataParallel`` or ``torch.compile``, of the one
    network that the model wraps, or of something that holds the model beside others, such as a
    module for training. Of several sets of tensors in a file the first that fits is taken.

    Args:
        model: Changed in place.
        path: What ``load_tensors`` reads.

    Raises:
        WeightsError: If the file cannot be read or does not fit, with the first names that
            are missing, unexpected, or of another shape.
    """
    wanted = [name for name, value in model.state_dict().items() if isinstance(value, Tensor)]
    sets = [_renamed(tensors, wanted) for tensors in _all_tensors(Path(path))]
    fitting = (tensors for tensors in sets if set(tensors) == set(wanted))
    nearest = max(sets, key=lambda tensors: len(tensors.keys() & set(wanted)))
    fill_strictly_(model, next(fitting, nearest), path=path)


def _renamed(tensors: dict[str, Tensor], wanted: Sequence[str]) -> dict[str, Tensor]:
    """Return tensors with the names of a model, where these differ by one prefix for all."""
    if set(tensors) == set(wanted):
        return tensors
    for outer in _OUTER:
        if all(name.startswith(outer) for name in tensors):
            tensors = {name.removeprefix(outer): tensor for name, tensor in tensors.items()}
    modules = wanted[0].split(".")[:-1] if wanted else []
    for depth in range(1, len(modules) + 1):
        prefix = ".".join(modules[:depth]) + "."
        if {prefix + name for name in tensors} == set(wanted):
            return {prefix + name: tensor for name, tensor in tensors.items()}
    for prefix in dict.fromkeys(name[: -len(wanted[0])] for name in tensors if _ends(name, wanted)):
        inner = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        if set(inner) == set(wanted):
            return inner
    return tensors


def _ends(name: str, wanted: Sequence[str]) -> bool:
    return bool(wanted) and name.endswith("." + wanted[0])


def fill_strictly_(model: nn.Module, tensors: Mapping[str, Tensor], *, path: Path) -> None:
    """Load tensors into a model; every name and shape must fit, or nothing is changed.

    Args:
        model: Changed in place.
        tensors: By name.
        path: Where they are from, for the message.

    Raises:
        WeightsError: If they do not fit, with the first names that are missing, unexpected, or of
            another shape.
    """
    wanted = {n: t for n, t in model.state_dict().items() if isinstance(t, Tensor)}
    missing = [n for n in wanted if n not in tensors]
    unexpected = [n for n in tensors if n not in wanted]
    differing = [
        f"{n} {tuple(tensors[n].shape)} in the file, {tuple(t.shape)} in the model"
        for n, t in wanted.items()
        if n in tensors and tensors[n].shape != t.shape
    ]
    labelled = (("missing", missing), ("unexpected", unexpected), ("of another shape", differing))
    problems = [_listed(label, names) for label, names in labelled if names]
    if problems:
        message = (
            f"{path} does not fit {type(model).__name__}: {'; '.join(problems)}: use the weights "
            f"of this very network, or build the network they belong to"
        )
        raise WeightsError(message)
    # strict=False only lets pass what is no tensor, all tensors were checked above
    model.load_state_dict(dict(tensors), strict=False)


def _listed(label: str, names: Sequence[str]) -> str:
    more = ", ..." if len(names) > 3 else ""
    return f"{len(names)} {label} ({', '.join(names[:3])}{more})"

"""What clear, foggy and natural images look like to FADE and NIQE: ours, or those of a file."""

import zipfile
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from coa_compress.errors import DataError
from coa_compress.tasks.dehazing.fade import FEATURES, FadeParameters
from coa_compress.tasks.dehazing.image_statistics import Gaussian
from coa_compress.tasks.dehazing.niqe import N_FEATURES

OWN = "reference_statistics.safetensors"
"""The file of our own statistics, which ``benchmarks/fit_measures.py`` makes."""

FADE_FILES = ("natural_fogfree_image_features_ps8.mat", "natural_foggy_image_features_ps8.mat")
"""The files of the authors of FADE, without and with fog, in one folder."""

_PACKAGE = "coa_compress.tasks.dehazing"
# what numpy and scipy raise for files that are cut off, of another kind, or without the names
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)


def own_fade_parameters() -> FadeParameters:
    """Return the FADE parameters that come with this package; values compare only with theirs."""
    values = _own()
    return FadeParameters(_own_gaussian(values, "fade_clear"), _own_gaussian(values, "fade_foggy"))


def own_niqe_reference() -> Gaussian:
    """Return the NIQE reference that comes with this package; values compare only with its own."""
    return _own_gaussian(_own(), "niqe")


def read_fade_parameters(folder: Path) -> FadeParameters:
    """Return the FADE parameters of a folder with the two files of its authors.

    Args:
        folder: Holds ``natural_fogfree_image_features_ps8.mat`` and
            ``natural_foggy_image_features_ps8.mat``.

    Raises:
        DataError: If a file is missing or holds something else.
    """
    clear, foggy = (
        _read(folder / name, (f"mu_{kind}param", f"cov_{kind}param"), len(FEATURES), "FADE")
        for name, kind in zip(FADE_FILES, ("fogfree", "foggy"), strict=True)
    )
    return FadeParameters(clear, foggy)


def read_niqe_reference(path: Path) -> Gaussian:
    """Return the NIQE reference of a file.

    Args:
        path: A ``.npz`` with ``mu_pris_param`` and ``cov_pris_param``, or the ``.mat`` of its
            authors with ``mu_prisparam`` and ``cov_prisparam``.

    Raises:
        DataError: If the file is missing or holds something else.
    """
    names = ("mu_pris_param", "cov_pris_param")
    if path.suffix.lower() == ".mat":
        names = ("mu_prisparam", "cov_prisparam")
    return _read(path, names, N_FEATURES, "NIQE")


def _read(path: Path, names: tuple[str, str], count: int, measure: str) -> Gaussian:
    if not path.is_file():
        message = f"no file {path}: give the {measure} parameters, or null for those built in"
        raise DataError(message)
    try:
        values = _READERS[path.suffix.lower()](path)
        mean, covariance = (np.asarray(values[name], dtype=np.float64) for name in names)
    except _UNREADABLE as error:
        message = (
            f"cannot read {measure} parameters from {path} ({type(error).__name__}: {error}): "
            f"it must be one of {', '.join(_READERS)} with {names[0]} and {names[1]}"
        )
        raise DataError(message) from None
    found = Gaussian(torch.from_numpy(mean).flatten(), torch.from_numpy(covariance))
    _check(found, count, f"the {measure} parameters of {path}")
    return found


def _check(found: Gaussian, count: int, what: str) -> None:
    shapes = (tuple(found.mean.shape), tuple(found.covariance.shape))
    if shapes != ((count,), (count, count)):
        message = f"{what} have shapes {shapes[0]} and {shapes[1]}: {count} features are needed"
        raise DataError(message)
    finite = bool(found.mean.isfinite().all() and found.covariance.isfinite().all())
    if not finite or not torch.allclose(found.covariance, found.covariance.T):
        message = f"{what} are no Gaussian: the covariance must be finite and symmetric"
        raise DataError(message)


def _read_npz(path: Path) -> Mapping[str, np.ndarray]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as values:
        return dict(values)


def _read_mat(path: Path) -> Mapping[str, np.ndarray]:
    from scipy.io import loadmat

    return dict(loadmat(path))


_READERS: dict[str, Callable[[Path], Mapping[str, np.ndarray]]] = {
    ".npz": _read_npz,
    ".mat": _read_mat,
}


@cache
def _own() -> Mapping[str, Tensor]:
    with as_file(files(_PACKAGE) / "weights" / OWN) as path:
        return load_file(path)


def _own_gaussian(values: Mapping[str, Tensor], name: str) -> Gaussian:
    return Gaussian(values[f"{name}_mean"], values[f"{name}_covariance"])

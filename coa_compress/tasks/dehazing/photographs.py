"""Clear photographs that scikit-image and scikit-learn ship inside their packages."""

import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from coa_compress.tasks.dehazing.noise import fractal_noise
from coa_compress.tasks.dehazing.scenes import Scene
from coa_compress.tasks.images import read_levels

_PLACES = {
    "astronaut": ("skimage", "data/astronaut.png", "indoor"),
    "coffee": ("skimage", "data/coffee.png", "indoor"),
    "motorcycle": ("skimage", "data/motorcycle_left.png", "indoor"),
    "flower": ("sklearn", "datasets/images/flower.jpg", "outdoor"),
    "cat": ("skimage", "data/chelsea.png", "indoor"),
    "china": ("sklearn", "datasets/images/china.jpg", "outdoor"),
    "rocket": ("skimage", "data/rocket.jpg", "outdoor"),
}
_DISPARITY = ("skimage", "data/motorcycle_disp.npz")
_SPLITS = {
    "train": ("astronaut", "coffee", "motorcycle", "flower"),
    "validation": ("rocket",),
    "test": ("cat", "china"),
}
_MEDIAN = {"indoor": 1.0, "outdoor": 3.0}
_LUMINANCE = (0.299, 0.587, 0.114)


def photograph_names(split: str) -> tuple[str, ...]:
    """Return the photographs of a split whose files are installed; nothing is ever downloaded.

    Args:
        split: ``train``, ``validation`` or ``test``; no photograph is in two of them.
    """
    return tuple(name for name in _SPLITS[split] if _path(*_PLACES[name][:2]) is not None)


def photograph(name: str) -> Tensor:
    """Return a clear photograph, uint8, shape ``(3, height, width)``."""
    path = _path(*_PLACES[name][:2])
    if path is None:
        raise KeyError(name)
    return read_levels(path)


@cache
def photograph_scenes(split: str) -> tuple[Scene, ...]:
    """Return the photographs of a split with depth: measured where shipped, else plausible."""
    return tuple(_scene(name) for name in photograph_names(split))


def plausible_depth(clear: Tensor, *, domain: str, seed: int) -> Tensor:
    """Return a depth map that suits a photograph without being true.

    A ramp from the near bottom to the far top, shifted by the smoothed luminance (what is bright is
    taken for farther, as sky is) and by smooth noise.

    Args:
        clear: uint8, shape ``(3, height, width)``.
        domain: ``outdoor`` (median 3) or ``indoor`` (median 1).
        seed: Seed of the noise.

    Returns:
        Shape ``(1, height, width)``, above 0.
    """
    height, width = clear.shape[-2:]
    image = clear.float() / 255
    luminance = sum(w * channel for w, channel in zip(_LUMINANCE, image, strict=True))
    small = functional.interpolate(torch.as_tensor(luminance)[None, None], (12, 16), mode="area")
    smooth = functional.interpolate(small, (height, width), mode="bicubic", align_corners=False)
    ramp = torch.linspace(1.0, 0.0, height)[:, None].expand(height, width)
    generator = torch.Generator().manual_seed(seed)
    noise = fractal_noise((height, width), generator, cells=3, octaves=3)
    distance = (1.2 * ramp + 0.8 * smooth[0, 0] + 0.6 * noise).exp()
    return (_MEDIAN[domain] * distance / distance.median())[None]


def _scene(name: str) -> Scene:
    domain = _PLACES[name][2]
    clear = photograph(name)
    disparity = _path(*_DISPARITY) if name == "motorcycle" else None
    if disparity is not None:
        depth = _depth_of_disparity(disparity)
    else:
        depth = plausible_depth(clear, domain=domain, seed=list(_PLACES).index(name))
    return Scene(name, clear, depth.half(), domain)


def _depth_of_disparity(path: Path) -> Tensor:
    with np.load(path) as archive:
        disparity = torch.from_numpy(archive["arr_0"].astype(np.float32))
    known = torch.isfinite(disparity)
    # occluded pixels have no disparity; the far background is the likeliest thing there
    disparity[~known] = disparity[known].quantile(0.1)
    inverse = 1 / disparity.clamp(min=1.0)
    return (_MEDIAN["indoor"] * inverse / inverse.median())[None]


def _path(package: str, inner: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / inner
    return path if path.is_file() else None

"""The simulated real domain: haze made by another process than the one used for training.

No freely shippable real hazy photographs come with the package. These images stand in for them:
the density drifts in space instead of following depth alone, the airlight changes color across
the image, and gamma, sensor noise and JPEG compression follow. Nothing here is a real photograph
of haze except the one clear photograph with natural aerial perspective, which is used as it is.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from coa_compress.tasks.camera import through_jpeg
from coa_compress.tasks.dehazing.noise import fractal_noise
from coa_compress.tasks.dehazing.photographs import photograph, photograph_names, photograph_scenes
from coa_compress.tasks.dehazing.scenes import Scene, scene_pool
from coa_compress.tasks.dice import Dice
from coa_compress.tasks.images import to_levels

_SEEDS = {"train": 11, "validation": 12, "test": 13}
_COUNTS = {"train": 12, "validation": 7, "test": 6}
_AERIAL = "china"


@dataclass(frozen=True, slots=True, eq=False)
class Shot:
    """A built-in image of the real domain.

    Args:
        name: What it is, in honest words.
        image: uint8, shape ``(3, height, width)``.
    """

    name: str
    image: Tensor


@cache
def simulated_real(split: str) -> tuple[Shot, ...]:
    """Return a fixed pool of simulated real hazy images.

    Args:
        split: ``train`` for adaptation, ``validation`` for the gate, ``test`` for the report; no
            scene or photograph is in two of them.

    Returns:
        Photographs first, then rendered scenes.
    """
    as_shot = [
        Shot(f"photograph {name}, as shot", photograph(name))
        for name in photograph_names(split)
        if name == _AERIAL
    ]
    named = [(f"photograph {s.name}", s) for s in photograph_scenes(split) if s.name != _AERIAL]
    named += [
        (f"rendered {scene.name}", scene) for scene in scene_pool(_SEEDS[split], _COUNTS[split])
    ]
    hazed = [
        Shot(f"{name}, simulated haze", hazed_by_drift(scene, seed=100 * _SEEDS[split] + number))
        for number, (name, scene) in enumerate(named)
    ]
    return (*as_shot, *hazed)


def hazed_by_drift(scene: Scene, *, seed: int) -> Tensor:
    """Return a scene in drifting, colored haze, as a cheap camera would store it.

    Args:
        scene: Clear image with depth.
        seed: The same seed gives the same image.

    Returns:
        uint8, shape ``(3, height, width)``.
    """
    dice = Dice(torch.Generator().manual_seed(seed))
    clear, depth = scene.clear.float() / 255, scene.depth.float()
    size = (clear.shape[1], clear.shape[2])
    drift = fractal_noise(size, dice.generator, cells=2, octaves=4).mul(0.45).exp()
    reach = (depth / depth.median()) ** dice.uniform(0.4, 0.9)
    thickness = dice.uniform(0.3, 1.1) * drift * reach
    passed = torch.exp(-thickness)
    linear = clear ** dice.uniform(1.0, 1.6) * dice.uniform(0.8, 1.0)
    hazy = linear * passed + _airlight(size, dice) * (1 - passed)
    shot = hazy.clamp(0, 1) ** dice.uniform(0.7, 1.1)
    grain = torch.randn(shot.shape, generator=dice.generator)
    noisy = shot + dice.uniform(0.003, 0.02) * grain
    return through_jpeg(to_levels(noisy), quality=dice.integer(60, 92))


def _airlight(size: tuple[int, int], dice: Dice) -> Tensor:
    """Return an airlight that goes from one color to another, shape ``(3, height, width)``."""
    brightness = dice.uniform(0.65, 0.95)
    tints = 1 + 0.1 * (2 * torch.rand(2, 3, generator=dice.generator) - 1)
    rows = torch.linspace(0, 1, size[0])[None, :, None]
    first, second = tints[:, :, None, None]
    airlight: Tensor = brightness * (first * (1 - rows) + second * rows)
    return airlight.expand(3, *size).clamp(0, 1)

"""Haze for training: the scattering model, and as many of the options as are asked for."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from coa_compress.settings import UnitInterval, check_ranges
from coa_compress.tasks.camera import (
    in_linear_light,
    random_gamma,
    random_jpeg,
    sensor_noise,
)
from coa_compress.tasks.dehazing.atmosphere import (
    drifting_density,
    uncertain_depth,
    varying_airlight,
)
from coa_compress.tasks.dehazing.haze import add_haze, heavy_haze, sample_haze, transmission
from coa_compress.tasks.dehazing.night import night_scene
from coa_compress.tasks.dice import Dice


@dataclass(frozen=True, slots=True, kw_only=True)
class HazeSettings:
    """Which part of the training crops of scenes each kind of haze, or of camera, is used on.

    With zeros everywhere, haze has one density and one airlight in each image.

    Args:
        heavy: So thick that 2 to 22 % of the light arrives; otherwise light to dense.
        night: Colored lamps, their glow and a dim airlight instead of daylight.
        drift: The density drifts in space.
        airlight: The airlight goes over from one color to another.
        depth_noise: Haze follows a depth that is wrong by some parts of itself.
        gamma: Light is added up before the tone curve of the camera instead of behind it.
        noise: Sensor noise, in the hazy image only.
        jpeg: JPEG compression, of the hazy image only.

    Raises:
        SettingError: If a value is out of range.
    """

    heavy: UnitInterval = 0.0
    night: UnitInterval = 0.0
    drift: UnitInterval = 0.0
    airlight: UnitInterval = 0.0
    depth_noise: UnitInterval = 0.0
    gamma: UnitInterval = 0.0
    noise: UnitInterval = 0.0
    jpeg: UnitInterval = 0.0

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, slots=True, eq=False)
class Air:
    """What is between the camera and a scene.

    Args:
        passed: Transmission, shape ``(1, height, width)``, in ``(0, 1]``.
        airlight: Shape ``(3,)`` or ``(3, height, width)``.
    """

    passed: Tensor
    airlight: Tensor


def hazed(
    clear: Tensor, depth: Tensor, domain: str, settings: HazeSettings, dice: Dice
) -> tuple[Tensor, Tensor]:
    """Return a scene in random haze, and its truth.

    Args:
        clear: Shape ``(3, height, width)``, values in ``[0, 1]``.
        depth: Shape ``(1, height, width)``, from 0.
        domain: ``outdoor``, where depth has a median of about 3, or ``indoor``, about 1.
        settings: How often each option is taken. What is 0 draws no random number.
        dice: The only source of randomness.

    Returns:
        The hazy image and the truth, both of the shape of ``clear``. The truth is ``clear``,
        except by night, where it is lit by the same lamps.

    Raises:
        SettingError: If the domain is neither.
    """
    by_night = _happens(settings.night, dice)
    air = _air(clear, depth, domain, settings, dice)
    if by_night:
        hazy, clear = night_scene(clear, air.passed, dice)
    else:
        hazy = _by_day(clear, air, settings, dice)
    return _shot(hazy, settings, dice), clear


def _air(clear: Tensor, depth: Tensor, domain: str, settings: HazeSettings, dice: Dice) -> Air:
    draw = heavy_haze if _happens(settings.heavy, dice) else sample_haze
    haze = draw(domain, dice.generator)
    size = (clear.shape[1], clear.shape[2])
    if _happens(settings.depth_noise, dice):
        depth = uncertain_depth(depth, dice)
    if _happens(settings.drift, dice):
        depth = depth * drifting_density(size, dice)
    airlight = haze.airlight
    if _happens(settings.airlight, dice):
        airlight = varying_airlight(airlight, size, dice)
    return Air(transmission(depth, haze.beta), airlight)


def _by_day(clear: Tensor, air: Air, settings: HazeSettings, dice: Dice) -> Tensor:
    if not _happens(settings.gamma, dice):
        return add_haze(clear, air.passed, air.airlight)
    gamma = random_gamma(dice)

    def scatter(light: Tensor) -> Tensor:
        return add_haze(light, air.passed, air.airlight**gamma)

    return in_linear_light(clear, scatter, gamma)


def _shot(hazy: Tensor, settings: HazeSettings, dice: Dice) -> Tensor:
    after: tuple[tuple[float, Callable[[Tensor, Dice], Tensor]], ...] = (
        (settings.noise, sensor_noise),
        (settings.jpeg, random_jpeg),
    )
    for part, process in after:
        if _happens(part, dice):
            hazy = process(hazy, dice)
    return hazy


def _happens(part: float, dice: Dice) -> bool:
    return part > 0 and dice.chance(part)

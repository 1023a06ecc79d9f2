"""What can be set about the dehazing task."""

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge

from coa_compress.errors import SettingError
from coa_compress.settings import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    UnitInterval,
    check_ranges,
)
from coa_compress.tasks.dehazing.hazing import HazeSettings

_STRIDE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureSettings:
    """How often each kind of image in the training folders is drawn, relative to the others there.

    Args:
        outdoor: Weight of the outdoor scenes together.
        indoor: Weight of the indoor scenes together: the fewest, and the hardest.
        pairs: Weight of the pairs together.

    Raises:
        SettingError: If a weight is negative.
    """

    outdoor: NonNegativeFloat = 0.3
    indoor: NonNegativeFloat = 0.42
    pairs: NonNegativeFloat = 0.23

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class DehazingSettings:
    """Where the teacher and the images come from, and at which sizes they are used.

    A folder setting is ``builtin``, one folder, several joined by commas, or several in a list.

    Args:
        teacher: ``builtin``, a ``.safetensors`` or ``.pth`` file of a ``HazeUNet``, or ``random``
            for an untrained network.
        train: Folders of pairs (``hazy/`` and ``gt/``) or of scenes (``clear/``, ``depth/`` and
            ``index.csv``).
        real: Folders of real hazy photographs without truth, for adaptation.
        test: Folders of pairs for measurement; real photographs beside them are measured too.
        mixture: How often scenes and pairs of the training folders are drawn. One crop in twenty
            is a built-in one, and every second where ``builtin`` is among the folders.
        crop: Side of a training crop in pixels, a multiple of 16.
        as_shot: Part of the training crops whose exposure is left as it is; the others get a
            random gamma and gain.
        clutter: How many scenes of clutter join the 24 streets, fields and rooms of the built-in
            training scenes.
        haze: Which part of the training crops of scenes is hazed in which way.
        example_size: Height and width at which MACs and latency are counted.
        validation_images: How many images are split off the training data.
        calibration_images: How many crops score and refit the network.
        tile: Images of more than ``tile * tile`` pixels are restored in tiles.
        clip: Architecture and weights of ``open_clip`` for guidance by words, or empty for none.
        clip_prompts: A file of prompts that ``learn_prompts`` made, or empty for none.
        max_test_images: Most images measured in each test split, or None for all.
        fade_parameters: A folder with the two ``.mat`` files of the authors of FADE; None for the
            statistics that come with this package, whose values do not compare with published ones.
        niqe_parameters: The same for NIQE: its ``.mat`` or ``.npz`` file, or None.

    Raises:
        SettingError: If a value is out of range.
    """

    teacher: str = "builtin"
    train: str | tuple[str, ...] = "builtin"
    real: str | tuple[str, ...] = "builtin"
    test: str | tuple[str, ...] = "builtin"
    mixture: MixtureSettings = field(default_factory=MixtureSettings)
    crop: Annotated[int, Ge(32)] = 128
    as_shot: UnitInterval = 0.25
    clutter: NonNegativeInt = 0
    haze: HazeSettings = field(default_factory=HazeSettings)
    example_size: tuple[int, int] = (256, 256)
    validation_images: PositiveInt = 8
    calibration_images: PositiveInt = 64
    tile: Annotated[int, Ge(128)] = 1024
    clip: str = ""
    clip_prompts: str = ""
    max_test_images: PositiveInt | None = None
    fade_parameters: str | None = None
    niqe_parameters: str | None = None

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.crop % _STRIDE:
            nearest = max(32, round(self.crop / _STRIDE) * _STRIDE)
            message = (
                f"DehazingSettings.crop must be a multiple of 16, got {self.crop}: use {nearest}"
            )
            raise SettingError(message)
        if self.clip_prompts and not self.clip:
            message = (
                f"DehazingSettings.clip_prompts is {self.clip_prompts!r} without the encoder they "
                f"belong to: set clip too"
            )
            raise SettingError(message)
        if min(self.example_size) < 1:
            message = (
                "DehazingSettings.example_size must be a height and a width of at least 1, "
                f"got {self.example_size}"
            )
            raise SettingError(message)
